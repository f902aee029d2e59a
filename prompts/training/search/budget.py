"""A stated wall time, and what it buys: rows and epochs fitted into seconds.

Arithmetic over measured numbers (pace.py); nothing here looks at a metric.
"""

import math
import re
from dataclasses import dataclass

from promptdial.prompts.errors import UsageError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TEXT = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)([smh])")
MIN_SECONDS, MAX_SECONDS = 1.0, 7 * 24 * 3600.0
SEARCH_SHARE = 0.4
"""Of the budget, for comparing; the rest trains the winner to the end."""
STOP_SHARE = 0.55
"""Of the budget: no trial is begun later than this, whatever the plan was."""
DEV_SHARE = 0.25
"""Of a run's time, for looking at dev; with less time, at fewer rows of it."""
MARGIN = 0.9
"""Of what is left is planned with: measured steps are a guess at later ones."""
MAX_EPOCHS = 15
MAX_TRIAL_EPOCHS = 6
MIN_TRIAL_STEPS = 10
"""Shorter trials tell the rates of the first steps from each other, and no more."""
_DEV_PASSES = 3
"""Of a run besides its epochs: without a prompt, and twice for the probe."""
_PACK_PASSES = 4
"""Over dev for the blob: with the prompt, without it, its metric, golden inputs."""


def parse_budget(text: str) -> float:
    """Seconds of `30s`, `2m`, `1.5h`.

    Raises:
        UsageError: It is no such time, or out of range.
    """
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"budget is {text!r}", "give a time such as 30s, 2m or 1h")
    seconds = float(found[1]) * _UNITS[found[2]]
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:
        raise UsageError(f"budget is {text!r}", "allowed: 1s to 168h")
    return seconds


@dataclass(frozen=True)
class Pace:
    """What work costs on this machine.

    Attributes:
        step: Seconds a row of a training step.
        forward: Seconds a row of a pass without gradients.
        probe: Seconds a row of fitting the linear probe.
    """

    step: float
    forward: float
    probe: float = 0.0

    def run(self, rows: int, dev: int, epochs: int) -> float:
        """Seconds of a whole run, its probe and its blob included."""
        after = self.forward * _PACK_PASSES * dev
        return self.prepare(rows, dev) + self.trial(rows, dev, epochs) + after

    def prepare(self, rows: int, dev: int) -> float:
        """Seconds of the features without a prompt, and of the probe on them."""
        return self.forward * (rows + _DEV_PASSES * dev) + self.probe * rows

    def trial(self, rows: int, dev: int, epochs: int) -> float:
        """Seconds of the epochs alone, each with its look at dev."""
        return epochs * (self.step * rows + self.forward * dev)


def most_epochs(pace: Pace, seconds: float, rows: int, dev: int, limit: int) -> int:
    """Epochs of a whole run that fit, at least one and at most `limit`."""
    fixed = pace.run(rows, dev, 0)
    each = pace.trial(rows, dev, 1)
    return max(1, min(limit, int((seconds - fixed) / each)))


def most_rows(pace: Pace, seconds: float, rows: int, dev: int) -> int:
    """Training rows of a whole run of one epoch that fit, at least one."""
    fixed = pace.run(0, dev, 1)
    each = pace.run(1, dev, 1) - fixed
    return max(1, min(rows, int((seconds - fixed) / each)))


def dev_rows(pace: Pace, seconds: float, dev: int) -> int:
    """Dev rows that one look, with the passes around a run, may cost."""
    passes = _DEV_PASSES + _PACK_PASSES + 1
    fit = int(DEV_SHARE * seconds / (passes * pace.forward))
    return max(1, min(dev, fit))


@dataclass(frozen=True)
class Rung:
    """One round of successive halving.

    Attributes:
        candidates: How many are alive.
        rows: Training rows of each trial.
        epochs: Passes over them.
    """

    candidates: int
    rows: int
    epochs: int


@dataclass(frozen=True)
class Plan:
    """A search that fits.

    Attributes:
        dev: Dev rows that trials are compared on.
        rungs: Rounds; empty where there is no time to compare.
    """

    dev: int
    rungs: tuple[Rung, ...]


def plan_search(
    pace: Pace,
    seconds: float,
    candidates: int,
    rows: int,
    dev: int,
    batch_size: int,
    ways: int = 1,
) -> Plan:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv:1502.07943) that fits.

    Every round costs about the same: half as many candidates, twice as many rows.
    With less time, fewer candidates are tried, the first of the table.

    Args:
        pace: What work costs.
        seconds: The whole budget.
        candidates: How many there are.
        rows: Training rows.
        dev: Dev rows.
        batch_size: B.
        ways: In how many the candidates read the rows: each is prepared once.
    """
    share = SEARCH_SHARE * seconds
    least = min(rows * MAX_TRIAL_EPOCHS, MIN_TRIAL_STEPS * batch_size)
    for count in range(candidates, 1, -1):
        rounds = math.ceil(math.log2(count))
        trials = sum(_alive(count, index) for index in range(rounds))
        looked = dev_rows(pace, share / trials, dev)
        shared = ways * pace.prepare(rows, looked)
        left = share - shared - trials * pace.forward * looked
        first = int(left / (rounds * count * pace.step))
        if first < least:
            continue
        rungs = [
            _rung(_alive(count, index), first << index, rows) for index in range(rounds)
        ]
        return Plan(looked, tuple(rungs))
    return Plan(dev, ())


def _alive(count: int, index: int) -> int:
    return -(-count // (1 << index))


def _rung(candidates: int, seen: int, rows: int) -> Rung:
    """A round whose trials see so many rows, some of them again where there are few."""
    if seen < rows:
        return Rung(candidates, seen, 1)
    return Rung(candidates, rows, min(MAX_TRIAL_EPOCHS, seen // rows))
