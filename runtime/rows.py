"""Rows of task data: one JSON object a line; the keys say which kind it is."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptdial.prompts.errors import DataInvalid
from promptdial.runtime.text import TextInvalid, check_text

MAX_LINE_CHARS = 1_000_000


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        text: The input; for token rows the words joined by blanks.
        text_pair: The second text of a pair.
        label: The gold label (classification, pair).
        tokens: The words of a token row.
        tags: The gold tags of a token row, one a word.
        positive: The text that belongs to `text` (embedding).
        target: The text to write (generation).
        references: Other texts that are as right as the target (generation).
    """

    text: str
    text_pair: str | None = None
    label: str | None = None
    tokens: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    positive: str | None = None
    target: str | None = None
    references: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Kind of task that a row of this shape belongs to."""
        if self.tokens:
            return "token"
        if self.target is not None:
            return "generation"
        if self.positive is not None:
            return "embedding"
        return "pair" if self.text_pair is not None else "classification"


def read_rows(path: Path, limit: int | None = None) -> list[Row]:
    """Read a .jsonl file; the first `limit` rows where given.

    Raises:
        DataInvalid: The file is missing or empty, or a line is no valid row, or rows
            are of different kinds; the message names file and line.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            rows = parse_rows(lines, path.name, limit)
    except (OSError, UnicodeDecodeError) as error:
        raise DataInvalid(f"{path}: {error}", "give a readable .jsonl file") from None
    if not rows:
        raise DataInvalid(f"{path} has no rows", "give at least one row")
    return rows


def parse_rows(lines: Iterable[str], name: str, limit: int | None = None) -> list[Row]:
    """Parse lines; `name` stands for the file in messages.

    Raises:
        DataInvalid: As `read_rows`.
    """
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if limit is not None and len(rows) >= limit:
            break
        if not line.strip():
            continue
        try:
            row = _row(line)
        except (ValueError, RecursionError) as error:
            raise DataInvalid(
                f"{name} line {number}: {error}",
                "keys: text, label | text, text_pair, label | tokens, tags | "
                "text, positive | text, target",
            ) from None
        if rows and row.kind != rows[0].kind:
            raise DataInvalid(
                f"{name} line {number} is a {row.kind} row, line 1 is {rows[0].kind}",
                "keep one kind of row in a file",
            )
        rows.append(row)
    return rows


def _row(line: str) -> Row:
    if len(line) > MAX_LINE_CHARS:
        raise ValueError(f"{len(line)} characters, at most {MAX_LINE_CHARS}")
    item = json.loads(line)
    if not isinstance(item, dict):
        raise ValueError("not a JSON object")
    if "tokens" in item:
        return _token_row(item)
    label = item.get("label")
    if label is not None and (not isinstance(label, str) or not label):
        raise ValueError(f"label is {label!r}, not a non-empty string")
    # A lone surrogate is a ValueError here, not where the label is printed.
    (label or "").encode("utf-8")
    return Row(
        text=_text(item, "text"),
        text_pair=_text(item, "text_pair") if "text_pair" in item else None,
        label=label,
        positive=_text(item, "positive") if "positive" in item else None,
        target=_text(item, "target") if "target" in item else None,
        references=_references(item),
    )


def _references(item: dict[str, Any]) -> tuple[str, ...]:
    found = item.get("references", [])
    if not isinstance(found, list):
        raise ValueError("references is not a list of texts")
    return tuple(_text({"references": text}, "references") for text in found)


def _token_row(item: dict[str, Any]) -> Row:
    tokens, tags = item["tokens"], item.get("tags", [])
    if not isinstance(tokens, list) or not tokens:
        raise ValueError("tokens is not a list of words")
    for word in tokens:
        check_text(word)
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ValueError("tags is not a list of strings")
    "".join(tags).encode("utf-8")
    if tags and len(tags) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens but {len(tags)} tags")
    return Row(text=" ".join(tokens), tokens=tuple(tokens), tags=tuple(tags))


def _text(item: dict[str, Any], key: str) -> str:
    if key not in item:
        raise ValueError(f"key {key} is missing")
    try:
        check_text(item[key])
    except TextInvalid as error:
        raise ValueError(f"{key}: {error}") from None
    return str(item[key])
