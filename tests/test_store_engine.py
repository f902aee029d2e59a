"""An Engine on a store: live, by tenant, and no bad version ever answers a request."""

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blobs import random_blob
from store_process import StoreProcess
from stores import new_store, states

from promptdial.prompts.blob import Golden, PromptBlob, decode, encode
from promptdial.prompts.errors import MarkedBad, NoSpace, UsageError
from promptdial.prompts.store import PromptStore
from promptdial.runtime import Classification, Engine
from promptdial.runtime import engine as engine_module
from promptdial.runtime import trial as trial_module
from promptdial.runtime.errors import TrialFailed, UnknownTask, WrongBase
from promptdial.runtime.manifest import Manifest, from_json
from promptdial.runtime.trial import MOST_ROUNDS

TEXT = "the film was great"
TEXTS = (TEXT, "play some music", "wake me at seven", "blue light", "not very good")


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return from_json((tiny_bundle / "manifest.json").read_text())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PromptStore]:
    with new_store(tmp_path / "store") as found:
        yield found


@pytest.fixture
def engine(tiny_bundle: Path, store: PromptStore) -> Iterator[Engine]:
    with Engine(tiny_bundle, store, threads=1) as found:
        yield found


def put(store: PromptStore, blob: PromptBlob) -> None:
    store.install(blob)
    store.activate(blob.meta.task, blob.meta.version)


def put_good(
    engine: Engine, store: PromptStore, manifest: Manifest, *versions: int
) -> None:
    for version in versions:
        put(store, random_blob(manifest, seed=version, version=version))
        assert version_of(engine) == version
    assert states(store, "colour")[versions[-1]] == "good"


def version_of(engine: Engine, task: str = "colour") -> int:
    return engine.classify(task, TEXT).prompt_version


def with_golden(
    bundle: Path, blob: PromptBlob, label: str = "", margin: float | None = None
) -> PromptBlob:
    """A blob whose golden inputs are right, unless a label or margin says otherwise."""
    with Engine(bundle, threads=1) as alone:
        alone.load(blob)
        golden = []
        for text in TEXTS[:3]:
            answer = alone.classify(blob.meta.task, text)
            best, second = sorted(answer.scores.values(), reverse=True)[:2]
            own = best - second if margin is None else margin
            golden.append(Golden(text, None, (1, 2, 3), label or answer.label, own))
    meta = replace(blob.meta, golden=tuple(golden))
    return decode(encode(meta, blob.tensors))


def wrong_label(bundle: Path, blob: PromptBlob) -> PromptBlob:
    right = with_golden(bundle, blob).meta.golden[0].label
    others = [label for label in blob.meta.labels if label != right]
    return with_golden(bundle, blob, label=others[0])


def test_an_activation_is_seen_by_the_next_request(
    engine: Engine, store: PromptStore, manifest: Manifest
) -> None:
    put_good(engine, store, manifest, 1, 2, 3)
    store.rollback("colour", allow_below_floor=True)
    assert version_of(engine) == 2
    store.remove("colour")
    with pytest.raises(UnknownTask, match="no task 'colour'; there is none"):
        engine.run("colour", TEXT)


def test_an_activation_by_another_process_is_seen(
    engine: Engine, store: PromptStore, manifest: Manifest
) -> None:
    put_good(engine, store, manifest, 1)
    store.install(random_blob(manifest, seed=2, version=2))
    with StoreProcess(store.path) as other:
        for _ in range(3):
            assert other.do("activate", "colour", 2) == "done"
            assert version_of(engine) == 2
            with store._index.writing() as connection:
                connection.execute("UPDATE tasks SET floor = 1")
            assert other.do("rollback", "colour") == "done"
            assert version_of(engine) == 1


def test_a_running_request_ends_on_the_version_it_began_with(
    engine: Engine,
    store: PromptStore,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_good(engine, store, manifest, 1)
    alone = engine.classify("colour", TEXT)
    model = engine._encoder_model("test")
    begun, go, real = threading.Event(), threading.Event(), model.session.hidden
    answers: list[Classification] = []

    def slow(*arguments: object) -> object:
        begun.set()
        assert go.wait(20)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(model.session, "hidden", slow)
    thread = threading.Thread(
        target=lambda: answers.append(engine.classify("colour", TEXT))
    )
    thread.start()
    assert begun.wait(20)
    monkeypatch.setattr(model.session, "hidden", real)
    put_good(engine, store, manifest, 2)
    go.set()
    thread.join()
    assert answers == [alone]
    assert answers[0].prompt_version == 1


def test_a_version_that_passes_is_good_and_raises_the_floor(
    tiny_bundle: Path,
    engine: Engine,
    store: PromptStore,
    manifest: Manifest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "promptdial")
    put(store, with_golden(tiny_bundle, random_blob(manifest, version=4)))
    assert states(store, "colour") == {4: "trial"}
    assert version_of(engine) == 4
    version = store.versions("colour")[0]
    assert (version.state, version.tries, version.failure) == ("good", 1, "")
    assert store.tasks()[0].floor == 4
    assert "passed its trial" in caplog.text


def test_a_trial_asks_each_golden_input_once(
    tiny_bundle: Path,
    engine: Engine,
    store: PromptStore,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(store, with_golden(tiny_bundle, random_blob(manifest)))
    asked: list[str] = []
    run = Engine.run

    def seen(
        self: Engine,
        task: str | None,
        text: str,
        pair: str | None = None,
        *,
        unit: str | None = None,
    ) -> Any:
        if task is not None:
            asked.append(text)
        return run(self, task, text, pair, unit=unit)

    monkeypatch.setattr(Engine, "run", seen)
    engine.classify("colour", TEXT)
    first, *others = TEXTS[:3]
    assert [asked.count(text) for text in others] == [1, 1]
    # The first one is what a request is timed by.
    assert asked.count(first) <= 1 + MOST_ROUNDS


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (wrong_label, "golden input 'the film was great' is"),
        (
            lambda bundle, blob: with_golden(bundle, blob, margin=4.1),
            "has margin 0.",
        ),
    ],
    ids=["label", "margin"],
)
def test_a_bad_version_leaves_by_itself_and_no_request_feels_it(
    tiny_bundle: Path,
    engine: Engine,
    store: PromptStore,
    manifest: Manifest,
    spoil: Callable[[Path, PromptBlob], PromptBlob],
    says: str,
) -> None:
    put_good(engine, store, manifest, 1)
    before = engine.run("colour", TEXT)
    put(store, spoil(tiny_bundle, random_blob(manifest, seed=2, version=2)))
    for tries in (1, 2, 3):
        assert engine.run("colour", TEXT) == before
        bad = store.versions("colour")[1]
        assert bad.tries == tries and says in bad.failure, bad.failure
    assert states(store, "colour") == {1: "good", 2: "bad"}
    assert store.tasks()[0].active == 1
    assert engine.run("colour", TEXT) == before
    assert store.versions("colour")[1].tries == 3
    with pytest.raises(MarkedBad):
        store.activate("colour", 2)
    put_good(engine, store, manifest, 3)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("LATENCY_FACTOR", -1e6, "a request takes"),
        ("ask_all", lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
        ("ask_golden", lambda *_: [][0], "IndexError: list index out of range"),
    ],
)
def test_whatever_goes_wrong_in_a_trial_is_its_failure(
    engine: Engine,
    store: PromptStore,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: object,
    says: str,
) -> None:
    put_good(engine, store, manifest, 1)
    monkeypatch.setattr(trial_module, name, value)
    put(store, random_blob(manifest, seed=2, version=2))
    for _ in range(4):
        assert version_of(engine) == 1
    bad = store.versions("colour")[1]
    assert (bad.state, bad.tries) == ("bad", 3)
    assert says in bad.failure


def test_a_blob_that_does_not_fit_or_cannot_be_read_fails_its_trial(
    engine: Engine, store: PromptStore, manifest: Manifest
) -> None:
    put_good(engine, store, manifest, 1)
    narrow = replace(manifest, dims=replace(manifest.dims, embedding=32, hidden=32))
    put(store, random_blob(narrow, seed=2, version=2))
    blob = random_blob(manifest, seed=3, version=3)
    store.install(blob)
    for _ in range(3):
        assert version_of(engine) == 1
    assert "BLOB_INVALID: prompt rows of 'colour' are 32 wide" in (
        store.versions("colour")[1].failure
    )
    store.activate("colour", 3)
    path = store.path / "blobs" / "sha256" / blob.digest.removeprefix("sha256:")
    path.write_bytes(b"damaged")
    for _ in range(3):
        assert version_of(engine) == 1
    assert states(store, "colour") == {1: "good", 2: "bad", 3: "bad"}


def test_a_version_for_another_base_is_not_to_blame(
    engine: Engine, store: PromptStore, manifest: Manifest
) -> None:
    """Engines of several bundles may share a store."""
    base = replace(manifest.base, fingerprint="ckpt1:" + "c" * 64)
    put(store, random_blob(replace(manifest, base=base), version=2))
    for _ in range(4):
        with pytest.raises(WrongBase):
            engine.run("colour", TEXT)
    assert store.versions("colour")[0].tries == 0
    store.remove("colour")
    put_good(engine, store, manifest, 1)
    put(store, random_blob(replace(manifest, base=base), version=2))
    for _ in range(4):
        assert version_of(engine) == 1
    assert states(store, "colour") == {1: "good", 2: "trial"}


def test_a_first_version_that_fails_is_an_error_that_says_why(
    tiny_bundle: Path, engine: Engine, store: PromptStore, manifest: Manifest
) -> None:
    put(store, wrong_label(tiny_bundle, random_blob(manifest, version=2)))
    for _ in range(2):
        with pytest.raises(TrialFailed, match=r"no good version.* golden input"):
            engine.run("colour", TEXT)
    for _ in range(2):
        with pytest.raises(MarkedBad, match="no good version; 2 failed: golden"):
            engine.run("colour", TEXT)
    assert engine.tasks() == []
    put_good(engine, store, manifest, 3)


def test_a_first_version_replaced_while_it_is_tried_costs_no_answer(
    engine: Engine,
    store: PromptStore,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def overtaken(*_: object) -> str:
        monkeypatch.undo()
        put(store, random_blob(manifest, seed=2, version=2))
        return ""

    monkeypatch.setattr(engine_module, "failure_of", overtaken)
    put(store, random_blob(manifest, version=1))
    assert version_of(engine) == 2
    assert states(store, "colour") == {1: "trial", 2: "good"}


def test_a_stopped_trial_is_not_a_failure(
    engine: Engine,
    store: PromptStore,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    put(store, random_blob(manifest, version=2))
    monkeypatch.setattr(engine_module, "failure_of", stop)
    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            engine.run("colour", TEXT)
    monkeypatch.undo()
    assert store.versions("colour")[0].tries == 0
    assert version_of(engine) == 2


def test_requests_during_a_trial_are_answered_by_the_good_version(
    engine: Engine,
    store: PromptStore,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_good(engine, store, manifest, 1)
    begun, go = threading.Event(), threading.Event()

    def slow(*_: object) -> str:
        begun.set()
        assert go.wait(20)
        return ""

    monkeypatch.setattr(engine_module, "failure_of", slow)
    put(store, random_blob(manifest, seed=2, version=2))
    versions: list[int] = []
    thread = threading.Thread(target=lambda: versions.append(version_of(engine)))
    thread.start()
    assert begun.wait(20)
    assert [version_of(engine) for _ in range(5)] == [1] * 5
    go.set()
    thread.join()
    assert versions == [2]
    assert version_of(engine) == 2


def test_a_first_version_is_tried_once_however_many_ask(
    engine: Engine, store: PromptStore, manifest: Manifest
) -> None:
    put(store, random_blob(manifest, version=1))
    gate = threading.Barrier(8)
    versions: list[int] = []

    def ask() -> None:
        gate.wait()
        versions.append(version_of(engine))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert versions == [1] * 8
    assert store.versions("colour")[0].tries == 1


@pytest.mark.parametrize("method", ["begin_trial", "end_trial"])
def test_a_trial_that_cannot_be_noted_costs_no_answer(
    engine: Engine,
    store: PromptStore,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    put_good(engine, store, manifest, 1)
    put(store, random_blob(manifest, seed=2, version=2))

    def full(*_: object, **__: object) -> bool:
        if method == "end_trial":
            store._trials.release_all()
        raise NoSpace("no space")

    monkeypatch.setattr(store, method, full)
    assert version_of(engine) == 1
    monkeypatch.undo()
    assert version_of(engine) == 2
    assert states(store, "colour") == {1: "good", 2: "good"}


def test_a_crash_in_a_trial_counts(
    tiny_bundle: Path, engine: Engine, store: PromptStore, manifest: Manifest
) -> None:
    """A prompt that kills the process is gone after three starts."""
    put_good(engine, store, manifest, 1)
    put(store, random_blob(manifest, seed=2, version=2))
    digest = store.versions("colour")[1].digest
    for _ in range(3):
        with StoreProcess(store.path) as other:
            assert other.do("begin_trial", "colour", digest, False) == "done"
            other.kill()
    assert version_of(engine) == 1
    assert states(store, "colour") == {1: "good", 2: "bad"}


def test_other_kinds_are_tried_too(
    engine: Engine, store: PromptStore, manifest: Manifest
) -> None:
    for task, kind in (("same", "pair"), ("spans", "token"), ("find", "embedding")):
        put(store, random_blob(manifest, task, kind))
    engine.run("same", TEXT, "play")
    engine.tag("spans", TEXT)
    engine.embed("find", TEXT)
    assert {item.state for item in store.versions()} == {"good"}


def test_tenants_answer_each_others_tasks_as_unknown_ones(
    tiny_bundle: Path, store: PromptStore, manifest: Manifest
) -> None:
    put(store.for_tenant("a"), random_blob(manifest, "own"))
    with Engine(tiny_bundle, store, threads=1, tenant="a") as engine:
        assert version_of(engine, "own") == 1
        unknown = refusal(engine)
        put(store.for_tenant("b"), random_blob(manifest, "secret"))
        with Engine(tiny_bundle, store.path, threads=1, tenant="b") as other:
            assert version_of(other, "secret") == 1
            assert other.tasks() == ["secret"]
        assert refusal(engine) == unknown
        assert engine.tasks() == ["own"]
    with Engine(tiny_bundle, store, threads=1) as engine:
        assert engine.tasks() == []


def refusal(engine: Engine) -> bytes:
    with pytest.raises(UnknownTask) as caught:
        engine.run("secret", TEXT)
    return str(caught.value).encode()


def test_a_folder_knows_no_tenants(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the prompts know no tenants"):
        Engine(tiny_bundle, tmp_path, threads=1, tenant="a")


def test_an_engine_closes_the_store_that_it_opened(
    tiny_bundle: Path, store: PromptStore, manifest: Manifest
) -> None:
    put(store, random_blob(manifest, "own"))
    store.close()
    log = store.path / "index.sqlite-wal"
    with Engine(tiny_bundle, store.path, threads=1) as engine:
        assert version_of(engine, "own") == 1
        assert log.exists()
    assert not log.exists()
