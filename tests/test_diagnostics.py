"""Every finding, provoked by training a tiny random model in the way it warns of."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from training_tasks import COLOURS, colour_rows, colour_task, token_task

from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.training.base import FrozenBase, open_base
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.diagnostics import (
    Finding,
    LabelFacts,
    RunFacts,
    run_findings,
    seed_findings,
)
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.trainer import train
from promptdial.prompts.training.units import (
    count_names,
    gold_units,
    paired_interval,
)
from promptdial.prompts.training.unknown_words import unknown_token
from promptdial.runtime.rows import Row
from promptdial.runtime.text import TextEncoder

CPU = torch.device("cpu")
CONFIG = TrainConfig(batch_size=12, num_virtual_tokens=4, epochs=2, patience=99)

GOOD = RunFacts(
    method="prompt",
    distance=1.0,
    answers_changed=0.3,
    truncated_share=0.0,
    cut_share=0.1,
    losses=(1.0, 0.3, 0.1),
    dev_metrics=(90.0, 94.0, 95.0),
    dev_metric=95.0,
    probe=90.0,
    classes=2,
    labels=LabelFacts(
        train={"a": 500, "b": 400},
        dev={"a": 50, "b": 40},
        predicted={"a": 45, "b": 45},
        gain_interval=2.0,
    ),
)


def found(base: FrozenBase, task: Task, config: TrainConfig) -> dict[str, str]:
    """Codes and messages of a real run."""
    return {item.code: item.message for item in train(base, task, config).warnings}


def turned(rows: list[Row]) -> list[Row]:
    """Every label the next one: what is learned from the others is wrong here."""
    after = dict(zip(COLOURS, COLOURS[1:] + COLOURS[:1], strict=True))
    return [replace(row, label=after[row.label or ""]) for row in rows]


def without(label: str, keep: int = 0) -> list[Row]:
    """Rows of which only so many have the label."""
    rows = [row for row in colour_rows() if row.label == label]
    return [row for row in colour_rows() if row.label != label] + rows[:keep]


def test_a_good_run_says_nothing() -> None:
    assert run_findings(GOOD) == []


def test_rate_too_low(base: FrozenBase) -> None:
    config = replace(CONFIG, learning_rate=1e-7, epochs=1)
    assert "moved by 0.0" in found(base, colour_task(), config)["RATE_LOW"]


def test_rate_too_high(base: FrozenBase) -> None:
    config = replace(CONFIG, learning_rate=10.0, head_learning_rate=1e-8, epochs=4)
    message = found(base, colour_task(), config)["RATE_HIGH"]
    assert message.endswith("; lower learning_rate threefold")
    assert "RATE_HIGH" not in found(base, colour_task(), CONFIG)


def test_a_loss_that_is_no_number_stops_the_run(base: FrozenBase) -> None:
    endless = replace(CONFIG, head_scale=1e39)
    with pytest.raises(DataInvalid, match=r"the loss is (nan|inf)"):
        train(base, colour_task(), endless)


def test_gradients_always_cut(base: FrozenBase) -> None:
    config = replace(CONFIG, max_grad_norm=1e-6)
    assert "in 100% of the steps" in found(base, colour_task(), config)["ALWAYS_CUT"]
    loose = replace(CONFIG, max_grad_norm=1e6)
    assert "ALWAYS_CUT" not in found(base, colour_task(), loose)


def test_plateau_at_the_probe(base: FrozenBase) -> None:
    """Colours are words of the text: the probe already knows them all."""
    message = found(base, colour_task(), CONFIG)["PROBE_PLATEAU"]
    assert message.startswith("dev ") and "the linear probe's 100.0" in message


def test_no_effect(base: FrozenBase) -> None:
    """The class vectors end so far apart that no answer hangs on the prompt."""
    config = replace(
        CONFIG,
        init="random",
        num_virtual_tokens=1,
        learning_rate=1e-6,
        head_init="probe",
        head_learning_rate=1e-8,
        epochs=1,
    )
    task = colour_task()
    assert "without the prompt" in found(base, task, config)["NO_EFFECT"]


def test_words_that_the_vocabulary_lacks(base: FrozenBase) -> None:
    task = colour_task()
    strange = [replace(row, text="kuku ruku the") for row in task.train[:3]]
    known = [replace(row, text="kuku the red film") for row in task.train[:3]]
    mixed = replace(task, train=[*strange, *task.train[3:]])
    message = found(base, mixed, CONFIG)["UNKNOWN_WORDS"]
    share = 100 * 3 / len(task.train)
    assert message.startswith(f"{share:.1f}% of the training rows are mostly words")
    # One word in four leaves a row to be read.
    fine = replace(task, train=[*known, *task.train[3:]])
    assert "UNKNOWN_WORDS" not in found(base, fine, CONFIG)


@pytest.mark.parametrize(
    ("model", "token"),
    [
        (models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"), 1),
        (models.WordLevel({"a": 0, "none": 1}, unk_token="none"), 1),
        (models.BPE({"a": 0, "?": 1}, [], unk_token="?"), 1),
        (models.BPE({"a": 0, "?": 1}, [], unk_token="?", byte_fallback=True), None),
        (models.BPE({"a": 0}, []), None),
        (models.Unigram([("a", -1.0), ("<unk>", -9.0)], 1, False), 1),
    ],
)
def test_the_token_of_unknown_words(model: models.Model, token: int | None) -> None:
    encoder = TextEncoder(Tokenizer(model).to_str(), 8)
    assert unknown_token(encoder) == token


def test_window_exhausted(tiny_model: Path) -> None:
    small = open_base(str(tiny_model), CPU, max_tokens=4)
    message = found(small, colour_task(), CONFIG)["TRUNCATED"]
    assert message.startswith("100.0% of the training rows")


def test_a_class_with_few_rows_that_is_never_answered(base: FrozenBase) -> None:
    rows = without("light", keep=1)
    config = replace(CONFIG, epochs=1, learning_rate=1e-7, head_learning_rate=0.05)
    task = replace(colour_task(), train=rows, dev=colour_rows())
    codes = found(base, task, config)
    assert codes["FEW_ROWS"].startswith("'light': fewer than 8")
    gone = replace(task, train=without("light"))
    config = replace(config, epochs=12, learning_rate=0.02)
    assert found(base, gone, config)["NEVER_PREDICTED"].startswith("'light': in dev")


def test_one_label_drowns_the_others(base: FrozenBase) -> None:
    rows = without("red") + [row for row in colour_rows() if row.label == "red"] * 8
    message = found(base, replace(colour_task(), train=rows), CONFIG)["IMBALANCE"]
    assert message.startswith("80% of the training rows are 'red', and dev is ")


def test_dev_falls_while_the_training_loss_vanishes(base: FrozenBase) -> None:
    task = replace(colour_task(), train=colour_rows()[:3], dev=turned(colour_rows()))
    config = replace(CONFIG, method="prefix", epochs=60, learning_rate=0.05)
    assert "dev fell by" in found(base, task, config)["OVERFIT"]


def test_dev_too_small_to_choose_by(base: FrozenBase) -> None:
    """Of three turned rows the probe has none, an undecided prompt one."""
    task = replace(colour_task(), dev=turned(colour_rows()[:3]))
    config = replace(CONFIG, head_scale=1.0, epochs=1, learning_rate=0.02)
    message = found(base, task, config)["DEV_SMALL"]
    assert message.startswith("the gain over the linear probe is 33.3 points")
    assert "on a dev set of 3" in message


def test_seeds_that_differ_by_more_than_the_dev_rows_explain(base: FrozenBase) -> None:
    wild = replace(CONFIG, epochs=1, batch_size=8, learning_rate=0.1, init="random")
    task = replace(colour_task(), dev=colour_rows() * 6)
    metrics = [train(base, task, replace(wild, seed=s)).dev_metric for s in range(3)]
    (unstable,) = seed_findings(metrics, len(task.dev))
    assert unstable.code == "UNSTABLE"
    assert "over 3 seeds" in unstable.message
    assert seed_findings([90.1, 89.7, 90.4], 500) == []
    assert seed_findings([100.0, 100.0], 10) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"losses": (1.0, 4.0, 0.5)}, "RATE_HIGH"),
        ({"losses": (1.0, 1.03)}, "RATE_HIGH"),
        ({"losses": (2.0, 1.2, 0.8)}, "RATE_HIGH"),
        ({"losses": (1.0, 0.01), "dev_metrics": (95.0, 93.0)}, "OVERFIT"),
        ({"dev_metric": 91.0, "dev_metrics": (91.0,)}, "DEV_SMALL"),
    ],
)
def test_thresholds(change: dict[str, object], code: str) -> None:
    assert [item.code for item in run_findings(replace(GOOD, **change))] == [code]  # type: ignore[arg-type]


def test_a_probe_has_no_rate_to_find_fault_with() -> None:
    assert run_findings(replace(GOOD, method="probe", distance=0.0)) == []
    few = replace(GOOD.labels, train={"a": 4, "b": 5})  # type: ignore[type-var]
    (finding,) = run_findings(replace(GOOD, method="probe", labels=few))
    assert finding == Finding(
        "FEW_ROWS",
        "'a', 'b': fewer than 8 training rows each; add rows, or put rare labels "
        "together",
    )


def test_the_paired_interval_counts_what_one_alone_knows() -> None:
    gold = gold_units([Row(text="x", label=name) for name in "abcd"])
    wrong = gold_units([Row(text="x", label=name) for name in "abzz"])
    assert paired_interval(gold, gold, gold) == 0.0
    # Two of four known by one alone: 196 * sqrt(2 - 4 / 4) / 4.
    assert paired_interval(gold, gold, wrong) == pytest.approx(49.0)


def test_entities_are_the_units_of_token_tasks(base: FrozenBase) -> None:
    task = token_task()
    assert count_names(gold_units(task.train)) == {"colour": len(task.train)}
    labels = train(base, task, CONFIG).facts.labels
    assert labels is not None
    assert labels.dev == {"colour": len(task.dev)}
