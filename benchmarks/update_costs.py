"""What updates cost: bytes on the wire and seconds, by case, on loopback.

python benchmarks/update_costs.py [--targets 10000] [--rounds 5]

The server is Python's own in a process of its own. Bytes are those that the device
received, headers among them; what it sends is some 130 bytes a request.
"""

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from tuf.api.metadata import TargetFile

from promptdial.prompts.blob import PromptMeta, make_blob, write_blob
from promptdial.prompts.store import set_up_updates
from promptdial.prompts.store.receiving import StoreReceiver
from promptdial.prompts.updates.device.fetcher import Source
from promptdial.prompts.updates.device.update import update
from promptdial.prompts.updates.names import PromptName, short
from promptdial.prompts.updates.publishing.layout import put, rebalance
from promptdial.prompts.updates.publishing.publish import publish_prompts
from promptdial.prompts.updates.publishing.repository import (
    Repository,
    changing,
    finish,
    open_repository,
)
from promptdial.prompts.updates.publishing.roles import (
    init_repository,
    refresh,
    rotate,
)
from promptdial.prompts.updates.receiver import BaseState, Following

BASE = BaseState("ckpt1:" + "a" * 64, "tok1:" + "b" * 64)
META = PromptMeta(
    task="large",
    version=1,
    kind="classification",
    attention="one_way",
    base_model="none",
    base_fingerprint=BASE.fingerprint,
    tokenizer_fingerprint=BASE.tokenizer_fingerprint,
    labels=("red", "green", "blue"),
    pooling="mean_l2",
)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--targets", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print("| repository | case | bytes received | s, median (least to most) |")
    print("|---|---|---|---|")
    for count in (12, args.targets):
        folder = Path(tempfile.mkdtemp())
        try:
            measure(folder, count, args.rounds)
        finally:
            shutil.rmtree(folder)


def measure(folder: Path, count: int, rounds: int) -> None:
    """All cases of a repository with so many targets."""
    init_repository(folder / "repository")
    repository = open_repository(folder / "repository")
    fill(repository, count - 1)
    version = 1
    publish_prompts(repository, [blob(folder, version)])
    found: dict[str, list[tuple[float, int]]] = {}
    with serving(repository.public) as url:
        for number in range(rounds):
            device = set_up(repository, folder / f"device{number}")

            def check(case: str, device: StoreReceiver = device) -> None:
                started = time.perf_counter()
                received = update(device, Source(url)).received
                seconds = time.perf_counter() - started
                found.setdefault(case, []).append((seconds, received))

            check("first contact, one 40 KB prompt")
            check("nothing new")
            version += 1
            publish_prompts(repository, [blob(folder, version)])
            check("one 40 KB prompt new")
            fill(repository, 1, start=100_000 + number)
            check("others' prompts new")
            rotate(repository, "root")
            check("a new root")
    for case, values in found.items():
        show(count, case, [seconds for seconds, _ in values], values[0][1])
    changes: list[tuple[str, Callable[[int], object]]] = [
        ("publish a prompt", lambda n: publish_prompts(repository, [blob(folder, n)])),
        ("refresh", lambda n: refresh(repository)),
    ]
    for case, change in changes:
        seconds = []
        for number in range(rounds):
            started = time.perf_counter()
            change(version + 1 + number)
            seconds.append(time.perf_counter() - started)
        show(count, case, seconds, None)


def show(count: int, case: str, seconds: list[float], size: int | None) -> None:
    """Print a line."""
    shown = "" if size is None else f"{size:,}"
    low, mid, high = min(seconds), statistics.median(seconds), max(seconds)
    print(f"| {count:,} | {case} | {shown} | {mid:.3f} ({low:.3f} to {high:.3f}) |")


def fill(repository: Repository, count: int, start: int = 0) -> None:
    """Publish targets that nobody downloads."""
    with changing(repository) as draft:
        for number in range(start, start + count):
            name = PromptName("", f"task{number:06}", short(BASE.fingerprint))
            custom = {"tokenizer": "b" * 8, "version": 1}
            hashes = {"sha256": f"{number:064x}"}
            target = TargetFile(40_000, hashes, name.target, {"custom": custom})
            put(draft, name, target)
        rebalance(draft, "")
        finish(repository, draft, [])


def blob(folder: Path, version: int) -> Path:
    """A blob of 40 KB."""
    path = folder / "large.safetensors"
    rng = np.random.default_rng(version)
    rows = rng.standard_normal((98, 384)).astype(np.float32)
    head = rng.standard_normal((3, 384)).astype(np.float32)
    meta = replace(META, version=version)
    write_blob(path, make_blob(meta, embeddings=rows, head_weight=head))
    return path


def set_up(repository: Repository, folder: Path) -> StoreReceiver:
    """A device that follows the one prompt."""
    root = (repository.metadata / "1.root.json").read_bytes()
    following = Following("d", tasks=frozenset({"large"}))
    set_up_updates(folder, root, following, BASE)
    return StoreReceiver(folder)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Python's file server in a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    server = subprocess.Popen(
        [*command, "--directory", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(url).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
