"""Checks for the known silent failures of prompt tuning, in words with a next step.

Failures and signs from Lester et al. 2021, from the issue trackers of prompt-tuning
libraries and from our own runs; mask_check.py has those seen before training.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# The thresholds, each with its reason.
_SMALL_MOVE = 0.02
"""Of the prompt's length: trained prompts move by 0.2 to 3 of it."""
_SMALL_CHANGE = 0.005
"""Of the dev answers: one in two hundred is a row or two of a usual dev set."""
_SMALL_GAIN = 0.2
"""Points over the probe: a row or so."""
_TRUNCATED_SHARE = 0.01
"""Of the training rows: fewer hardly weigh."""
_LOSS_RISE = 1.02
"""Last epoch over first: falling by less than this is standing still."""
_LOSS_JUMP = 1.5
"""An epoch over the best before it: noise between epochs stays far below."""
_SETTLED = 3
"""Epochs after which a loss above that of guessing evenly is no slow start."""
_CUT_SHARE = 0.95
"""Of the steps with gradients cut: then the rate alone sets every step's length."""
_OVERFIT_FALL = 1.0
"""Points of dev below its best at the end."""
_OVERFIT_LOSS = 0.1
"""Last loss over the first: by then the training rows are known by heart."""
_FEW_ROWS = 8
"""Training rows of a class: below it, few-shot methods do better."""
_DEV_UNITS = 5
"""Dev rows of a class from which on none predicted is no accident."""
_MAJORITY = 0.75
"""Share of the most frequent label above which accuracy says little of the others."""
_SEED_CHANCE = 1.645
"""Normal quantile of 95 %: one run in twenty would be called unstable by chance."""


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        code: Short name.
        message: What was seen, and the step to take.
    """

    code: str
    message: str


@dataclass(frozen=True)
class LabelFacts:
    """How often each label stands in the data and in the answers.

    Attributes:
        train: Rows (token tasks: entities) of each label in train.
        dev: The same in dev.
        predicted: Answers of each label on dev.
        gain_interval: Half of the 95 % interval of the gain over the probe, points.
    """

    train: dict[str, int]
    dev: dict[str, int]
    predicted: dict[str, int]
    gain_interval: float


@dataclass(frozen=True)
class RunFacts:
    """What a finished run says about itself.

    Attributes:
        method: prompt, prefix or probe.
        distance: Length of the prompt's move over the length of its start.
        answers_changed: Share of dev answers that differ without the prompt.
        truncated_share: Share of training rows cut by the window.
        cut_share: Share of the steps in which the prompt's gradients were cut.
        losses: Mean loss of each epoch.
        dev_metrics: Dev metric of each epoch, percent.
        dev_metric: Best dev metric, percent.
        probe: Dev metric of the linear probe, percent; None where not fitted.
        classes: C; 0 where there are none.
        labels: How often each label occurs; None where there are none.
    """

    method: str
    distance: float
    answers_changed: float
    truncated_share: float
    cut_share: float
    losses: tuple[float, ...]
    dev_metrics: tuple[float, ...]
    dev_metric: float
    probe: float | None
    classes: int
    labels: LabelFacts | None


def run_findings(facts: RunFacts) -> list[Finding]:
    """Known failures that a finished run shows."""
    found = []
    if facts.truncated_share > _TRUNCATED_SHARE:
        found.append(
            Finding(
                "TRUNCATED",
                f"{facts.truncated_share:.1%} of the training rows are cut by the "
                "window; raise max_tokens or shorten the texts",
            )
        )
    if facts.labels is not None:
        found += _label_findings(facts.labels, facts.dev_metric)
    if facts.method != "probe":
        found += _rate_findings(facts) + _gain_findings(facts)
    return found


def _label_findings(labels: LabelFacts, dev_metric: float) -> list[Finding]:
    """Classes with few rows, or that are never answered; one that drowns the others."""
    found = []
    few = [name for name, count in labels.train.items() if count < _FEW_ROWS]
    if few:
        found.append(
            Finding(
                "FEW_ROWS",
                f"{_named(few)}: fewer than {_FEW_ROWS} training rows each; add rows, "
                "or put rare labels together",
            )
        )
    silent = [
        name
        for name, count in labels.dev.items()
        if count >= _DEV_UNITS and not labels.predicted.get(name)
    ]
    if silent:
        found.append(
            Finding(
                "NEVER_PREDICTED",
                f"{_named(silent)}: in dev, and never answered there; add training "
                "rows, or check that the label can be told from the text",
            )
        )
    top, count = max(labels.train.items(), key=lambda item: item[1])
    share = count / sum(labels.train.values())
    if share > _MAJORITY:
        found.append(
            Finding(
                "IMBALANCE",
                f"{share:.0%} of the training rows are {top!r}, and dev is "
                f"{dev_metric:.1f}; look at the other labels' rows in the report, and "
                "train on fewer rows of this one",
            )
        )
    return found


def _rate_findings(facts: RunFacts) -> list[Finding]:
    """A rate that is too low or too high."""
    found = []
    if facts.distance < _SMALL_MOVE:
        found.append(
            Finding(
                "RATE_LOW",
                f"the prompt moved by {facts.distance:.2%} of its length; raise "
                "learning_rate tenfold or train longer",
            )
        )
    found += _loss_findings(facts.losses, facts.classes)
    if facts.cut_share > _CUT_SHARE:
        found.append(
            Finding(
                "ALWAYS_CUT",
                f"gradients were cut to max_grad_norm in {facts.cut_share:.0%} of the "
                "steps; raise max_grad_norm, or lower learning_rate",
            )
        )
    fall = facts.dev_metric - _last(facts.dev_metrics)
    if fall >= _OVERFIT_FALL and _last(facts.losses) < _OVERFIT_LOSS * _first(
        facts.losses
    ):
        found.append(
            Finding(
                "OVERFIT",
                f"dev fell by {fall:.1f} points after its best epoch while the loss "
                f"went down to {_last(facts.losses):.3f}; the best epoch is kept: give "
                "more rows, fewer virtual tokens or label_smoothing",
            )
        )
    return found


def _loss_findings(losses: Sequence[float], classes: int) -> list[Finding]:
    """A loss that rises, jumps, or ends above that of guessing evenly."""
    first, last, jump = _first(losses), _last(losses), _largest_jump(losses)
    guess = math.log(classes) if classes and len(losses) >= _SETTLED else math.inf
    if jump <= _LOSS_JUMP and last <= min(_LOSS_RISE * first, guess):
        return []
    seen = f"the loss went from {first:.3f} to {last:.3f}"
    if last > guess:
        seen += f", above the {guess:.3f} of guessing among {classes} labels"
    elif jump > _LOSS_JUMP:
        seen += f", and on the way up to {jump:.1f} times its best"
    return [Finding("RATE_HIGH", f"{seen}; lower learning_rate threefold")]


def _gain_findings(facts: RunFacts) -> list[Finding]:
    """A prompt that does nothing, or no more than class vectors alone."""
    found = []
    if facts.answers_changed < _SMALL_CHANGE:
        found.append(
            Finding(
                "NO_EFFECT",
                f"{facts.answers_changed:.1%} of the dev answers change without the "
                "prompt; the class vectors do the work: try method prefix",
            )
        )
    if facts.probe is None:
        return found
    gain = facts.dev_metric - facts.probe
    if gain < _SMALL_GAIN:
        found.append(
            Finding(
                "PROBE_PLATEAU",
                f"dev {facts.dev_metric:.1f} is no better than the linear probe's "
                f"{facts.probe:.1f}; try method prefix, another init or more rows",
            )
        )
    elif facts.labels is not None and facts.labels.gain_interval > gain:
        found.append(
            Finding(
                "DEV_SMALL",
                f"the gain over the linear probe is {gain:.1f} points, plus or minus "
                f"{facts.labels.gain_interval:.1f} on a dev set of "
                f"{sum(facts.labels.dev.values())}; add dev rows before choosing by it",
            )
        )
    return found


def seed_findings(metrics: Sequence[float], units: int) -> list[Finding]:
    """Whether runs that differ in their seed alone differ by more than chance.

    The variance over the seeds against that of a share over so many dev rows, by the
    chi-square test at 5 % (quantile after Wilson & Hilferty 1931).

    Args:
        metrics: Dev metric of each run, percent; at least two.
        units: Rows (token tasks: entities) of dev.
    """
    freedom = len(metrics) - 1
    share = statistics.fmean(metrics) / 100
    # Of a perfect score too: as if one more row were wrong.
    chance = 1e4 * max(share * (1 - share), 1 / units) / units
    width = 2 / (9 * freedom)
    limit = freedom * (1 - width + _SEED_CHANCE * math.sqrt(width)) ** 3
    variance = statistics.variance(metrics)
    seen, explained = math.sqrt(variance), math.sqrt(chance)
    if freedom * variance / chance <= limit:
        return []
    return [
        Finding(
            "UNSTABLE",
            f"dev is {min(metrics):.1f} to {max(metrics):.1f} over {len(metrics)} "
            f"seeds: a deviation of {seen:.1f} points, where {units} dev "
            f"rows explain {explained:.1f}; lower learning_rate, or train longer",
        )
    ]


def _largest_jump(losses: Sequence[float]) -> float:
    """The most that an epoch's loss was over the best before it, as a factor."""
    jumps = [now / min(losses[:at]) for at, now in enumerate(losses) if at]
    return max(jumps, default=1.0)


def _first(values: Sequence[float]) -> float:
    return values[0] if values else 0.0


def _last(values: Sequence[float]) -> float:
    return values[-1] if values else 0.0


def _named(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
