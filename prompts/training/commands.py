"""The train command. Light to import, so that help and completion need no extra."""

import argparse
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptdial.prompts.blob import PromptBlob, write_blob
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

if TYPE_CHECKING:
    from promptdial.export.model import LoadedBase
    from promptdial.prompts.training.task import Task

_HELP = {
    "method": f"{' | '.join(METHODS)}",
    "init": "labels | text | vocab | random | from:BLOB",
    "num_virtual_tokens": "length of the prompt (P)",
    "device": " | ".join(DEVICES),
    "precision": f"of the stored virtual tokens: {' | '.join(PRECISIONS)}",
    "gradient_checkpointing": "compute activations again: less memory, more time",
    "limit": "use the first rows of train only; 0 for all",
    "abstain": "none | coverage:0.95 | accuracy:0.98 | out_of_scope[:LABEL]",
    "out_of_scope_share": "share of requests out of scope; 0 for dev's own",
    "resume": "go on from OUT.checkpoint",
    "budget": "pick the options by a search on dev within 30s, 2m or 1h",
    "max_seconds": "begin no epoch that would end later; 0 for no limit",
}


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub id, folder or minilm")
    parser.add_argument("--task", required=True, type=Path, help="folder or task.yaml")
    parser.add_argument("--out", required=True, type=Path, help="the blob to write")
    parser.add_argument("--config", type=Path, help="options from a YAML file")
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """A flag for every option of a training run."""
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
    return check(with_values(config, typed_options(args), "train"))


def typed_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a training run that were typed, by name."""
    names = [option.name for option in fields(TrainConfig)]
    return {
        name: getattr(args, name) for name in names if getattr(args, name) is not None
    }


def _run(args: argparse.Namespace) -> dict[str, Any]:
    config = _config(args)
    from promptdial.export.model import DECODER, load_base, resolve
    from promptdial.prompts.training.base import pick_device
    from promptdial.prompts.training.calibration import rule_of
    from promptdial.prompts.training.task import read_task
    from promptdial.runtime.fitting import KINDS

    task = read_task(args.task, config.limit)
    # Before the hours of training, not after them.
    rule_of(config, task)
    loaded = load_base(resolve(args.model), pick_device(config.device))
    kinds = KINDS[loaded.family]
    if task.kind not in kinds:
        raise UsageError(
            f"task {task.name!r} is {task.kind}, {loaded.base.model} is of family "
            f"{loaded.family}, which answers {', '.join(kinds)}",
            "give a model of the other family",
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out.with_name(args.out.name + ".checkpoint")
    run = _train_decoder if loaded.family == DECODER else _train_encoder
    answer = run(args.out, loaded, task, config, checkpoint)
    # The blob is written: nothing is left to go on with.
    checkpoint.unlink(missing_ok=True)
    return answer


def _train_encoder(
    out: Path,
    loaded: "LoadedBase",
    task: "Task",
    config: TrainConfig,
    checkpoint: Path,
) -> dict[str, Any]:
    from promptdial.prompts.training.base import encoder_base, pick_device
    from promptdial.prompts.training.packing import packed, require_fit
    from promptdial.prompts.training.search import search
    from promptdial.prompts.training.task import CHAT
    from promptdial.prompts.training.trainer import train as run_training

    started = time.monotonic()
    device = pick_device(config.device)
    base = encoder_base(
        loaded, device, config.bf16, config.max_tokens, config.gradient_checkpointing
    )
    if CHAT in task.template:
        raise UsageError("a chat template belongs to decoders", "leave chat out")
    searched = None
    if config.budget:
        searched = search(base, task, config, out)
        task, config = searched.task, searched.config
    # Before the hours of training, not after them.
    require_fit(base, task, config)
    result = run_training(base, task, config, checkpoint)
    made = packed(task, config, result)
    blob = made.blob
    write_blob(out, blob)
    warnings = [*result.warnings, *made.findings]
    found = {
        "blob": str(out),
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
        **_scores_of(blob),
        "warnings": [f"{item.code}: {item.message}" for item in warnings],
        "seconds": round(time.monotonic() - started, 2),
    }
    if searched is not None:
        found["search"] = searched.answer()
    return found


def _train_decoder(
    out: Path,
    loaded: "LoadedBase",
    task: "Task",
    config: TrainConfig,
    checkpoint: Path,
) -> dict[str, Any]:
    from promptdial.prompts.training.base import pick_device
    from promptdial.prompts.training.chat_template import without_chat
    from promptdial.prompts.training.decoder_base import decoder_base
    from promptdial.prompts.training.generation import (
        packed_generation,
        require_room,
        train_generation,
    )

    if config.budget:
        raise UsageError("a search within a budget is for encoders", "leave budget out")
    device = pick_device(config.device)
    base = decoder_base(
        loaded, device, config.bf16, config.max_tokens, config.gradient_checkpointing
    )
    template = without_chat(task.template, loaded.folder, base.encoder)
    task = replace(task, template=template)
    require_room(base, task, config)
    result = train_generation(base, task, config, checkpoint)
    made = packed_generation(base, task, config, result)
    blob = made.blob
    write_blob(out, blob)
    found = {
        "blob": str(out),
        "bytes": blob.size,
        "task": task.name,
        "metric": "loss",
        "dev_metric": round(result.dev_loss, 4),
        "zero_shot": round(result.zero_shot, 4),
        "probe": None,
        "epochs": result.epochs,
        "distance": round(result.distance, 4),
        "truncated_share": round(result.truncated_share, 4),
        **_scores_of(blob),
        "warnings": [f"{item.code}: {item.message}" for item in made.findings],
        "seconds": round(result.seconds, 2),
    }
    if result.choice is not None:
        found["dev_accuracy"] = round(result.choice.plain, 3)
        found["dev_accuracy_calibrated"] = round(result.choice.calibrated, 3)
        found["neutral"] = result.choice.neutral
    return found


def _scores_of(blob: PromptBlob) -> dict[str, Any]:
    """How the blob's scores are read, and what that is worth on dev."""
    if "dev_ece" not in blob.meta.metrics:
        return {}
    # Those of promptdial.prompts.training.calibration.Calibration.
    names = ("dev_ece", "dev_abstained", "dev_kept", "dev_in_scope", "dev_out_of_scope")
    shown = {
        name: value
        for name, value in blob.meta.metrics.items()
        if name.startswith(names)
    }
    return {**asdict(blob.meta.scores), **shown}


train = Command(
    summary="train a prompt for one task on a frozen model",
    configure=_configure,
    run=_run,
)
