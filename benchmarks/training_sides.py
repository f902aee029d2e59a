"""One training loop for several ways in which a prompt may enter the frozen model.

Of peft_training.py and decomposed_prompt.py: what is compared differs in `Side` alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import (
    Example,
    TextBatch,
    batches_of,
    collate,
    encode_rows,
    target_tensor,
)
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.heads import Head, features
from promptdial.prompts.training.initialise import class_vectors
from promptdial.prompts.training.task import Task

POOLING = "mean_l2"
WARMUP = 0.06


@dataclass(frozen=True)
class Side:
    """One way to run a prompt.

    Attributes:
        hidden: Hidden rows [B, T, H] of the text.
        parameters: What is trained besides the head.
        slower: Of those, what is trained at a share of the rate, and the share.
    """

    hidden: Callable[[TextBatch], Tensor]
    parameters: list[nn.Parameter]
    slower: tuple[list[nn.Parameter], float] = ([], 1.0)

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Groups of an optimiser."""
        slow, share = self.slower
        known = {id(item) for item in slow}
        usual = [item for item in self.parameters if id(item) not in known]
        groups: list[dict[str, Any]] = [{"params": usual, "lr": rate}]
        return [*groups, {"params": slow, "lr": rate * share}] if slow else groups


def fit(
    base: FrozenBase, task: Task, side: Side, rate: float, epochs: int, seed: int
) -> dict[str, Any]:
    """Train a side as PEFT's example does: figures of the epoch that is best on dev.

    Args:
        base: The frozen model.
        task: Rows and labels (classification).
        side: How the prompt enters.
        rate: Peak rate of AdamW, with a linear rise and fall, without clipping.
        epochs: Passes over the training rows.
        seed: Of the order of the rows.
    """
    sets = [
        encode_rows(rows, base.encoder, task.labels, task.template)
        for rows in (task.train, task.dev, task.test)
    ]
    head = Head(class_vectors(base, task, TrainConfig())).to(base.device)
    batch_size = TrainConfig().batch_size
    total = epochs * math.ceil(len(sets[0]) / batch_size)
    groups = [*side.groups(rate), {"params": list(head.parameters()), "lr": rate}]
    optimiser = torch.optim.AdamW(groups)
    rise = WARMUP * total
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(
            step / max(1.0, rise), max(0.0, (total - step) / max(1.0, total - rise))
        ),
    )
    dev, test = -1.0, 0.0
    for epoch in range(epochs):
        # The trainer's own order.
        for indices in batches_of(sets[0], batch_size, seed * 1_000_003 + epoch):
            chosen = [sets[0][index] for index in indices]
            loss = nn.functional.cross_entropy(
                _logits(base, side, head, chosen), target_tensor(chosen, base.device)
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
        found = _accuracy(base, side, head, sets[1])
        if found > dev:
            dev, test = found, _accuracy(base, side, head, sets[2])
    return {
        "dev": dev,
        "test": test,
        "numbers": sum(item.numel() for item in side.parameters),
    }


def _logits(base: FrozenBase, side: Side, head: Head, chosen: list[Example]) -> Tensor:
    batch = collate([example.text for example in chosen], base.device)
    found: Tensor = head(features(side.hidden(batch), batch, POOLING))
    return found


def _accuracy(
    base: FrozenBase, side: Side, head: Head, examples: list[Example]
) -> float:
    right = 0
    with torch.no_grad():
        for indices in batches_of(examples, 64, None):
            chosen = [examples[index] for index in indices]
            best = _logits(base, side, head, chosen).argmax(-1)
            right += int((best == target_tensor(chosen, base.device)).sum())
    return 100.0 * right / len(examples)
