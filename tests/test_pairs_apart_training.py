"""Training on pairs whose texts are read one after the other."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import normal, random_blob
from training_tasks import colour_task, pair_task

from promptdial.prompts.blob import write_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.metadata import APART
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import collate, encode_rows
from promptdial.prompts.training.comparison.baselines import run_baseline
from promptdial.prompts.training.comparison.weight_tuning import every_weight, tune
from promptdial.prompts.training.config import (
    FULL_TUNING,
    PAIRS,
    TrainConfig,
    recipe_of,
)
from promptdial.prompts.training.heads import (
    Head,
    mixed_levels,
    pooled,
    pooling_of,
    read,
)
from promptdial.prompts.training.packing import pack
from promptdial.prompts.training.packs.teachers import read_teacher
from promptdial.prompts.training.probe import extract, fit_probe
from promptdial.prompts.training.reference import blob_reader
from promptdial.prompts.training.scoring import logits_of, score
from promptdial.prompts.training.search.candidates import OF_PAIRS, usable
from promptdial.prompts.training.search.few_shot import train_few_shot
from promptdial.prompts.training.search.outcome import train_choice
from promptdial.prompts.training.search.search import search
from promptdial.prompts.training.start import prepare
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.trainer import train
from promptdial.prompts.training.word_dropout import without_words
from promptdial.runtime.manifest import Manifest, from_json

QUICK = TrainConfig(
    method="prefix", num_virtual_tokens=4, epochs=2, batch_size=12, pairs="apart"
)


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return from_json((tiny_bundle / "manifest.json").read_text())


def uneven_task() -> Task:
    """Pairs whose texts differ in length, so that each is padded in its batch."""
    task = pair_task()
    rows = [
        replace(row, text=f"{row.text}{' and on' * (number % 4)}")
        for number, row in enumerate(task.train)
    ]
    return replace(task, train=rows, dev=rows[:9])


def test_padding_and_company_leave_features_as_they_are(base: FrozenBase) -> None:
    task = uneven_task()
    rows = encode_rows(task.train[:5], base.encoder, task.labels, {}, APART)
    levels = base.dims.layers + 1
    query = torch.tensor(normal(3, 2, base.dims.hidden))
    mix = torch.tensor(normal(4, 2, levels))
    for head in (None, Head(torch.zeros(2, 4 * base.dims.hidden), None, mix, query)):
        with torch.no_grad():
            together = collate([row.text for row in rows], base.device)
            found = read(base, together, [], APART, head)
            wanted = [
                read(base, collate([row.text], base.device), [], APART, head)
                for row in rows
            ]
            assert torch.allclose(found, torch.cat(wanted), atol=1e-5)
            # As `features` has them of one pass over all of the texts.
            hidden = mixed_levels(base, together, [], None if head is None else mix)
            queries = None if head is None else query
            assert torch.allclose(
                found, pooled(hidden, together, APART, queries), atol=1e-5
            )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head_levels": 2, "head_pooling": "attention", "head_init": "probe"},
        {"method": "probe", "head_levels": 2},
        {"method": "probe", "head_pooling": "attention"},
    ],
    ids=str,
)
def test_training_reads_apart_what_the_blob_does(
    base: FrozenBase, options: dict[str, object]
) -> None:
    task, config = uneven_task(), replace(QUICK, **options)  # type: ignore[arg-type]
    result = train(base, task, config)
    blob = pack(task, config, result)
    assert blob.meta.pooling == APART
    dev = encode_rows(task.dev, base.encoder, task.labels, {}, APART)
    metric = score(blob_reader(base, blob), task.dev, dev)
    assert blob.meta.metrics["dev_accuracy"] == pytest.approx(metric, abs=1e-3)
    rows = encode_rows(task.train, base.encoder, task.labels, {}, APART)
    found = torch.stack(logits_of(blob_reader(base, blob), rows))
    wanted = torch.stack(logits_of(result.reader, rows))
    assert torch.allclose(found, wanted, atol=0.05)


def test_baselines_read_pairs_as_the_prompt_does(base: FrozenBase) -> None:
    task, config = pair_task(), replace(QUICK, batch_size=24)
    once = replace(FULL_TUNING, learning_rates=(1e-3,), epochs=1, least_steps=1)
    tuned = tune(base, task, config, once, every_weight)
    rows = encode_rows(task.dev, base.encoder, task.labels, {}, APART)
    assert tuned.reader.pooling == APART
    assert tuned.dev == score(tuned.reader, task.dev, rows)
    # Labels without a rule, so that no way of reading is right about all.
    odd = [
        replace(row, label=task.labels[(number * number) % 7 % 2])
        for number, row in enumerate(task.train)
    ]
    task = replace(task, train=odd[:18], dev=odd, test=odd)
    found = [
        run_baseline("probe", base, task, replace(config, pairs=way)).test
        for way in PAIRS
    ]
    train_rows, all_rows = (
        extract(
            base, encode_rows(rows, base.encoder, task.labels, {}, APART), APART, []
        )
        for rows in (task.train, task.test)
    )
    _, wanted = fit_probe(train_rows, all_rows, 2)
    assert found[1] == pytest.approx(wanted) and found[0] != found[1]


def test_a_search_tries_both_ways_of_pairs(base: FrozenBase) -> None:
    ways = [config.pairs for _, config in usable(base, pair_task(), TrainConfig())]
    assert set(ways) == {"together", "apart"}
    texts = [config.pairs for _, config in usable(base, colour_task(), TrainConfig())]
    assert set(texts) == {"together"}
    held = usable(base, pair_task(), replace(TrainConfig(), pairs="apart"))
    assert {config.pairs for _, config in held} == {"apart"}


def test_few_shot_reads_pairs_apart(base: FrozenBase, tmp_path: Path) -> None:
    task = uneven_task()
    config = TrainConfig(few_shot=8, pairs="apart", method="probe")
    blob = train_few_shot(base, task, config, tmp_path / "match").blob
    assert blob.meta.pooling == APART and blob.head_weight is not None
    assert blob.head_weight.shape[1] % (2 * base.dims.hidden) == 0
    rows = encode_rows(task.train, base.encoder, task.labels, {}, APART)
    # Better than chance: a pair of the same colour is seen to be one.
    assert score(blob_reader(base, blob), task.train, rows) > 60


def test_words_are_left_out_of_both_texts(base: FrozenBase) -> None:
    rows = encode_rows(uneven_task().train, base.encoder, ("same",), {}, APART)
    thinner = without_words(rows, 0.5, np.random.default_rng(0))
    lost = np.array(
        [
            [len(a) - len(b) for a, b in zip(one.passes, two.passes, strict=True)]
            for one, two in (
                (a.text, b.text) for a, b in zip(rows, thinner, strict=True)
            )
        ]
    )
    assert (lost.sum(0) > 0).all() and (lost >= 0).all()


def test_a_start_of_the_other_way_is_refused(base: FrozenBase) -> None:
    task = uneven_task()
    start = prepare(base, task, replace(QUICK, pairs="together"))
    with pytest.raises(UsageError, match="pairs is 'apart', the start reads by seg"):
        train(base, task, QUICK, start=start)


def test_a_search_runs_both_ways_and_its_probe_reads_as_the_winner(
    base: FrozenBase, tmp_path: Path
) -> None:
    task = uneven_task()
    choice = search(base, task, TrainConfig(budget="20s"), tmp_path / "match")
    names = {trial.name for trial in choice.trials}
    assert OF_PAIRS[0].name in names and len(names) > 1
    apart = replace(choice, config=replace(QUICK, epochs=0), name="apart")
    # Nothing was trained, and the probe is better.
    asked = TrainConfig(budget="20s")
    runs = train_choice(base, apart, asked).runs
    assert runs.config.method == "probe" and runs.config.pairs == "apart"
    blob = pack(task, runs.config, runs.result)
    assert blob.meta.pooling == APART
    assert blob.meta.training["recipe"]["pairs"] == "apart"


def test_recipes_say_nothing_of_what_is_usual() -> None:
    assert "pairs" not in recipe_of(TrainConfig())
    assert recipe_of(QUICK)["pairs"] == "apart"


def test_class_vectors_start_from_a_blob_that_reads_alike(
    base: FrozenBase, manifest: Manifest, tmp_path: Path
) -> None:
    blob = random_blob(manifest, "soft", "pair", seed=2, pooling=APART)
    write_blob(tmp_path / "soft.safetensors", blob)
    config = TrainConfig(
        init=f"from:{tmp_path / 'soft.safetensors'}",
        head_init="blob",
        num_virtual_tokens=blob.num_virtual_tokens,
        epochs=0,
    )
    task = replace(pair_task(), labels=blob.meta.labels)
    with pytest.raises(UsageError, match="reads pairs by apart_l2"):
        train(base, task, config)
    made = train(base, task, replace(config, pairs="apart"))
    assert made.reader.head is not None and blob.head_weight is not None
    found = made.reader.head.weight.detach().numpy()
    np.testing.assert_allclose(found, blob.head_weight, atol=1e-2)


def test_a_teacher_is_asked_as_it_reads(
    base: FrozenBase, manifest: Manifest, tmp_path: Path
) -> None:
    task = pair_task()
    blob = random_blob(manifest, task.name, "pair", seed=5, pooling=APART)
    write_blob(tmp_path / f"{task.name}.safetensors", blob)
    teacher = read_teacher(base, task, tmp_path)
    rows = encode_rows(task.train, base.short, task.labels, {}, APART)
    wanted = logits_of(blob_reader(base, blob), rows)
    assert torch.equal(torch.stack(teacher.logits), torch.stack(wanted))


def test_only_pairs_are_read_apart() -> None:
    config = TrainConfig(pairs="apart")
    assert pooling_of("pair", config) == APART
    assert pooling_of("pair", TrainConfig()) == "segments_l2"
    assert pooling_of("classification", config) == "mean_l2"
