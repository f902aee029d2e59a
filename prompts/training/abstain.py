"""When to abstain: a threshold on scores, chosen on dev by the configuration's rule.

Light to import: config.py reads the rule, and lists options without the extra.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.errors import UsageError

NONE, COVERAGE, ACCURACY, OUT_OF_SCOPE = "none", "coverage", "accuracy", "out_of_scope"
_ALLOWED = "none, coverage:0.95, accuracy:0.98, out_of_scope or out_of_scope:LABEL"

_FOLDS = 5
_LEAST_DROPPED = 5
"""Rows that a coverage must leave out: a threshold among fewer is chance."""
_LEAST_OUTSIDE = 20
"""Rows out of scope to choose a threshold by."""

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


def choose_threshold(rule: Rule, dev: DevScores, outside_share: float) -> Choice:
    """The threshold that a rule asks for.

    Args:
        rule: The rule.
        dev: Answers on dev.
        outside_share: Share of requests out of scope to reckon with; 0 for dev's own.
    """
    if rule.name == COVERAGE:
        return _by_coverage(rule.share, dev)
    if rule.name == ACCURACY:
        return _by_accuracy(rule.share, dev)
    if rule.name == OUT_OF_SCOPE:
        return _by_scope(dev, outside_share)
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


def _by_scope(dev: DevScores, outside_share: float) -> Choice:
    """Most answers that are right: none out of scope, the right one in it.

    The mean of the best thresholds on all dev but a fold: near the best one accuracy
    jumps by single rows, and where it is highest is chance.
    """
    outside = int(dev.outside.sum())
    if outside < _LEAST_OUTSIDE or outside == len(dev.outside):
        return Choice(
            reason=f"dev has {outside} rows out of scope of {len(dev.outside)}, too "
            f"few to choose a threshold by; give at least {_LEAST_OUTSIDE}, and others"
        )
    weight = row_weights(dev.outside, outside_share)
    folds = _folds(dev.outside)
    found = [_best_threshold(dev, weight, folds != fold) for fold in range(_FOLDS)]
    return Choice(float(np.mean(found)))


def row_weights(outside: Flags, outside_share: float) -> Floats:
    """Weight [N] of rows, sum 1, so that those out of scope weigh a given share.

    Args:
        outside: [N].
        outside_share: The share; 0 for the rows' own.
    """
    share = outside_share or float(outside.mean())
    inside = max(1, int((~outside).sum()))
    return np.where(outside, share / max(1, int(outside.sum())), (1 - share) / inside)


def _best_threshold(dev: DevScores, weight: Floats, rows: Flags) -> float:
    """The threshold of the highest weighted accuracy on some rows; 0 where none helps.

    Of several that are as good, the middle one.
    """
    order = np.argsort(dev.score[rows], kind="stable")
    score = dev.score[rows][order]
    outside, declined = dev.outside[rows][order], dev.declined[rows][order]
    gain = np.where(outside, 1.0, -1.0 * dev.right[rows][order])
    # What is declined already is abstained from at every threshold.
    gain = np.where(declined, 0.0, gain) * weight[rows][order]
    # Accuracy gained by abstaining from the first k rows, and where k may end.
    total = np.append(0.0, np.cumsum(gain))
    ends = np.append(True, np.append(score[1:] > score[:-1], True))
    total = np.where(ends, total, -np.inf)
    best = np.flatnonzero(total >= total.max() - 1e-12)
    k = int(best[len(best) // 2])
    if k == 0:
        return 0.0
    return _between(score[k - 1], score[k]) if k < len(score) else 1.0


def _folds(outside: Flags) -> NDArray[np.int64]:
    """Fold [N] of each row; rows out of scope are spread evenly."""
    folds = np.empty(len(outside), np.int64)
    for group in (outside, ~outside):
        folds[group] = np.arange(int(group.sum())) % _FOLDS
    return folds


def _between(low: float, high: float) -> float:
    return round(float(low + high) / 2, 6)
