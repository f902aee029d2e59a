"""What a prompt's answers look like, without their texts: histograms, and their shift.

A blob brings those of its dev rows (`reference` in its metrics), a device counts its
own. Where the two differ, the device's texts are others than those that the prompt was
made for: a threshold fitted on dev, and the accuracy measured there, say little then.

The distance is the population stability index (PSI): the sum over bins of
(p - q) ln(p / q), zero where they are alike. From n and m values of one distribution
with k bins it is about (1/n + 1/m) times a chi-squared variable of k - 1 degrees of
freedom (Yurdakul and Naranjo 2020, Statistical properties of the population stability
index), so a shift must be large by the usual rule, and beyond what chance gives.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = "confidence"
TOKENS = "tokens"

EDGES: dict[str, tuple[float, ...]] = {
    # Classifiers are sure most of the time: narrow bins where most answers are.
    CONFIDENCE: (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99),
    # By half octaves: a length that doubles moves by two bins, wherever it was.
    TOKENS: (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512),
}
"""Where the next bin begins. Never changed: blobs and devices meet years apart."""

REFERENCE = "reference"
"""Key of a blob's metrics. Readers from before it take any metric, and so take it."""

LARGE = 0.25
"""PSI of a shift that matters, by the usual rule (below 0.1 there is none)."""

LEAST_ANSWERS = 200
"""Answers below which nothing is said."""

_LEAST_ROWS = 50
"""Dev rows below which a reference says too little."""

_SIGMAS = 3.09
"""One false alarm in a thousand looks, of those that are large at all."""

_SMOOTHING = 0.5
"""Added to every bin: an empty one would be infinitely far from any other."""

_MOST = 10**9


@dataclass(frozen=True)
class Distance:
    """How far one histogram is from another.

    Attributes:
        psi: The population stability index.
        chance: What it may be by chance alone, but once in a thousand looks.
        higher: Whether the values went up, as far as they went anywhere.
    """

    psi: float
    chance: float
    higher: bool

    @property
    def is_shift(self) -> bool:
        """Whether it is large, and more than chance."""
        return self.psi > max(LARGE, self.chance)


def bin_of(name: str, value: float) -> int:
    """The bin of a value."""
    return bisect_right(EDGES[name], value)


def histogram(name: str, values: Sequence[float]) -> list[int]:
    """Numbers of values by bin."""
    found = [0] * (len(EDGES[name]) + 1)
    for value in values:
        found[bin_of(name, value)] += 1
    return found


def reference(
    confidences: Sequence[float], tokens: Sequence[int]
) -> dict[str, list[int]]:
    """The object of a blob's metrics, of dev rows; empty for none.

    Args:
        confidences: Of the answers that have one.
        tokens: Length of every input.
    """
    of = {CONFIDENCE: confidences, TOKENS: tokens}
    return {name: histogram(name, values) for name, values in of.items() if values}


def reference_of(metrics: Mapping[str, Any]) -> dict[str, list[int]]:
    """What a blob's metrics bring; what is no histogram of ours is left out."""
    found = metrics.get(REFERENCE)
    if not isinstance(found, dict):
        return {}
    return {name: found[name] for name in EDGES if _is_histogram(name, found.get(name))}


def distance(reference: Sequence[float], found: Sequence[float]) -> Distance | None:
    """How far values are from a reference; None where there are too few to say."""
    rows, answers = sum(reference), sum(found)
    if rows < _LEAST_ROWS or answers < LEAST_ANSWERS:
        return None
    bins = [(a, b) for a, b in zip(reference, found, strict=True) if a or b]
    extra = _SMOOTHING * len(bins)
    psi = drift = 0.0
    for place, (before, now) in enumerate(bins):
        q = (before + _SMOOTHING) / (rows + extra)
        p = (now + _SMOOTHING) / (answers + extra)
        psi += (p - q) * math.log(p / q)
        drift += place * (p - q)
    chance = (1 / rows + 1 / answers) * _chi_squared(len(bins) - 1)
    return Distance(psi, chance, drift > 0)


def _chi_squared(freedom: int) -> float:
    """The quantile at _SIGMAS (Wilson and Hilferty 1931)."""
    if freedom < 1:
        return 0.0
    part = 2 / (9 * freedom)
    return freedom * (1 - part + _SIGMAS * math.sqrt(part)) ** 3


def _is_histogram(name: str, found: object) -> bool:
    return (
        isinstance(found, list)
        and len(found) == len(EDGES[name]) + 1
        and all(type(count) is int and 0 <= count < _MOST for count in found)
    )
