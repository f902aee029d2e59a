"""The train-pack command: one pack out of many tasks, trained jointly.

A command of its own beside `train`: it takes many tasks, writes another kind of file,
has other defaults, and answers for each task.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from promptdial.prompts.errors import UsageError
from promptdial.prompts.pack import PACK_SUFFIX, require_pack_name, write_pack
from promptdial.prompts.training.config import (
    NOT_IN_PACKS,
    PACK_DEFAULTS,
    TrainConfig,
    check,
    read_config,
    with_values,
)
from promptdial.runtime.command import Command

_HELP = {
    "method": "prompt | prefix",
    "init": "vocab | text | random",
    "num_virtual_tokens": "length of the shared prompt (P)",
    "limit": "use the first rows of each train only; 0 for all",
    "resume": "go on from OUT.checkpoint",
}
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
    for option in fields(TrainConfig):
        if option.name in _FIXED:
            continue
        flag = "--" + option.name.replace("_", "-")
        default = getattr(PACK_DEFAULTS, option.name)
        note = _HELP.get(option.name, option.name.replace("_", " "))
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true", default=None, help=note)
        else:
            parser.add_argument(
                flag, metavar="X", default=None, help=f"{note} (default: {default})"
            )


def _config(args: argparse.Namespace) -> TrainConfig:
    config = PACK_DEFAULTS
    if args.config is not None:
        config = read_config(args.config, config)
    names = [option.name for option in fields(TrainConfig)]
    typed = {name: getattr(args, name, None) for name in names}
    given = {name: value for name, value in typed.items() if value is not None}
    return check(with_values(config, given, "train-pack"))


def _run(args: argparse.Namespace) -> dict[str, Any]:
    config = _config(args)
    require_pack_name(args.out)
    from promptdial.export.model import ENCODER, load_base, resolve
    from promptdial.prompts.training.base import pick_device
    from promptdial.prompts.training.graphs.graph_base import training_base
    from promptdial.prompts.training.packs.shared import train_shared
    from promptdial.prompts.training.packs.shared_members import require_shareable
    from promptdial.prompts.training.packs.shared_packing import (
        pack_shared,
        require_pack_fits,
    )
    from promptdial.prompts.training.task import CHAT, read_task

    tasks = [read_task(path, config.limit) for path in args.tasks]
    require_shareable(tasks, config)
    if any(CHAT in task.template for task in tasks):
        raise UsageError("a chat template belongs to decoders", "leave chat out")
    device = pick_device(config.device)
    loaded = load_base(resolve(args.model), device)
    if loaded.family != ENCODER:
        raise UsageError(
            f"{loaded.base.model} is of family {loaded.family}", "give an encoder"
        )
    base = training_base(loaded, device, config)
    # Before the hours of training, not after them.
    require_pack_fits(base, tasks, config)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out.with_name(args.out.name + ".checkpoint")
    result = train_shared(base, tasks, config, checkpoint, args.teachers)
    pack, packed = pack_shared(config, result)
    write_pack(args.out, pack)
    # The pack is written: nothing is left to go on with.
    checkpoint.unlink(missing_ok=True)
    return {
        "pack": str(args.out),
        "bytes": pack.size,
        "dev_mean": round(sum(item.dev_metric for item in packed) / len(packed), 3),
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
                tasks, packed, result.distances, strict=True
            )
        ],
        "seconds": round(result.seconds, 2),
    }


train_pack = Command(
    summary="train one pack for many tasks on a frozen model",
    configure=_configure,
    run=_run,
)
