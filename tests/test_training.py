"""Training on a tiny random model: every kind, every start, resume, diagnostics."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_tasks import (
    COLOURS,
    colour_rows,
    colour_task,
    embedding_task,
    pair_task,
    token_task,
)

from promptdial.prompts.blob import read_blob, write_blob
from promptdial.prompts.distribution import TOKENS, histogram, reference_of
from promptdial.prompts.errors import BlobTooBig, UsageError
from promptdial.prompts.training.base import FrozenBase, open_base
from promptdial.prompts.training.batches import collate, encode_rows
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.heads import Head
from promptdial.prompts.training.initialise import class_vectors, prompt_rows
from promptdial.prompts.training.packing import pack, require_fit
from promptdial.prompts.training.reference import blob_reader, evaluate_torch
from promptdial.prompts.training.scoring import labels_of, logits_of, score, tags_of
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.trainer import train
from promptdial.runtime import Engine
from promptdial.runtime.rows import Row

CPU = torch.device("cpu")
QUICK = TrainConfig(epochs=2, batch_size=8, num_virtual_tokens=4, patience=9)


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_training_fits_and_the_prompt_matters(base: FrozenBase, method: str) -> None:
    config = replace(QUICK, method=method, epochs=8, learning_rate=0.02)
    result = train(base, colour_task(), config)
    assert result.losses[-1] < 0.9 * result.losses[0]
    assert result.facts.distance > 0.02
    examples = encode_rows(colour_rows(), base.encoder, COLOURS, {})
    batch = collate([example.text for example in examples], CPU)
    with torch.no_grad():
        plain = base.hidden(batch, [])
        prompted = base.hidden(batch, result.reader.state)
    assert float((plain - prompted).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "task", [pair_task(), token_task(), embedding_task()], ids=lambda task: task.kind
)
def test_every_kind_trains_and_packs(
    base: FrozenBase, task: Task, tmp_path: Path
) -> None:
    result = train(base, task, QUICK)
    blob = pack(task, QUICK, result)
    path = tmp_path / f"{task.name}.safetensors"
    write_blob(path, blob)
    again = read_blob(path)
    assert again.digest == blob.digest
    assert again.meta.kind == task.kind
    assert again.num_virtual_tokens == 4
    assert (again.head_weight is None) == (task.kind == "embedding")


@pytest.mark.parametrize(
    "task", [pair_task(), token_task()], ids=lambda task: task.kind
)
def test_heads_read_several_levels(base: FrozenBase, task: Task) -> None:
    levels = base.dims.layers + 1
    config = replace(QUICK, head_levels=levels)
    result = train(base, task, config)
    blob = pack(task, config, result)
    mix = blob.head_mix
    assert mix is not None and mix.shape == (levels, levels)
    assert float(np.abs(mix - np.eye(levels)).max()) > 1e-4
    assert blob.head_weight is not None
    assert blob.head_weight.shape[1] == levels * base.dims.hidden
    examples = encode_rows(task.train, base.encoder, task.labels, {})
    found = logits_of(blob_reader(base, blob), examples)
    wanted = logits_of(result.reader, examples)
    for one, two in zip(found, wanted, strict=True):
        assert float((one - two).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("task", "levels"), [(colour_task(), 0), (colour_task(), 2), (pair_task(), 2)]
)
def test_heads_weigh_the_rows_of_a_text(
    base: FrozenBase, task: Task, levels: int
) -> None:
    config = replace(
        QUICK,
        method="prefix",
        head_levels=levels,
        head_pooling="attention",
        head_learning_rate=0.1,
        epochs=4,
    )
    require_fit(base, task, config)
    result = train(base, task, config)
    blob = pack(task, config, result)
    query = blob.head_query
    assert query is not None and query.shape == (max(1, levels), base.dims.hidden)
    assert float(np.abs(query).max()) > 1e-2
    examples = encode_rows(task.train, base.encoder, task.labels, {})
    read = blob_reader(base, blob)
    found, wanted = logits_of(read, examples), logits_of(result.reader, examples)
    for one, two in zip(found, wanted, strict=True):
        assert torch.allclose(one, two, atol=1e-4)
    head = read.head
    assert head is not None
    means = replace(read, head=Head(head.weight, head.bias, head.mix))
    plain = torch.stack(logits_of(means, examples))
    assert float((torch.stack(found) - plain).abs().max()) > 1e-3


@pytest.mark.parametrize("task", [token_task(), embedding_task()])
def test_attention_pooling_is_refused_where_nothing_is_pooled(
    base: FrozenBase, task: Task
) -> None:
    config = replace(QUICK, head_pooling="attention")
    with pytest.raises(UsageError, match="which pools no rows"):
        require_fit(base, task, config)


@pytest.mark.parametrize("levels", [0, 2])
def test_a_probe_weighs_the_rows_of_a_text(base: FrozenBase, levels: int) -> None:
    task = replace(colour_task(), train=20 * colour_rows())
    config = replace(
        QUICK, method="probe", head_levels=levels, head_pooling="attention"
    )
    result = train(base, task, config)
    blob = pack(task, config, result)
    assert blob.num_virtual_tokens == 0
    assert blob.head_query is not None and np.abs(blob.head_query).max() > 1e-2
    examples = encode_rows(task.dev, base.encoder, task.labels, {})
    head = result.reader.head
    assert head is not None
    with torch.no_grad():
        right = score(blob_reader(base, blob), task.dev, examples)
    assert abs(right - result.dev_metric) < 5
    assert result.dev_metric >= result.probe - 5


def test_a_prompt_starts_from_the_probe_that_weighs(base: FrozenBase) -> None:
    task = replace(colour_task(), train=20 * colour_rows())
    config = replace(
        QUICK, method="prefix", head_init="probe", head_pooling="attention", epochs=0
    )
    head = train(base, task, config).reader.head
    assert head is not None and head.query is not None
    assert float(head.query.detach().abs().max()) > 1e-2


def test_packed_blob_answers_as_the_trained_prompt(base: FrozenBase) -> None:
    task = colour_task()
    config = replace(QUICK, epochs=6, learning_rate=0.02, precision="f32")
    result = train(base, task, config)
    reader = blob_reader(base, pack(task, config, result))
    examples = encode_rows(task.train, base.encoder, task.labels, {})
    assert labels_of(reader, examples) == labels_of(result.reader, examples)


def test_reference_refuses_a_foreign_blob(base: FrozenBase) -> None:
    blob = pack(colour_task(), QUICK, train(base, colour_task(), QUICK))
    other = replace(blob, meta=replace(blob.meta, base_fingerprint="ckpt1:" + "0" * 64))
    with pytest.raises(UsageError, match="blob is for ckpt1:0000"):
        blob_reader(base, other)


def test_reference_gives_a_prediction_a_row(tiny_model: Path, base: FrozenBase) -> None:
    task = token_task()
    blob = pack(task, QUICK, train(base, task, QUICK))
    answers = evaluate_torch(str(tiny_model), blob, task.dev, "cpu")
    assert [len(tags) for tags in answers] == [3] * len(task.dev)


def test_probe_is_a_blob_without_virtual_tokens(base: FrozenBase) -> None:
    config = replace(QUICK, method="probe")
    task = colour_task()
    result = train(base, task, config)
    blob = pack(task, config, result)
    assert blob.num_virtual_tokens == 0
    assert blob.head_weight is not None
    assert result.dev_metric == result.probe


def test_the_same_seed_gives_the_same_bytes(
    base: FrozenBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    task = colour_task()
    one = pack(task, QUICK, train(base, task, QUICK))
    two = pack(task, QUICK, train(base, task, QUICK))
    assert one.digest == two.digest
    other = replace(QUICK, seed=1)
    assert pack(task, other, train(base, task, other)).digest != one.digest


class Stopped(BaseException):
    """Stands for Ctrl-C in the middle of a run."""


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_a_resumed_run_ends_as_if_it_had_not_stopped(
    base: FrozenBase, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    task = colour_task()
    config = replace(QUICK, method=method, epochs=4, resume=True)
    whole = pack(task, config, train(base, task, config, tmp_path / "whole"))
    file = tmp_path / "run"
    with stopping_after(base, 2 * forward_calls(task, config) + 1):
        with pytest.raises(Stopped):
            train(base, task, config, file)
    resumed = pack(task, config, train(base, task, config, file))
    assert resumed.digest == whole.digest


def forward_calls(task: Task, config: TrainConfig) -> int:
    """Forward passes with gradients in an epoch: of a text, of a soft prompt too."""
    passes = 2 if config.method == "prompt" else 1
    return passes * -(-len(task.train) // config.batch_size)


@contextmanager
def stopping_after(base: FrozenBase, calls: int) -> Iterator[None]:
    """Raise Stopped in a forward pass, after so many with gradients."""
    left = calls

    def hook(*_: object) -> None:
        nonlocal left
        left -= int(torch.is_grad_enabled())
        if left < 0:
            raise Stopped

    handle = base.model.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def test_resume_refuses_other_options(base: FrozenBase, tmp_path: Path) -> None:
    file = tmp_path / "run"
    train(base, colour_task(), QUICK, file)
    with pytest.raises(UsageError, match=r"learning_rate 0\.0,"):
        config = replace(QUICK, resume=True, learning_rate=0.1)
        train(base, colour_task(), config, file)
    resumed = replace(QUICK, resume=True)
    rows = colour_rows()
    for other, part in (
        (replace(colour_task(), train=rows[1:]), "train"),
        (replace(colour_task(), dev=rows[1:]), "dev"),
    ):
        with pytest.raises(UsageError, match=f"checkpoint has {part} rows 'sha256:"):
            train(base, other, resumed, file)
    file.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="no checkpoint"):
        train(base, colour_task(), replace(QUICK, resume=True), file)


@pytest.mark.parametrize("init", ["labels", "text", "vocab", "random"])
def test_starts_have_the_wanted_length(base: FrozenBase, init: str) -> None:
    config = replace(QUICK, init=init, init_text="red or blue", num_virtual_tokens=7)
    rows = prompt_rows(base, colour_task(), config)
    assert rows.shape == (7, base.dims.hidden)
    assert bool(torch.isfinite(rows).all())


def test_class_vectors_are_label_names_of_the_wanted_length(base: FrozenBase) -> None:
    vectors = class_vectors(base, colour_task(), TrainConfig(head_scale=10.0))
    assert torch.allclose(vectors.norm(dim=1), torch.full((3,), 10.0))


def test_a_prefix_is_one_way_attention_over_both(base: FrozenBase) -> None:
    """Against one pass over prompt and text with a mask that says who sees whom."""
    rows = prompt_rows(base, colour_task(), QUICK)
    text = encode_rows(colour_rows()[:1], base.encoder, COLOURS, {})[0].text
    batch = collate([text], CPU)
    count, length = len(rows), len(text)
    sees = torch.ones(1, 1, count + length, count + length, dtype=torch.bool)
    sees[:, :, :count, count:] = False
    positions = torch.cat([torch.arange(count), torch.arange(length)])[None]
    with torch.no_grad():
        embeds = torch.cat([rows[None], base.token_table[batch.ids]], dim=1)
        whole = base.model(
            inputs_embeds=embeds, attention_mask=sees, position_ids=positions
        ).last_hidden_state[:, count:]
        prefixed = base.hidden(batch, base.state_of(rows))
        plain = base.hidden(batch, [])
    assert torch.allclose(whole, prefixed, atol=1e-5)
    assert not torch.allclose(plain, prefixed, atol=1e-3)


def test_padding_does_not_reach_an_answer(base: FrozenBase) -> None:
    short, long = colour_rows()[0], Row(text="the red film " * 9, label="red")
    examples = encode_rows([short, long], base.encoder, COLOURS, {})
    past = base.state_of(prompt_rows(base, colour_task(), QUICK))
    with torch.no_grad():
        alone = base.hidden(collate([examples[0].text], CPU), past)[0]
        both = base.hidden(collate([item.text for item in examples], CPU), past)[0]
    assert torch.allclose(alone, both[: len(alone)], atol=1e-5)


def test_words_cut_off_by_the_window_are_outside(tiny_model: Path) -> None:
    small = open_base(str(tiny_model), CPU, max_tokens=6)
    task = token_task()
    row = Row(
        text="the red film the red film",
        tokens=("the", "red", "film") * 2,
        tags=("O", "B-colour", "O") * 2,
    )
    result = train(small, replace(task, train=[*task.train, row]), QUICK)
    assert result.facts.truncated_share > 0
    examples = encode_rows([row], small.short, task.labels, {})
    assert tags_of(result.reader, examples)[0][4:] == ["O", "O"]


def test_training_rows_alone_are_cut(tiny_model: Path, tiny_bundle: Path) -> None:
    """Dev and golden inputs are read whole, as the device reads them."""
    small = open_base(str(tiny_model), CPU, max_tokens=5)
    rows = [
        Row(text=f"{colour} {'the film and ' * 4}{colour}", label=colour)
        for colour in COLOURS
        for _ in range(4)
    ]
    task = replace(colour_task(), train=rows, dev=rows)
    config = replace(QUICK, epochs=6, max_tokens=5)
    result = train(small, task, config)
    assert result.facts.truncated_share == 1
    blob = pack(task, config, result)
    lengths = histogram(TOKENS, [16.0] * len(rows))
    assert reference_of(blob.meta.metrics)[TOKENS] == lengths
    assert blob.meta.golden
    with Engine(tiny_bundle, threads=1, variant="fp32") as engine:
        engine.load(blob)
        for item in blob.meta.golden:
            assert len(item.tokens) == 16
            assert engine.classify("colour", item.text).label == item.label
        found = [engine.classify("colour", row.text).label for row in rows]
    right = [label == row.label for label, row in zip(found, rows, strict=True)]
    assert blob.meta.metrics["dev_accuracy"] == pytest.approx(
        100 * sum(right) / len(right), abs=0.01
    )


def test_what_cannot_fit_is_refused_before_training(base: FrozenBase) -> None:
    config = replace(QUICK, method="prefix", num_virtual_tokens=500)
    with pytest.raises(BlobTooBig, match="at most 102400"):
        require_fit(base, colour_task(), config)
    require_fit(base, colour_task(), QUICK)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_trains_a_blob_that_the_cpu_reads_alike(
    tiny_model: Path, base: FrozenBase
) -> None:
    device = torch.device("cuda")
    task = colour_task()
    config = replace(QUICK, epochs=6, learning_rate=0.02, precision="f32")
    there = open_base(str(tiny_model), device)
    result = train(there, task, config)
    assert result.losses[-1] < result.losses[0]
    blob = pack(task, config, result)
    examples = encode_rows(task.train, base.encoder, task.labels, {})
    here = labels_of(blob_reader(base, blob), examples)
    assert here == labels_of(blob_reader(there, blob), examples)
