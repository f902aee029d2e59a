"""Rows of generation tasks to tensors: the text, then the target, then the end."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.training.batches import encode_text
from promptdial.runtime.rows import Row
from promptdial.runtime.text import TextEncoder


@dataclass(frozen=True)
class GenerationExample:
    """One encoded row.

    Attributes:
        ids: [T] tokens of text, target and end.
        start: Index of the target's first token.
        truncated: Whether the target was cut.
    """

    ids: tuple[int, ...]
    start: int
    truncated: bool

    @property
    def weight(self) -> int:
        """Length in tokens."""
        return len(self.ids)


@dataclass(frozen=True)
class GenerationBatch:
    """B padded rows.

    Attributes:
        ids: [B, T] tokens of text and target.
        mask: [B, T], 1 for tokens and 0 for padding on the right.
        wanted: [B, T], True on the target's tokens, the end included.
    """

    ids: Tensor
    mask: Tensor
    wanted: Tensor


def encode_generation(
    rows: list[Row],
    encoder: TextEncoder,
    template: dict[str, str],
    end_token: int | None,
    room: int,
) -> list[GenerationExample]:
    """Encode rows as the runtime will see them: the text alone, then what is written.

    Args:
        rows: Of kind generation.
        encoder: The base's.
        template: Texts around the input.
        end_token: Put behind every target; None for none.
        room: Tokens that text and target may take. A target that is too long loses its
            end, and no end token is learned from it.

    Raises:
        DataInvalid: A text alone fills the room.
    """
    examples = []
    for row in rows:
        text = encode_text(encoder, row.text, None, template)
        target = encoder.token_ids(row.target or "")
        if end_token is not None:
            target = [*target, end_token]
        ids = [*text.ids.tolist(), *target]
        if len(text) >= room:
            raise DataInvalid(
                f"text {row.text[:32]!r} of {len(text)} tokens leaves no room for its "
                f"target in {room}",
                "shorten it",
            )
        example = GenerationExample(tuple(ids[:room]), len(text), len(ids) > room)
        examples.append(example)
    return examples


def collate_generation(
    examples: list[GenerationExample], device: torch.device
) -> GenerationBatch:
    """Pad rows to the longest one."""
    shape = (len(examples), max(example.weight for example in examples))
    ids, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    wanted = np.zeros(shape, bool)
    for row, example in enumerate(examples):
        length = example.weight
        ids[row, :length] = example.ids
        mask[row, :length] = 1
        wanted[row, example.start : length] = True
    tensors = [torch.from_numpy(item).to(device) for item in (ids, mask, wanted)]
    return GenerationBatch(*tensors)
