"""The train-all command. Light to import, as the train command is.

A command of its own, and not what `train` does with a folder of folders: a task folder
that lacks its train.jsonl stays an error there, and the answer is another one here.
"""

import argparse
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from promptdial.prompts.errors import TasksFailed, UsageError
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.option_flags import add_options, typed_options
from promptdial.runtime.command import Command

RAY = "ray"


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub id, folder or minilm")
    parser.add_argument(
        "--tasks", required=True, type=Path, help="a folder of task folders"
    )
    parser.add_argument(
        "--out", required=True, type=Path, help="the folder for the blobs"
    )
    parser.add_argument(
        "--recipes",
        type=Path,
        help="YAML of `task: {option: value}`; tasks without a line are left out",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        default="0",
        help="processes at a time, or ray (default: 0, one a GPU or two cores)",
    )
    add_options(parser, TrainConfig())


def _run(args: argparse.Namespace) -> dict[str, Any]:
    workers = _workers(args.workers)
    from promptdial.export.fingerprint import checkpoint_fingerprint
    from promptdial.export.source import resolve
    from promptdial.prompts.training.many.many import (
        FAILED,
        REPORT,
        make_plan,
        read_recipes,
        table,
        task_folders,
        write_report,
    )
    from promptdial.prompts.training.many.workers import (
        environments,
        run_in_processes,
        run_on_ray,
        visible_gpus,
    )

    started = time.monotonic()
    recipes = read_recipes(args.recipes) if args.recipes is not None else None
    # Before any worker: a wrong MODEL is one error, not one a task.
    fingerprint = checkpoint_fingerprint(resolve(args.model).folder)
    folders = task_folders(args.tasks)
    plan = make_plan(folders, args.out, recipes, typed_options(args), fingerprint)
    args.out.mkdir(parents=True, exist_ok=True)
    gpus = visible_gpus(args.device or TrainConfig().device)
    if workers is None:
        running = run_on_ray(plan.jobs, args.model, gpus)
    else:
        running = run_in_processes(plan.jobs, args.model, environments(workers, gpus))
    entries = list(plan.entries)
    report = write_report(args.out, entries, time.monotonic() - started)
    with closing(running):
        for entry in running:
            entries.append(entry)
            print(f"{entry.task}: {entry.status}", file=sys.stderr, flush=True)
            report = write_report(args.out, entries, time.monotonic() - started)
    print(table(entries), file=sys.stderr, flush=True)
    lost = [entry.task for entry in entries if entry.status == FAILED]
    if lost:
        raise TasksFailed(
            f"{len(lost)} of {len(entries)} tasks failed: {', '.join(sorted(lost))}",
            f"see {args.out / REPORT}; what was trained is kept when you run it again",
        )
    return report


def _workers(text: str) -> int | None:
    """The number of processes, or None for Ray.

    Raises:
        UsageError: It is neither.
    """
    if text == RAY:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > 1024:
        raise UsageError(f"workers is {text!r}", "give 0 to 1024, or ray")
    return int(text)


train_all = Command(
    summary="train a prompt for every task of a folder, in processes side by side",
    configure=_configure,
    run=_run,
)
