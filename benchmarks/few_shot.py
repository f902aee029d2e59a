"""Few-shot prompts beside a linear probe on the same rows, in the INT8 runtime.

    python benchmarks/few_shot.py BUNDLE TASKS [--out DRAWS.jsonl] [--rows 16]

TASKS holds hwu64 and clinc150 (rows labelled "out of scope" are left out of train and
test). Draws 0 to 4 of `--rows` a class; the probe is `few_shot` without a prompt, its
regularisation chosen by the same folds. Every draw is a line of --out; draws that are
there with the same options are not run again. Standard errors are of the paired
difference: within a draw over test rows, in the summary over draws.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from run_lines import add_line, is_there, read_lines

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.training.base import FrozenBase, open_base, pick_device
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.search.few_shot import FewShot, train_few_shot
from promptdial.prompts.training.task import Task, read_task
from promptdial.runtime import Engine
from promptdial.runtime.evaluate import predict

OUT_OF_SCOPE = "out of scope"
TASKS = ("hwu64", "clinc150")
DRAWS = 5


def main() -> None:
    """Run what is missing, then print the summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--only", nargs="*", default=list(TASKS))
    parser.add_argument("--method", default=TrainConfig().method)
    parser.add_argument("--out", type=Path, default=Path("few_shot.jsonl"))
    args = parser.parse_args()
    base = open_base(args.model, pick_device(args.device))
    for name in args.only:
        task = in_scope(read_task(args.tasks / name, needs_dev=False))
        for seed in range(args.draws):
            config = TrainConfig(few_shot=args.rows, seed=seed, method=args.method)
            key = {"task": name, "rows": args.rows, "seed": seed, "method": args.method}
            if is_there(key, read_lines(args.out)):
                continue
            line = {**key, **one_draw(base, args.bundle, task, config)}
            add_line(args.out, line)
            print(shown(line), flush=True)
    for name in args.only:
        print(summary(name, read_lines(args.out), args.rows, args.method))


def in_scope(task: Task) -> Task:
    """The task without its rows of no class."""
    return replace(
        task,
        train=[row for row in task.train if row.label != OUT_OF_SCOPE],
        test=[row for row in task.test if row.label != OUT_OF_SCOPE],
        labels=tuple(label for label in task.labels if label != OUT_OF_SCOPE),
    )


def one_draw(
    base: FrozenBase, bundle: Path, task: Task, config: TrainConfig
) -> dict[str, Any]:
    """Figures of one draw: accuracy in percent on the test rows."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"{task.name}.safetensors"
        few = train_few_shot(base, task, config, out)
        bare = train_few_shot(base, task, replace(config, method="probe"), out)
    ours, alone = right(bundle, few.blob, task), right(bundle, bare.blob, task)
    gains = [100.0 * (one - two) for one, two in zip(ours, alone, strict=True)]
    return {
        "prompt": percent(ours),
        "probe": percent(alone),
        "gain": round(statistics.mean(gains), 2),
        "error": round(statistics.stdev(gains) / len(gains) ** 0.5, 2),
        **told(few),
    }


def told(few: FewShot) -> dict[str, Any]:
    """What the run says of itself."""
    return {
        "chosen": few.chosen,
        "folds": round(few.accuracy, 2),
        "folds_probe": round(few.probe, 2),
        "bytes": few.blob.size,
        "seconds": round(few.seconds),
    }


def right(bundle: Path, blob: PromptBlob, task: Task) -> list[bool]:
    """Which test rows the INT8 runtime gets right."""
    with Engine(bundle) as engine:
        engine.load(blob)
        answers, _ = predict(engine, blob.meta.task, task.test)
    pairs = zip(answers, task.test, strict=True)
    return [answer == row.label for answer, row in pairs]


def percent(values: list[bool]) -> float:
    """Share of True."""
    return round(100.0 * sum(values) / len(values), 2)


def shown(line: dict[str, Any]) -> str:
    """A draw for people."""
    return (
        f"{line['task']:9} draw {line['seed']}: prompt {line['prompt']:.2f}, probe "
        f"{line['probe']:.2f}, gain {line['gain']:+.2f} (se {line['error']:.2f}), "
        f"{line['chosen']}, {line['seconds']} s"
    )


def summary(name: str, lines: list[dict[str, Any]], rows: int, method: str) -> str:
    """Means over the draws of a task."""
    wanted = {"task": name, "rows": rows, "method": method}
    own = [line for line in lines if wanted.items() <= line.items()]
    if not own:
        return f"{name}: no draws"
    gains = [line["gain"] for line in own]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    prompt = statistics.mean(line["prompt"] for line in own)
    probe = statistics.mean(line["probe"] for line in own)
    return (
        f"{name}: {len(own)} draws, prompt {prompt:.2f}, probe {probe:.2f}, "
        f"gain {statistics.mean(gains):+.2f} (se over draws {error:.2f})"
    )


if __name__ == "__main__":
    main()
