"""Blobs trained on FP32 and on a bundle's rounded graph: points regained, per task.

    python benchmarks/quantised_training.py BUNDLE TASKS [TASK ...] [--on int8 ...]
        [--limit N] [--method M] [--epochs N] [--seeds N ...] [--out FILE.jsonl]

BUNDLE has the variants int8 and int4; TASKS holds the task folders; each TASK is one
of them. The same recipe and seed are trained in PyTorch's FP32 and on every graph of
--on; each blob answers the test rows in the runtime on each variant of --eval. With
--out a run is kept as a line, and a run whose line is there is not made again.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from run_lines import Line, add_line, read_lines

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.training.base import FrozenBase, open_base, pick_device
from promptdial.prompts.training.config import TrainConfig, check
from promptdial.prompts.training.graphs.graph_base import on_graph
from promptdial.prompts.training.packing import pack, require_fit
from promptdial.prompts.training.task import read_task
from promptdial.prompts.training.trainer import train
from promptdial.runtime.engine import Engine
from promptdial.runtime.evaluate import metric_value, predict
from promptdial.runtime.rows import read_rows

FP32 = "torch-fp32"
KEY = ("task", "trained_on", "method", "seed", "limit", "epochs", "test_rows")


def main() -> None:
    """Train and evaluate what is missing, then print what was regained."""
    args = _arguments()
    base = open_base(args.model, pick_device(args.device))
    lines = read_lines(args.out)
    for wanted in _runs(args):
        found = next((line for line in lines if _key(line) == _key(wanted)), None)
        if found is None or set(args.eval) - set(found["test"]):
            found = run(args, base, wanted)
            lines.append(found)
            add_line(args.out, found)
        print(json.dumps(found), flush=True)
    for line in regained([line for line in lines if line["task"] in args.only]):
        print(line)


def run(args: argparse.Namespace, base: FrozenBase, wanted: Line) -> Line:
    """Train one blob and let it answer on every variant."""
    config = check(
        TrainConfig(
            method=wanted["method"],
            seed=wanted["seed"],
            epochs=wanted["epochs"],
            limit=wanted["limit"],
        )
    )
    folder = args.tasks / wanted["task"]
    task = read_task(folder, config.limit)
    if wanted["trained_on"] != FP32:
        base = on_graph(base, args.bundle, wanted["trained_on"])
    require_fit(base, task, config)
    result = train(base, task, config)
    blob = pack(task, config, result)
    test = {name: _points(args, folder, blob, name) for name in args.eval}
    return {
        **wanted,
        "test": test,
        "dev": round(result.dev_metric, 2),
        "epochs_run": result.epochs,
        "seconds": round(result.seconds, 1),
        "graph": blob.meta.training["graph"],
    }


def regained(lines: list[Line]) -> Iterator[str]:
    """For each task, graph and variant: the mean gain over seeds of training on it."""
    plain = {_pair(line): line for line in lines if line["trained_on"] == FP32}
    gains: dict[tuple[str, str, str, str], list[tuple[float, float, float]]] = {}
    for line in lines:
        other = plain.get(_pair(line))
        if line["trained_on"] == FP32 or other is None:
            continue
        for name in set(line["test"]) & set(other["test"]):
            before, after = other["test"][name], line["test"][name]
            cost = line["seconds"] / line["epochs_run"]
            cost *= other["epochs_run"] / other["seconds"]
            place = (line["task"], line["method"], line["trained_on"], name)
            gains.setdefault(place, []).append((before, after, cost))
    for (task, method, graph, name), found in sorted(gains.items()):
        before, after, cost = (
            sum(part) / len(found) for part in zip(*found, strict=True)
        )
        yield (
            f"{task:14} {method:6} trained on {graph:5} answers on {name:5} "
            f"{before:5.1f} -> {after:5.1f} ({after - before:+.1f}, "
            f"{len(found)} seeds, an epoch takes {cost:.2f} x)"
        )


def _points(
    args: argparse.Namespace, folder: Path, blob: PromptBlob, variant: str
) -> float:
    rows = read_rows(folder / "test.jsonl")[: args.test_rows or None]
    with Engine(args.bundle, variant=variant, threads=1) as engine:
        engine.load(blob)
        answers, _ = predict(engine, blob.meta.task, rows)
    return round(metric_value(blob.meta.kind, rows, answers), 2)


def _runs(args: argparse.Namespace) -> Iterator[Line]:
    for task in args.only:
        for seed in args.seeds:
            for graph in (FP32, *args.on):
                yield {
                    "task": task,
                    "trained_on": graph,
                    "method": args.method,
                    "seed": seed,
                    "limit": args.limit,
                    "epochs": args.epochs,
                    "test_rows": args.test_rows,
                }


def _key(line: Line) -> tuple[Any, ...]:
    return tuple(line[name] for name in KEY)


def _pair(line: Line) -> tuple[Any, ...]:
    return tuple(line[name] for name in KEY if name != "trained_on")


def _arguments() -> argparse.Namespace:
    defaults = TrainConfig()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("only", nargs="+", metavar="TASK")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--on", nargs="+", default=["int8"], help="graphs to train on")
    parser.add_argument("--eval", nargs="+", default=["int8", "int4"])
    parser.add_argument("--method", default=defaults.method)
    parser.add_argument("--epochs", type=int, default=defaults.epochs)
    parser.add_argument("--limit", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--test-rows", type=int, default=0, help="0 for all")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
