"""Two versions that share a task, on real engines: whose answers, what is counted."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from blobs import normal, random_blob
from decoders import made_decoder
from made_once import MakeOnce
from stores import new_store, states

from promptdial.prompts.blob import Golden, PromptBlob, decode, encode, make_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.scores import Scores
from promptdial.prompts.store import PromptStore
from promptdial.runtime import Engine
from promptdial.runtime.manifest import Manifest, from_json

TEXT = "the film was great"
TEXTS = (TEXT, "play some music", "wake me at seven", "blue light", "not very good")
UNITS = tuple(f"user {number}" for number in range(200))
LABELS = ("alarm", "music")


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return from_json((tiny_bundle / "manifest.json").read_text())


@pytest.fixture(scope="module")
def decoder_bundle(make_once: MakeOnce) -> Path:
    return made_decoder(make_once, "llama").bundle


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PromptStore]:
    with new_store(tmp_path / "store") as found:
        yield found


@pytest.fixture
def engine(tiny_bundle: Path, store: PromptStore) -> Iterator[Engine]:
    with Engine(tiny_bundle, store, threads=1) as found:
        yield found


def share(
    store: PromptStore, one: PromptBlob, two: PromptBlob, percent: int = 50
) -> None:
    """The first is good and active, the second answers a share."""
    task = one.meta.task
    store.install(one)
    store.activate(task, one.meta.version)
    _, digest = store.serving(task)
    assert digest is not None and store.begin_trial(task, digest, wait=False)
    store.end_trial(task, digest, "")
    store.install(two)
    store.share(task, two.meta.version, percent)


def blobs(
    manifest: Manifest, task: str = "colour", kind: str = "classification"
) -> tuple[PromptBlob, PromptBlob]:
    one, two = [
        random_blob(manifest, task, kind, seed=version, version=version)
        for version in (1, 2)
    ]
    return one, two


def decoder_blobs(bundle: Path, kind: str) -> tuple[PromptBlob, PromptBlob]:
    manifest = from_json((bundle / "manifest.json").read_text())
    made = []
    for version in (1, 2):
        meta = random_blob(manifest, kind, "generation", version=version).meta
        if kind == "classification":
            meta = replace(meta, kind=kind, pooling="likelihood", labels=LABELS)
        rows = 0.5 * normal(version, 5, manifest.dims.embedding)
        made.append(make_blob(meta, embeddings=rows))
    return made[0], made[1]


def test_the_share_is_met_and_each_answer_is_its_versions_own(
    tiny_bundle: Path, engine: Engine, store: PromptStore, manifest: Manifest
) -> None:
    pair = blobs(manifest)
    alone = {}
    for blob in pair:
        with Engine(tiny_bundle, threads=1) as other:
            other.load(blob)
            alone[blob.meta.version] = [other.run("colour", text) for text in TEXTS]
    share(store, *pair, percent=30)
    asked, found = 200, Counter[int]()
    for _ in range(asked):
        for number, text in enumerate(TEXTS):
            answer = engine.classify("colour", text)
            found[answer.prompt_version] += 1
            assert answer == alone[answer.prompt_version][number]
    total = asked * len(TEXTS)
    assert abs(found[2] - 0.3 * total) < 5 * math.sqrt(total * 0.3 * 0.7)
    assert states(store, "colour") == {1: "good", 2: "good"}


def test_units_are_sticky_alone_and_in_batches(
    tiny_bundle: Path, engine: Engine, store: PromptStore, manifest: Manifest
) -> None:
    share(store, *blobs(manifest))
    engine.run_batch([("colour", TEXT)] * 50)  # the trial is over
    alone = [engine.classify("colour", TEXT, unit=unit) for unit in UNITS]
    versions = [answer.prompt_version for answer in alone]
    assert {*versions} == {1, 2}
    together = engine.run_batch([("colour", TEXT)] * len(UNITS), units=UNITS)
    assert together == alone
    # Another process, or this one after a start, gives the same.
    with Engine(tiny_bundle, store.path, threads=1) as other:
        again = [other.classify("colour", TEXT, unit=unit) for unit in UNITS]
    assert again == alone
    with pytest.raises(UsageError, match="1 units for 2 items"):
        engine.run_batch([("colour", TEXT)] * 2, units=["a"])


def test_taggers_share(engine: Engine, store: PromptStore, manifest: Manifest) -> None:
    share(store, *blobs(manifest, "spans", "token"))
    found = {engine.tag("spans", TEXT, unit=unit).prompt_version for unit in UNITS}
    assert found == {1, 2}


def test_a_challenger_that_fails_its_trial_never_answers(
    engine: Engine, store: PromptStore, manifest: Manifest
) -> None:
    one, two = blobs(manifest)
    wrong = Golden(TEXT, None, (1, 2, 3), "no such label", 0.5)
    meta = replace(two.meta, golden=(wrong,))
    share(store, one, decode(encode(meta, two.tensors)))
    found = {engine.classify("colour", TEXT).prompt_version for _ in range(60)}
    assert found == {1}
    assert states(store, "colour") == {1: "good", 2: "bad"}
    assert "golden input" in store.versions("colour")[1].failure
    assert store.versions("colour")[1].share == 0


def test_a_challenger_for_another_base_leaves_the_incumbent_alone(
    engine: Engine, store: PromptStore, manifest: Manifest
) -> None:
    one, two = blobs(manifest)
    meta = replace(two.meta, base_fingerprint="ckpt1:" + "c" * 64)
    share(store, one, decode(encode(meta, two.tensors)))
    found = {engine.classify("colour", TEXT).prompt_version for _ in range(60)}
    assert found == {1}
    assert states(store, "colour") == {1: "good", 2: "trial"}


def test_decoders_share(decoder_bundle: Path, store: PromptStore) -> None:
    for kind in ("generation", "classification"):
        share(store, *decoder_blobs(decoder_bundle, kind))
    texts = [TEXT] * len(UNITS[:12])
    with Engine(decoder_bundle, store, threads=1) as engine:
        for unit in UNITS[:12]:
            engine.generate("generation", TEXT, max_new_tokens=2, unit=unit)
            engine.classify("classification", TEXT, unit=unit)
        alone = []
        for unit in UNITS[:12]:
            stream = engine.stream("generation", TEXT, max_new_tokens=4, unit=unit)
            said = "".join(stream)
            whole = engine.generate("generation", TEXT, max_new_tokens=4, unit=unit)
            assert said == whole.text == stream.generation.text
            assert stream.generation.prompt_version == whole.prompt_version
            alone.append(whole.prompt_version)
        assert {*alone} == {1, 2}
        labels = [engine.classify("classification", TEXT, unit=u) for u in UNITS[:12]]
        assert {answer.prompt_version for answer in labels} == {1, 2}
        items = [("classification", text) for text in texts]
        assert engine.run_batch(items, units=UNITS[:12]) == labels
    # Every answer was counted, the streams' too, and none of the trials'.
    counted = store.figures.counted()
    written = counted["generation", 1], counted["generation", 2]
    assert sum(item.answers for item in written) == 36
    assert sum(item.scored for item in written) == 0
    judged = counted["classification", 1], counted["classification", 2]
    assert sum(item.scored for item in judged) == 36
    # In company no answer has a time of its own; nor has a prompt's first.
    assert 12 <= sum(item.timed for item in judged) <= 24
    assert sum(item.timed for item in written) >= 34


def test_what_is_counted_of_answers(
    tiny_bundle: Path, store: PromptStore, manifest: Manifest
) -> None:
    one, two = blobs(manifest)
    # The second abstains from everything that it is not sure of.
    meta = replace(two.meta, scores=Scores(threshold=0.999))
    share(store, one, decode(encode(meta, two.tensors)))
    with Engine(tiny_bundle, store, threads=1) as engine:
        answers = [engine.classify("colour", t, unit=u) for u in UNITS for t in TEXTS]
        engine.run(None, TEXT)  # of no version
        engine.load(random_blob(manifest, "colour", seed=9, version=2))
        engine.classify("colour", TEXT)  # not the store's
    found = store.figures.compare("colour")
    for side in (found.incumbent, found.challenger):
        own = [item for item in answers if item.prompt_version == side.version]
        assert side.answers == len(own) > 100
        assert side.confidence is not None and side.latency_ms is not None
        assert side.confidence.mean == pytest.approx(
            sum(item.score for item in own) / len(own)
        )
        assert side.abstained == sum(item.abstained for item in own) / len(own)
        assert side.latency_ms.count == len(own) and side.latency_ms.low > 0
    tally = store.figures.counted()["colour", 1]
    assert sum(tally.bins["tokens"]) == found.incumbent.answers
    assert sum(tally.bins["confidence"]) == found.incumbent.answers


def test_spans_are_as_sure_as_their_least(
    engine: Engine, store: PromptStore, manifest: Manifest
) -> None:
    share(store, *blobs(manifest, "spans", "token"))
    text = "play some music at seven"
    engine.tag("spans", text, unit="a")  # the trial
    found = engine.tag("spans", text, unit="a")
    key = ("spans", found.prompt_version)
    before = store.figures.counted()[key].confidence
    assert engine.tag("spans", text, unit="a") == found
    least = min(span.score for span in found.spans)
    now = store.figures.counted()[key].confidence
    assert now - before == pytest.approx(least)
