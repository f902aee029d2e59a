"""The linear probe whose head weighs the rows of a text: fitted on frozen features.

What one pass over the rows gives is kept, so that every epoch after it costs next to
nothing. It is a blob of its own (method `probe`), and the best start of a deep prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from promptdial.export.forward import PromptState
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import (
    Example,
    TextBatch,
    batches_of,
    collate,
    target_tensor,
)
from promptdial.prompts.training.heads import Head, mixed_levels, pooled
from promptdial.prompts.training.step import make_schedule

Item = TypeVar("Item")

EPOCHS = 10
BATCH = 64
RATES = {"vectors": 5e-2, "queries": 1e-2}
_WEIGHT_DECAY = 1e-4
_MOST_BYTES = 2_000_000_000
"""Of kept rows: where there are more, the first ones have to do."""


@dataclass(frozen=True)
class _Kept:
    """Hidden rows of texts.

    Attributes:
        examples: The texts.
        rows: Of each, and of each of its passes, [M, T, H] in float16.
    """

    examples: Sequence[Example]
    rows: Sequence[Sequence[Tensor]]

    def batch(self, indices: list[int], base: FrozenBase) -> tuple[Tensor, TextBatch]:
        """Rows [M, B, T, H] of some of the texts, padded, and the texts themselves."""
        texts = collate([self.examples[i].text for i in indices], base.device)
        levels, _, width = self.rows[indices[0]][0].shape
        rows = torch.zeros(levels, *texts.mask.shape, width, device=base.device)
        for place, own in enumerate(_in_order([self.rows[index] for index in indices])):
            rows[:, place, : own.shape[1]] = own
        return rows, texts


def fit_weighed_probe(
    base: FrozenBase,
    train: Sequence[Example],
    dev: Sequence[Example],
    start: Head,
    pooling: str,
    state: PromptState,
    seed: int,
) -> Head:
    """Class vectors and queries that are best on dev; the mix stays as it is.

    Args:
        base: The frozen model.
        train: Encoded rows.
        dev: The same.
        start: For its mix and the sizes of its parts.
        pooling: As promptdial.prompts.training.heads.features.
        state: The prompt that the texts are read over; empty for none.
        seed: Of the order of the rows.
    """
    assert start.query is not None
    kept = _keep(base, train, start.mix, state)
    judged = _keep(base, dev, start.mix, state)
    head = Head(
        torch.zeros_like(start.weight),
        torch.zeros_like(start.bias),
        start.mix,
        torch.zeros_like(start.query),
    )
    batches = list(batches_of(kept.examples, BATCH, seed))
    optimiser, schedule = _optimiser(head, EPOCHS * len(batches))
    best, best_right = head, -1
    for epoch in range(EPOCHS):
        order = np.random.default_rng((seed, epoch)).permutation(len(batches))
        for chosen in (batches[index] for index in order):
            wanted = target_tensor([kept.examples[i] for i in chosen], base.device)
            logits = _logits(head, *kept.batch(chosen, base), pooling)
            loss = nn.functional.cross_entropy(logits, wanted)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        right = _right(head, judged, base, pooling)
        if right > best_right:
            best = Head(head.weight, head.bias, head.mix, head.query)
            best_right = right
    return best


def _keep(
    base: FrozenBase,
    examples: Sequence[Example],
    mix: Tensor | None,
    state: PromptState,
) -> _Kept:
    """One pass over the texts, as many as fit."""
    levels = 1 if mix is None else len(mix)
    size = 2 * levels * base.dims.hidden
    ends = np.cumsum([size * len(item.text) for item in examples])
    some = list(examples[: max(1, int((ends <= _MOST_BYTES).sum()))])
    rows: list[list[Tensor]] = [[] for _ in some]
    with torch.no_grad():
        for indices in batches_of(some, BATCH, None):
            chosen = [some[i].text for i in indices]
            texts = collate(chosen, base.device)
            mixed = mixed_levels(base, texts, state, mix)
            lengths = _in_order([[len(it) for it in text.passes] for text in chosen])
            for place, length in enumerate(lengths):
                own = mixed[:, place, :length].half().clone()
                rows[indices[place % len(indices)]].append(own)
    return _Kept(some, rows)


def _in_order(passes: Sequence[Sequence[Item]]) -> list[Item]:
    """What texts have for each of their passes, in the order of a batch's rows."""
    return [one for column in zip(*passes, strict=True) for one in column]


def _optimiser(
    head: Head, steps: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    assert head.query is not None
    optimiser = torch.optim.AdamW(
        [
            {
                "params": [head.weight, head.bias],
                "lr": RATES["vectors"],
                "weight_decay": _WEIGHT_DECAY,
            },
            {"params": [head.query], "lr": RATES["queries"], "weight_decay": 0.0},
        ]
    )
    return optimiser, make_schedule(optimiser, steps, warmup=0.0)


def _logits(head: Head, rows: Tensor, texts: TextBatch, pooling: str) -> Tensor:
    found: Tensor = head(pooled(rows, texts, pooling, head.query))
    return found


def _right(head: Head, kept: _Kept, base: FrozenBase, pooling: str) -> int:
    """How many texts get their label."""
    right = 0
    with torch.no_grad():
        for indices in batches_of(kept.examples, BATCH, None):
            wanted = target_tensor([kept.examples[i] for i in indices], base.device)
            found = _logits(head, *kept.batch(indices, base), pooling).argmax(-1)
            right += int((found == wanted).sum())
    return right
