"""Rows to padded tensors: encoded once, put in batches of similar length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from promptdial.prompts.metadata import APART
from promptdial.runtime.rows import Row
from promptdial.runtime.text import Encoded, TextEncoder

IGNORED = -100
"""Target of a token that is no first wordpiece (PyTorch's ignore_index)."""

_BUCKETS = 50
"""Batches sorted by length together: little padding, order still random."""


@dataclass(frozen=True)
class TextBatch:
    """B padded texts.

    Attributes:
        ids: [B, T] token ids.
        type_ids: [B, T] segments.
        mask: [B, T], 1 for text and 0 for padding.
        first: [B, T], True on the first wordpiece of every word.
    """

    ids: Tensor
    type_ids: Tensor
    mask: Tensor
    first: Tensor

    def halves(self) -> tuple["TextBatch", "TextBatch"]:
        """The first B and the second B of 2 B texts, each padded to its own longest."""
        count = len(self.mask) // 2
        return self._some(slice(0, count)), self._some(slice(count, None))

    def _some(self, rows: slice) -> "TextBatch":
        longest = int(self.mask[rows].sum(1).max())
        parts = (self.ids, self.type_ids, self.mask, self.first)
        return TextBatch(*(part[rows, :longest] for part in parts))


@dataclass(frozen=True)
class Example:
    """One encoded row.

    Attributes:
        text: The encoded input.
        target: Class index, or one index a word (token), or -1 for none.
        positive: The encoded positive (embedding).
        weight: Cost in tokens, for sorting.
    """

    text: Encoded
    target: int | tuple[int, ...]
    positive: Encoded | None = None

    @property
    def weight(self) -> int:
        """Length in tokens of all it holds."""
        return len(self.text) + (len(self.positive) if self.positive else 0)


def encode_text(
    encoder: TextEncoder,
    text: str,
    text_pair: str | None,
    template: dict[str, str],
    pooling: str = "",
) -> Encoded:
    """Encode an input with the template's texts around it, as the runtime does.

    Args:
        encoder: Text to tokens.
        text: The input.
        text_pair: The second text of a pair.
        template: Texts `before` and `after` the input.
        pooling: `apart_l2` keeps the two texts of a pair apart; "" and all others
            make them one.
    """
    around = template.get("before", "") + text + template.get("after", "")
    if pooling == APART and text_pair is not None:
        return encoder.encode_apart(around, text_pair)
    return encoder.encode(around, text_pair)


def encode_rows(
    rows: list[Row],
    encoder: TextEncoder,
    labels: tuple[str, ...],
    template: dict[str, str],
    pooling: str = "",
) -> list[Example]:
    """Encode rows; targets are indices into `labels`, the others as `encode_text`."""
    index = {label: number for number, label in enumerate(labels)}
    examples = []
    for row in rows:
        if row.tokens:
            tags = tuple(index.get(tag, IGNORED) for tag in row.tags)
            examples.append(Example(encoder.encode_words(list(row.tokens)), tags))
            continue
        encoded = encode_text(encoder, row.text, row.text_pair, template, pooling)
        target = index.get(row.label, -1) if row.label is not None else -1
        positive = None
        if row.positive is not None:
            positive = encode_text(encoder, row.positive, None, template)
        examples.append(Example(encoded, target, positive))
    return examples


def collate(texts: list[Encoded], device: torch.device) -> TextBatch:
    """Pad texts to the longest one.

    Args:
        texts: B of them. Pairs that are read apart give 2 B rows: all first texts, then
            all second ones.
        device: Where to.
    """
    rows = [
        text
        for column in zip(*(it.passes for it in texts), strict=True)
        for text in column
    ]
    shape = (len(rows), max(len(text) for text in rows))
    ids, types = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    mask, first = np.zeros(shape, np.int64), np.zeros(shape, bool)
    for row, text in enumerate(rows):
        length = len(text)
        ids[row, :length] = text.ids
        types[row, :length] = text.type_ids
        mask[row, :length] = 1
        first[row, :length] = first_pieces(text)
    to_tensor = [
        torch.from_numpy(item).to(device) for item in (ids, types, mask, first)
    ]
    return TextBatch(*to_tensor)


def first_pieces(text: Encoded) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """[T] True where a token begins a word."""
    before = np.concatenate([[-1], text.words[:-1]])
    return np.asarray((text.words >= 0) & (text.words != before))


def target_tensor(examples: list[Example], device: torch.device) -> Tensor:
    """Targets [B], or for token rows [N] over the first wordpieces of the batch."""
    flat: list[int] = []
    for example in examples:
        if isinstance(example.target, int):
            flat.append(example.target)
        else:
            # By word index: a word may be cut off by the window, or have no token.
            words = example.text.words[first_pieces(example.text)]
            flat.extend(example.target[int(word)] for word in words)
    return torch.tensor(flat, dtype=torch.long, device=device)


class Weighted(Protocol):
    """An encoded row of any task."""

    @property
    def weight(self) -> int:
        """Length in tokens of all it holds."""


def batches_of(
    examples: Sequence[Weighted], batch_size: int, seed: int | None
) -> Iterator[list[int]]:
    """Indices of the rows of each batch.

    Args:
        examples: The rows.
        batch_size: B.
        seed: Shuffles; the same seed gives the same order. None sorts by length.
    """
    if seed is None:
        order = sorted(range(len(examples)), key=lambda i: examples[i].weight)
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]
        return
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(examples))
    span = batch_size * _BUCKETS
    groups: list[list[int]] = []
    for start in range(0, len(shuffled), span):
        part = [int(i) for i in shuffled[start : start + span]]
        part.sort(key=lambda i: examples[i].weight)
        groups += [part[at : at + batch_size] for at in range(0, len(part), batch_size)]
    for group in rng.permutation(len(groups)):
        yield groups[int(group)]
