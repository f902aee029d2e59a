"""The train command. Light to import, so that help and completion need no extra."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from promptdial.prompts.blob import write_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.config import (
    DEVICES,
    METHODS,
    PRECISIONS,
    TrainConfig,
    check,
    read_config,
    with_values,
)
from promptdial.runtime.command import Command

_HELP = {
    "method": f"{' | '.join(METHODS)}",
    "init": "labels | text | vocab | random | from:BLOB",
    "num_virtual_tokens": "length of the prompt (P)",
    "device": " | ".join(DEVICES),
    "precision": f"of the stored virtual tokens: {' | '.join(PRECISIONS)}",
    "limit": "use the first rows of train only; 0 for all",
    "resume": "go on from OUT.checkpoint",
}


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub id, folder or minilm")
    parser.add_argument("--task", required=True, type=Path, help="folder or task.yaml")
    parser.add_argument("--out", required=True, type=Path, help="the blob to write")
    parser.add_argument("--config", type=Path, help="options from a YAML file")
    for option in fields(TrainConfig):
        flag = "--" + option.name.replace("_", "-")
        default = option.default
        # Default None: only what was typed overrides the YAML file.
        note = _HELP.get(option.name, option.name.replace("_", " "))
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true", default=None, help=note)
        else:
            parser.add_argument(
                flag, metavar="X", default=None, help=f"{note} (default: {default})"
            )


def _config(args: argparse.Namespace) -> TrainConfig:
    config = TrainConfig()
    if args.config is not None:
        config = read_config(args.config, config)
    names = [option.name for option in fields(TrainConfig)]
    typed = {
        name: getattr(args, name) for name in names if getattr(args, name) is not None
    }
    return check(with_values(config, typed, "train"))


def _run(args: argparse.Namespace) -> dict[str, Any]:
    config = _config(args)
    from promptdial.prompts.training.base import open_base, pick_device
    from promptdial.prompts.training.packing import pack, require_fit
    from promptdial.prompts.training.task import read_task
    from promptdial.prompts.training.trainer import train as run_training

    task = read_task(args.task, config.limit)
    if task.kind == "generation":
        return _run_generation(args, config)
    device = pick_device(config.device)
    base = open_base(args.model, device, config.bf16, config.max_tokens)
    checkpoint = args.out.with_name(args.out.name + ".checkpoint")
    # Before the hours of training, not after them.
    require_fit(base, task, config)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result = run_training(base, task, config, checkpoint)
    blob = pack(task, config, result)
    write_blob(args.out, blob)
    checkpoint.unlink(missing_ok=True)
    return {
        "blob": str(args.out),
        "bytes": blob.size,
        "task": task.name,
        "metric": task.metric,
        "dev_metric": blob.meta.metrics[f"dev_{task.metric}"],
        "zero_shot": round(result.zero_shot, 3),
        "probe": round(result.probe, 3),
        "epochs": result.epochs,
        "distance": round(result.facts.distance, 4),
        "answers_changed": round(result.facts.answers_changed, 4),
        "truncated_share": round(result.facts.truncated_share, 4),
        "warnings": [f"{item.code}: {item.message}" for item in result.warnings],
        "seconds": round(result.seconds, 2),
    }


def _run_generation(args: argparse.Namespace, config: TrainConfig) -> dict[str, Any]:
    from promptdial.export.model import DECODER, load_base, resolve
    from promptdial.prompts.training.base import pick_device
    from promptdial.prompts.training.decoder_base import decoder_base
    from promptdial.prompts.training.generation import pack_generation, train_generation
    from promptdial.prompts.training.packing import require_fit
    from promptdial.prompts.training.task import read_task

    task = read_task(args.task, config.limit)
    device = pick_device(config.device)
    loaded = load_base(resolve(args.model), device)
    if loaded.family != DECODER:
        raise UsageError(
            f"{loaded.base.model} is an {loaded.family}, the task is to write",
            "give a decoder",
        )
    base = decoder_base(loaded, device, config.bf16, config.max_tokens)
    require_fit(base, task, config)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result = train_generation(base, task, config)
    blob = pack_generation(base, task, config, result)
    write_blob(args.out, blob)
    return {
        "blob": str(args.out),
        "bytes": blob.size,
        "task": task.name,
        "metric": "loss",
        "dev_metric": round(result.dev_loss, 4),
        "zero_shot": round(result.zero_shot, 4),
        "probe": None,
        "epochs": result.epochs,
        "distance": round(result.distance, 4),
        "truncated_share": round(result.truncated_share, 4),
        "seconds": round(result.seconds, 2),
    }


train = Command(
    summary="train a prompt for one task on a frozen model",
    configure=_configure,
    run=_run,
)
