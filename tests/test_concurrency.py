"""Eight threads on one Engine while its prompts are replaced: never a mixture.

What each version alone gives for each text is taken from an engine that no other thread
uses. An answer must be bit for bit that of one version: of the one it names, and of one
that was current at some time of the request.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np
import pytest
from blobs import random_blob

from promptdial.prompts.blob import PromptBlob, encode, write_blob
from promptdial.prompts.store import PromptStore, make_store
from promptdial.runtime import Engine
from promptdial.runtime.answers import Classification, Spans
from promptdial.runtime.errors import EngineForked
from promptdial.runtime.manifest import Manifest, from_json
from promptdial.runtime.reading import Answer

THREADS = 8
VERSIONS = 24
MOVING = {
    "colour": "classification",
    "same": "pair",
    "spans": "token",
    "find": "embedding",
}
FIXED = {"five": 5, "other_five": 5, "twenty": 20}
TEXTS = (
    "the film was great",
    "play some music",
    "wake me at seven , not at one",
    "good film , great music",
)
PAIR = "who wrote this book"
Item = tuple[str | None, str, str | None]


@dataclass
class Known:
    """What every version of every task answers alone, and which version is current.

    Attributes:
        blobs: By (task, version).
        alone: Answers by (task, version, text).
        published: The version that a request beginning now must see at least.
        begun: The version that a request ending now may have seen.
    """

    blobs: dict[tuple[str | None, int], PromptBlob]
    alone: dict[tuple[str | None, int, str], Answer]
    published: dict[str | None, int] = field(default_factory=dict)
    begun: dict[str | None, int] = field(default_factory=dict)

    def start(self) -> None:
        """Every task is at version 1."""
        self.published = {task: 1 for task, _ in self.blobs} | {None: 1}
        self.begun = dict(self.published)


@dataclass
class Watch:
    """What the threads of one test saw."""

    wrong: list[str] = field(default_factory=list)
    seen: set[tuple[str | None, int]] = field(default_factory=set)
    answers: int = 0
    stop: bool = False


def item_of(task: str | None, text: str) -> Item:
    return task, text, PAIR if task == "same" else None


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return from_json((tiny_bundle / "manifest.json").read_text())


@pytest.fixture(scope="module")
def known_once(tiny_bundle: Path, manifest: Manifest) -> Known:
    blobs: dict[tuple[str | None, int], PromptBlob] = {}
    for place, (name, kind) in enumerate(MOVING.items()):
        for version in range(1, VERSIONS + 1):
            # Equal lengths mostly, so that versions could share a forward pass.
            length = 4 if version % 3 else 1 + version % 7
            seed = 1000 * place + 10 * version
            deep = version % 5 == 0
            blob = random_blob(manifest, name, kind, length, deep, seed, version)
            blobs[name, version] = blob
    for name, length in FIXED.items():
        blob = random_blob(manifest, name, length=length, seed=7000 + len(blobs))
        blobs[name, 1] = blob
    alone: dict[tuple[str | None, int, str], Answer] = {}
    with Engine(tiny_bundle, threads=1) as engine:
        for (task, version), blob in blobs.items():
            engine.load(blob)
            for text in TEXTS:
                alone[task, version, text] = engine.run(*item_of(task, text))
        for text in TEXTS:
            alone[None, 1, text] = engine.run(None, text)
    return Known(blobs, alone)


@pytest.fixture
def known(known_once: Known) -> Known:
    known_once.start()
    return known_once


def equal(one: Answer, two: Answer) -> bool:
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        return one.tobytes() == two.tobytes()
    return not isinstance(one, np.ndarray) and one == two


def check(
    known: Known, watch: Watch, item: Item, answer: Answer, least: int, most: int
) -> None:
    """Note what is wrong with an answer, and which version gave it."""
    task, text, _ = item
    if isinstance(answer, Classification | Spans):
        versions: Sequence[int] = [answer.prompt_version]
    else:
        versions = range(least, most + 1)
    for version in versions:
        if least <= version <= most and equal(answer, known.alone[task, version, text]):
            watch.seen.add((task, version))
            break
    else:
        watch.wrong.append(f"{item} gave {answer}, versions {least} to {most}")
    watch.answers += 1


def work(engine: Engine, known: Known, watch: Watch, seed: int, batch: int) -> None:
    rng = Random(seed)
    tasks: list[str | None] = [*MOVING, *MOVING, *FIXED, None]
    try:
        while not watch.stop:
            items = [
                item_of(rng.choice(tasks), rng.choice(TEXTS)) for _ in range(batch)
            ]
            least = dict(known.published)
            if batch == 1:
                answers = [engine.run(*items[0])]
            else:
                answers = engine.run_batch(items)
            most = dict(known.begun)
            for item, answer in zip(items, answers, strict=True):
                check(known, watch, item, answer, least[item[0]], most[item[0]])
    except Exception as error:
        watch.wrong.append(repr(error))


def replace_all(
    engine: Engine, known: Known, watch: Watch, publish: Callable[[PromptBlob], None]
) -> None:
    """Publish version after version, each once the one before has answered."""
    for version in range(2, VERSIONS + 1):
        for task in MOVING:
            known.begun[task] = version
            publish(known.blobs[task, version])
            known.published[task] = version
        wanted = {(task, version) for task in MOVING}
        deadline = time.monotonic() + 60
        while not wanted <= watch.seen and not watch.wrong:
            assert time.monotonic() < deadline, wanted - watch.seen
            time.sleep(0.001)


def put_in_use(store: PromptStore, blob: PromptBlob) -> None:
    """Until it has passed its trial, in the request of one of the threads."""
    store.install(blob)
    store.activate(blob.meta.task, blob.meta.version)
    deadline = time.monotonic() + 60
    while store.get(blob.meta.task).digest != blob.digest:
        assert time.monotonic() < deadline, store.versions(blob.meta.task)
        time.sleep(0.001)


def store_of(known: Known, folder: Path) -> PromptStore:
    """The first version of every task."""
    make_store(folder)
    store = PromptStore(folder)
    for (task, version), blob in known.blobs.items():
        if version == 1:
            store.install(blob)
            store.activate(str(task))
    return store


@pytest.fixture
def folder(known: Known, tmp_path: Path) -> Iterator[Path]:
    for (task, version), blob in known.blobs.items():
        if version == 1:
            write_blob(tmp_path / f"{task}.safetensors", blob)
    yield tmp_path


def test_no_two_versions_answer_alike(known: Known) -> None:
    """Else the tests below could not tell a mixture."""
    for task in MOVING:
        for text in TEXTS:
            answers = [known.alone[task, v, text] for v in range(1, VERSIONS + 1)]
            texts = {
                a.tobytes() if isinstance(a, np.ndarray) else repr(a) for a in answers
            }
            # Tags without a span hold no number: those may be equal.
            assert len(texts) == VERSIONS or task == "spans"


@pytest.mark.parametrize("cache_bytes", [32_000_000, 1], ids=["kept", "evicted"])
@pytest.mark.parametrize("batch", [1, 12], ids=["run", "run_batch"])
@pytest.mark.parametrize("way", ["file", "load", "store"])
def test_replaced_prompts_are_never_mixed(
    tiny_bundle: Path,
    known: Known,
    folder: Path,
    way: str,
    batch: int,
    cache_bytes: int,
) -> None:
    watch = Watch()
    source: Path | PromptStore = folder
    if way == "store":
        source = store_of(known, folder / "store")
    with Engine(
        tiny_bundle, source, threads=1, prompt_cache_bytes=cache_bytes
    ) as engine:

        def publish(blob: PromptBlob) -> None:
            if isinstance(source, PromptStore):
                put_in_use(source, blob)
            elif way == "file":
                write_blob(folder / f"{blob.meta.task}.safetensors", blob)
            else:
                engine.load(encode(blob.meta, blob.tensors))

        threads = [
            threading.Thread(target=work, args=(engine, known, watch, seed, batch))
            for seed in range(THREADS)
        ]
        for thread in threads:
            thread.start()
        try:
            replace_all(engine, known, watch, publish)
        finally:
            watch.stop = True
            for thread in threads:
                thread.join()
        if cache_bytes == 1:
            assert len(engine._prompts.cache) == 1
    assert watch.wrong == []
    assert watch.seen >= {(task, v) for task in MOVING for v in range(2, VERSIONS + 1)}
    assert watch.answers > THREADS * VERSIONS


def test_a_prompt_taken_away_is_unknown_and_comes_back(
    tiny_bundle: Path, known: Known, folder: Path
) -> None:
    """Between looking at the file and opening it there is time to delete it."""
    path = folder / "colour.safetensors"
    codes: set[str] = set()
    with Engine(tiny_bundle, folder, threads=1) as engine:
        stop = threading.Event()

        def ask() -> None:
            while not stop.is_set():
                try:
                    engine.run("colour", TEXTS[0])
                    codes.add("DONE")
                except Exception as error:
                    codes.add(getattr(error, "code", repr(error)))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(60):
            path.unlink()
            time.sleep(0.001)
            write_blob(path, known.blobs["colour", 1])
            time.sleep(0.001)
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == {"DONE", "UNKNOWN_TASK"}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_is_told_and_may_close(tiny_bundle: Path, folder: Path) -> None:
    """Even where another thread held a lock at the fork, which nobody opens again."""
    engine = Engine(tiny_bundle, folder, threads=1)
    with engine._prompts._lock, engine._prompts.cache._lock:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with engine:
                    engine.run_batch([("five", TEXTS[0])])
            except EngineForked:
                code = 42
            finally:
                os._exit(code)
    deadline = time.monotonic() + 20
    done, status = os.waitpid(child, os.WNOHANG)
    while not done and time.monotonic() < deadline:
        time.sleep(0.01)
        done, status = os.waitpid(child, os.WNOHANG)
    if not done:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert done, "the child hangs"
    assert os.waitstatus_to_exitcode(status) == 42
    assert engine.run("five", TEXTS[0]) is not None
    engine.close()
