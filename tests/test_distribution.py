"""Histograms and their distance: seldom a false alarm, never a missed large shift."""

import json
import math

import numpy as np
import pytest

from promptdial.prompts.distribution import (
    CONFIDENCE,
    EDGES,
    LEAST_ANSWERS,
    REFERENCE,
    TOKENS,
    bin_of,
    distance,
    histogram,
    reference,
    reference_of,
)
from promptdial.prompts.store.tally import WINDOW, faded

ROUNDS = 4000
Random = np.random.Generator


def confidences(random: Random, count: int, sure: float = 8.0) -> list[float]:
    """Such as a classifier's: most near 1."""
    return [float(value) for value in random.beta(sure, 1.2, count)]


def lengths(random: Random, count: int, mean: float = 12.0) -> list[int]:
    return [int(value) + 2 for value in random.poisson(mean, count)]


def test_bins() -> None:
    assert [bin_of(CONFIDENCE, value) for value in (0.0, 0.3, 0.95, 1.0)] == [
        0,
        1,
        7,
        9,
    ]
    assert [bin_of(TOKENS, value) for value in (1, 4, 5, 512, 9999)] == [
        0,
        1,
        1,
        15,
        15,
    ]
    assert histogram(CONFIDENCE, [0.1, 0.2, 0.99]) == [2, *[0] * 8, 1]
    for name, edges in EDGES.items():
        assert list(edges) == sorted({*edges}), name


def test_the_distance_is_the_population_stability_index() -> None:
    before, now = [500, 300, 200], [400, 300, 300]
    found = distance(before, now)
    p, q = np.array([0.4, 0.3, 0.3]), np.array([0.5, 0.3, 0.2])
    wanted = float(((p - q) * np.log(p / q)).sum())
    assert found is not None
    assert found.psi == pytest.approx(wanted, rel=0.01)
    assert found.higher
    same = distance(before, before)
    assert same is not None and (same.psi, same.is_shift) == (0.0, False)


@pytest.mark.parametrize(("rows", "answers"), [(49, 500), (500, LEAST_ANSWERS - 1)])
def test_of_few_nothing_is_said(rows: int, answers: int) -> None:
    assert distance([rows, 0], [0, answers]) is None


@pytest.mark.parametrize("rows", [60, 200, 1000])
@pytest.mark.parametrize("answers", [LEAST_ANSWERS, 1000])
@pytest.mark.parametrize("name", [CONFIDENCE, TOKENS])
def test_false_alarms_are_rare(name: str, rows: int, answers: int) -> None:
    """Both histograms of one distribution, thousands of times over."""
    random = np.random.default_rng(rows + answers)
    draw = confidences if name == CONFIDENCE else lengths
    alarms = 0
    for _ in range(ROUNDS):
        found = distance(
            histogram(name, draw(random, rows)), histogram(name, draw(random, answers))
        )
        assert found is not None
        alarms += found.is_shift
    print(f"{name}, {rows} rows, {answers} answers: {alarms} of {ROUNDS} alarms")
    assert alarms <= 0.003 * ROUNDS


def test_chance_alone_gives_what_theory_says() -> None:
    """About (1/n + 1/m) chi-squared: its mean, over bins that are well filled."""
    random = np.random.default_rng(7)
    rows, answers, bins = 1000, 500, 10
    found, beyond = [], 0
    for _ in range(ROUNDS):
        a, b = [
            random.multinomial(count, [1 / bins] * bins) for count in (rows, answers)
        ]
        one = distance(a.tolist(), b.tolist())
        assert one is not None
        found.append(one.psi)
        beyond += one.psi > one.chance
    wanted = (1 / rows + 1 / answers) * (bins - 1)
    assert np.mean(found) == pytest.approx(wanted, rel=0.05)
    assert beyond < 0.003 * ROUNDS


@pytest.mark.parametrize("answers", [LEAST_ANSWERS, 1000])
def test_a_real_shift_is_seen(answers: int) -> None:
    random = np.random.default_rng(answers)
    seen = {"unsure": 0, "long": 0}
    for _ in range(200):
        sure = histogram(CONFIDENCE, confidences(random, 500))
        unsure = histogram(CONFIDENCE, confidences(random, answers, sure=2.5))
        one = distance(sure, unsure)
        short = histogram(TOKENS, lengths(random, 500))
        long = histogram(TOKENS, lengths(random, answers, mean=24.0))
        two = distance(short, long)
        assert one is not None and two is not None
        seen["unsure"] += one.is_shift and not one.higher
        seen["long"] += two.is_shift and two.higher
    assert seen == {"unsure": 200, "long": 200}


def test_a_prompt_that_is_always_sure_is_watched_too() -> None:
    """Its reference has one bin; what falls elsewhere is not infinitely far."""
    always = histogram(CONFIDENCE, [0.999] * 300)
    for other, shifted in ((0.02, False), (0.3, True)):
        count = round(other * 400)
        now = histogram(CONFIDENCE, [0.999] * (400 - count) + [0.6] * count)
        found = distance(always, now)
        assert found is not None and math.isfinite(found.psi)
        assert found.is_shift is shifted, found


def test_a_shift_shows_however_much_was_seen_before() -> None:
    random = np.random.default_rng(3)
    before = histogram(CONFIDENCE, confidences(random, 500))
    kept = faded(histogram(CONFIDENCE, confidences(random, 1_000_000)))
    calm = distance(before, kept)
    assert calm is not None and not calm.is_shift
    assert sum(kept) <= WINDOW
    for _ in range(10):
        new = histogram(CONFIDENCE, confidences(random, 200, sure=2.0))
        kept = faded([a + b for a, b in zip(kept, new, strict=True)])
    found = distance(before, kept)
    assert found is not None and found.is_shift


def test_a_reference_is_small_and_comes_back() -> None:
    random = np.random.default_rng(0)
    made = reference(confidences(random, 100_000), lengths(random, 100_000, 40.0))
    text = json.dumps({REFERENCE: made}, separators=(",", ":"))
    assert len(text) < 300
    assert reference_of(json.loads(text)) == made
    assert reference([], [3, 5]) == {TOKENS: [1, 1, *[0] * 14]}


GOOD = [1] * 10


@pytest.mark.parametrize(
    "metrics",
    [
        {},
        {"dev_accuracy": 90.0},
        {REFERENCE: 3},
        {REFERENCE: [1, 2]},
        {REFERENCE: {CONFIDENCE: GOOD[:9]}},
        {REFERENCE: {CONFIDENCE: [*GOOD[:9], -1]}},
        {REFERENCE: {CONFIDENCE: [*GOOD[:9], 1.5]}},
        {REFERENCE: {CONFIDENCE: [*GOOD[:9], True]}},
        {REFERENCE: {CONFIDENCE: [*GOOD[:9], 10**12]}},
        {REFERENCE: {CONFIDENCE: [*GOOD[:9], "1"]}},
        {REFERENCE: {"colour": GOOD}},
    ],
)
def test_what_is_no_reference_is_left_out(metrics: dict[str, object]) -> None:
    """Metrics are free: a blob with other ones is as good, and is not watched."""
    assert reference_of(metrics) == {}
