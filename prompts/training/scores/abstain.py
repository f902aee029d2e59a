"""When to abstain: a threshold on scores, chosen on dev by the configuration's rule.

Light to import: config.py reads the rule, and lists options without the extra.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.errors import UsageError

NONE, COVERAGE, ACCURACY, OUT_OF_SCOPE = "none", "coverage", "accuracy", "out_of_scope"
_ALLOWED = "none, coverage:0.95, accuracy:0.98, out_of_scope or out_of_scope:LABEL"

_LEAST_DROPPED = 5
"""Rows that a coverage must leave out: a threshold among fewer is chance."""

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Rule:
    """A rule that a threshold is chosen by.

    Attributes:
        name: `none`, `coverage`, `accuracy` or `out_of_scope`.
        share: The coverage or accuracy that is wanted, 0 to 1.
        label: The out-of-scope label; "" for the task's own.
    """

    name: str
    share: float = 0.0
    label: str = ""


@dataclass(frozen=True)
class DevScores:
    """Answers on dev, before any threshold.

    Attributes:
        score: Calibrated score [N] of each row's best label in scope.
        right: [N] whether that label is the right one.
        outside: [N] whether the row is out of scope.
        declined: [N] whether the out-of-scope label is likelier than the best one.
    """

    score: Floats
    right: Flags
    outside: Flags
    declined: Flags


@dataclass(frozen=True)
class Choice:
    """A threshold, or why there is none.

    Attributes:
        threshold: 0 for none.
        reason: Why there is none, with the figures and what to do; "" else.
    """

    threshold: float = 0.0
    reason: str = ""


def parse_rule(text: str) -> Rule:
    """The rule that `abstain` names.

    Raises:
        UsageError: It names none, or a share out of range.
    """
    name, _, value = text.partition(":")
    if text == NONE or (name == OUT_OF_SCOPE and text != f"{name}:"):
        return Rule(name, label=value)
    if name not in (COVERAGE, ACCURACY):
        raise UsageError(f"abstain is {text!r}", f"choose from {_ALLOWED}")
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not 0.0 < share < 1.0:
        raise UsageError(
            f"abstain is {text!r}, its share {value!r}", f"give {name}:0.01 to 0.99"
        )
    return Rule(name, share)


def choose_threshold(rule: Rule, dev: DevScores) -> Choice:
    """The threshold that a rule asks for; none by `none` and `out_of_scope`.

    Args:
        rule: The rule.
        dev: Answers on dev.
    """
    if rule.name == COVERAGE:
        return _by_coverage(rule.share, dev)
    if rule.name == ACCURACY:
        return _by_accuracy(rule.share, dev)
    return Choice()


def _by_coverage(share: float, dev: DevScores) -> Choice:
    """Keep a share of the answers to rows in scope; what was declined is not kept."""
    rows = int((~dev.outside).sum())
    score = np.sort(dev.score[~dev.outside & ~dev.declined])
    declined = rows - len(score)
    # A hair more, since 0.1 * 50 is a hair less than 5.
    dropped = int((1.0 - share) * rows + 1e-9)
    if dropped < _LEAST_DROPPED:
        wanted = int(np.ceil(_LEAST_DROPPED / (1.0 - share) - 1e-9))
        return Choice(
            reason=f"keeping {share:.1%} of {rows} dev rows leaves {dropped} out, too "
            f"few to choose a threshold by; give at least {wanted} dev rows"
        )
    if declined >= dropped:
        return Choice(
            reason=f"{declined} of {rows} dev rows in scope are likelier out of "
            f"it, so {share:.1%} cannot be kept; give more training rows"
        )
    place = dropped - declined
    return Choice(_between(score[place - 1], score[place]))


def _by_accuracy(share: float, dev: DevScores) -> Choice:
    """The lowest threshold whose kept answers are accurate enough.

    Laplace's (right + 1) / (kept + 2): a few right answers prove no high accuracy, and
    of many thresholds tried the luckiest is not believed.
    """
    order = np.argsort(-dev.score, kind="stable")
    order = order[~dev.declined[order]]
    score = dev.score[order]
    right = np.cumsum(dev.right[order] & ~dev.outside[order])
    kept = np.arange(1, len(order) + 1)
    smoothed = (right + 1) / (kept + 2)
    # A threshold can only lie between two different scores.
    ends = np.append(score[1:] < score[:-1], True)
    enough = np.flatnonzero(ends & (smoothed >= share))
    if not len(enough):
        best = float(smoothed[ends].max()) if len(order) else 0.0
        return Choice(
            reason=f"no threshold keeps answers that are {share:.1%} accurate on "
            f"{len(dev.score)} dev rows (most likely {best:.1%} at best); ask for "
            "less, or give more dev rows"
        )
    last = int(enough[-1])
    if last == len(order) - 1:
        return Choice(
            reason=f"all dev answers together are {right[-1] / len(order):.1%} "
            f"accurate, {share:.1%} was asked for: no threshold is needed"
        )
    return Choice(_between(score[last + 1], score[last]))


def _between(low: float, high: float) -> float:
    return round(float(low + high) / 2, 6)
