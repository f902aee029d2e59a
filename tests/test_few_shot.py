"""Few-shot mode on a tiny random model: rows drawn, folds, and what comes of them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from promptdial.prompts.blob import read_blob
from promptdial.prompts.errors import DataInvalid, UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import encode_rows, target_tensor
from promptdial.prompts.training.config import TrainConfig, check, with_values
from promptdial.prompts.training.reference import blob_reader
from promptdial.prompts.training.scoring import labels_of
from promptdial.prompts.training.search.class_means import (
    class_means,
    mixed,
    name_share,
)
from promptdial.prompts.training.search.few_shot import (
    difference,
    hopeless,
    packed,
    preferred,
    train_few_shot,
    while_hopeful,
)
from promptdial.prompts.training.search.few_shot_readings import (
    LAST,
    READINGS,
    Reading,
    computed_mix,
)
from promptdial.prompts.training.search.few_shot_rows import FOLDS, draw, fold_of
from promptdial.prompts.training.search.few_shot_runs import PROBE, FoldRuns, Held, Way
from promptdial.prompts.training.search.search_log import SearchLog
from promptdial.prompts.training.task import Task, read_task
from promptdial.prompts.training.trainer import train
from promptdial.prompts.training.word_dropout import without_words
from promptdial.runtime import Engine
from promptdial.runtime.cli import main
from promptdial.runtime.rows import Row

CPU = torch.device("cpu")
# Which of two words comes first: means of random features hardly tell.
FIRST, SECOND = ("film", "music", "book"), ("seven", "four", "station", "three")
LABELS = ("red before blue", "blue before red")
QUICK = TrainConfig(few_shot=6, batch_size=6, epochs=4)


def order_task() -> Task:
    rows = []
    for one in FIRST:
        for two in SECOND:
            rows.append(Row(text=f"red {one} blue {two}", label=LABELS[0]))
            rows.append(Row(text=f"blue {one} red {two}", label=LABELS[1]))
    return Task("order", "classification", LABELS, rows, [])


def test_rows_are_drawn_class_by_class_with_the_seed() -> None:
    one, again = draw(order_task(), 4, 0), draw(order_task(), 4, 0)
    assert one.train == again.train and one.dev == []
    assert [row.label for row in one.train].count(LABELS[0]) == 4
    assert draw(order_task(), 4, 1).train != one.train
    assert len(draw(order_task(), 50, 0).train) == 24
    with pytest.raises(UsageError, match="few_shot on a token task"):
        draw(replace(order_task(), kind="token"), 4, 0)
    with pytest.raises(DataInvalid, match="label 'blue before red' has 0 training"):
        fewer = [row for row in order_task().train if row.label == LABELS[0]]
        draw(replace(order_task(), train=fewer), 4, 0)


def test_folds_are_stratified() -> None:
    fold = fold_of([0, 0, 0, 1, 1, 1, 0, 0, 0])
    assert fold.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2]
    assert FOLDS == 3


@pytest.mark.parametrize("method", ["prefix", "prompt", "probe"])
def test_a_few_shot_blob_answers_on_the_device_as_in_pytorch(
    base: FrozenBase, tiny_bundle: Path, tmp_path: Path, method: str
) -> None:
    task, out = order_task(), tmp_path / "order.safetensors"
    found = train_few_shot(base, task, replace(QUICK, method=method), out)
    blob = found.blob
    assert len(found.task.train) == 12
    assert blob.meta.metrics["folds_accuracy"] == round(found.accuracy, 3)
    # A prompt is there when the folds say that it pays, and not else.
    assert (blob.num_virtual_tokens == 0) == (found.chosen == PROBE)
    assert "class vectors" in found.reason
    examples = encode_rows(task.train, base.encoder, task.labels, {})
    reference = labels_of(blob_reader(base, blob), examples)
    with Engine(tiny_bundle, variant="fp32") as engine:
        engine.load(blob)
        answers = [engine.classify("order", row.text).label for row in task.train]
    assert answers == reference
    tried = [trial.name for trial in found.trials]
    assert tried[:FOLDS] == [PROBE] * FOLDS
    assert (len(tried) > FOLDS) == (method != "probe")


def test_the_same_seed_gives_the_same_blob(
    base: FrozenBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    config = replace(QUICK, method="prefix", epochs=1)
    out = tmp_path / "order.safetensors"
    one = train_few_shot(base, order_task(), config, out)
    two = train_few_shot(base, order_task(), config, out)
    assert one.blob.digest == two.blob.digest
    other = train_few_shot(base, order_task(), replace(config, seed=1), out)
    assert other.blob.digest != one.blob.digest


def test_a_prompt_is_hopeless_a_standard_error_behind() -> None:
    probe = torch.tensor([True] * 60 + [False] * 40 + [True] * 100)
    level = probe[:100].clone()
    assert not hopeless(level, probe)
    level[[0, 1, 70]] = ~level[[0, 1, 70]]  # two lost, one won: chance
    assert not hopeless(level, probe)
    level[:10] = False
    assert hopeless(level, probe)


@pytest.mark.parametrize(("lost", "run"), [(0, [1, 2]), (10, [])])
def test_a_prompt_that_is_behind_costs_no_more_folds(lost: int, run: list[int]) -> None:
    probe = torch.tensor([True] * 60 + [False] * 40)
    asked = []

    def more(fold: int) -> Held:
        asked.append(fold)
        return Held(first.ways, probe[None])

    behind = probe.clone()
    behind[:lost] = False
    first = Held((Way(LAST, 1e-3),), behind[None])
    held = while_hopeful(first, probe.repeat(FOLDS), more)
    assert asked == run and held.right.shape == (1, 100 * (1 + len(run)))


@pytest.mark.parametrize("reading", READINGS, ids=lambda item: str(len(item.parts)))
def test_what_class_vectors_read_is_what_the_device_reads(
    base: FrozenBase,
    tiny_bundle: Path,
    tmp_path: Path,
    reading: Reading,
) -> None:
    task, config = order_task(), replace(QUICK, method="prefix")
    log = SearchLog(tmp_path / "log.jsonl", {}, resume=False)
    run = FoldRuns(base, task, config, log)
    prompt, head = run.train(config, run.examples, Way(reading, 1e-3))
    blob = packed(run, config, prompt, head, {})
    assert (blob.head_mix is None) == (reading == LAST)
    weight = blob.head_weight
    assert weight is not None
    assert weight.shape == (2, len(reading.parts) * base.dims.hidden)
    rows = encode_rows(task.train, base.encoder, task.labels, {})
    reader = blob_reader(base, blob)
    with Engine(tiny_bundle, variant="fp32") as engine:
        engine.load(blob)
        found = [engine.classify("order", row.text) for row in task.train]
    assert [answer.label for answer in found] == labels_of(reader, rows)


def test_a_later_candidate_is_taken_only_beyond_chance() -> None:
    first = torch.tensor([True] * 50 + [False] * 50)
    nearly = first.clone()
    nearly[[0, 60, 61]] = ~first[[0, 60, 61]]  # one lost, two won
    clear = first.clone()
    clear[50:60] = True
    assert difference(clear, first) == pytest.approx((10.0, 3.015), abs=1e-3)
    gain, error = difference(nearly, first)
    assert 0 < gain < error
    assert preferred([first]) == 0
    assert preferred([first, nearly]) == 0
    assert preferred([first, clear]) == 1
    assert preferred([first, nearly, clear]) == 2
    clearer = clear.clone()
    clearer[60:70] = True
    assert preferred([first, clearer, clear]) == 1
    assert preferred([clear, first]) == 0


def test_readings_are_cut_from_one_pass() -> None:
    mix = computed_mix(7)
    assert mix[:, [0, 1, 2, 4, 5]].abs().max() == 0
    wide = torch.cat([row * torch.ones(2, 4) for row in (1.0, 2.0, 3.0)], dim=1)
    for reading in READINGS:
        found = reading.of(wide)
        assert found.shape == (2, 4 * len(reading.parts))
        assert found[0, ::4].tolist() == [1.0 + part for part in reading.parts]
        own = reading.mix(7)
        assert own is None or torch.equal(own, mix[list(reading.parts)])


def test_names_help_where_means_are_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    names = torch.nn.functional.normalize(
        torch.randn(8, 16, generator=generator), dim=1
    )
    targets = torch.arange(8).repeat(6)
    fold = fold_of(targets.tolist())
    noise = 0.8 * torch.randn(48, 16, generator=generator)
    rows = torch.nn.functional.normalize(names[targets] + noise, dim=1)
    assert name_share(rows, targets, fold, names) > 0
    clear = torch.nn.functional.normalize(names[targets] + 0.1 * noise, dim=1)
    assert name_share(clear, targets, fold, names.roll(1, 0)) == 0
    means = class_means(rows, targets, 8)
    assert torch.allclose(mixed(means, names, 0.0), means, atol=1e-6)
    assert torch.allclose(mixed(means, names, 1.0), names, atol=1e-6)


def test_words_are_left_out_and_special_tokens_stay(base: FrozenBase) -> None:
    rows = [Row(text="the red film was good and great", label=LABELS[0])]
    pair = [Row(text="red film now", text_pair="red film here", label=LABELS[0])]
    tags = [Row("the red film", tokens=("the", "red", "film"), tags=("O", "B-a", "O"))]
    generator = np.random.default_rng(0)
    for found in (rows, pair):
        examples = encode_rows(found, base.encoder, LABELS, {})
        thinner = without_words(examples, 0.5, generator)[0].text
        whole = examples[0].text
        assert len(thinner) < len(whole)
        special = whole.words < 0
        assert (thinner.words < 0).sum() == special.sum()
        assert set(thinner.ids) <= set(whole.ids)
    examples = encode_rows(tags, base.encoder, ("O", "B-a"), {})
    fewer = without_words(examples, 0.5, np.random.default_rng(2))
    words = examples[0].text.ids[1:4].tolist()
    wanted = set(zip(words, (0, 1, 0), strict=True))
    targets = target_tensor(fewer, CPU).tolist()
    assert set(zip(fewer[0].text.ids[1:-1].tolist(), targets, strict=True)) < wanted
    assert without_words(examples, 0.0, generator) is examples


def test_word_dropout_changes_what_is_learned(base: FrozenBase) -> None:
    task = replace(order_task(), dev=order_task().train)
    config = TrainConfig(epochs=1, batch_size=8, num_virtual_tokens=2)
    plain = train(base, task, config)
    thinned = train(base, task, replace(config, word_dropout=0.5))
    assert plain.losses != thinned.losses


def test_the_command_needs_no_dev_rows(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "order"
    folder.mkdir()
    lines = [json.dumps({"text": r.text, "label": r.label}) for r in order_task().train]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataInvalid, match=r"dev\.jsonl"):
        read_task(folder)
    out = tmp_path / "order.safetensors"
    words = ["train", str(tiny_model), "--task", str(folder), "--out", str(out)]
    assert main([*words, "--few-shot", "6", "--epochs", "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rows"] == 12 and answer["search"]["reason"]
    assert read_blob(out).meta.training["rows"] == 12
    assert main([*words, "--few-shot", "6", "--resume"]) == 2
    assert main([*words, "--few-shot", "1"]) == 2


def test_few_shot_and_a_budget_are_two_things() -> None:
    with pytest.raises(UsageError, match="both budget and few_shot"):
        check(TrainConfig(few_shot=8, budget="1m"))


def test_a_few_shot_blob_abstains_by_the_tasks_label(
    base: FrozenBase, tiny_bundle: Path, tmp_path: Path
) -> None:
    """`out_of_scope` of task.yaml: an input that is likeliest that gets no answer."""
    config = replace(QUICK, method="probe")
    task = replace(order_task(), out_of_scope=LABELS[0])
    blob = train_few_shot(base, task, config, tmp_path / "order").blob
    assert blob.meta.scores.out_of_scope == LABELS[0]
    plain = train_few_shot(base, order_task(), config, tmp_path / "plain").blob
    with Engine(tiny_bundle, threads=1, variant="fp32") as engine:
        engine.load(plain)
        before = [engine.classify("order", row.text) for row in task.train]
        engine.load(blob)
        after = [engine.classify("order", row.text) for row in task.train]
    assert not any(item.abstained for item in before)
    wanted = [item.label == LABELS[0] for item in before]
    assert [item.abstained for item in after] == wanted and any(wanted)


@pytest.mark.parametrize("name", ["patience", "rounded", "max_seconds"])
def test_options_without_a_part_in_folds_are_refused(
    base: FrozenBase, tmp_path: Path, name: str
) -> None:
    config = with_values(QUICK, {name: 1}, "x")
    with pytest.raises(UsageError, match=f"few_shot with {name}"):
        train_few_shot(base, order_task(), config, tmp_path / "order")
