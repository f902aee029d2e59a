"""Labels on a decoder: likelihoods against transformers, and what they cost."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blobs import normal, random_blob
from decoders import DECODERS, make_decoder, plain_model

from promptdial.export import export_bundle
from promptdial.export.model import load_base, resolve
from promptdial.prompts.blob import PromptBlob, make_blob, read_blob
from promptdial.runtime import Classification, Engine
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.cli import main
from promptdial.runtime.errors import PromptRefused, WrongKind
from promptdial.runtime.label_scoring import label_tokens, score_labels
from promptdial.runtime.selftest import SelfTest, run_self_test

TEXT = "the film was good and"
WORDS = "film music book news light station morning map gate path seven two".split()
LABELS = tuple(f"{one}_{two}" for one in WORDS for two in WORDS)[:60]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    llama = next(kind for kind in DECODERS if kind.name == "llama")
    return make_decoder(llama, tmp_path_factory.mktemp("labels") / "model")


@pytest.fixture(scope="module")
def bundle(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("labels") / "a.bundle"
    return export_bundle(str(model), out, ("fp32",)).bundle


def label_blob(bundle: Path, labels: tuple[str, ...], seed: int) -> PromptBlob:
    manifest = open_bundle(bundle).manifest
    meta = random_blob(manifest, "which", "generation", length=5).meta
    meta = replace(meta, kind="classification", pooling="likelihood", labels=labels)
    rows = 0.5 * normal(seed, 5, manifest.dims.embedding)
    return make_blob(meta, embeddings=rows)


def likelihood(plain: Any, rows: Any, table: Any, tokens: list[int]) -> float:
    """Log-likelihood of tokens after embedding rows [T, H], by transformers."""
    both = np.concatenate([rows, table[tokens]])
    with torch.no_grad():
        logits = plain(inputs_embeds=torch.tensor(both[None])).logits[0]
    logs = torch.log_softmax(logits.double(), -1)[len(rows) - 1 : -1]
    return float(logs[range(len(tokens)), tokens].sum())


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_labels_followed_together_are_as_alone(
    name: str, variant: str, tmp_path: Path
) -> None:
    """Each label's likelihood is the one its own tokens have behind the text.

    Gemma 3's windows of 9 rows are shorter than text and label together.
    """
    kind = next(kind for kind in DECODERS if kind.name == name)
    source = make_decoder(kind, tmp_path / "model")
    bundle = export_bundle(str(source), tmp_path / "a.bundle", (variant,)).bundle
    with Engine(bundle, threads=1, variant=variant) as engine:
        engine.load(label_blob(bundle, LABELS, 1))
        model = engine._decoder_model()
        request = engine._generation(model, "which", TEXT)
        tokens = label_tokens(model, LABELS)
        found = score_labels(request, tokens, model)
        for number in np.flatnonzero(found.completed)[:6]:
            alone = score_labels(request, [tokens[number]], model)
            assert abs(alone.logs[0] - found.logs[number]) < 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_the_best_label_and_all_completed_ones_are_exact(
    bundle: Path, model: Path, seed: int
) -> None:
    blob, plain = label_blob(bundle, LABELS, seed), plain_model(model)
    table = load_base(resolve(str(model))).token_table.numpy()
    with Engine(bundle, threads=1) as engine:
        engine.load(blob)
        opened = engine._decoder_model()
        tokens = label_tokens(opened, LABELS)
        request = engine._generation(opened, "which", TEXT)
        found = score_labels(request, tokens, opened)
        answer = engine.classify("which", TEXT)
        rows = np.concatenate([blob.prompt_embeddings, table[request.tokens]])
        wanted = np.array([likelihood(plain, rows, table, ids) for ids in tokens])
        assert answer.label == LABELS[int(wanted.argmax())]
        done = found.completed
        assert np.abs(found.logs[done] - wanted[done]).max() < 1e-3
        # A bound is never below what it bounds.
        assert (found.logs[~done] >= wanted[~done] - 1e-6).all()
        assert 0 < done.sum() <= len(LABELS)
        assert found.passes <= len(LABELS) / 8
        assert sum(answer.scores.values()) == pytest.approx(1, abs=1e-5)
        assert answer == engine.run_batch([("which", TEXT)])[0]


def test_the_prompt_chooses(bundle: Path) -> None:
    with Engine(bundle, threads=1) as engine:
        answers = []
        for seed in range(6):
            engine.load(label_blob(bundle, LABELS, seed))
            answers.append(engine.classify("which", TEXT).scores["film_film"])
    assert len(set(answers)) == 6


def test_labels_that_are_the_same_tokens_are_refused(bundle: Path) -> None:
    with Engine(bundle, threads=1) as engine:
        engine.load(label_blob(bundle, ("a_b", "a b"), 1))
        with pytest.raises(PromptRefused, match="same tokens"):
            engine.classify("which", TEXT)


def test_class_vectors_and_likelihoods_are_not_mixed_up(
    bundle: Path, tiny_bundle: Path
) -> None:
    with Engine(bundle, threads=1) as engine:
        with pytest.raises(WrongKind, match="pooling 'mean_l2'"):
            manifest = open_bundle(bundle).manifest
            engine.load(random_blob(manifest, "c", "classification"))
        engine.load(label_blob(bundle, LABELS, 1))
        with pytest.raises(WrongKind, match="not generation"):
            engine.generate("which", TEXT)
    with Engine(tiny_bundle) as engine:
        meta = random_blob(open_bundle(tiny_bundle).manifest).meta
        meta = replace(meta, pooling="likelihood", task="which")
        blob = make_blob(meta, embeddings=normal(1, 4, engine.manifest.dims.embedding))
        with pytest.raises(WrongKind, match="pooling 'likelihood'"):
            engine.load(blob)


def test_labels_are_trained_and_cost_few_passes(
    bundle: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """150 labels by heart: a few passes beside the text's, not one a label."""
    labels = [f"{one}_{two}" for one in WORDS for two in [*WORDS, "wake"]][:150]
    names = ["kitchen", "garden", "harbour"]
    rows = [
        {"text": f"where is the {name}", "label": labels[50 * n]}
        for n, name in enumerate(names)
    ]
    task = tmp_path / "which"
    task.mkdir()
    for part in ("train", "dev"):
        lines = [json.dumps(row) for row in rows]
        (task / f"{part}.jsonl").write_text("\n".join(lines))
    (task / "task.yaml").write_text(f"labels: {json.dumps(labels)}\n")
    out = tmp_path / "which.safetensors"
    options = ["--method", "prefix", "--init", "vocab", "--num-virtual-tokens", "8"]
    options += ["--epochs", "150", "--patience", "150", "--learning-rate", "0.1"]
    options += ["--precision", "f16", "--out", str(out)]
    assert main(["train", str(model), "--task", str(task), *options]) == 0
    meta = read_blob(out).meta
    assert len(meta.golden) == 3
    assert [item.label for item in meta.golden] == [row["label"] for row in rows]
    with Engine(bundle, threads=1) as engine:
        engine.load(out)
        assert run_self_test(engine, meta) == SelfTest("which", 3, ())
        opened = engine._decoder_model()
        for row in rows:
            answer = engine.run("which", row["text"])
            assert isinstance(answer, Classification)
            assert answer.label == row["label"]
            assert answer.score > 0.5
            request = engine._generation(opened, "which", row["text"])
            tokens = label_tokens(opened, tuple(labels))
            assert score_labels(request, tokens, opened).passes <= 3
    capsys.readouterr()
    data = str(task / "dev.jsonl")
    assert main(["eval", str(bundle), str(out), data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["metric"], found["value"]) == ("accuracy", 100.0)
    in_torch = ["--backend", "torch", "--model", str(model)]
    assert main(["eval", str(bundle), str(out), data, "--json", *in_torch]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["value"], found["backend"]) == (100.0, "torch")
