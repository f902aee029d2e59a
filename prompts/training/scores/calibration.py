"""Scores that mean what they say: temperature, calibration error, threshold, on dev."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.errors import UsageError
from promptdial.prompts.scores import Scores, may_abstain
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.diagnostics import Finding
from promptdial.prompts.training.scores.abstain import (
    NONE,
    OUT_OF_SCOPE,
    DevScores,
    Rule,
    choose_threshold,
    parse_rule,
)
from promptdial.prompts.training.scores.scope import PULL, fit_scope, row_weights
from promptdial.prompts.training.task import Task
from promptdial.runtime.abstention import abstention
from promptdial.runtime.deciding import calibrated, decide

ABSTAINING_KINDS = ("classification", "pair")

_COLDEST, _HOTTEST = 0.05, 20.0
_STEPS = 40
"""Each makes the interval of temperatures 0.62 times as long."""
_BINS = 15
_LEAST_ROWS = 50
"""Dev rows below which the temperature says little."""
_LEAST_OUTSIDE = 20
"""Dev rows out of scope to fit by what a text is."""

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Calibration:
    """How a prompt's scores are to be read, and what that is worth on dev.

    Attributes:
        scores: For the blob.
        metrics: For the blob: `dev_ece_uncalibrated` and `dev_ece` (rows weighed as
            the scores are fitted), and figures of abstentions where there can be any;
            in percent.
        findings: What the user should know.
    """

    scores: Scores = field(default_factory=Scores)
    metrics: dict[str, float] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def rule_of(config: TrainConfig, task: Task) -> Rule:
    """The rule to abstain by, with its out-of-scope label.

    Raises:
        UsageError: The task has no such label, or answers that are never abstained
            from.
    """
    rule = parse_rule(config.abstain)
    label = rule.label or task.out_of_scope
    if (rule.name != NONE or label) and task.kind not in ABSTAINING_KINDS:
        raise UsageError(
            f"abstain is {config.abstain!r}, out_of_scope {label!r}, task "
            f"{task.name!r} is {task.kind}",
            f"leave them out: {' and '.join(ABSTAINING_KINDS)} tasks abstain",
        )
    if rule.name == OUT_OF_SCOPE and not label:
        raise UsageError(
            "abstain is 'out_of_scope' and the task names no such label",
            "give out_of_scope:LABEL, or out_of_scope in task.yaml",
        )
    if label and label not in task.labels:
        raise UsageError(
            f"out-of-scope label {label!r} is none of the task's {len(task.labels)} "
            "labels",
            "give one of them",
        )
    return replace(rule, label=label)


def calibrate(
    logits: Floats, targets: Indices, labels: tuple[str, ...], rule: Rule, share: float
) -> Calibration:
    """Temperature and threshold for logits whose right classes are known.

    Args:
        logits: [N, C] on dev; of token tasks one row a first wordpiece.
        targets: [N] right classes.
        labels: Names of the classes.
        rule: When to abstain.
        share: Share of requests out of scope to reckon with; 0 for dev's own.
    """
    findings: list[Finding] = []
    temperature = fit_temperature(logits, targets)
    scores = Scores(temperature=temperature, out_of_scope=rule.label)
    weights = np.full(len(targets), 1.0 / len(targets))
    if len(targets) < _LEAST_ROWS:
        findings.append(_small(len(targets), temperature))
    if rule.name == OUT_OF_SCOPE:
        outside = targets == labels.index(rule.label)
        if not _LEAST_OUTSIDE <= int(outside.sum()) < len(outside):
            findings.append(_few_outside(int(outside.sum()), len(outside)))
        else:
            weights = row_weights(outside, share)
            scores = _with_scope(logits, targets, weights, labels, scores)
    elif rule.name != NONE:
        choice = choose_threshold(rule, dev_scores(logits, targets, labels, scores))
        scores = replace(scores, threshold=choice.threshold)
        if choice.reason:
            findings.append(Finding("NO_THRESHOLD", choice.reason))
    metrics = {
        f"dev_ece{name}": round(
            calibration_error(calibrated(logits, labels, read), targets, weights), 3
        )
        for name, read in (("_uncalibrated", Scores()), ("", scores))
    }
    if may_abstain(scores):
        metrics |= _abstention_metrics(logits, targets, labels, scores)
    return Calibration(scores, metrics, tuple(findings))


def _with_scope(
    logits: Floats,
    targets: Indices,
    weights: Floats,
    labels: tuple[str, ...],
    scores: Scores,
) -> Scores:
    scope = fit_scope(logits, targets, weights, labels.index(scores.out_of_scope))
    return replace(
        scores,
        temperature=scope.temperature,
        out_of_scope_bias=scope.bias,
        background=scope.background,
    )


def _small(rows: int, temperature: float) -> Finding:
    return Finding(
        "DEV_SMALL",
        f"dev has {rows} answers, so the scores' temperature of {temperature:.2f} is a "
        f"guess; give at least {_LEAST_ROWS}",
    )


def _few_outside(outside: int, rows: int) -> Finding:
    return Finding(
        "SCOPE_NOT_FITTED",
        f"dev has {outside} rows out of scope of {rows}, too few to fit by what a text "
        f"is out of scope; give at least {_LEAST_OUTSIDE}, and others",
    )


def fit_temperature(logits: Floats, targets: Indices) -> float:
    """The temperature of the least negative log-likelihood.

    Guo et al. 2017 (arXiv:1706.04599), with a weak pull towards 1. The likelihood has
    one peak over the logarithm of the temperature, so a golden-section search (Kiefer
    1953) finds it.

    Args:
        logits: [N, C].
        targets: [N] right classes.
    """

    def cost(log: float) -> float:
        loss = nll(logits / math.exp(log), targets)
        return len(targets) * loss + PULL * log * log

    ratio = (math.sqrt(5) - 1) / 2
    low, high = math.log(_COLDEST), math.log(_HOTTEST)
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(_STEPS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = cost(right)
    return round(math.exp((low + high) / 2), 4)


def nll(logits: Floats, targets: Indices) -> float:
    """Mean negative log-likelihood of the right classes, in nats."""
    return float(-_log_shares(logits)[np.arange(len(targets)), targets].mean())


def calibration_error(
    shares: NDArray[np.float32], targets: Indices, weights: Floats
) -> float:
    """Expected calibration error in percent (Guo et al. 2017, section 2).

    The mean distance of certainty and accuracy over bins of equal width of the best
    class's probability.

    Args:
        shares: Probabilities [N, C].
        targets: [N] right classes.
        weights: [N] of the rows, sum 1.
    """
    certain = shares.max(-1).astype(np.float64)
    right = shares.argmax(-1) == targets
    bins = np.minimum((certain * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, weights=weights * (certain - right), minlength=_BINS)
    return float(100.0 * np.abs(gaps).sum())


def dev_scores(
    logits: Floats, targets: Indices, labels: tuple[str, ...], scores: Scores
) -> DevScores:
    """Answers of the device's own rule, before any threshold.

    Args:
        logits: [N, C].
        targets: [N] right classes.
        labels: Names of the classes.
        scores: Temperature and out-of-scope label.
    """
    found = [decide(row, labels, scores) for row in logits]
    best = np.array([item.best for item in found])
    outside = -1
    if scores.out_of_scope:
        outside = labels.index(scores.out_of_scope)
    return DevScores(
        score=np.array([float(item.shares[item.best]) for item in found]),
        right=best == targets,
        outside=targets == outside,
        declined=np.array([item.abstained for item in found]),
    )


def _abstention_metrics(
    logits: Floats, targets: Indices, labels: tuple[str, ...], scores: Scores
) -> dict[str, float]:
    found = [decide(row, labels, scores) for row in logits]
    figures = abstention(
        [labels[target] for target in targets],
        [labels[item.best] for item in found],
        [item.abstained for item in found],
        scores,
    )
    known = {
        "dev_abstained": figures.abstained,
        "dev_kept_accuracy": figures.kept_accuracy,
        "dev_in_scope_accuracy": figures.in_scope_accuracy,
        "dev_out_of_scope_recall": figures.out_of_scope_recall,
    }
    return {key: value for key, value in known.items() if value is not None}


def _log_shares(logits: Floats) -> Floats:
    below = logits - logits.max(-1, keepdims=True)
    return np.asarray(below - np.log(np.exp(below).sum(-1, keepdims=True)))
