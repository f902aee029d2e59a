"""Whether a prompt's labels are better calibrated by their prior: dev decides.

Sources of calibration stand in runtime/label_prior.py.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptdial.prompts.metadata import NEUTRAL
from promptdial.prompts.training.decoders.decoder_reference import (
    DecoderReader,
    likelihoods,
)
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
        logs: Log-likelihoods [N, C] of those rows, calibrated where that ships.
        targets: [N] right labels.
    """

    neutral: str
    plain: float
    calibrated: float
    rows: int
    logs: NDArray[np.float64]
    targets: NDArray[np.int64]


def choose_calibration(reader: DecoderReader, dev: list[Row]) -> LabelChoice:
    """Accuracy on dev with and without calibration, and which one to ship.

    A task that names its neutral text is calibrated by it. Else calibration must be
    better, not as good: it costs a prior for every prompt.

    Args:
        reader: The base with the trained prompt.
        dev: Rows with labels.

    Raises:
        TextRefused: A text leaves no room for a label.
        PromptRefused: The labels cannot be told apart.
    """
    labels = reader.meta.labels
    own = str(reader.meta.template.get(NEUTRAL, ""))
    neutral = own or NEUTRAL_TEXT
    dev = _spread(dev, max(1, MAX_SCORED // len(labels)))
    prior = likelihoods(reader, neutral)
    logs = torch.stack([likelihoods(reader, row.text) for row in dev])
    gold = [row.label or "" for row in dev]

    def score(values: Tensor) -> float:
        return accuracy(gold, [labels[index] for index in values.argmax(1).tolist()])

    plain, calibrated = score(logs), score(logs - prior)
    better = calibrated > plain
    ships = own or (neutral if better else "")
    if ships:
        logs = logs - prior
    targets = np.array([labels.index(label) for label in gold])
    return LabelChoice(ships, plain, calibrated, len(dev), logs.numpy(), targets)


def _spread(rows: list[Row], most: int) -> list[Row]:
    """At most so many rows, evenly from the whole: a file may be sorted by label."""
    if len(rows) <= most:
        return rows
    return [rows[index * len(rows) // most] for index in range(most)]
