"""Sampling against transformers' own logits processors, and on its own."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.sampling import Sampler, filtered, penalised

Floats = np.ndarray[Any, np.dtype[np.float32]]
VOCAB = 50


def logits(seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    return (3 * rng.standard_normal(VOCAB)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_the_penalty_is_that_of_transformers(seed: int, penalty: float) -> None:
    values, seen = logits(seed), [3, 7, 7, 20]
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    wanted = processor(torch.tensor([seen]), torch.tensor(values[None]).clone())
    assert np.allclose(penalised(values, sorted(set(seen)), penalty), wanted[0].numpy())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("options", "warper"),
    [
        ({"top_k": 4}, TopKLogitsWarper(4)),
        ({"top_k": 1000}, TopKLogitsWarper(1000)),
        ({"top_p": 0.9}, TopPLogitsWarper(0.9)),
        ({"top_p": 0.05}, TopPLogitsWarper(0.05)),
        ({"min_p": 0.1}, MinPLogitsWarper(0.1)),
        ({"min_p": 1.0}, MinPLogitsWarper(1.0)),
    ],
    # The same in every process: an object's own text has its address.
    ids=lambda item: str(item) if isinstance(item, dict) else type(item).__name__,
)
def test_what_is_kept_is_what_transformers_keeps(
    seed: int, options: dict[str, Any], warper: Any
) -> None:
    values = logits(seed)
    wanted = warper(torch.zeros(1, 0, dtype=torch.long), torch.tensor(values[None]))[0]
    found = filtered(values, GenerationOptions(**options))
    assert np.array_equal(np.isfinite(found), torch.isfinite(wanted).numpy())
    assert np.array_equal(found[np.isfinite(found)], values[np.isfinite(found)])


def test_shares_of_drawn_tokens_are_the_probabilities() -> None:
    values = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    options = GenerationOptions(temperature=1.0, seed=1)
    sampler = Sampler(options, np.empty(0, np.int64))
    drawn = [sampler.choose(values) for _ in range(20_000)]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    assert np.abs(shares - np.exp(values)).max() < 0.015


def test_temperature_makes_flat_or_steep() -> None:
    values, text = logits(1), np.empty(0, np.int64)
    steep = Sampler(GenerationOptions(temperature=0.01, seed=1), text)
    assert {steep.choose(values) for _ in range(50)} == {int(values.argmax())}
    flat = Sampler(GenerationOptions(temperature=50.0, seed=1), text)
    assert len({flat.choose(values) for _ in range(400)}) > VOCAB / 2


def test_the_penalty_counts_text_and_answer() -> None:
    values = np.array([3.0, 2.9, 2.8], np.float32)
    options = GenerationOptions(repetition_penalty=2.0)
    sampler = Sampler(options, np.array([0], np.int64))
    assert [sampler.choose(values) for _ in range(2)] == [1, 2]
