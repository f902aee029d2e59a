"""Pairs whose texts are read one after the other: encoding, features, answers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import normal, random_blob

from promptdial.prompts.blob import PromptBlob, make_blob
from promptdial.prompts.metadata import APART
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import collate, encode_rows, encode_text
from promptdial.prompts.training.heads import (
    features,
)
from promptdial.prompts.training.reference import blob_reader, evaluate_torch
from promptdial.prompts.training.scoring import logits_of
from promptdial.runtime import Classification, Engine
from promptdial.runtime.errors import PromptRefused, TextRefused
from promptdial.runtime.evaluate import predict
from promptdial.runtime.fitting import check_fit
from promptdial.runtime.manifest import Manifest, from_json
from promptdial.runtime.pooling import apart_l2, mean_l2
from promptdial.runtime.prompt_cache import ReadyPrompt
from promptdial.runtime.reading import Answer
from promptdial.runtime.requests import make_request
from promptdial.runtime.rows import Row
from promptdial.runtime.text import TextEncoder

ONE, TWO, LONG = "the film was great", "wake me at seven", "the blue light " * 3
TEXTS = (ONE, TWO, LONG)
CLEAN = {
    "type": "BertNormalizer",
    "clean_text": True,
    "handle_chinese_chars": True,
    "strip_accents": None,
    "lowercase": True,
}


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return from_json((tiny_bundle / "manifest.json").read_text())


def blobs(manifest: Manifest) -> list[PromptBlob]:
    """A head alone, a soft prompt, and a deep one that weighs the rows of levels."""
    return [
        random_blob(manifest, "alone", "pair", length=0, seed=1, pooling=APART),
        random_blob(manifest, "soft", "pair", seed=2, pooling=APART),
        random_blob(
            manifest,
            "deep",
            "pair",
            deep=True,
            seed=3,
            mixes=2,
            attends=True,
            pooling=APART,
        ),
    ]


def scores(answer: Answer) -> list[float]:
    assert isinstance(answer, Classification)
    return list(answer.scores.values())


def margin(engine: Engine, task: str, one: str, two: str) -> float:
    """Between the two logits: scores near 0 and 1 would hide what changes them."""
    low, high = np.log(scores(engine.classify(task, one, text_pair=two)))
    return float(high - low)


def test_each_text_is_encoded_as_if_it_were_alone(base: FrozenBase) -> None:
    template = {"before": "now "}
    pair = encode_text(base.encoder, ONE, LONG, template, APART)
    alone = [base.encoder.encode(f"now {ONE}"), base.encoder.encode(LONG)]
    assert len(pair.passes) == 2 and len(pair) == sum(map(len, alone))
    for found, wanted in zip(pair.passes, alone, strict=True):
        np.testing.assert_array_equal(found.ids, wanted.ids)
        np.testing.assert_array_equal(found.words, wanted.words)
        assert not found.type_ids.any() and found.offsets == wanted.offsets
    together = encode_text(base.encoder, ONE, LONG, {}, "segments_l2")
    assert together.passes == (together,)


def test_class_vectors_read_products_and_distances(manifest: Manifest) -> None:
    alone = blobs(manifest)[0]
    assert alone.head_weight is not None
    half = alone.head_weight[:, : manifest.dims.hidden]
    narrow = make_blob(alone.meta, head_weight=half)
    check_fit(alone, manifest)
    with pytest.raises(PromptRefused, match="64 wide, the base 128"):
        check_fit(narrow, manifest)


def test_each_text_has_a_window_of_its_own(base: FrozenBase) -> None:
    window, long = base.encoder.max_tokens, "the film was great " * 40
    pair = base.encoder.encode_apart(ONE, long)
    assert pair.truncated and not base.encoder.encode_apart(ONE, TWO).truncated
    assert [len(text) for text in pair.passes] == [
        len(base.encoder.encode(ONE)),
        window,
    ]


@pytest.mark.parametrize("texts", [("\x07", None), (ONE, "\x07"), ("\x07", ONE)])
def test_a_text_of_which_nothing_is_left_is_refused(
    base: FrozenBase, manifest: Manifest, texts: tuple[str, str | None]
) -> None:
    """By a tokenizer that puts no special tokens around it."""
    plain = json.loads(base.encoder.tokenizer_json())
    plain |= {"post_processor": None, "normalizer": CLEAN}
    encoder = TextEncoder(json.dumps(plain), 8)
    assert not len(encoder.encode("\x07"))
    prompt = None
    if texts[1] is not None:
        meta, steps = blobs(manifest)[0].meta, np.zeros((0, 0), np.float32)
        prompt = ReadyPrompt(meta, "", (), 0, None, None, steps)
    with pytest.raises(TextRefused, match="leaves nothing of it"):
        make_request(encoder, prompt, *texts)


def test_a_batch_has_all_first_texts_and_then_all_second_ones(base: FrozenBase) -> None:
    pairs = [base.encoder.encode_apart(ONE, LONG), base.encoder.encode_apart(TWO, ONE)]
    batch = collate(pairs, base.device)
    lengths = [len(base.encoder.encode(text)) for text in (ONE, TWO, LONG, ONE)]
    assert batch.mask.sum(1).tolist() == lengths
    assert torch.equal(batch.ids[0], batch.ids[3])


def test_the_device_compares_texts_as_the_trainer_does(base: FrozenBase) -> None:
    one, two = normal(0, 4, 8), normal(1, 4, 8)
    batch = collate([base.encoder.encode("red")] * 2, base.device)
    batch = replace(batch, mask=torch.ones(2, 4, dtype=torch.long))
    hidden = torch.tensor(np.stack([one, two]))
    for query in (None, normal(2, 8)):
        found = apart_l2(mean_l2(one, query), mean_l2(two, query))
        given = None if query is None else torch.tensor(query)
        wanted = features(hidden, batch, APART, given).numpy()
        np.testing.assert_allclose(found[None], wanted, atol=1e-6)
    assert not apart_l2(mean_l2(one), mean_l2(one))[8:].any()


def test_answers_equal_the_pytorch_reference(
    tiny_bundle: Path, manifest: Manifest, base: FrozenBase
) -> None:
    with Engine(tiny_bundle, variant="fp32") as engine:
        for blob in blobs(manifest):
            engine.load(blob)
            reader, meta = blob_reader(base, blob), blob.meta
            row = Row(text=ONE, text_pair=LONG, label="same")
            rows = encode_rows([row], base.encoder, meta.labels, {}, meta.pooling)
            wanted = torch.softmax(logits_of(reader, rows)[0], -1).numpy()
            answer = engine.classify(meta.task, ONE, text_pair=LONG)
            # The token table is int8, PyTorch's is not.
            np.testing.assert_allclose(scores(answer), wanted, atol=0.05)


def test_prompt_and_both_texts_reach_the_answer(
    tiny_bundle: Path, manifest: Manifest
) -> None:
    with Engine(tiny_bundle) as engine:
        for blob in blobs(manifest):
            engine.load(blob)
            task = blob.meta.task
            first = margin(engine, task, ONE, TWO)
            for one, two in ((ONE, LONG), (LONG, TWO)):
                assert abs(first - margin(engine, task, one, two)) > 1e-2, task
            if not blob.num_virtual_tokens:
                continue
            bare = make_blob(
                replace(blob.meta, task="bare"),
                head_weight=blob.head_weight,
                head_mix=blob.head_mix,
                head_query=blob.head_query,
            )
            engine.load(bare)
            assert abs(first - margin(engine, "bare", ONE, TWO)) > 1e-2, task


def test_a_batch_equals_one_by_one(tiny_bundle: Path, manifest: Manifest) -> None:
    """Texts of pairs share passes with others of their length, in any order."""
    with Engine(tiny_bundle) as engine:
        for blob in (*blobs(manifest), random_blob(manifest, "colour", seed=9)):
            engine.load(blob)
        items: list[tuple[str | None, str, str | None]] = [
            (task, one, two)
            for one, two in ((ONE, TWO), (LONG, ONE), (TWO, LONG), (ONE, ONE))
            for task in ("soft", "alone", "deep")
        ]
        items += [("colour", ONE, None), (None, LONG, None)]
        for item, answer in zip(items, engine.run_batch(items), strict=True):
            alone = engine.run(*item)
            if isinstance(answer, np.ndarray):
                assert np.array_equal(answer, np.asarray(alone))
            else:
                assert answer == alone, item


def test_evaluation_reads_as_the_blob_does(
    tiny_bundle: Path, tiny_model: Path, manifest: Manifest
) -> None:
    blob = blobs(manifest)[2]
    rows = [Row(text=a, text_pair=b, label="same") for a in TEXTS for b in TEXTS]
    with Engine(tiny_bundle, variant="fp32") as engine:
        engine.load(blob)
        found, _ = predict(engine, blob.meta.task, rows)
    assert found == evaluate_torch(str(tiny_model), blob, rows)
    assert len(set(map(str, found))) == 2
