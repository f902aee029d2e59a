"""Which trial a search goes on with, and why, in words.

Few dev rows make differences noise: of the trials within one standard error of the
best dev metric the smallest prompt is taken (the one-standard-error rule of Breiman et
al., Classification and Regression Trees, 1984, section 3.4.3), if it is not more than
MOST_FOR_BYTES behind: every prompt fits in a blob, and few rows have standard errors of
many points.
"""

import math
from collections import Counter

from promptdial.prompts.training.search.search_log import Trial
from promptdial.prompts.training.task import Task

MOST_FOR_BYTES = 1.0
"""Points of the dev metric that a smaller prompt may be behind, at most."""


def standard_error(metric: float, rows: int) -> float:
    """Of a metric taken as a share of right rows, both in percent.

    A metric of 0 or 100 over few rows is no certainty: one row more of each is
    counted (Agresti and Coull 1998).
    """
    share = (metric / 100.0 * rows + 1.0) / (rows + 2.0)
    return 100.0 * math.sqrt(share * (1.0 - share) / rows)


def guess_metric(task: Task) -> float:
    """Dev metric of giving every row the commonest label, percent; 0 without labels."""
    if task.kind not in ("classification", "pair") or not task.dev:
        return 0.0
    counts = Counter(row.label for row in task.dev)
    return 100.0 * max(counts.values()) / len(task.dev)


def ranked(trials: list[Trial], guess: float) -> list[Trial]:
    """The trials of a round, those to go on with first.

    Of equal ones the earlier goes first, and all as they came where the round tells
    nothing: the table has the most promising first.

    Args:
        trials: Of one round, as they were run.
        guess: As `pick`.
    """
    best = max(trials, key=lambda trial: trial.metric)
    if _is_guess(best, guess):
        return trials
    return sorted(trials, key=lambda trial: -trial.metric)


def pick(trials: list[Trial], sizes: dict[str, int], guess: float) -> tuple[Trial, str]:
    """The trial to go on with, and why.

    Args:
        trials: Of one round, in the order of the table.
        sizes: Numbers that each one's prompt stores, by name.
        guess: Dev metric that no training is needed for, percent.
    """
    best = max(trials, key=lambda trial: trial.metric)
    error = standard_error(best.metric, best.dev_rows)
    seen = f"{best.metric:.2f} on {best.dev_rows} dev rows, standard error {error:.2f}"
    if _is_guess(best, guess):
        return trials[0], (
            f"{best.name} was best with {seen}, no more than a guess of the commonest "
            f"label ({guess:.2f}): {trials[0].name}, the first of those left"
        )
    within = min(error, MOST_FOR_BYTES)
    close = [trial for trial in trials if trial.metric >= best.metric - within]
    chosen = min(close, key=lambda trial: (sizes[trial.name], -trial.metric))
    if chosen is best:
        others = [trial for trial in close if trial is not best]
        tail = "no smaller prompt came" if others else "none came"
        return chosen, f"{best.name} was best with {seen}; {tail} within {within:.2f}"
    return chosen, (
        f"{best.name} was best with {seen}; {chosen.name} came within {within:.2f} of "
        f"it ({chosen.metric:.2f}) and its prompt is smaller or as small"
    )


def _is_guess(best: Trial, guess: float) -> bool:
    """Whether the best trial is no more than a standard error above a guess."""
    return best.metric - standard_error(best.metric, best.dev_rows) <= guess
