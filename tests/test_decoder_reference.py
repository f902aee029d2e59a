"""The PyTorch reference of decoders: against transformers, and against the engine."""

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
from promptdial.prompts.blob import Golden, PromptBlob, make_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.decoders.decoder_base import DecoderBase, decoder_base
from promptdial.prompts.training.decoders.decoder_reference import (
    DecoderReader,
    label_scores,
    write,
)
from promptdial.prompts.training.reference import blob_state, evaluate_torch
from promptdial.runtime import Classification, Engine, Generation
from promptdial.runtime.bundle import open_bundle
from promptdial.runtime.errors import TextRefused
from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.requests import chosen_options
from promptdial.runtime.rows import Row
from promptdial.runtime.selftest import golden_changes, run_self_test

CPU = torch.device("cpu")
TEXTS = ("the film was good and", "wake me at seven", "turn the red light on")
ROWS = [Row(text, target="x") for text in TEXTS]
WORDS = "film music book news light station morning map gate path seven two".split()
LABELS = tuple(f"{one}_{two}" for one in WORDS for two in WORDS)[:100]
TEMPLATE = {"before": "text: ", "after": " answer:"}


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def made(request: pytest.FixtureRequest, make_once: MakeOnce) -> MadeDecoder:
    return made_decoder(make_once, request.param, exact=True)


@pytest.fixture(scope="module")
def model(made: MadeDecoder) -> Path:
    return made.model


@pytest.fixture(scope="module")
def bundle(made: MadeDecoder) -> Path:
    return made.bundle


@pytest.fixture(scope="module")
def base(model: Path) -> DecoderBase:
    return decoder_base(load_base(resolve(str(model)), CPU), CPU)


def writer(
    bundle: Path, number: int, generation: dict[str, Any] | None = None
) -> PromptBlob:
    """A soft prompt of random rows that writes, with a template."""
    manifest = open_bundle(bundle).manifest
    meta = random_blob(manifest, "words", "generation", length=5).meta
    meta = replace(meta, template=TEMPLATE, generation=generation or {})
    rows = 0.5 * normal(number, 5, manifest.dims.embedding)
    return make_blob(meta, embeddings=rows)


def reader_of(base: DecoderBase, blob: PromptBlob) -> DecoderReader:
    return DecoderReader(base, blob_state(base, blob), blob.meta)


def rows_of(base: DecoderBase, blob: PromptBlob, text: str) -> Any:
    """Embedding rows of prompt, template and text."""
    full = TEMPLATE["before"] + text + TEMPLATE["after"]
    ids = base.encoder.encode(full).ids
    assert blob.prompt_embeddings is not None
    return np.concatenate([blob.prompt_embeddings, base.token_table.numpy()[ids]])


def test_what_is_written_is_what_transformers_writes(
    base: DecoderBase, model: Path, bundle: Path
) -> None:
    plain, answers = plain_model(model), set()
    options = GenerationOptions(max_new_tokens=12)
    for seed in range(3):
        blob = writer(bundle, seed)
        reader = reader_of(base, blob)
        for text in TEXTS:
            found = write(reader, text, options)
            wanted = transformers_greedy(plain, rows_of(base, blob, text), 12)
            assert list(found.tokens) == wanted
            assert 0 <= found.margin <= 1
            answers.add(found.text)
    # The prompt and the text both choose the answer.
    assert len(answers) > 3


@pytest.mark.parametrize(
    "generation",
    [
        {"max_new_tokens": 12},
        {"max_new_tokens": 12, "repetition_penalty": 1.7, "stop": ["t", "</s>"]},
        {"max_new_tokens": 12, "temperature": 0.8, "top_k": 20, "seed": 3},
    ],
)
def test_it_writes_what_the_exact_graph_writes(
    model: Path, bundle: Path, generation: dict[str, Any]
) -> None:
    """The prompt's own options count: drawn tokens and stop strings too."""
    blob = writer(bundle, 1, generation)
    found = evaluate_torch(str(model), blob, ROWS, "cpu")
    with Engine(bundle, threads=1) as engine:
        engine.load(blob)
        answers = [engine.run("words", text) for text in TEXTS]
    assert found == [x.text for x in answers if isinstance(x, Generation)]


@pytest.mark.parametrize("own", [{"choices": ["film", "music"]}, {"temperature": 0.9}])
def test_golden_answers_are_written_under_the_prompts_own_constraint(
    base: DecoderBase, bundle: Path, own: dict[str, Any]
) -> None:
    blob = writer(bundle, 3)
    meta = replace(blob.meta, generation=own)
    reader = DecoderReader(base, reader_of(base, blob).state, meta)
    changes = golden_changes(meta)
    assert ("stop" in changes) == ("choices" not in own)
    options = chosen_options(meta, changes)
    golden = [
        Golden(text, None, (1,), write(reader, text, options, own_limit=False).text, 1)
        for text in TEXTS
    ]
    assert blob.prompt_embeddings is not None
    meta = replace(meta, golden=tuple(golden))
    whole = make_blob(meta, embeddings=blob.prompt_embeddings)
    with Engine(bundle, threads=1) as engine:
        engine.load(whole)
        assert run_self_test(engine, meta).failures == ()
        if "choices" in own:
            assert {item.label for item in golden} <= {"film", "music"}


def test_the_margin_is_that_of_the_least_certain_token(
    base: DecoderBase, model: Path, bundle: Path
) -> None:
    blob, plain = writer(bundle, 2), plain_model(model)
    found = write(reader_of(base, blob), TEXTS[0], GenerationOptions(max_new_tokens=6))
    rows = torch.tensor(rows_of(base, blob, TEXTS[0]))
    written = base.token_table[list(found.tokens)]
    with torch.no_grad():
        logits = plain(inputs_embeds=torch.cat([rows, written])[None]).logits[0]
    best = logits[len(rows) - 1 : -1].softmax(-1).topk(2).values
    assert found.margin == pytest.approx(float((best[:, 0] - best[:, 1]).min()), 1e-3)


def test_labels_have_the_likelihoods_of_transformers(
    base: DecoderBase, model: Path, bundle: Path
) -> None:
    """A hundred labels, more than one pass takes, of one token and of many."""
    blob = writer(bundle, 3)
    labels = (*LABELS, "on", "a very long label of many words and tokens")
    meta = replace(blob.meta, kind="classification", pooling="likelihood")
    blob = make_blob(
        replace(meta, labels=labels), embeddings=0.5 * normal(3, 5, base.dims.embedding)
    )
    scores = label_scores(reader_of(base, blob), TEXTS[0])
    assert scores.shape == (102,)
    rows, plain = rows_of(base, blob, TEXTS[0]), plain_model(model)
    texts = [base.encoder.token_ids(label.replace("_", " ")) for label in labels]
    paths = [[*tokens, base.end_token] for tokens in texts]
    table = base.token_table.numpy()
    for index in (0, 1, 63, 64, 99, 100, 101):
        wanted = label_likelihood(plain, rows, table, paths[index], paths)
        assert float(scores[index]) == pytest.approx(wanted, abs=1e-3)
    with Engine(bundle, threads=1) as engine:
        engine.load(blob)
        answers = [engine.run("words", text) for text in TEXTS]
    rows_ = [Row(text, label=labels[0]) for text in TEXTS]
    found = evaluate_torch(str(model), blob, rows_, "cpu")
    assert found == [x.label for x in answers if isinstance(x, Classification)]


def test_what_does_not_fit_is_refused(
    base: DecoderBase, model: Path, bundle: Path
) -> None:
    blob = writer(bundle, 1)
    with pytest.raises(TextRefused, match="leave no room"):
        write(reader_of(base, blob), TEXTS[0], GenerationOptions(max_new_tokens=125))
    other = replace(blob, meta=replace(blob.meta, base_fingerprint="ckpt1:" + "0" * 64))
    with pytest.raises(UsageError, match="blob is for ckpt1:0000"):
        evaluate_torch(str(model), other, ROWS, "cpu")
