"""What the comparison of two versions says: the right statistics, and their limits."""

import math

import numpy as np
import pytest

from promptdial.prompts.store.comparison import (
    LEAST_ANSWERS,
    LEVEL,
    Comparison,
    Difference,
    compare,
)
from promptdial.prompts.store.rows import Share
from promptdial.prompts.store.tally import Tally

SHARE = Share("a", 1, 2, 50, 7)
ROUNDS = 2000


def tally(
    confidences: list[float], latencies: list[float], abstained: int = 0
) -> Tally:
    found = Tally()
    for number, (confidence, latency) in enumerate(
        zip(confidences, latencies, strict=True)
    ):
        found.count(confidence, 10, latency, number < abstained)
    return found


def by_measure(found: Comparison) -> dict[str, Difference]:
    return {item.measure: item for item in found.differences}


def random_tally(
    random: np.random.Generator, count: int, sure: float, slow: float, rate: float
) -> Tally:
    return tally(
        random.beta(sure, 2, count).tolist(),
        random.lognormal(slow, 0.4, count).tolist(),
        int(random.binomial(count, rate)),
    )


def test_figures_are_those_of_textbooks() -> None:
    """Worked out here by other means: numpy over the values themselves."""
    random = np.random.default_rng(1)
    one, two = random.beta(8, 2, 400), random.beta(7, 2, 250)
    slow, quick = random.lognormal(2.0, 0.4, 400), random.lognormal(1.9, 0.4, 250)
    found = compare(
        SHARE,
        tally(one.tolist(), slow.tolist(), 40),
        tally(two.tolist(), quick.tolist(), 50),
    )
    assert (found.incumbent.answers, found.challenger.answers) == (400, 250)
    side = found.incumbent.confidence
    assert side is not None
    half = 1.959964 * one.std(ddof=1) / 20
    assert side.mean == pytest.approx(one.mean())
    assert (side.low, side.high) == pytest.approx(
        (one.mean() - half, one.mean() + half)
    )
    for measure, before, now in (("confidence", one, two), ("latency_ms", slow, quick)):
        error = math.sqrt(before.var(ddof=1) / 400 + now.var(ddof=1) / 250)
        z = (now.mean() - before.mean()) / error
        item = by_measure(found)[measure]
        assert item.difference == pytest.approx(now.mean() - before.mean())
        assert item.p is not None
        assert item.p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))
        assert item.significant == (item.p < LEVEL / 3)
    item = by_measure(found)["abstained"]
    pooled = 90 / 650
    error = math.sqrt(pooled * (1 - pooled) * (1 / 400 + 1 / 250))
    assert item.difference == pytest.approx(0.2 - 0.1)
    assert item.p == pytest.approx(math.erfc(0.1 / error / math.sqrt(2)))
    assert item.significant and item.says.startswith(
        "abstained: +0.100, significant (p"
    )


def test_of_two_alike_a_difference_is_rarely_found() -> None:
    """Three tests together, at most as often as their level says."""
    random = np.random.default_rng(2)
    alarms = 0
    for _ in range(ROUNDS):
        one, two = [random_tally(random, n, 8, 2.0, 0.1) for n in (300, 150)]
        found = compare(SHARE, one, two)
        alarms += any(item.significant for item in found.differences)
    print(f"{alarms} of {ROUNDS} alarms")
    # Its own chance error on top: two and a half standard deviations.
    assert alarms < LEVEL * ROUNDS + 2.5 * math.sqrt(ROUNDS * LEVEL)


def test_of_two_that_differ_it_is_found() -> None:
    random = np.random.default_rng(3)
    for _ in range(50):
        one = random_tally(random, 1000, 8, 2.0, 0.1)
        two = random_tally(random, 1000, 4, 2.4, 0.25)
        found = by_measure(compare(SHARE, one, two))
        assert all(item.significant for item in found.values())
        assert found["confidence"].difference is not None
        assert found["confidence"].difference < 0
        assert found["latency_ms"].says.endswith(")")


def test_of_few_answers_nothing_is_said() -> None:
    few = tally([0.5] * (LEAST_ANSWERS - 1), [1.0] * (LEAST_ANSWERS - 1))
    many = tally([0.9] * 500, [1.0] * 500)
    found = compare(SHARE, many, few)
    for item in found.differences:
        assert (item.difference, item.p, item.significant) == (None, None, False)
        assert "too few to say (99 answers of one version, at least 100)" in item.says


def test_of_few_abstentions_nothing_is_said() -> None:
    one, two = tally([0.5] * 200, [1.0] * 200, 2), tally([0.5] * 200, [1.0] * 200)
    said = by_measure(compare(SHARE, one, two))["abstained"].says
    assert (
        "too few to say (1.0 abstentions expected of one version, at least 5)" in said
    )


def test_versions_without_confidence_or_time_are_compared_as_far_as_they_go() -> None:
    one, two = Tally(), Tally()
    for item in (one, two):
        for _ in range(200):
            item.count(None, 10, None, False)
    found = compare(SHARE, one, two)
    assert found.incumbent.confidence is None and found.challenger.latency_ms is None
    said = [item.says for item in found.differences]
    assert said[0] == (
        "confidence: too few to say (0 answers of one version, at least 100)"
    )
    empty = compare(SHARE, Tally(), Tally())
    assert (empty.incumbent.answers, empty.incumbent.abstained) == (0, None)


def test_constants_are_compared_without_a_division_by_zero() -> None:
    one, two = tally([0.5] * 200, [1.0] * 200), tally([0.75] * 200, [1.0] * 200)
    found = by_measure(compare(SHARE, one, two))
    assert found["confidence"].significant and found["confidence"].p == 0.0
    assert not found["latency_ms"].significant and found["latency_ms"].p == 1.0
