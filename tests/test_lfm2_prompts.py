"""LFM2 on the device and in training: Engine, labels, prompts of both kinds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import normal, random_blob
from decoders import (
    MadeDecoder,
    label_likelihood,
    made_decoder,
    plain_model,
    transformers_greedy,
)
from made_once import MakeOnce

from promptdial.export.model import load_base, resolve
from promptdial.prompts.blob import PromptBlob, make_blob, read_blob, write_blob
from promptdial.prompts.training.decoders.decoder_base import decoder_base
from promptdial.prompts.training.decoders.generation_rows import (
    collate_generation,
    encode_generation,
)
from promptdial.runtime import Engine
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.cli import main
from promptdial.runtime.errors import NoPrefix
from promptdial.runtime.label_scoring import score_labels, trie_of
from promptdial.runtime.rows import Row

Floats = np.ndarray[Any, np.dtype[np.float32]]
TEXT = "the film was good and"


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> MadeDecoder:
    return made_decoder(make_once, "lfm2")


@pytest.fixture(scope="module")
def model(made: MadeDecoder) -> Path:
    return made.model


@pytest.fixture(scope="module")
def bundle(made: MadeDecoder) -> Path:
    return made.bundle


@pytest.fixture(scope="module")
def exact(make_once: MakeOnce) -> Path:
    """With the exact token table."""
    return made_decoder(make_once, "lfm2", exact=True).bundle


@pytest.fixture(scope="module")
def plain(model: Path) -> Any:
    return plain_model(model)


def soft_blob(bundle: Path, seed: int, length: int = 5) -> PromptBlob:
    manifest = open_bundle(bundle).manifest
    meta = random_blob(manifest, f"p{seed}", "generation", length=length).meta
    return make_blob(meta, embeddings=0.5 * normal(seed, length, 64), precision="f32")


def text_rows(model: Path, bundle: Path) -> Floats:
    """Embedding rows [T, H] of TEXT."""
    table = load_base(resolve(str(model))).token_table.numpy()
    with Engine(bundle, threads=1) as engine:
        return table[engine._decoder_model().encoder.encode(TEXT).ids]


def test_what_is_written_is_what_transformers_writes(
    model: Path, plain: Any, exact: Path
) -> None:
    """Through transformers' own cache, 24 greedy tokens over two prompts and none."""
    text, answers = text_rows(model, exact), []
    with Engine(exact, threads=1) as engine:
        for blob in (None, soft_blob(exact, 1), soft_blob(exact, 2, length=1)):
            task = engine.load(blob) if blob else None
            front = np.empty((0, 64), np.float32)
            if blob is not None and blob.prompt_embeddings is not None:
                front = blob.prompt_embeddings
            wanted = transformers_greedy(plain, np.concatenate([front, text]), 24)
            found = engine.generate(task, TEXT, max_new_tokens=24)
            assert list(found.tokens) == wanted[: len(found.tokens)]
            answers.append(found.tokens)
    assert len(set(answers)) == 3


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_prompt_that_comes_cold_gets_a_pass_of_its_own(
    bundle: Path, tmp_path: Path, length: int
) -> None:
    """INT8: from the first request on, the prefix and the answer are the same."""
    blob = soft_blob(bundle, length, length)
    write_blob(tmp_path / f"{blob.meta.task}.safetensors", blob)
    with Engine(bundle, tmp_path, threads=1) as engine:
        opened, task = engine._decoder_model(), blob.meta.task
        cold = engine.generate(task, TEXT, max_new_tokens=9)
        kept = engine._prompts.ready(task, opened)
        assert kept is not None and blob.prompt_embeddings is not None
        own = opened.session.state_of(blob.prompt_embeddings)
        for left, right in zip(kept.state, own, strict=True):
            assert np.array_equal(left, right)
        assert kept.state[0].shape == (1, 64, 3)
        assert engine.generate(task, TEXT, max_new_tokens=9).tokens == cold.tokens
        assert engine.run_batch([(task, TEXT)] * 2)[1].prompt_version == 1  # type: ignore[union-attr]
        # The same keys and values over convolutions that saw nothing: another answer.
        state = [np.zeros_like(a) if a.ndim == 3 else a for a in kept.state]
        request = engine._generation(opened, task, TEXT)
        assert request.prompt is kept
        broken = replace(kept, state=tuple(state))
        engine._prompts.cache.clear()
        engine._prompts.cache.get(engine._prompts._key(blob), lambda: broken)
        assert engine.generate(task, TEXT, max_new_tokens=9).tokens != cold.tokens


def test_labels_are_as_likely_as_transformers_says(
    exact: Path, model: Path, plain: Any
) -> None:
    """Labels of unlike lengths that part late: each runs over the state alone."""
    labels = ("film", "book_news", "book_light_station", "book_light")
    blob = soft_blob(exact, 4)
    meta = replace(
        blob.meta, kind="classification", pooling="likelihood", labels=labels
    )
    assert blob.prompt_embeddings is not None
    blob = make_blob(meta, embeddings=blob.prompt_embeddings, precision="f32")
    table = load_base(resolve(str(model))).token_table.numpy()
    with Engine(exact, threads=1) as engine:
        engine.load(blob)
        opened = engine._decoder_model()
        trie = trie_of(opened, labels)
        request = engine._generation(opened, "p4", TEXT)
        found = score_labels(request, trie, opened)
        shown = table[request.tokens]
    assert np.exp(found).sum() == pytest.approx(1)
    assert blob.prompt_embeddings is not None
    rows = np.concatenate([blob.prompt_embeddings, shown])
    paths = [list(path) for path in trie.paths]
    for log, path in zip(found, paths, strict=True):
        wanted = label_likelihood(plain, rows, table, path, paths)
        assert abs(log - wanted) < 1e-3


def test_deep_prompts_are_refused(
    bundle: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where they are trained, loaded and verified: one line, exit code 4."""
    manifest = open_bundle(bundle).manifest
    deep = random_blob(manifest, "deep", "generation", length=3, deep=True)
    with Engine(bundle, threads=1) as engine:
        assert "convolutions" in engine.compatible(deep).reason
        with pytest.raises(NoPrefix, match="2 of the base's 3 layers are conv"):
            engine.load(deep)
    path, task = tmp_path / "deep.safetensors", tmp_path / "task"
    write_blob(path, deep)
    write_task(task)
    out = str(tmp_path / f"{task.name}.safetensors")
    train = ["train", str(model), "--task", str(task), "--out", out]
    for arguments in (
        ["run", str(bundle), "deep", TEXT, "--prompts", str(tmp_path)],
        ["verify", str(bundle), "--model", str(model), "--prompt", str(path)],
        [*train, "--method", "prefix"],
        # Not that its keys and values are too big.
        [*train, "--method", "prefix", "--num-virtual-tokens", "100"],
    ):
        capsys.readouterr()
        assert main(arguments) == 4
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("promptdial: NO_PREFIX: ")
        assert "convolutions" in line
    assert not Path(out).exists()


TARGET = "light on"
ROWS = [Row(text, target=TARGET) for text in ("turn on the light", "wake me at seven")]


def write_task(folder: Path) -> None:
    folder.mkdir()
    rows = [json.dumps({"text": row.text, "target": row.target}) for row in ROWS]
    for part in ("train", "dev"):
        (folder / f"{part}.jsonl").write_text("\n".join(rows))


def test_loss_and_gradient_are_those_of_transformers(model: Path, plain: Any) -> None:
    """Rows of unlike lengths; the gradient goes through every part of the prefix."""
    base = decoder_base(load_base(resolve(str(model))), torch.device("cpu"))
    examples = encode_generation(ROWS, base.encoder, {}, base.end_token, 100)
    batch = collate_generation(examples, torch.device("cpu"))
    ours, theirs = (
        torch.tensor(0.15 * normal(5, 4, 64), requires_grad=True) for _ in range(2)
    )
    found = base.losses(batch, base.state_of(ours)).sum()
    wanted = torch.zeros(())
    for example in examples:
        ids = torch.tensor([example.ids])
        embeds = torch.cat([theirs[None], base.token_table[ids]], dim=1)
        labels = torch.cat([torch.full((1, 4), -100), ids], dim=1)
        labels[:, : 4 + example.start] = -100
        output = plain(inputs_embeds=embeds, labels=labels)
        wanted = wanted + output.loss * (example.weight - example.start)
    assert torch.allclose(found, wanted, rtol=1e-5)
    gradients = (
        torch.autograd.grad(found, ours)[0],
        torch.autograd.grad(wanted, theirs)[0],
    )
    assert float(gradients[1].abs().max()) > 1e-2
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4)


def test_a_trained_prompt_is_on_the_device_what_it_is_in_training(
    exact: Path, model: Path, plain: Any, tmp_path: Path
) -> None:
    write_task(tmp_path / "task")
    (tmp_path / "task" / "task.yaml").write_text("name: words\n")
    out = tmp_path / "words.safetensors"
    options = ["--init", "vocab", "--num-virtual-tokens", "8", "--epochs", "30"]
    options += ["--learning-rate", "0.05", "--out", str(out)]
    assert main(["train", str(model), "--task", str(tmp_path / "task"), *options]) == 0
    blob = read_blob(out)
    metrics, prompt = blob.meta.metrics, blob.prompt_embeddings
    assert metrics["dev_loss"] < 0.6 * metrics["zero_shot_loss"]
    assert prompt is not None
    rows = np.concatenate([prompt, text_rows(model, exact)])
    wanted = transformers_greedy(plain, rows, 16)
    with Engine(exact, threads=1) as engine:
        found = engine.generate(engine.load(out), TEXT, max_new_tokens=16).tokens
        assert list(found) == wanted[: len(found)]
        assert engine.generate(None, TEXT, max_new_tokens=16).tokens != found
