"""What a prompt, a switch, a file and our own code cost, on the shipped prompts.

    python benchmarks/engine_costs.py BUNDLE PROMPTS [--rounds N]

Every comparison alternates in one process; ratios of medians are what counts.
"""

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from timing import Spread, alternate, spread

from promptdial.prompts.blob import PromptBlob, make_blob, read_blob
from promptdial.prompts.folder import PromptFolder
from promptdial.runtime import Engine

TEXT = (
    "please remind me to call the garage about the brakes before noon on friday "
    "because the car has to be ready for our trip to the coast on saturday morning"
)
THREADS = 1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--rounds", type=int, default=400)
    args = parser.parse_args()
    with Engine(args.bundle, args.prompts, threads=THREADS) as engine:
        tasks = [task for task in engine.tasks() if _plain(args.prompts, task)]
        length = len(engine._encoder_model("benchmark").encoder.encode(TEXT))
        print(f"{length} text tokens, {THREADS} thread")
        prompt_cost(engine, tasks[0], args.rounds)
        own_cost(engine, tasks[0], args.rounds)
        switching(engine, tasks[:12], args.rounds)
        loading(engine, args.prompts, args.rounds)


def _plain(folder: Path, task: str) -> bool:
    """Whether a task answers one text with a label."""
    return read_blob(folder / f"{task}.safetensors").meta.kind == "classification"


def bare_of(blob: PromptBlob) -> PromptBlob:
    """The same class vectors without virtual tokens."""
    meta = blob.meta.__class__(**{**blob.meta.__dict__, "task": "bare"})
    return make_blob(meta, head_weight=blob.head_weight, head_bias=blob.head_bias)


def prompt_cost(engine: Engine, task: str, rounds: int) -> None:
    """A request with a prompt against the same without one."""
    source = engine._prompts.source
    assert source is not None
    engine.load(bare_of(source.get(task)))
    found = alternate(
        {
            "without prompt": lambda: engine.run("bare", TEXT),
            "with prompt": lambda: engine.run(task, TEXT),
        },
        rounds,
    )
    ratio(found, "with prompt", "without prompt", 1.10)


def own_cost(engine: Engine, task: str, rounds: int) -> None:
    """End to end against the session run alone, and against PyTorch in float32."""
    import torch

    from promptdial.prompts.training.base import open_base
    from promptdial.prompts.training.batches import collate, encode_rows
    from promptdial.prompts.training.reference import blob_state
    from promptdial.runtime.rows import Row

    torch.set_num_threads(THREADS)
    source = engine._prompts.source
    assert source is not None
    blob = source.get(task)
    base = open_base(engine.manifest.base.model, torch.device("cpu"))
    state = blob_state(base, blob)
    batch = collate(
        [encode_rows([Row(TEXT)], base.encoder, (), {})[0].text], base.device
    )

    def reference() -> None:
        with torch.no_grad():
            base.hidden(batch, state)

    def whole() -> object:
        return engine.run(task, TEXT)

    # The session run is timed inside the request itself: between two separate loops
    # the machine's drift is larger than what is measured.
    inside: list[float] = []
    total: list[float] = []
    session = engine._encoder_model("benchmark").session
    bare = session.hidden

    def timed(*arguments):  # type: ignore[no-untyped-def]
        started = time.perf_counter()
        hidden = bare(*arguments)
        inside.append(time.perf_counter() - started)
        return hidden

    session.hidden = timed  # type: ignore[method-assign]
    for _ in range(rounds * 2):
        total.append(_seconds(whole))
    session.hidden = bare  # type: ignore[method-assign]
    print(f"session run inside the request: {spread(inside)}")
    print(f"end to end: {spread(total)}")
    shares = np.array(total) / np.array(inside)
    low, middle, high = np.percentile(shares, [25, 50, 75])
    print(f"  ratio {middle:.3f} ({low:.3f}-{high:.3f}) (at most 1.100)")
    found = alternate({"end to end": whole, "PyTorch float32": reference}, rounds)
    ratio(found, "end to end", "PyTorch float32", 1 / 3)


def switching(engine: Engine, tasks: list[str], rounds: int) -> None:
    """Twelve tasks at random against one again and again, call by call in turn."""
    for task in tasks:
        engine.run(task, TEXT)
    order = random.Random(0).choices(tasks, k=rounds * 4)
    mixed, same = [], []
    for number, task in enumerate(order):
        # The repeated task is asked twice: the second time nothing was switched.
        engine.run(tasks[0], TEXT)
        same.append(_seconds(lambda: engine.run(tasks[0], TEXT)))
        mixed.append(_seconds(lambda t=task: engine.run(t, TEXT)))
        del number
    found = {"one task": spread(same), f"{len(tasks)} at random": spread(mixed)}
    ratio(found, f"{len(tasks)} at random", "one task", 1.02)
    one, many = found["one task"].p99, found[f"{len(tasks)} at random"].p99
    print(f"  p99 ratio {many / one:.3f} (at most 1.10)")


def loading(engine: Engine, prompts: Path, rounds: int) -> None:
    """From a file to ready: reading, validating, prefix; and 10,000 files."""
    sizes = {path: path.stat().st_size for path in prompts.glob("*.safetensors")}
    path = max((p for p in sizes if sizes[p] < 95_000), key=lambda p: sizes[p])
    task = path.name.removesuffix(".safetensors")
    reading = spread([_seconds(lambda: read_blob(path)) for _ in range(rounds)])
    print(f"read and validate {sizes[path] / 1000:.0f} KB: {reading} (p99 under 1)")
    soft = read_blob(next(p for p in sizes if _soft(p)))
    rows = soft.prompt_embeddings
    assert rows is not None
    session = engine._encoder_model("benchmark").session
    mask, ids = np.ones((1, len(rows)), np.int64), np.zeros((1, len(rows)), np.int64)
    positions = np.arange(len(rows))[None]
    found = alternate(
        {
            "forward of P rows": lambda: session.hidden(
                rows[None], mask, positions, ids, session.no_prompt
            ),
            "prefix of P rows": lambda: session.state_of(rows),
        },
        rounds,
    )
    ratio(found, "prefix of P rows", "forward of P rows", 1.10)
    with tempfile.TemporaryDirectory() as name:
        many = Path(name)
        for number in range(10_000):
            shutil.copyfile(path, many / f"copy{number}.safetensors")
        shutil.copyfile(path, many / path.name)
        found = alternate(
            {
                "get of 12 files": lambda: PromptFolder(prompts).get(task),
                "get of 10,001 files": lambda: PromptFolder(many).get(task),
            },
            rounds,
        )
    ratio(found, "get of 10,001 files", "get of 12 files", 1.05)


def _soft(path: Path) -> bool:
    return read_blob(path).prompt_embeddings is not None


def ratio(found: dict[str, Spread], what: str, against: str, limit: float) -> None:
    """Print two candidates and the ratio of their medians."""
    for name in (against, what):
        print(f"{name}: {found[name]}")
    value = found[what].p50 / found[against].p50
    print(f"  ratio {value:.3f} (at most {limit:.3f})")


def _seconds(run) -> float:  # type: ignore[no-untyped-def]
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
