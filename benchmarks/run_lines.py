"""Lines of JSON, one a run: a stopped benchmark goes on behind those that are there."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Line = dict[str, Any]


def read_lines(path: Path | None) -> list[Line]:
    """Those of a file; none where there is no file."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def add_line(path: Path | None, line: Line) -> None:
    """Write one behind the others; nothing where no file is kept."""
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def is_there(wanted: Line, lines: Iterable[Line]) -> bool:
    """Whether a line has all of what is wanted, whatever else it has."""
    return any(wanted.items() <= line.items() for line in lines)
