"""Two versions that shared a task: their figures, and which differences are no chance.

Confidence and latency by Welch's test, abstentions by the pooled test of two
proportions, both by the normal approximation, which holds from some hundred answers on.
What the tests cannot know: answers to one unit that asks often are alike, and whoever
looks every day and stops at the first difference finds one sooner or later. And
confidence is no accuracy: a worse version may be surer of itself.
"""

import math
from dataclasses import dataclass

from promptdial.prompts.store.rows import Share
from promptdial.prompts.store.tally import Tally

LEAST_ANSWERS = 100
"""Answers of either version below which no difference is tested."""

LEAST_CASES = 5
"""Abstentions, and answers that are none, that either version must be expected to have:
so many the normal approximation of a share wants."""

LEVEL = 0.05
"""Chance that any of the three tests finds a difference where there is none. Each is
held to a third of it (Bonferroni)."""

_TESTS = 3
_Z95 = 1.959964


@dataclass(frozen=True)
class Mean:
    """A mean and its interval.

    Attributes:
        count: Values it is of.
        mean: The mean.
        low: Lower end of the 95 percent interval.
        high: Upper end.
    """

    count: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Side:
    """One version's figures.

    Attributes:
        version: The version.
        answers: Answers it gave.
        confidence: Mean confidence; None where no answer had one.
        latency_ms: Mean time of the requests that were asked alone; None for none.
        abstained: Share of answers that were abstentions, 0 to 1; None without any.
    """

    version: int
    answers: int
    confidence: Mean | None
    latency_ms: Mean | None
    abstained: float | None


@dataclass(frozen=True)
class Difference:
    """The challenger's figure less the incumbent's.

    Attributes:
        measure: `confidence`, `latency_ms` or `abstained`.
        difference: The difference; None where there is too little to test.
        p: Chance of one as large where there is none in truth; None as above.
        significant: Whether that is below the level of one test.
        says: The same in words.
    """

    measure: str
    difference: float | None
    p: float | None
    significant: bool
    says: str


@dataclass(frozen=True)
class Comparison:
    """What a share of a task showed, until now or until it ended.

    Attributes:
        share: The two versions.
        incumbent: Figures of the active version.
        challenger: Figures of the one beside it.
        differences: Of confidence, latency and abstentions.
    """

    share: Share
    incumbent: Side
    challenger: Side
    differences: tuple[Difference, ...]


def compare(share: Share, incumbent: Tally, challenger: Tally) -> Comparison:
    """The comparison of what was counted of two versions."""
    sides = [
        Side(
            version,
            tally.answers,
            _mean(tally.scored, tally.confidence, tally.confidence_squares),
            _mean(tally.timed, tally.latency, tally.latency_squares),
            tally.abstained / tally.answers if tally.answers else None,
        )
        for version, tally in (
            (share.incumbent, incumbent),
            (share.challenger, challenger),
        )
    ]
    one, two = sides
    differences = (
        _of_means("confidence", "{:+.3f}", one.confidence, two.confidence),
        _of_means("latency_ms", "{:+.2f} ms", one.latency_ms, two.latency_ms),
        _of_shares(incumbent, challenger),
    )
    return Comparison(share, one, two, differences)


def _mean(count: int, total: float, squares: float) -> Mean | None:
    if not count:
        return None
    mean = total / count
    half = _Z95 * _error(count, total, squares)
    return Mean(count, mean, mean - half, mean + half)


def _error(count: int, total: float, squares: float) -> float:
    """Standard error of a mean; 0 of a single value, which says nothing of it."""
    if count < 2:
        return 0.0
    # Rounding may leave a variance of nothing a little below it.
    variance = max(0.0, squares - total * total / count) / (count - 1)
    return math.sqrt(variance / count)


def _of_means(
    measure: str, shown: str, one: Mean | None, two: Mean | None
) -> Difference:
    least = min(one.count if one else 0, two.count if two else 0)
    if one is None or two is None or least < LEAST_ANSWERS:
        return _too_few(measure, f"{least} answers of one version")
    errors = [(item.high - item.mean) / _Z95 for item in (one, two)]
    return _tested(measure, shown, two.mean - one.mean, math.hypot(*errors))


def _of_shares(one: Tally, two: Tally) -> Difference:
    measure, least = "abstained", min(one.answers, two.answers)
    if least < LEAST_ANSWERS:
        return _too_few(measure, f"{least} answers of one version")
    pooled = (one.abstained + two.abstained) / (one.answers + two.answers)
    expected = least * min(pooled, 1 - pooled)
    if expected < LEAST_CASES:
        what = "abstentions" if pooled < 0.5 else "answers that are none"
        seen = f"{expected:.1f} {what} expected of one version"
        return _too_few(measure, seen, LEAST_CASES)
    error = math.sqrt(pooled * (1 - pooled) * (1 / one.answers + 1 / two.answers))
    found = two.abstained / two.answers - one.abstained / one.answers
    return _tested(measure, "{:+.3f}", found, error)


def _tested(measure: str, shown: str, found: float, error: float) -> Difference:
    if error:
        p = math.erfc(abs(found) / error / math.sqrt(2))
    else:
        p = 0.0 if found else 1.0
    significant = p < LEVEL / _TESTS
    word = "significant" if significant else "not significant"
    said = f"{measure}: {shown.format(found)}, {word} (p {p:.2g})"
    return Difference(measure, found, p, significant, said)


def _too_few(measure: str, seen: str, least: int = LEAST_ANSWERS) -> Difference:
    said = f"{measure}: too few to say ({seen}, at least {least})"
    return Difference(measure, None, None, False, said)
