"""Options that mean nothing in a run: out of range, half given, refused or said."""

import math
from dataclasses import replace
from typing import Any

import pytest
from training_tasks import colour_task, embedding_task

from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.config import TrainConfig, check, with_values
from promptdial.prompts.training.idle_options import idle_findings
from promptdial.prompts.training.packing import require_fit
from promptdial.prompts.training.trainer import train

SHORT = TrainConfig(epochs=1, batch_size=12, num_virtual_tokens=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init_text": "red"}, "init_text with init 'labels'"),
        ({"encoder_hidden_size": 8}, "encoder_hidden_size with method 'prompt'"),
        ({"seed": -1}, "seed is -1"),
        ({"weight_decay": -1.0}, r"weight_decay is -1\.0"),
        ({"head_scale": math.nan}, "head_scale is nan"),
        ({"budget": "1m", "epochs": 0}, "budget with method 'prompt' and epochs 0"),
        ({"budget": "1m", "method": "probe"}, "budget with method 'probe'"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(TrainConfig(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 2.7},
        {"epochs": math.inf},
        {"seed": True},
        {"init_text": None},
        {"budget": ["1m"]},
    ],
)
def test_a_file_says_what_it_means(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"x: {next(iter(options))} is"):
        with_values(TrainConfig(), options, "x")


def test_numbers_may_be_written_in_any_way() -> None:
    options = {"epochs": 3.0, "batch_size": "8", "learning_rate": 1, "budget": "1m"}
    made = with_values(TrainConfig(), options, "x")
    assert (made.epochs, made.batch_size, made.learning_rate) == (3, 8, 1.0)
    assert isinstance(made.epochs, int) and isinstance(made.learning_rate, float)


@pytest.mark.parametrize(
    ("options", "kind", "names"),
    [
        ({}, "classification", ""),
        ({"temperature": 0.1}, "classification", "temperature"),
        ({"temperature": 0.1}, "embedding", ""),
        ({"head_scale": 5.0, "label_smoothing": 0.1}, "embedding", "label_smoothing"),
        ({"method": "probe", "epochs": 3, "rounded": 0.0}, "pair", "epochs, rounded"),
        ({"method": "probe", "head_levels": 2, "limit": 9}, "pair", ""),
        ({"pairs": "apart"}, "pair", ""),
        ({"pairs": "apart"}, "classification", "pairs"),
        ({"method": "probe", "head_init": "blob", "init": "from:x"}, "pair", ""),
    ],
)
def test_what_has_no_effect_is_named(
    options: dict[str, Any], kind: str, names: str
) -> None:
    found = idle_findings(TrainConfig(**options), kind)
    assert [item.code for item in found] == (["NO_EFFECT"] if names else [])
    assert all(names in item.message for item in found)


def test_a_run_says_which_options_it_passed_over(base: FrozenBase) -> None:
    result = train(base, colour_task(), replace(SHORT, temperature=0.5))
    messages = [it.message for it in result.warnings if it.code == "NO_EFFECT"]
    assert messages == [
        "temperature without effect: it is for embedding tasks; leave it out"
    ]


def test_options_said_to_be_idle_change_no_probe(base: FrozenBase) -> None:
    """What the warning says is so: class vectors and mix are the same numbers."""
    usual = TrainConfig(method="probe", head_levels=2, head_pooling="attention")
    other = replace(
        usual,
        init="vocab",
        epochs=2,
        batch_size=4,
        learning_rate=0.1,
        head_learning_rate=0.5,
        weight_decay=0.3,
        label_smoothing=0.2,
        patience=1,
        rounded=0.9,
        word_dropout=0.3,
    )
    one, two = (train(base, colour_task(), config) for config in (usual, other))
    assert one.reader.head is not None and two.reader.head is not None
    for left, right in zip(
        one.reader.head.state_dict().values(),
        two.reader.head.state_dict().values(),
        strict=True,
    ):
        assert left.equal(right)


def test_embeddings_have_no_probe(base: FrozenBase) -> None:
    config = replace(SHORT, method="probe")
    for call in (require_fit, train):
        with pytest.raises(UsageError, match="method probe on task 'search'"):
            call(base, embedding_task(), config)
