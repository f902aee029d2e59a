"""What a store costs: opening, activating, and requests beside those from a folder.

    python benchmarks/store_costs.py BUNDLE BLOB [--prompts N] [--rounds N]

BLOB is a classifier for BUNDLE. Requests alternate in one process; ratios of medians
are what counts. The store lies in the folder for temporary files: give TMPDIR a real
disk.
"""

import argparse
import copy
import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from timing import alternate, spread

from promptdial.prompts.blob import PromptBlob, encode, make_blob, read_blob, write_blob
from promptdial.prompts.folder import PromptFolder
from promptdial.prompts.store import PromptStore, make_store
from promptdial.prompts.store.edits import Edits
from promptdial.prompts.store.rows import GOOD, STAGED
from promptdial.runtime import Engine
from promptdial.runtime.engine_prompts import EnginePrompts

TEXT = (
    "please remind me to call the garage about the brakes before noon on friday "
    "because the car has to be ready for our trip to the coast on saturday morning"
)
CHANGED = 50
"""Tasks whose activation is timed."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("blob", type=Path)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=2_000)
    args = parser.parse_args()
    blob = read_blob(args.blob)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "store"
        make_store(folder)
        with PromptStore(folder) as store:
            fill(store, blob, args.prompts)
        opening(folder, args.prompts)
        with PromptStore(folder) as store:
            changing(store)
            plain = Path(name) / "folder"
            plain.mkdir()
            write_blob(plain / f"{blob.meta.task}.safetensors", blob)
            looking_up(store, PromptFolder(plain), blob.meta.task)
            sharing(store, blob.meta.task, blob.meta.version)
            requests(args.bundle, store, plain, blob.meta.task, args.rounds)


def fill(store: PromptStore, blob: PromptBlob, count: int) -> None:
    """Good versions of many small tasks, and of the blob's own.

    In one transaction and without a sync for each: what is timed comes later.
    """
    small = make_blob(
        replace(blob.meta, labels=("a", "b"), golden=(), pooling="mean_l2"),
        head_weight=np.eye(2, 8, dtype=np.float32),
    )
    with store._index.writing() as connection:
        edits = Edits(connection, store.tenant)

        def add(item: PromptBlob, task: str, version: int, state: str) -> None:
            meta = replace(item.meta, task=task, version=version)
            data = encode(meta, item.tensors)
            name = hashlib.sha256(data).hexdigest()
            (store.path / "blobs" / "sha256" / name).write_bytes(data)
            edits.insert(task, version, f"sha256:{name}", len(data), state, "", "")

        for number in range(count):
            add(small, f"task{number}", 1, GOOD)
            edits.point(f"task{number}", 1, None)
        for number in range(CHANGED):
            add(small, f"task{number}", 2, STAGED)
        add(blob, blob.meta.task, blob.meta.version, GOOD)
        add(blob, blob.meta.task, blob.meta.version + 1, GOOD)
        edits.point(blob.meta.task, blob.meta.version, None)


def opening(folder: Path, count: int) -> None:
    """From the folder to the first blob."""

    def opened() -> None:
        with PromptStore(folder) as store:
            store.get("task0")

    times = spread([_seconds(opened) for _ in range(50)])
    print(f"open a store of {count} prompts, and get one: {times} (at most 100)")


def changing(store: PromptStore) -> None:
    """Activations, each of another task."""
    times = [
        _seconds(partial(store.activate, f"task{number}", 2))
        for number in range(CHANGED)
    ]
    print(f"activate: {spread(times)} (at most 10)")
    tasks = spread([_seconds(store.list) for _ in range(20)])
    print(f"list: {tasks}")


def looking_up(store: PromptStore, folder: PromptFolder, task: str) -> None:
    """The source's own part of a request."""
    time.sleep(0.1)  # a folder keeps a file that is no longer new
    calls: dict[str, Callable[[], object]] = {
        "store": lambda: [store.serving(task) for _ in range(100)],
        "folder": lambda: [folder.get(task) for _ in range(100)],
    }
    found = alternate(calls, 300)
    for name, times in found.items():
        print(f"look up in a {name}: {10 * times.p50:.2f} us")


def sharing(store: PromptStore, task: str, version: int) -> None:
    """What a second version adds to a request's look-up, and what a write of counts."""
    store.share(task, version + 1, 50)
    calls: dict[str, Callable[[], object]] = {
        "look up of two, by chance": lambda: [store.serving(task) for _ in range(100)],
        "look up of two, by unit": lambda: [
            store.serving(task, "user 17") for _ in range(100)
        ],
    }
    for name, times in alternate(calls, 300).items():
        print(f"{name}: {10 * times.p50:.2f} us")
    written = spread(
        [_seconds(partial(_flush, store, task, version)) for _ in range(20)]
    )
    print(f"write counts, in a thread of its own: {written}")
    store.share(task, version + 1, 0)


def _flush(store: PromptStore, task: str, version: int) -> None:
    store.count(task, version, 0.9, 30, 8.0, False)
    store._counters.flush()


def counting(engine: Engine, task: str) -> None:
    """All that a request does besides, to be counted."""
    request = engine._request(engine._encoder_model("counting"), task, TEXT)
    answer = engine.run(task, TEXT)

    def count() -> None:
        for _ in range(100):
            engine._prompts.count([request], [answer], 8.0)

    found = alternate({"count": count}, 300)
    print(f"count an answer: {10 * found['count'].p50:.2f} us")


def requests(
    bundle: Path, store: PromptStore, folder: Path, task: str, rounds: int
) -> None:
    """Requests from a store and from a folder, in turn, and the folder's twice."""
    with Engine(bundle, store, threads=1) as one:
        # The same session: weights of a second one would be cold at every turn.
        two = copy.copy(one)
        two._prompts = EnginePrompts(
            PromptFolder(folder), one._prompts.cache, one._prompts._graph_digest
        )
        counting(one, task)
        found = alternate(
            {
                "from a folder": lambda: two.run(task, TEXT),
                "from a store": lambda: one.run(task, TEXT),
                "from a folder again": lambda: two.run(task, TEXT),
            },
            rounds,
        )
    for name, times in found.items():
        ratio = times.p50 / found["from a folder"].p50
        print(f"request {name}: {times}, ratio {ratio:.4f}")


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
