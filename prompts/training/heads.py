"""What is read from the hidden states: pooled features and class vectors.

The torch side of runtime/pooling.py, formula by formula; a test compares the two.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from promptdial.export.forward import PromptState
from promptdial.prompts.training.batches import TextBatch
from promptdial.prompts.training.storage import EXACT, Storage

POOLING_OF_KIND = {
    "classification": "mean_l2",
    "pair": "segments_l2",
    "token": "first_token",
    "embedding": "mean_l2",
}
_EPS = 1e-12


class ReadableBase(Protocol):
    """A frozen encoder, as far as heads go."""

    def hidden(self, batch: TextBatch, state: PromptState) -> Tensor:
        """Hidden states [B, T, H] after the last layer."""

    def levels(self, batch: TextBatch, state: PromptState) -> list[Tensor]:
        """What enters each layer and leaves the last: L + 1 of [B, T, H]."""


def features(hidden: Tensor, batch: TextBatch, pooling: str) -> Tensor:
    """Features of a batch.

    Args:
        hidden: [B, T, H].
        batch: The texts; padding never counts.
        pooling: `mean_l2` gives the normalised mean of the text rows [B, H];
            `segments_l2` the product of the two segments' normalised means, times
            sqrt(H) [B, H]; `first_token` the rows of first wordpieces [N, H].
    """
    if pooling == "first_token":
        return hidden[batch.first]
    if pooling == "segments_l2":
        second = batch.mask * batch.type_ids
        one = _mean_l2(hidden, batch.mask - second)
        two = _mean_l2(hidden, second)
        return one * two * math.sqrt(hidden.shape[-1])
    return _mean_l2(hidden, batch.mask)


def _mean_l2(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(hidden.dtype)[..., None]
    mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    length: Tensor = mean.norm(dim=-1, keepdim=True).clamp(min=_EPS)
    return mean / length


class Head(nn.Module):
    """Class vectors [C, M * H], biases [C], and the levels that they read [M, L+1].

    A head without a mix reads the last level alone, and M is 1. Low levels still know
    what the last one has pooled away (ELMo's mix of levels, arXiv:1802.05365).
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, mix: Tensor | None = None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().float())
        start = torch.zeros(weight.shape[0]) if bias is None else bias
        self.bias = nn.Parameter(start.detach().clone().to(self.weight))
        self.mix = None if mix is None else nn.Parameter(mix.detach().clone().float())

    def forward(self, pooled: Tensor, storage: Storage = EXACT) -> Tensor:
        """Logits [N, C] of features [N, M * H], with class vectors as stored."""
        return nn.functional.linear(pooled, storage.vectors(self.weight), self.bias)

    def stored(self, storage: Storage) -> "Head":
        """A copy with the numbers that a blob will hold."""
        return Head(storage.vectors(self.weight.detach()), self.bias, self.mix)


def starting_mix(mixes: int, levels: int) -> Tensor | None:
    """Weights [M, L+1] where the last M levels are read as they are; None for M = 0.

    Args:
        mixes: M; all levels where it is more than there are.
        levels: L + 1.
    """
    return torch.eye(levels)[levels - min(mixes, levels) :] if mixes else None


def read(
    base: ReadableBase,
    batch: TextBatch,
    state: PromptState,
    pooling: str,
    mix: Tensor | None,
) -> Tensor:
    """Features [N, M * H] of texts over a prompt.

    Args:
        base: The frozen model.
        batch: The texts.
        state: The prompt, ready to run.
        pooling: As `features`.
        mix: Weights of the levels [M, L+1]; None for the last level alone (M = 1).
    """
    if mix is None:
        return features(base.hidden(batch, state), batch, pooling)
    levels = torch.stack(base.levels(batch, state))
    mixed = torch.tensordot(mix, levels, 1)
    return torch.cat([features(level, batch, pooling) for level in mixed], dim=-1)
