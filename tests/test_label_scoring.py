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
from promptdial.prompts.errors import BlobInvalid
from promptdial.prompts.training.decoder_base import DecoderBase, decoder_base
from promptdial.prompts.training.label_choice import (
    choose_calibration,
    label_likelihoods,
)
from promptdial.prompts.training.task import Task
from promptdial.runtime import Classification, Engine
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.cli import main
from promptdial.runtime.engine_prompts import EnginePrompts
from promptdial.runtime.errors import PromptRefused, WrongKind
from promptdial.runtime.label_scoring import label_tokens, score_labels
from promptdial.runtime.rows import Row
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


@pytest.fixture(scope="module")
def base(model: Path) -> DecoderBase:
    cpu = torch.device("cpu")
    return decoder_base(load_base(resolve(str(model)), cpu), cpu)


def label_blob(
    bundle: Path, labels: tuple[str, ...], seed: int, **template: str
) -> PromptBlob:
    manifest = open_bundle(bundle).manifest
    meta = random_blob(manifest, "which", "generation", length=5).meta
    meta = replace(meta, kind="classification", pooling="likelihood", labels=labels)
    meta = replace(meta, template=template)
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


NEUTRAL = {"before": "play: ", "neutral": "N/A"}


def torch_scores(
    base: DecoderBase, blob: PromptBlob, text: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Log-likelihoods [C] after a text and after the neutral one, by the trainer."""
    assert blob.prompt_embeddings is not None
    meta, rows = blob.meta, [Row(text, label=blob.meta.labels[0])]
    task = Task("which", meta.kind, meta.labels, rows, rows, template=meta.template)
    state = base.state_of(torch.tensor(blob.prompt_embeddings))
    found = label_likelihoods(base, state, [text, "N/A"], task, 100, 16)
    return found[0], found[1]


@pytest.mark.parametrize("seed", range(4))
def test_calibrated_labels_are_those_of_the_trainer(
    bundle: Path, base: DecoderBase, seed: int
) -> None:
    """Best label and completed ones exact, the rest bounded, the prior subtracted."""
    blob = label_blob(bundle, LABELS, seed, **NEUTRAL)
    logs, prior = torch_scores(base, blob, TEXT)
    wanted = logs - prior
    with Engine(bundle, threads=1) as engine:
        engine.load(blob)
        answer = engine.classify("which", TEXT)
        assert answer.label == LABELS[int(wanted.argmax())]
        opened = engine._decoder_model()
        request = engine._generation(opened, "which", TEXT)
        kept = request.prompt.prior  # type: ignore[union-attr]
        assert np.abs(kept - prior).max() < 1e-3
        tokens = label_tokens(opened, LABELS)
        found = score_labels(request, tokens, opened, kept)
        done = found.completed
        assert 0 < done.sum() <= len(LABELS)
        assert np.abs(found.logs[done] - wanted[done]).max() < 2e-3
        assert (found.logs[~done] >= wanted[~done] - 2e-3).all()
        assert sum(answer.scores.values()) == pytest.approx(1, abs=1e-5)
        assert answer == engine.run_batch([("which", TEXT)])[0]
        # Without the neutral text, likelihoods alone.
        engine.load(label_blob(bundle, LABELS, seed, before="play: "))
        assert engine.classify("which", TEXT).label == LABELS[int(logs.argmax())]


def test_calibration_changes_answers(bundle: Path) -> None:
    changed = 0
    with Engine(bundle, threads=1) as engine:
        for seed in range(6):
            labels = set()
            for template in (NEUTRAL, {"before": "play: "}):
                engine.load(label_blob(bundle, LABELS, seed, **template))
                labels.add(engine.classify("which", TEXT).label)
            changed += len(labels) - 1
            # A text that says as little as the neutral one makes all labels equal.
            engine.load(label_blob(bundle, LABELS, seed, **NEUTRAL))
            scores = engine.classify("which", "N/A").scores.values()
            assert max(scores) - min(scores) < 1e-4
    assert changed


def test_a_prior_is_found_once_and_counted_in_the_cache(bundle: Path) -> None:
    blob, plain = (
        label_blob(bundle, LABELS, 1, **NEUTRAL),
        label_blob(bundle, LABELS, 1),
    )
    with Engine(bundle, threads=1) as engine:
        engine.load(plain)
        without = engine._prompts.cache.nbytes
        engine.load(blob)
        assert engine._prompts.cache.nbytes - 2 * without == 8 * len(LABELS)
        session, passes = engine._decoder_model().session, []
        forward = session.forward

        def counted(*args: Any, **named: Any) -> Any:
            passes.append(args[0].shape)
            return forward(*args, **named)

        session.forward = counted  # type: ignore[method-assign]
        first = engine.classify("which", TEXT)
        cold = len(passes)
        passes.clear()
        assert engine.classify("which", TEXT) == first
        # All labels of the neutral text in batches of 8, and its own pass.
        assert cold - len(passes) >= 2
        warm = len(passes)
        # Another text needs no prior again; a cache that was emptied does.
        engine.classify("which", "wake me at seven")
        passes.clear()
        assert isinstance(engine._prompts, EnginePrompts)
        engine._prompts.cache.clear()
        assert engine.classify("which", TEXT) == first
        assert len(passes) > warm


def test_a_neutral_text_belongs_to_likelihoods(bundle: Path, tiny_bundle: Path) -> None:
    with pytest.raises(BlobInvalid, match="neutral text is blank"):
        label_blob(bundle, LABELS, 1, neutral="  ")
    meta = random_blob(open_bundle(tiny_bundle).manifest).meta
    with pytest.raises(BlobInvalid, match="with pooling 'mean_l2'"):
        make_blob(replace(meta, template=NEUTRAL), embeddings=normal(1, 4, 64))


def test_dev_chooses_whether_to_calibrate(base: DecoderBase) -> None:
    """Dev that follows calibrated likelihoods wants them, dev that does not, not."""
    labels = LABELS[:6]
    texts = [f"the {one} was {two} and" for one in WORDS[:6] for two in WORDS[6:]]
    state = base.state_of(0.5 * torch.tensor(normal(3, 5, base.dims.embedding)))
    task = Task("which", "classification", labels, [], [])
    prior, *rest = label_likelihoods(base, state, ["N/A", *texts], task, 100, 32)
    logs = np.array(rest)
    for calibrated in (True, False):
        best = (logs - prior if calibrated else logs).argmax(1)
        rows = [Row(t, label=labels[i]) for t, i in zip(texts, best, strict=True)]
        found = choose_calibration(base, state, replace(task, dev=rows), 100, 32)
        assert found.neutral == ("N/A" if calibrated else "")
        assert max(found.plain, found.calibrated) == 100.0
        assert min(found.plain, found.calibrated) < 100.0
        assert found.rows == len(texts)
    own = replace(task, dev=rows, template={"neutral": "the"})
    assert choose_calibration(base, state, own, 100, 32).neutral == "the"


def test_a_task_may_name_its_neutral_text(
    bundle: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "which"
    task.mkdir()
    rows = [{"text": "where is it", "label": "news"}, {"text": "hi", "label": "map"}]
    for part in ("train", "dev"):
        lines = [json.dumps(row) for row in rows]
        (task / f"{part}.jsonl").write_text("\n".join(lines))
    (task / "task.yaml").write_text("template: {neutral: something}\n")
    out = tmp_path / "which.safetensors"
    options = ["--epochs", "1", "--num-virtual-tokens", "4", "--out", str(out)]
    capsys.readouterr()
    assert main(["train", str(model), "--task", str(task), *options, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    blob = read_blob(out)
    assert printed["neutral"] == blob.meta.template["neutral"] == "something"
    assert printed["dev_accuracy"] == blob.meta.metrics["dev_accuracy"]
    assert blob.meta.metrics["dev_accuracy_rows"] == 2
    with Engine(bundle, threads=1) as engine:
        engine.load(out)
        assert engine.classify("which", "hi").label in ("news", "map")
