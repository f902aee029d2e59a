"""The train-pack command: one pack out of many tasks, trained jointly.

A command of its own beside `train`: it takes many tasks, writes another kind of file,
has other defaults, and answers for each task.
"""

import argparse
from pathlib import Path
from typing import Any

from promptdial.prompts.pack import PACK_SUFFIX, require_pack_name
from promptdial.prompts.training.config import (
    NOT_IN_PACKS,
    PACK_DEFAULTS,
    TrainConfig,
    check,
    read_config,
    with_values,
)
from promptdial.prompts.training.option_flags import add_options, typed_options
from promptdial.runtime.command import Command

_WORDS = {
    "method": "prompt | prefix",
    "init": "vocab | text | random",
    "num_virtual_tokens": "length of the shared prompt (P)",
    "limit": "use the first rows of each train only; 0 for all",
}
"""What the help of `train` says otherwise."""
_FIXED = ("head_init", "precision", *NOT_IN_PACKS)
"""Options of `train` that a pack has no choice in."""


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub id, folder or minilm")
    parser.add_argument(
        "--task",
        dest="tasks",
        required=True,
        action="append",
        type=Path,
        help="folder or task.yaml; once for each task",
    )
    parser.add_argument(
        "--out", required=True, type=Path, help=f"the pack to write, *{PACK_SUFFIX}"
    )
    parser.add_argument(
        "--teachers",
        type=Path,
        metavar="FOLDER",
        help="blobs of the tasks, trained alone, to learn from beside the labels",
    )
    parser.add_argument("--config", type=Path, help="options from a YAML file")
    add_options(parser, PACK_DEFAULTS, without=_FIXED, words=_WORDS)


def _config(args: argparse.Namespace) -> TrainConfig:
    config = PACK_DEFAULTS
    if args.config is not None:
        config = read_config(args.config, config)
    return check(with_values(config, typed_options(args), "train-pack"))


def _run(args: argparse.Namespace) -> dict[str, Any]:
    config = _config(args)
    require_pack_name(args.out)
    # PyTorch is loaded here, so that the options can be listed without the extra.
    from promptdial.prompts.training.packs.shared_file import make_pack_file

    made = make_pack_file(args.model, args.tasks, args.out, config, args.teachers)
    result = made.result
    dev = [item.dev_metric for item in made.packed]
    return {
        "pack": str(args.out),
        "bytes": made.pack.size,
        "dev_mean": round(sum(dev) / len(dev), 3),
        "epochs": result.epochs,
        "warnings": [f"{item.code}: {item.message}" for item in result.warnings],
        "tasks": [
            {
                "task": task.name,
                "metric": task.metric,
                "dev_metric": item.dev_metric,
                "distance": round(distance, 4),
                "answers_changed": round(item.answers_changed, 4),
                "warnings": [f"{it.code}: {it.message}" for it in item.warnings],
            }
            for task, item, distance in zip(
                made.tasks, made.packed, result.distances, strict=True
            )
        ],
        "seconds": round(result.seconds, 2),
    }


train_pack = Command(
    summary="train one pack for many tasks on a frozen model",
    configure=_configure,
    run=_run,
)
