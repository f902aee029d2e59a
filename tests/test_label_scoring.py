"""Labels on a decoder: likelihoods against transformers, and what they cost."""

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
)
from made_once import MakeOnce

from promptdial.export.model import load_base, resolve
from promptdial.prompts.blob import PromptBlob, make_blob, read_blob
from promptdial.prompts.errors import BlobInvalid
from promptdial.prompts.training.decoders.decoder_base import DecoderBase, decoder_base
from promptdial.prompts.training.decoders.decoder_reference import (
    DecoderReader,
    label_scores,
    likelihoods,
)
from promptdial.prompts.training.decoders.label_choice import choose_calibration
from promptdial.runtime import Classification, Engine, label_scoring
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.cli import main
from promptdial.runtime.decoder_session import DecoderSession
from promptdial.runtime.engine_prompts import EnginePrompts
from promptdial.runtime.errors import PromptRefused, WrongKind
from promptdial.runtime.generating import DecoderModel, GenerationRequest
from promptdial.runtime.label_scoring import score_labels, trie_of
from promptdial.runtime.label_trie import make_trie
from promptdial.runtime.rows import Row
from promptdial.runtime.selftest import SelfTest, run_self_test

TEXT = "the film was good and"
WORDS = "film music book news light station morning map gate path seven two".split()
LABELS = tuple(f"{one}_{two}" for one in WORDS for two in WORDS)[:60]


@pytest.fixture(scope="module")
def made(make_once: MakeOnce) -> MadeDecoder:
    return made_decoder(make_once, "llama", exact=True)


@pytest.fixture(scope="module")
def model(made: MadeDecoder) -> Path:
    return made.model


@pytest.fixture(scope="module")
def bundle(made: MadeDecoder) -> Path:
    return made.bundle


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


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_every_label_is_as_likely_as_transformers_says(
    name: str, variant: str, make_once: MakeOnce, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels of one pass do not see each other, though they stand in one sequence.

    Gemma 3's windows of 9 rows are shorter than text and label together. INT8 is
    compared with itself, each beginning in a pass of its own.
    """
    made = made_decoder(make_once, name, exact=variant == "fp32")
    source, bundle = made.model, made.bundle
    table = load_base(resolve(str(source))).token_table.numpy()
    plain, blob = plain_model(source), label_blob(bundle, LABELS, 1)
    with Engine(bundle, threads=1, variant=variant) as engine:
        engine.load(blob)
        opened = engine._decoder_model()
        request = engine._generation(opened, "which", TEXT)
        trie = trie_of(opened, LABELS)
        found = score_labels(request, trie, opened)
        answer = engine.classify("which", TEXT)
        monkeypatch.setattr(label_scoring, "MAX_ROWS", 1)
        alone = score_labels(request, trie, opened)
    assert np.abs(found - alone).max() < 2e-3
    assert np.exp(found).sum() == pytest.approx(1)
    rows = np.concatenate([blob.prompt_embeddings, table[request.tokens]])
    paths = [list(path) for path in trie.paths]
    wanted = np.array(
        [label_likelihood(plain, rows, table, path, paths) for path in paths]
    )
    assert np.abs(found - wanted).max() < (1e-3 if variant == "fp32" else 2)
    assert answer.label == LABELS[int(found.argmax())]
    assert answer.score == pytest.approx(float(np.exp(found.max())), abs=1e-5)
    if variant == "fp32":
        assert answer.label == LABELS[int(wanted.argmax())]


def test_one_label_is_certain() -> None:
    """Where nothing parts, nothing is asked; a label may go on where another ends."""
    assert make_trie([[5, 6, 2]]).following == {}
    trie = make_trie([[5, 2], [5, 6, 2], [7, 2]])
    assert trie.following == {(): (5, 7), (5,): (2, 6)}
    logits = np.arange(8, dtype=np.float32)
    logs = trie.logs({place: trie.chosen(place, logits) for place in trie.following})
    assert np.exp(logs).sum() == pytest.approx(1)
    first = np.log(np.exp(5) / (np.exp(5) + np.exp(7)))
    assert logs[1] == pytest.approx(first + np.log(np.exp(6) / (np.exp(2) + np.exp(6))))
    for labels in ([[5, 6], [5, 6, 7]], [[5], [5]]):
        with pytest.raises(ValueError, match="beginning"):
            make_trie(labels)


def test_a_first_request_keeps_the_prefix_of_a_pass_of_its_own(
    make_once: MakeOnce,
) -> None:
    """Bit for bit in INT8, though text and labels stood in the same pass."""
    bundle = made_decoder(make_once, "llama").bundle
    blob = label_blob(bundle, LABELS, 1)
    with Engine(bundle, threads=1) as engine:
        engine.load(blob)
        engine._prompts.cache.clear()
        first = engine.classify("which", TEXT)
        opened = engine._decoder_model()
        ready = engine._prompts.cache.peek(engine._prompts._key(blob))
        assert ready is not None
        assert blob.prompt_embeddings is not None
        wanted = opened.session.state_of(blob.prompt_embeddings)
        for found, own in zip(ready.state, wanted, strict=True):
            assert np.array_equal(found, own)
            assert found.base is None
        again = engine.classify("which", TEXT)
        assert again.label == first.label
        assert again.scores == pytest.approx(first.scores, abs=1e-6)


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
        with pytest.raises(PromptRefused, match="cannot be told apart"):
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
            assert _passes_of(opened, request, tuple(labels)) == 1
    capsys.readouterr()
    data = str(task / "dev.jsonl")
    assert main(["eval", str(bundle), str(out), data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["metric"], found["value"]) == ("accuracy", 100.0)
    in_torch = ["--backend", "torch", "--model", str(model)]
    assert main(["eval", str(bundle), str(out), data, "--json", *in_torch]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["value"], found["backend"]) == (100.0, "torch")


def _passes_of(
    model: DecoderModel, request: GenerationRequest, labels: tuple[str, ...]
) -> int:
    """Passes of a request over labels."""
    passes: list[int] = []
    session = model.session
    assert isinstance(session, DecoderSession)
    forward = session.forward

    def counted(*args: Any, **named: Any) -> Any:
        passes.append(args[0].shape[1])
        return forward(*args, **named)

    session.forward = counted  # type: ignore[method-assign]
    try:
        score_labels(request, trie_of(model, labels), model)
    finally:
        session.forward = forward  # type: ignore[method-assign]
    return len(passes)


def test_labels_that_are_the_same_tokens_are_refused_before_training(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "which"
    task.mkdir()
    rows = [{"text": "here", "label": "a_b"}, {"text": "there", "label": "a b"}]
    for part in ("train", "dev"):
        lines = [json.dumps(row) for row in rows]
        (task / f"{part}.jsonl").write_text("\n".join(lines))
    out = tmp_path / "which.safetensors"
    options = ["--epochs", "1", "--num-virtual-tokens", "4", "--out", str(out)]
    assert main(["train", str(model), "--task", str(task), *options]) == 3
    error = capsys.readouterr().err
    assert "cannot be told apart" in error
    assert "epoch" not in error
    assert not out.exists()


NEUTRAL = {"before": "play: ", "neutral": "N/A"}


def reader_of(base: DecoderBase, blob: PromptBlob) -> DecoderReader:
    assert blob.prompt_embeddings is not None
    state = base.state_of(torch.tensor(blob.prompt_embeddings))
    return DecoderReader(base, state, blob.meta)


@pytest.mark.parametrize("seed", range(4))
def test_calibrated_labels_are_those_of_the_trainer(
    bundle: Path, base: DecoderBase, seed: int
) -> None:
    blob = label_blob(bundle, LABELS, seed, **NEUTRAL)
    reader = reader_of(base, blob)
    logs, prior = (likelihoods(reader, text).numpy() for text in (TEXT, "N/A"))
    wanted = label_scores(reader, TEXT).numpy()
    assert np.abs(wanted - (logs - prior)).max() < 1e-6
    with Engine(bundle, threads=1) as engine:
        engine.load(blob)
        answer = engine.classify("which", TEXT)
        assert answer.label == LABELS[int(wanted.argmax())]
        opened = engine._decoder_model()
        request = engine._generation(opened, "which", TEXT)
        kept = request.prompt.prior  # type: ignore[union-attr]
        assert np.abs(kept - prior).max() < 1e-3
        found = score_labels(request, trie_of(opened, LABELS), opened)
        assert np.abs(found - logs).max() < 2e-3
        shares = torch.softmax(torch.tensor(wanted), 0).tolist()
        assert list(answer.scores.values()) == pytest.approx(shares, abs=1e-3)
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
        assert isinstance(session, DecoderSession)
        forward = session.forward

        def counted(*args: Any, **named: Any) -> Any:
            passes.append(args[0].shape)
            return forward(*args, **named)

        session.forward = counted  # type: ignore[method-assign]
        first = engine.classify("which", TEXT)
        cold = len(passes)
        passes.clear()
        assert engine.classify("which", TEXT) == first
        # The neutral text with the labels behind it.
        assert cold == len(passes) + 1
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


def test_dev_chooses_whether_to_calibrate(bundle: Path, base: DecoderBase) -> None:
    """Dev that follows calibrated likelihoods wants them, dev that does not, not."""
    labels = LABELS[:6]
    texts = [f"the {one} was {two} and" for one in WORDS[:6] for two in WORDS[6:]]
    reader = reader_of(base, label_blob(bundle, labels, 3))
    prior, *rest = (likelihoods(reader, text) for text in ["N/A", *texts])
    logs = torch.stack(rest)
    for calibrated in (True, False):
        best = (logs - prior if calibrated else logs).argmax(1).tolist()
        rows = [Row(t, label=labels[i]) for t, i in zip(texts, best, strict=True)]
        found = choose_calibration(reader, rows)
        assert found.neutral == ("N/A" if calibrated else "")
        assert max(found.plain, found.calibrated) == 100.0
        assert min(found.plain, found.calibrated) < 100.0
        assert found.rows == len(texts)
    own = reader_of(base, label_blob(bundle, labels, 3, neutral="the"))
    assert choose_calibration(own, rows).neutral == "the"


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
