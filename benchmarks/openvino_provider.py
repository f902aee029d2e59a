"""OpenVINO's provider on its own variant beside the CPU's on int8, in one process.

    python benchmarks/openvino_provider.py BUNDLE PROMPTS TASK ROWS.jsonl [--rounds N]

BUNDLE has both variants. It is opened twice: the first time compiles where nothing was
kept. Requests alternate, each with a prompt, of some lengths that lie within a bucket;
medians with quartiles, and their ratio. Then the labels of ROWS on both: how many agree
and are right. On a processor that the plug-in does not take, put
`tests/openvino_anywhere.py` between `python` and this file.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

from timing import alternate

from promptdial.runtime import Engine
from promptdial.runtime.openvino import ACCELERATOR
from promptdial.runtime.processor import processor_features
from promptdial.runtime.rows import read_rows
from promptdial.runtime.session import runtime_version

OURS, CPU = "openvino", "int8"
WORDS = (10, 28, 58)
THREADS = 1


def times(engines: dict[str, Engine], task: str, rounds: int) -> dict[str, object]:
    """Milliseconds a request by words of its text, and int8's share of openvino's."""
    found: dict[str, object] = {}
    for words in WORDS:
        text = " ".join(["play"] * words)
        runs = {
            name: lambda engine=engine, text=text: engine.classify(task, text)
            for name, engine in engines.items()
        }
        spreads = alternate(runs, rounds)
        found[f"{words} words"] = {
            **{name: str(spread) for name, spread in spreads.items()},
            "int8 / openvino": round(spreads[CPU].p50 / spreads[OURS].p50, 2),
        }
    return found


def labels(
    engines: dict[str, Engine], task: str, rows: Sequence[tuple[str, str]]
) -> dict[str, float]:
    """Shares of texts whose labels agree, and are right, in percent."""
    answers = {
        name: [engine.classify(task, text).label for text, _ in rows]
        for name, engine in engines.items()
    }
    same = [a == b for a, b in zip(answers[OURS], answers[CPU], strict=True)]
    shares = {"agree": 100 * sum(same) / len(same)}
    for name, given in answers.items():
        right = [a == label for a, (_, label) in zip(given, rows, strict=True)]
        shares[f"{name} right"] = 100 * sum(right) / len(right)
    return {name: round(share, 1) for name, share in shares.items()}


def seconds_to_open(bundle: Path, prompts: Path) -> float:
    """Of the variant for OpenVINO, and to close it."""
    begin = time.perf_counter()
    Engine(bundle, prompts, variant=OURS, threads=THREADS).close()
    return round(time.perf_counter() - begin, 2)


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("task")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    rows = [(row.text, str(row.label)) for row in read_rows(args.rows)]
    opening = [seconds_to_open(args.bundle, args.prompts) for _ in range(2)]
    engines = {
        name: Engine(args.bundle, args.prompts, variant=name, threads=THREADS)
        for name in (OURS, CPU)
    }
    found = {
        "onnxruntime": runtime_version(),
        "provider": ACCELERATOR.version(),
        "seconds_to_open": opening,
        "processor": processor_features(),
        "threads": THREADS,
        "placement": engines[OURS].placement(),
        "times": times(engines, args.task, args.rounds),
        "labels": labels(engines, args.task, rows),
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
