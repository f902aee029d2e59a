"""Alternating measurements: every candidate once a round, medians with spread."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Times of one candidate, in milliseconds.

    Attributes:
        p50: Median.
        low: 25th percentile.
        high: 75th percentile.
        p99: 99th percentile.
    """

    p50: float
    low: float
    high: float
    p99: float

    def __str__(self) -> str:
        return f"{self.p50:.3f} ms ({self.low:.3f}-{self.high:.3f}, p99 {self.p99:.3f})"


def spread(seconds: list[float]) -> Spread:
    """Percentiles of a list of times in seconds."""
    ms = 1e3 * np.array(seconds)
    low, p50, high, p99 = np.percentile(ms, [25, 50, 75, 99])
    return Spread(float(p50), float(low), float(high), float(p99))


def alternate(
    candidates: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, Spread]:
    """Run all candidates in turn; the order is reversed every other round."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for number in range(rounds):
        names = list(candidates)
        if number % 2:
            names.reverse()
        for name in names:
            started = time.perf_counter()
            candidates[name]()
            times[name].append(time.perf_counter() - started)
    return {name: spread(values) for name, values in times.items()}
