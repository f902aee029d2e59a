"""Joint training of a pack on a tiny random model: it learns, resumes, is written."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import META
from packs import random_pack
from safetensors import safe_open
from safetensors.torch import save_file
from test_training import QUICK, Stopped, stopping_after
from training_tasks import (
    COLOURS,
    NOUNS,
    colour_task,
    embedding_task,
    pair_task,
    token_task,
)

from promptdial.export.errors import Unsupported
from promptdial.prompts.blob import write_blob
from promptdial.prompts.distribution import REFERENCE
from promptdial.prompts.errors import BlobTooBig, FileFailed, UsageError
from promptdial.prompts.pack import PACK_SUFFIX, Pack, read_pack, write_pack
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import encode_rows
from promptdial.prompts.training.config import PACK_DEFAULTS, TrainConfig
from promptdial.prompts.training.graphs.graph_base import on_graph
from promptdial.prompts.training.graphs.graph_model import EncoderGraph
from promptdial.prompts.training.packing import pack
from promptdial.prompts.training.packs.shared import SharedResult, train_shared
from promptdial.prompts.training.packs.shared_members import Member, shared_out
from promptdial.prompts.training.packs.shared_packing import (
    pack_shared,
    require_pack_fits,
)
from promptdial.prompts.training.reference import blob_reader
from promptdial.prompts.training.scores.dev_reference import dev_reference
from promptdial.prompts.training.scoring import Reader, labels_of, logits_of, score
from promptdial.prompts.training.storage import IN_PACKS
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.trainer import train
from promptdial.runtime import Engine
from promptdial.runtime.cli import main
from promptdial.runtime.graph_state import flat, past_names
from promptdial.runtime.manifest import Dims
from promptdial.runtime.rows import Row

PACK = replace(
    QUICK, init="vocab", method="prefix", learning_rate=0.02, head_learning_rate=0.1
)
METHODS = pytest.mark.parametrize("method", ["prefix", "prompt"])


def noun_task() -> Task:
    """Another question about the texts of `colour_task`."""
    labels, numbers = ("book", "five"), ("three", "four", "five", "seven")
    rows = [
        Row(text=f"the {colour} {noun}", label=labels[noun in numbers])
        for noun in NOUNS
        for colour in COLOURS
    ]
    return Task("noun", "classification", labels, rows, rows[6:18])


def run(
    base: FrozenBase, tasks: list[Task], config: TrainConfig, file: Path | None = None
) -> tuple[SharedResult, Pack]:
    result = train_shared(base, tasks, config, file)
    return result, pack_shared(config, result)[0]


@METHODS
def test_two_tasks_are_learned_at_once(base: FrozenBase, method: str) -> None:
    tasks = [colour_task(), noun_task()]
    result, made = run(base, tasks, replace(PACK, method=method, epochs=12))
    assert result.losses[-1] < 0.8 * result.losses[0]
    assert result.warnings == []
    for task, blob, moved in zip(tasks, made.blobs, result.distances, strict=True):
        assert moved > 0.02
        reader = blob_reader(base, blob)
        rows = encode_rows(task.train, base.encoder, task.labels, {})
        chance = 100 / len(task.labels)
        assert score(reader, task.train, rows) > chance + 20


@METHODS
def test_factors_of_another_task_give_other_answers(
    base: FrozenBase, method: str
) -> None:
    tasks = [colour_task(), noun_task()]
    _, made = run(base, tasks, replace(PACK, method=method, epochs=4))
    one, two = (blob_reader(base, blob) for blob in made.blobs)
    rows = encode_rows(tasks[0].train, base.encoder, COLOURS, {})
    own = torch.stack(logits_of(one, rows))
    other = torch.stack(logits_of(replace(one, state=two.state), rows))
    assert float((own - other).abs().max()) > 1e-2


@METHODS
@pytest.mark.parametrize("levels", [0, 2])
def test_the_pack_answers_as_what_was_trained(
    base: FrozenBase, method: str, levels: int
) -> None:
    """Within the rounding to int8, and with class vectors in int4 as in training."""
    tasks = [colour_task(), noun_task()]
    config = replace(PACK, method=method, epochs=4, head_levels=levels)
    if levels:
        config = replace(config, head_pooling="attention")
    result, made = run(base, tasks, config)
    for index, (task, blob) in enumerate(zip(tasks, made.blobs, strict=True)):
        rows = encode_rows(task.train, base.encoder, task.labels, {})
        with torch.no_grad():
            state = result.prompt.state(index, base)
        head = result.heads[index]
        assert head is not None
        stored = head.stored(IN_PACKS)
        trained = Reader(base, state, stored, task.kind, "mean_l2", task.labels)
        wanted = torch.stack(logits_of(trained, rows))
        found = torch.stack(logits_of(blob_reader(base, blob), rows))
        bare = torch.stack(logits_of(replace(trained, state=[]), rows))
        assert float((wanted - found).abs().max()) < 0.15
        assert float((wanted - bare).abs().max()) > 0.5
        assert blob.head_weight is not None
        np.testing.assert_array_equal(blob.head_weight, stored.weight.detach())
        if levels:
            # Trained, and not the start that reads the upper levels, all rows alike.
            assert head.mix is not None and head.query is not None
            mix, start = head.mix.detach(), torch.eye(head.mix.shape[1])[-2:]
            assert float((mix - start).abs().max()) > 0.01
            assert float(head.query.detach().abs().max()) > 0.01


@pytest.mark.parametrize("levels", [0, 2])
def test_every_kind_has_its_place_in_a_pack(
    base: FrozenBase, tiny_bundle: Path, levels: int
) -> None:
    tasks = [colour_task(), pair_task(), token_task(), embedding_task()]
    pooling = "attention" if levels else "mean"
    config = replace(PACK, head_levels=levels, head_pooling=pooling)
    _, made = run(base, tasks, config)
    recipes = {b.meta.task: b.meta.training["recipe"] for b in made.blobs}
    weighed = {blob.meta.task for blob in made.blobs if "head.query" in blob.tensors}
    assert weighed == ({"colour", "match"} if levels else set())
    # Each blob says what it is, and not what was asked for.
    said = {task for task, it in recipes.items() if it["head_pooling"] == "attention"}
    assert said == weighed
    assert [it["head_levels"] for it in recipes.values()] == [levels] * 3 + [0]
    assert "word_dropout" not in recipes["colour"]
    assert made.tasks == ("colour", "match", "find", "search")
    with Engine(tiny_bundle, threads=1) as engine:
        for blob in made.blobs:
            engine.load(blob)
        assert engine.classify("colour", "the red film").label in COLOURS
        assert engine.tag("find", "the red film") is not None
        assert engine.embed("search", "the film").shape == (64,)


def test_the_blobs_of_a_pack_abstain_by_their_tasks_label(
    base: FrozenBase, tiny_bundle: Path, tmp_path: Path
) -> None:
    tasks = [replace(colour_task(), out_of_scope="light"), noun_task()]
    _, made = run(base, tasks, replace(PACK, epochs=12))
    path = tmp_path / f"two{PACK_SUFFIX}"
    write_pack(path, made)
    blobs = read_pack(path).blobs
    assert [x.meta.scores.out_of_scope for x in blobs] == ["light", ""]
    with Engine(tiny_bundle, threads=1, variant="fp32") as engine:
        for blob in blobs:
            engine.load(blob)
        found = [engine.classify("colour", row.text) for row in tasks[0].train]
    assert [item.abstained for item in found] == [
        max(item.scores, key=lambda name: item.scores[name]) == "light"
        for item in found
    ]
    assert any(item.abstained for item in found)


@METHODS
def test_a_pack_that_the_device_would_refuse_is_told(
    base: FrozenBase, method: str
) -> None:
    """Every task's own prompt is held against the graph's ranges."""
    names = ["inputs_embeds", *flat(past_names(base.dims))]
    narrow = replace(base, ranges=dict.fromkeys(names, (-0.02, 0.02)))
    tasks, config = [colour_task(), noun_task()], replace(PACK, method=method, epochs=1)
    found = pack_shared(config, train_shared(narrow, tasks, config))[1]
    for item in found:
        assert "OUTSIDE_RANGES" in {warning.code for warning in item.warnings}
    wide = replace(base, ranges=dict.fromkeys(names, (-1e3, 1e3)))
    found = pack_shared(config, train_shared(wide, tasks, config))[1]
    for item in found:
        assert "OUTSIDE_RANGES" not in {warning.code for warning in item.warnings}


def test_metrics_and_golden_inputs_are_of_the_written_numbers(
    base: FrozenBase, tiny_bundle: Path
) -> None:
    tasks = [colour_task(), noun_task()]
    _, made = run(base, tasks, replace(PACK, epochs=12))
    with Engine(tiny_bundle, threads=1, variant="fp32") as engine:
        for task, blob in zip(tasks, made.blobs, strict=True):
            dev = encode_rows(task.dev, base.encoder, task.labels, {})
            wanted = score(blob_reader(base, blob), task.dev, dev)
            seen = dev_reference(
                blob_reader(base, blob), dev, logits_of(blob_reader(base, blob), dev)
            )
            assert blob.meta.metrics == {
                "dev_accuracy": round(wanted, 3),
                REFERENCE: seen,
            }
            assert blob.meta.golden
            engine.load(blob)
            for item in blob.meta.golden:
                answer = engine.classify(task.name, item.text)
                assert answer.label == item.label


@METHODS
def test_a_resumed_run_ends_as_if_it_had_not_stopped(
    base: FrozenBase, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    tasks = [colour_task(), noun_task()]
    config = replace(PACK, method=method, epochs=4, resume=True)
    _, whole = run(base, tasks, config, tmp_path / "whole")
    passes = 2 if method == "prompt" else 1
    with stopping_after(base, passes * 6 * 2 + 1), pytest.raises(Stopped):
        run(base, tasks, config, tmp_path / "run")
    _, resumed = run(base, tasks, config, tmp_path / "run")
    assert resumed.digest == whole.digest
    _, other = run(base, tasks, replace(config, seed=1, resume=False))
    assert other.digest != whole.digest


def test_resume_refuses_other_tasks(base: FrozenBase, tmp_path: Path) -> None:
    file = tmp_path / "run"
    tasks, config = [colour_task(), noun_task()], replace(PACK, epochs=1)
    train_shared(base, tasks, config, file)
    config = replace(config, resume=True)
    with pytest.raises(UsageError, match=r"tasks \['colour', 'noun'\], this run"):
        train_shared(base, tasks[::-1], config, file)
    changed = [tasks[0], replace(tasks[1], train=tasks[1].train[1:])]
    with pytest.raises(UsageError, match="checkpoint has noun train rows 'sha256:"):
        train_shared(base, changed, config, file)


def test_teachers_are_learned_from(base: FrozenBase, tmp_path: Path) -> None:
    """Trained on wrong labels alone, the pack still says what its teacher says."""
    task = colour_task()
    config = replace(QUICK, epochs=12, learning_rate=0.02, head_learning_rate=0.1)
    single = pack(task, config, train(base, task, config))
    write_blob(tmp_path / "colour.safetensors", single)
    teacher = blob_reader(base, single)
    rows = encode_rows(task.train, base.encoder, COLOURS, {})
    # Every row with every label: hard targets that say nothing.
    said = [Row(text=row.text, label=label) for row in task.train for label in COLOURS]
    silent = replace(task, train=said)
    # Class vectors of next to no length: nor does the start say anything.
    mute = replace(PACK, epochs=8, head_scale=0.01)
    agreed = []
    for teachers in (None, tmp_path):
        result = train_shared(base, [silent], mute, None, teachers)
        found, _ = pack_shared(mute, result)
        reader = blob_reader(base, found.blobs[0])
        pairs = zip(labels_of(reader, rows), labels_of(teacher, rows), strict=True)
        agreed.append(sum(one == two for one, two in pairs) / len(rows))
    assert agreed[1] > agreed[0] + 0.2
    assert found.blobs[0].meta.training["teacher"] == single.digest


def test_teachers_of_other_tasks_are_refused(base: FrozenBase, tmp_path: Path) -> None:
    task = colour_task()
    single = pack(task, QUICK, train(base, task, replace(QUICK, epochs=1)))
    write_blob(tmp_path / "colour.safetensors", single)
    other = replace(task, labels=COLOURS[::-1])
    with pytest.raises(UsageError, match="give a teacher of the same task"):
        train_shared(base, [other], PACK, None, tmp_path)
    with pytest.raises(FileFailed, match=r"noun\.safetensors"):
        train_shared(base, [task, noun_task()], PACK, None, tmp_path)


def test_steps_follow_the_square_root_of_the_rows(base: FrozenBase) -> None:
    text = encode_rows(colour_task().train[:1], base.encoder, COLOURS, {})[0]
    small = Member(colour_task(), [text] * 40, [], "mean_l2")
    large = Member(noun_task(), [text] * 4000, [], "mean_l2")
    assert shared_out([small, large], 8) == [46, 459]
    assert shared_out([small, small], 8) == [5, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init": "labels"}, "init is 'labels' for a pack"),
        ({"method": "probe"}, "method is 'probe' for a pack"),
        ({"precision": "f16"}, "precision is 'f16' for a pack"),
        ({"head_init": "probe"}, "head_init is 'probe' for a pack"),
        ({"word_dropout": 0.1}, "word_dropout is 0.1 for a pack"),
        ({"pairs": "apart"}, "pairs is 'apart' for a pack"),
        ({"budget": "2m"}, "budget is '2m' for a pack"),
    ],
)
def test_options_that_a_pack_cannot_have(
    base: FrozenBase, change: dict[str, Any], message: str
) -> None:
    config = TrainConfig(**{**asdict(PACK), **change})
    with pytest.raises(UsageError, match=message):
        train_shared(base, [colour_task(), noun_task()], config)


def test_no_epoch_packs_the_start(base: FrozenBase) -> None:
    tasks = [colour_task(), noun_task()]
    result, made = run(base, tasks, replace(PACK, epochs=0))
    assert result.distances == [0.0, 0.0]
    assert made.tasks == ("colour", "noun")


def test_a_checkpoint_of_other_parameters_is_refused(
    base: FrozenBase, tmp_path: Path
) -> None:
    """Same options and data, and a version that trained something else."""
    file, tasks = tmp_path / "run", [colour_task(), noun_task()]
    train_shared(base, tasks, replace(PACK, epochs=1), file)
    tensors, facts = {}, {}
    with safe_open(file, "pt") as found:
        facts = found.metadata()
        tensors = {name: found.get_tensor(name) for name in found.keys()}
    tensors["current/prompt.tasks.0.width.value"] = torch.ones(2, 64)
    save_file(tensors, file, facts)
    with pytest.raises(UsageError, match="start again without --resume"):
        train_shared(base, tasks, replace(PACK, epochs=1, resume=True), file)


def test_a_checkpoint_of_before_int4_is_refused(
    base: FrozenBase, tmp_path: Path
) -> None:
    """Its best epoch was judged with other class vectors than a pack holds."""
    file, tasks = tmp_path / "run", [colour_task(), noun_task()]
    train_shared(base, tasks, replace(PACK, epochs=1), file)
    with safe_open(file, "pt") as found:
        facts = json.loads(found.metadata()["promptdial"])
        tensors = {name: found.get_tensor(name) for name in found.keys()}
    del facts["run"]["class vectors"]
    save_file(tensors, file, {"promptdial": json.dumps(facts)})
    with pytest.raises(UsageError, match="class vectors None, this run 'int4'"):
        train_shared(base, tasks, replace(PACK, epochs=1, resume=True), file)


def test_a_graph_without_levels_is_refused_before_training(
    base: FrozenBase, tiny_bundle: Path
) -> None:
    graph = on_graph(base, tiny_bundle, "fp32")
    assert isinstance(graph.graph, EncoderGraph)
    bare = replace(graph, graph=replace(graph.graph, levels_program=None))
    config = replace(PACK, head_levels=2)
    with pytest.raises(Unsupported, match="the bundle's graph gives only the last"):
        train_shared(bare, [colour_task()], config, None, Path("no teachers"))


def test_two_tasks_of_one_name_are_refused(base: FrozenBase) -> None:
    with pytest.raises(UsageError, match="two tasks named 'colour'"):
        train_shared(base, [colour_task(), colour_task()], PACK)


def test_what_cannot_fit_is_refused_before_training(base: FrozenBase) -> None:
    tasks = [colour_task(), noun_task()]
    assert require_pack_fits(base, tasks, PACK) < 10_000
    with pytest.raises(BlobTooBig, match="at most 102400"):
        require_pack_fits(base, tasks, replace(PACK, num_virtual_tokens=500))


def test_a_task_of_too_many_classes_for_its_blob_is_told_what_helps(
    base: FrozenBase,
) -> None:
    """In int4 they fit in the pack, in int8 not in a blob of it."""
    labels = tuple(map(str, range(500)))
    task = replace(colour_task(), labels=labels)
    config = replace(PACK, head_levels=3)
    with pytest.raises(BlobTooBig, match=r"task 'colour'.*at most 102400") as caught:
        require_pack_fits(base, [task], config)
    assert "--head-levels" in caught.value.hint
    assert require_pack_fits(base, [task], replace(config, head_levels=2)) < 60_000


def test_class_vectors_are_trained_as_they_are_stored(base: FrozenBase) -> None:
    """From the first step on, from none on; dev is judged with the stored ones."""
    tasks = [colour_task(), noun_task()]
    always, never = (
        train_shared(base, tasks, replace(PACK, epochs=2, rounded=share))
        for share in (1.0, 0.0)
    )
    assert always.losses[0] != never.losses[0]
    packed = pack_shared(replace(PACK, epochs=2), never)[1]
    assert [round(it, 3) for it in never.dev_metrics] == [
        item.dev_metric for item in packed
    ]


MINILM = Dims(
    layers=6,
    hidden=384,
    embedding=384,
    heads=12,
    kv_heads=12,
    head_dim=32,
    vocab=30522,
    max_positions=512,
    token_types=2,
)


@pytest.mark.parametrize(("levels", "fits", "over"), [(4, 45, 50), (2, 90, 100)])
def test_a_blob_of_minilm_holds_so_many_classes(
    levels: int, fits: int, over: int
) -> None:
    """In int8, beside the default's virtual tokens; in the pack more would fit."""
    length = PACK_DEFAULTS.num_virtual_tokens

    def make(classes: int) -> Pack:
        meta = replace(META, labels=tuple(map(str, range(classes))))
        return random_pack(
            [meta], MINILM, length=length, levels=levels, wide=False, vector_bits=4
        )

    assert make(fits).size < make(fits).blobs[0].size
    with pytest.raises(BlobTooBig, match="task 'colour'"):
        make(over)


def test_twelve_tasks_of_minilm_fit_as_the_defaults_say() -> None:
    """55 classes; 11 KB stay for recipes, longer labels, golden inputs and metrics."""
    metas = [
        replace(META, task=f"task{index}", labels=tuple(map(str, range(classes))))
        for index, classes in enumerate((4, 2, 6, 3, 2, 2, 2, 7, 2, 2, 6, 17))
    ]
    for length, deep, least, most in (
        (PACK_DEFAULTS.num_virtual_tokens, True, 90_000, 91_500),
        (16, False, 78_500, 80_000),
    ):
        levels, wide = PACK_DEFAULTS.head_levels, not deep
        pack = random_pack(
            metas, MINILM, deep, length, levels=levels, wide=wide, vector_bits=4
        )
        assert least < pack.size < most


def test_the_command(
    tiny_model: Path,
    tiny_bundle: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = ["train-pack", str(tiny_model), "--epochs", "1", "--json"]
    for task in (colour_task(), noun_task()):
        folder = tmp_path / task.name
        folder.mkdir()
        for part, rows in (("train", task.train), ("dev", task.dev)):
            lines = [json.dumps({"text": r.text, "label": r.label}) for r in rows]
            (folder / f"{part}.jsonl").write_text("\n".join(lines))
        arguments += ["--task", str(folder)]
    out = tmp_path / "prompts" / f"both{PACK_SUFFIX}"
    assert main([*arguments, "--out", str(out)]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert answer["bytes"] == out.stat().st_size
    assert [item["task"] for item in answer["tasks"]] == ["colour", "noun"]
    assert not out.with_name(out.name + ".checkpoint").exists()
    assert read_pack(out).blobs[0].num_virtual_tokens == 5
    with Engine(tiny_bundle, prompts=out.parent, threads=1) as engine:
        assert engine.tasks() == ["colour", "noun"]
        assert engine.classify("noun", "the red film").label in ("book", "five")
    assert main([*arguments, "--out", str(tmp_path / "x.safetensors")]) == 3
    assert "name it <name>.pack.safetensors" in capfd.readouterr().err
