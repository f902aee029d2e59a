"""From a published prompt to the first answer on it, while threads ask for all tasks.

python benchmarks/update_under_load.py BUNDLE PROMPTS [--rounds 30] [--threads 8]

PROMPTS is a folder of blobs for the bundle, such as prompts/shipped for MiniLM; the
first twelve classifiers are served. Each round publishes a version of one of them, runs
an update over loopback, in a process of its own as on a device, and waits for the first
answer that names it. Every answer is compared with what its version answers alone.
"""

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from timing import spread
from update_costs import serving

from promptdial.prompts.blob import (
    PromptBlob,
    decode,
    encode,
    read_blob,
    write_blob,
)
from promptdial.prompts.store import BaseState, Following, set_up_updates
from promptdial.prompts.store.receiving import StoreReceiver
from promptdial.prompts.updates.device.fetcher import Source
from promptdial.prompts.updates.device.update import update
from promptdial.prompts.updates.publishing.publish import publish_prompts
from promptdial.prompts.updates.publishing.repository import (
    Repository,
    open_repository,
)
from promptdial.prompts.updates.publishing.roles import init_repository
from promptdial.runtime import Classification, Engine

TASKS = 12
TEXT = "please move two hundred dollars to my savings before noon"


@dataclass
class Load:
    """Threads that ask for every task in turn.

    Attributes:
        engine: Who answers.
        tasks: What is asked for.
        answers: (task, version, scores) of every answer.
        failures: Requests that were not answered.
        first: When each (task, version) was first named by an answer.
    """

    engine: Engine
    tasks: list[str]
    answers: list[tuple[str, int, tuple[float, ...]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    first: dict[tuple[str, int], float] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, number: int) -> None:
        """Ask until it is over."""
        while not self.stop.is_set():
            task = self.tasks[number % len(self.tasks)]
            number += 1
            try:
                version, scores = ask(self.engine, task)
            except Exception as error:
                self.failures.append(str(error))
                continue
            self.first.setdefault((task, version), time.perf_counter())
            self.answers.append((task, version, scores))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=8)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        measure(folder, args.bundle, classifiers(args.prompts), args)
    finally:
        shutil.rmtree(folder)


def measure(
    folder: Path, bundle: Path, blobs: list[PromptBlob], args: argparse.Namespace
) -> None:
    """All rounds, on one store that one engine serves from."""
    init_repository(folder / "repository")
    repository = open_repository(folder / "repository")
    for blob in blobs:
        publish(repository, folder, blob)
    meta = blobs[0].meta
    base = BaseState(meta.base_fingerprint, meta.tokenizer_fingerprint)
    root = (repository.metadata / "1.root.json").read_bytes()
    set_up_updates(folder / "device", root, Following("d"), base)
    alone = {key(blob): alone_scores(bundle, blob) for blob in blobs}
    times: dict[str, list[float]] = {"publish": [], "update": [], "first answer": []}
    with (
        serving(repository.public) as url,
        updating(folder / "device", url) as run_update,
        Engine(bundle, prompts=folder / "device", threads=1) as engine,
    ):
        run_update()
        load = Load(engine, [blob.meta.task for blob in blobs])
        threads = [
            threading.Thread(target=load.ask, args=(number,))
            for number in range(args.threads)
        ]
        for thread in threads:
            thread.start()
        started = time.perf_counter()
        current = blobs[0]
        for number in range(args.rounds):
            current = next_version(current, number)
            alone[key(current)] = alone_scores(bundle, current)
            begun = time.perf_counter()
            publish(repository, folder, current)
            published = time.perf_counter()
            run_update()
            updated = time.perf_counter()
            while key(current) not in load.first:
                time.sleep(0.001)
            times["publish"].append(published - begun)
            times["update"].append(updated - published)
            times["first answer"].append(load.first[key(current)] - published)
        load.stop.set()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
    mixed = sum(alone[task, version] != it for task, version, it in load.answers)
    print(
        f"{args.threads} threads, {len(load.answers)} answers in {seconds:.1f} s, "
        f"{args.rounds} updates: {len(load.failures)} requests failed, {mixed} answers "
        "unlike their version's own"
    )
    for name, values in times.items():
        behind = "" if name == "publish" else " after the publication"
        print(f"{name}{behind}: {spread(values)}")


@contextmanager
def updating(store: Path, url: str) -> Iterator[Callable[[], None]]:
    """A process that updates a store whenever the function is called."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=updater, args=(theirs, store, url), daemon=True)
    process.start()

    def run() -> None:
        ours.send("update")
        ours.recv()

    try:
        yield run
    finally:
        process.terminate()
        process.join()


def updater(connection: Connection, store: Path, url: str) -> None:
    """What that process does, for ever."""
    with StoreReceiver(store) as receiver:
        while connection.recv():
            connection.send(len(update(receiver, Source(url)).prompts))


def classifiers(folder: Path) -> list[PromptBlob]:
    """The first classifiers of a folder, as version 1."""
    found = [read_blob(path) for path in sorted(folder.glob("*.safetensors"))]
    chosen = [blob for blob in found if blob.meta.kind == "classification"][:TASKS]
    return [replaced(blob, 1, blob.tensors) for blob in chosen]


def next_version(blob: PromptBlob, number: int) -> PromptBlob:
    """The same prompt with a head that is moved a little: another answer."""
    rng = np.random.default_rng(number)
    tensors = dict(blob.tensors)
    bias = tensors.get("head.bias")
    size = len(blob.meta.labels)
    old = np.zeros(size, np.float16) if bias is None else bias
    tensors["head.bias"] = (old + rng.normal(0, 0.01, size)).astype(np.float16)
    return replaced(blob, blob.meta.version + 1, tensors)


def key(blob: PromptBlob) -> tuple[str, int]:
    """What answers name."""
    return blob.meta.task, blob.meta.version


def ask(engine: Engine, task: str) -> tuple[int, tuple[float, ...]]:
    """Version and scores of an answer."""
    found = engine.classify(task, TEXT)
    assert isinstance(found, Classification)
    return found.prompt_version, tuple(found.scores.values())


def alone_scores(bundle: Path, blob: PromptBlob) -> tuple[float, ...]:
    """What a prompt answers when nothing else is there."""
    with Engine(bundle, threads=1) as engine:
        engine.load(blob)
        return ask(engine, blob.meta.task)[1]


def replaced(blob: PromptBlob, version: int, tensors: Mapping[str, Any]) -> PromptBlob:
    """The blob under another version, with these tensors."""
    return decode(encode(replace(blob.meta, version=version), tensors))


def publish(repository: Repository, folder: Path, blob: PromptBlob) -> None:
    """As `repo publish` does with one file."""
    path = folder / f"{blob.meta.task}.safetensors"
    write_blob(path, blob)
    publish_prompts(repository, [path])


if __name__ == "__main__":
    main()
