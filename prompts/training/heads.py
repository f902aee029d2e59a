"""What is read from the hidden states: pooled features and class vectors.

The torch side of runtime/pooling.py, formula by formula; a test compares the two.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from promptdial.export.forward import PromptState
from promptdial.prompts.metadata import APART
from promptdial.prompts.training.batches import TextBatch
from promptdial.prompts.training.config import PAIRS_APART, TrainConfig
from promptdial.prompts.training.storage import EXACT, Storage

_POOLING_OF_KIND = {
    "classification": "mean_l2",
    "pair": "segments_l2",
    "token": "first_token",
    "embedding": "mean_l2",
}
KINDS = frozenset(_POOLING_OF_KIND)
"""Kinds that an encoder answers."""

POOLED_KINDS = ("classification", "pair")
"""Kinds whose head reads one feature of all rows of a text: they can be weighed."""

_EPS = 1e-12


def pooling_of(kind: str, config: TrainConfig) -> str:
    """How features of a kind of task are read, by name.

    Args:
        kind: One of KINDS.
        config: For `pairs`.
    """
    apart = kind == "pair" and config.pairs == PAIRS_APART
    return APART if apart else _POOLING_OF_KIND[kind]


class ReadableBase(Protocol):
    """A frozen encoder, as far as heads go."""

    def hidden(self, batch: TextBatch, state: PromptState) -> Tensor:
        """Hidden states [B, T, H] after the last layer."""

    def levels(self, batch: TextBatch, state: PromptState) -> list[Tensor]:
        """What enters each layer and leaves the last: L + 1 of [B, T, H]."""


def features(
    hidden: Tensor, batch: TextBatch, pooling: str, query: Tensor | None = None
) -> Tensor:
    """Features of a batch.

    Args:
        hidden: [B, T, H].
        batch: The texts; padding never counts.
        pooling: `mean_l2` gives the normalised mean of the text rows [B, H];
            `segments_l2` the product of the two segments' normalised means, times
            sqrt(H) [B, H]; `apart_l2`, of 2 B texts as `collate` puts them, product and
            distance of the two normalised means in every dimension, times sqrt(H)
            [B, 2 H]; `first_token` the rows of first wordpieces [N, H].
        query: What the rows of a mean are weighed by [H]: the softmax, over the rows
            that count, of their products with it; None for equal weights.
    """
    if pooling == "first_token":
        return hidden[batch.first]
    if pooling == APART:
        return _compared(*_mean_l2(hidden, batch.mask, query).chunk(2))
    if pooling == "segments_l2":
        second = batch.mask * batch.type_ids
        one = _mean_l2(hidden, batch.mask - second, query)
        two = _mean_l2(hidden, second, query)
        return one * two * math.sqrt(hidden.shape[-1])
    return _mean_l2(hidden, batch.mask, query)


def _compared(one: Tensor, two: Tensor) -> Tensor:
    """Product and distance [..., 2 H] of features [..., H] of length 1."""
    both = torch.cat([one * two, (one - two).abs()], dim=-1)
    return both * math.sqrt(one.shape[-1])


def _mean_l2(hidden: Tensor, mask: Tensor, query: Tensor | None) -> Tensor:
    weights = mask.to(hidden.dtype)
    if query is not None:
        # The least number instead of infinity: a text of no rows stays finite.
        least = torch.finfo(hidden.dtype).min
        scores = (hidden @ query).masked_fill(mask == 0, least)
        weights = scores.softmax(1) * weights
    weights = weights[..., None]
    total = weights.sum(1).clamp(min=1 if query is None else _EPS)
    mean = (hidden * weights).sum(1) / total
    length: Tensor = mean.norm(dim=-1, keepdim=True).clamp(min=_EPS)
    return mean / length


class Head(nn.Module):
    """Class vectors [C, M * H], biases [C], and what they read.

    H stands for what `features` gives of one level, 2 H of the base's where pairs are
    read apart.

    A head without a mix [M, L+1] reads the last level alone, and M is 1. Low levels
    still know what the last one has pooled away (ELMo's mix of levels,
    arXiv:1802.05365). Queries [M, H] weigh the rows of each mixed level, so that the
    words that decide count for more than the rest; zeros weigh them all alike
    (attention pooling with a learned query, Yang et al. 2016, "Hierarchical Attention
    Networks for Document Classification").
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        mix: Tensor | None = None,
        query: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().float())
        start = torch.zeros(weight.shape[0]) if bias is None else bias
        self.bias = nn.Parameter(start.detach().clone().to(self.weight))
        self.mix = None if mix is None else nn.Parameter(mix.detach().clone().float())
        self.query = None
        if query is not None:
            self.query = nn.Parameter(query.detach().clone().float())

    def forward(self, pooled: Tensor, storage: Storage = EXACT) -> Tensor:
        """Logits [N, C] of features [N, M * H], with class vectors as stored."""
        return nn.functional.linear(pooled, storage.vectors(self.weight), self.bias)

    def stored(self, storage: Storage) -> "Head":
        """A copy with the numbers that a blob will hold."""
        query = None if self.query is None else storage.halves(self.query.detach())
        vectors = storage.vectors(self.weight.detach())
        return Head(vectors, self.bias, self.mix, query)


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
    head: Head | None,
) -> Tensor:
    """Features [N, M * H] of texts over a prompt.

    Args:
        base: The frozen model.
        batch: The texts.
        state: The prompt, ready to run.
        pooling: As `features`.
        head: For its mix and queries; None for the mean of the last level (M = 1).
    """
    mix, query = (None, None) if head is None else (head.mix, head.query)
    if pooling == APART:
        # Each half by itself: beside a long text, a short one is mostly padding.
        one, two = (
            pooled(mixed_levels(base, half, state, mix), half, "mean_l2", query)
            for half in batch.halves()
        )
        shape = (len(one), 1 if mix is None else len(mix), -1)
        return _compared(one.view(shape), two.view(shape)).flatten(1)
    return pooled(mixed_levels(base, batch, state, mix), batch, pooling, query)


def mixed_levels(
    base: ReadableBase, batch: TextBatch, state: PromptState, mix: Tensor | None
) -> Tensor:
    """What a head reads of texts, before pooling [M, B, T, H].

    Args:
        base: The frozen model.
        batch: The texts.
        state: The prompt, ready to run.
        mix: Weights of the levels [M, L+1]; None for the last level alone (M = 1).
    """
    if mix is None:
        return base.hidden(batch, state)[None]
    mixed: Tensor = torch.tensordot(mix, torch.stack(base.levels(batch, state)), 1)
    return mixed


def pooled(
    levels: Tensor, batch: TextBatch, pooling: str, query: Tensor | None
) -> Tensor:
    """Features [N, M * H] of mixed levels [M, B, T, H], with queries [M, H] or none."""
    queries = [None] * len(levels) if query is None else list(query)
    found = [
        features(level, batch, pooling, one)
        for level, one in zip(levels, queries, strict=True)
    ]
    return torch.cat(found, dim=-1)
