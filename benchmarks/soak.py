"""Soak: requests and prompt loads on one Engine, for leaks, drift and stale answers.

    python benchmarks/soak.py BUNDLE [--requests N] [--loads M] [--threads T] [--json]

A load is a new version of a task's prompt, read, validated and made ready by a request:
in turn a file replaced in the folder, and bytes given to `Engine.load`. Every answer's
version must lie between the one published before the request and the newest begun
before its end. One turn in eight is a `run_batch` of eight requests.

Memory is sampled as the process' proportional set (Linux); the slope is that of a line
through the samples of the second half (least squares), since caches and allocators fill
up first. Open files are counted before the threads start and after they have ended.
"""

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts import PromptBlob, PromptMeta, encode, make_blob, write_blob
from promptdial.runtime import Classification, Engine, Spans
from promptdial.runtime.manifest import Manifest

KINDS = {
    "classification": ("mean_l2", ("red", "green", "blue")),
    "pair": ("segments_l2", ("other", "same")),
    "token": ("first_token", ("O", "B-x", "I-x")),
    "embedding": ("mean_l2", ()),
}
"""Kind to its pooling and labels."""

TASKS = [f"{way}_{kind}" for way in ("file", "bytes") for kind in KINDS]
WORDS = "the a film was good bad great dull wake me at seven play some music".split()
BATCH = 8
LONGEST_PROMPT = 20
REQUESTS = 1_000_000
LOADS = 10_000
THREADS = 4
SAMPLES = 200
CACHE_BYTES = 256 * 1024
"""So small that prompts are evicted all the time, on the smallest of models too."""


@dataclass(frozen=True)
class Sample:
    """Memory at one moment, in KB: proportional set, no file's part of it, and RSS."""

    requests: int
    pss: int
    anonymous: int
    rss: int
    files: int


@dataclass(frozen=True)
class Report:
    """What a soak found.

    Attributes:
        requests: Answered.
        loads: Prompt versions that were put into use.
        seconds: Of all of it.
        requests_per_second: Their quotient.
        pss_kb: Proportional set at the first sample, in the middle, and at the last.
        slope_pss: Of the second half, KB for 100,000 requests.
        slope_anonymous: The same of memory that no file backs.
        slope_rss: The same of the resident set.
        files: Open before the threads started, at most, and after they ended.
        ms_p50: Median of one request in the second tenth, and in the last.
        stale: Answers of a version that was not current at any time of the request.
        cached: Prompts in the cache at the end.
    """

    requests: int
    loads: int
    seconds: float
    requests_per_second: float
    pss_kb: tuple[int, int, int]
    slope_pss: float
    slope_anonymous: float
    slope_rss: float
    files: tuple[int, int, int]
    ms_p50: tuple[float, float]
    stale: int
    cached: int


class Soak:
    """One run: workers take numbers of requests from one counter."""

    def __init__(
        self, engine: Engine, folder: Path, requests: int, loads: int, threads: int
    ) -> None:
        self.engine = engine
        self.samples: list[Sample] = []
        self.stale = 0
        self.loads = 0
        self._folder = folder
        self._requests = requests
        self._load_every = max(1, requests // loads)
        self._sample_every = max(BATCH, requests // SAMPLES)
        self._threads = threads
        self._next = 0
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        # Versions of every task: `begun` runs ahead of `published` during a load.
        self._begun: dict[str, int] = {}
        self._published: dict[str, int] = {}
        self._failed: list[BaseException] = []
        # Filled, so that its pages are there from the start.
        self.seconds: NDArray[np.float32] = np.full(requests, np.nan, np.float32)
        rng = random.Random(0)
        self._texts = [
            " ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(200)
        ]

    def prepare(self) -> None:
        """Load every task once."""
        for number in range(len(TASKS)):
            self._load(number)
        self.loads = 0

    def run(self) -> None:
        """Do all requests and loads.

        Raises:
            BaseException: The first that a worker met.
        """
        workers = [
            threading.Thread(target=self._work, args=(seed,))
            for seed in range(self._threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if self._failed:
            raise self._failed[0]

    def _work(self, seed: int) -> None:
        rng = random.Random(seed)
        try:
            while not self._failed:
                size = BATCH if rng.random() < 1 / BATCH else 1
                with self._lock:
                    first = self._next
                    last = self._next = min(first + size, self._requests)
                if first == last:
                    return
                self._turn(rng, first, last)
        except BaseException as error:  # raised again by `run`
            self._failed.append(error)

    def _turn(self, rng: random.Random, first: int, last: int) -> None:
        if first // self._load_every != last // self._load_every:
            self._load(last // self._load_every)
        items = [self._item(rng) for _ in range(first, last)]
        before = dict(self._published)
        started = time.perf_counter()
        if len(items) == 1:
            answers = [self.engine.run(*items[0])]
        else:
            answers = self.engine.run_batch(items)
        self.seconds[first:last] = (time.perf_counter() - started) / len(items)
        for (task, _, _), answer in zip(items, answers, strict=True):
            if task is not None and isinstance(answer, Classification | Spans):
                newest = self._begun[task]
                if not before[task] <= answer.prompt_version <= newest:
                    self.stale += 1
        if first // self._sample_every != last // self._sample_every:
            self.samples.append(sample(last))

    def _item(self, rng: random.Random) -> tuple[str | None, str, str | None]:
        task = rng.choice([*TASKS, None])
        pair = task is not None and task.endswith("pair")
        return task, rng.choice(self._texts), rng.choice(self._texts) if pair else None

    def _load(self, number: int) -> None:
        """Put a new version of one task into use, and ask it once."""
        task = TASKS[number % len(TASKS)]
        pair = "the music" if task.endswith("pair") else None
        with self._loading:
            version = self._begun.get(task, 0) + 1
            blob = random_blob(self.engine.manifest, task, version)
            self._begun[task] = version
            if task.startswith("file"):
                write_blob(self._folder / f"{task}.safetensors", blob)
            else:
                self.engine.load(encode(blob.meta, blob.tensors))
            self._published[task] = version
            self.engine.run(task, "play some music", pair)
            self.loads += 1


def random_blob(manifest: Manifest, task: str, version: int) -> PromptBlob:
    """A blob that fits a bundle; every version has other numbers, and other lengths."""
    rng, dims, base = np.random.default_rng(version), manifest.dims, manifest.base
    kind = task.split("_")[1]
    pooling, labels = KINDS[kind]
    meta = PromptMeta(
        task=task,
        version=version,
        kind=kind,
        attention=manifest.attention,
        base_model=base.model,
        base_fingerprint=base.fingerprint,
        tokenizer_fingerprint=base.tokenizer_fingerprint,
        labels=labels,
        pooling=pooling,
    )
    length = 1 + version % LONGEST_PROMPT
    rows = 0.3 * rng.standard_normal((length, dims.embedding), np.float32)
    head = rng.standard_normal((len(labels), dims.hidden), np.float32)
    return make_blob(meta, embeddings=rows, head_weight=head if labels else None)


def sample(requests: int) -> Sample:
    """Memory and open files now."""
    found: dict[str, int] = {}
    for line in Path("/proc/self/smaps_rollup").read_text("utf-8").splitlines()[1:]:
        name, value, *_ = line.split()
        found[name] = int(value)
    return Sample(
        requests, found["Pss:"], found["Pss_Anon:"], found["Rss:"], open_files()
    )


def open_files() -> int:
    """File descriptors in use."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def slope(samples: list[Sample], value: Callable[[Sample], int]) -> float:
    """KB for 100,000 requests, over the second half of the samples."""
    half = samples[len(samples) // 2 :]
    at = np.array([item.requests for item in half], np.float64)
    line = np.polyfit(at / 100_000, [value(item) for item in half], 1)
    return float(line[0])


def soak(bundle: Path, requests: int, loads: int, threads: int) -> Report:
    """Run one soak in this process."""
    with (
        tempfile.TemporaryDirectory(prefix="promptdial-soak-") as name,
        Engine(
            bundle, name, threads=1, prompt_cache_bytes=CACHE_BYTES, profile="battery"
        ) as engine,
    ):
        work = Soak(engine, Path(name), requests, loads, threads)
        work.prepare()
        before, started = open_files(), time.perf_counter()
        work.run()
        seconds, after = time.perf_counter() - started, open_files()
        cached = len(engine._prompts.cache)
    samples = sorted(work.samples, key=lambda item: item.requests)
    tenth = requests // 10
    early, late = work.seconds[tenth : 2 * tenth], work.seconds[-tenth:]
    return Report(
        requests=requests,
        loads=work.loads,
        seconds=round(seconds, 1),
        requests_per_second=round(requests / seconds, 1),
        pss_kb=(samples[0].pss, samples[len(samples) // 2].pss, samples[-1].pss),
        slope_pss=round(slope(samples, lambda item: item.pss), 1),
        slope_anonymous=round(slope(samples, lambda item: item.anonymous), 1),
        slope_rss=round(slope(samples, lambda item: item.rss), 1),
        files=(before, max(item.files for item in samples), after),
        ms_p50=(_median_ms(early), _median_ms(late)),
        stale=work.stale,
        cached=cached,
    )


def _median_ms(seconds: NDArray[np.float32]) -> float:
    return round(1e3 * float(np.median(seconds)), 4)


def main() -> None:
    """Soak and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--loads", type=int, default=LOADS)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    args = parser.parse_args()
    if args.requests < 10 * BATCH or not 0 < args.loads <= args.requests:
        sys.exit(f"at least {10 * BATCH} requests, and 1 to as many loads")
    report = asdict(soak(args.bundle, args.requests, args.loads, args.threads))
    if args.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
