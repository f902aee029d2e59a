"""How labels are compared on the device, in PyTorch, and whether to calibrate them.

Mirrors runtime/label_scoring.py and label_prior.py: the sum of a label's token
log-likelihoods after a text, less the same after the neutral text. Dev decides whether
that helps; sources stand in label_prior.py.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from promptdial.export.forward import PromptState
from promptdial.prompts.metadata import NEUTRAL
from promptdial.prompts.training.batches import batches_of
from promptdial.prompts.training.decoder_base import DecoderBase
from promptdial.prompts.training.generation_rows import (
    collate_generation,
    encode_generation,
)
from promptdial.prompts.training.task import Task
from promptdial.runtime.label_scoring import verbalised
from promptdial.runtime.metrics import accuracy
from promptdial.runtime.rows import Row

NEUTRAL_TEXT = "N/A"
"""Zhao et al.'s, tried where a task names none."""

MAX_SCORED = 8192
"""Labels after texts that the choice may cost: fewer dev rows where labels are many."""


@dataclass(frozen=True)
class LabelChoice:
    """What dev says of calibration.

    Attributes:
        neutral: The neutral text to calibrate by; "" for none.
        plain: Accuracy of the likelihoods, in percent.
        calibrated: Accuracy of the same less the prior.
        rows: Rows of dev that were asked.
    """

    neutral: str
    plain: float
    calibrated: float
    rows: int


def label_likelihoods(
    base: DecoderBase,
    state: PromptState,
    texts: list[str],
    task: Task,
    room: int,
    batch_size: int,
) -> NDArray[np.float64]:
    """Log-likelihood [N, C] of every label of a task after N texts.

    Args:
        base: The decoder.
        state: The prompt, ready to run; empty for none.
        texts: The inputs; the task's template is put around them.
        task: Names the labels.
        room: Tokens that text and label may take; a label that leaves it loses its
            end, where the device would cut the text.
        batch_size: Labels of one pass.

    Raises:
        DataInvalid: A text alone fills the room.
    """
    words = [verbalised(label) for label in task.labels]
    rows = [Row(text, target=word) for text in texts for word in words]
    examples = encode_generation(
        rows, base.encoder, task.template, base.end_token, room
    )
    found = np.zeros(len(examples))
    with torch.no_grad():
        for indices in batches_of(examples, batch_size, None):
            chosen = [examples[index] for index in indices]
            losses = base.losses(collate_generation(chosen, base.device), state)
            counts = [example.weight - example.start for example in chosen]
            # The losses of one batch are a flat list: each label's stand together.
            starts = np.cumsum([0, *counts[:-1]])
            found[indices] = -np.add.reduceat(losses.double().cpu().numpy(), starts)
    return found.reshape(len(texts), len(words))


def choose_calibration(
    base: DecoderBase, state: PromptState, task: Task, room: int, batch_size: int
) -> LabelChoice:
    """Accuracy on dev with and without calibration, and which one to ship.

    A task that names its neutral text is calibrated by it. Else calibration must be
    better, not as good: it costs a prior for every prompt.

    Raises:
        DataInvalid: A text alone fills the room.
    """
    own = str(task.template.get(NEUTRAL, ""))
    neutral = own or NEUTRAL_TEXT
    dev = _spread(task.dev, max(1, MAX_SCORED // len(task.labels)))
    texts = [neutral, *(row.text for row in dev)]
    prior, *logs = label_likelihoods(base, state, texts, task, room, batch_size)
    gold = [row.label or "" for row in dev]

    def score(values: NDArray[np.float64]) -> float:
        return accuracy(gold, [task.labels[index] for index in values.argmax(1)])

    plain, calibrated = score(np.array(logs)), score(np.array(logs) - prior)
    better = calibrated > plain
    return LabelChoice(own or (neutral if better else ""), plain, calibrated, len(dev))


def _spread(rows: list[Row], most: int) -> list[Row]:
    """At most so many rows, evenly from the whole: a file may be sorted by label."""
    if len(rows) <= most:
        return rows
    return [rows[index * len(rows) // most] for index in range(most)]
