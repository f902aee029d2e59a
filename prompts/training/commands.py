"""The train command. Light to import, so that help and completion need no extra."""

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from promptdial.prompts.blob import PromptBlob, require_blob_name, write_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.config import (
    ENCODER_OPTIONS,
    TrainConfig,
    check,
    read_config,
    with_values,
)
from promptdial.prompts.training.option_flags import add_options, typed_options
from promptdial.runtime.command import Command

if TYPE_CHECKING:
    from promptdial.export.model import LoadedBase
    from promptdial.prompts.training.task import Task


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="hub id, folder or minilm")
    parser.add_argument("--task", required=True, type=Path, help="folder or task.yaml")
    parser.add_argument("--out", required=True, type=Path, help="the blob to write")
    parser.add_argument("--config", type=Path, help="options from a YAML file")
    parser.add_argument(
        "--baselines",
        action="store_true",
        help="then train LoRA and the whole model on the same rows, to compare",
    )
    parser.add_argument(
        "--seeds",
        metavar="N",
        type=int,
        default=1,
        help="train so many seeds, from --seed on, and keep the best on dev",
    )
    parser.add_argument("--report", metavar="HTML", type=Path, help="write a report")
    add_options(parser, TrainConfig())


def _config(args: argparse.Namespace) -> TrainConfig:
    config = TrainConfig()
    if args.config is not None:
        config = read_config(args.config, config)
    return check(with_values(config, typed_options(args), "train"))


def _run(args: argparse.Namespace) -> dict[str, Any]:
    config = _config(args)
    from promptdial.export.model import DECODER, load_base, resolve
    from promptdial.prompts.training.base import pick_device
    from promptdial.prompts.training.scores.calibration import rule_of
    from promptdial.prompts.training.seeds import checkpoint_of
    from promptdial.prompts.training.task import read_task
    from promptdial.runtime.fitting import KINDS

    _check_flags(args)
    task = read_task(args.task, config.limit, not config.few_shot)
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
    more = args.baselines or args.report is not None or args.seeds > 1
    if config.few_shot and more:
        raise UsageError(
            "few_shot with --baselines, --report or --seeds, which want dev rows",
            "leave them out",
        )
    if loaded.family == DECODER and more:
        raise UsageError(
            f"{loaded.base.model} is a decoder; --baselines, --report and --seeds are "
            "built for encoders",
            "leave them out",
        )
    require_blob_name(args.out, task.name)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out.with_name(args.out.name + ".checkpoint")
    if loaded.family == DECODER:
        answer = _train_decoder(args.out, loaded, task, config, checkpoint)
    else:
        answer = _train_encoder(args, loaded, task, config, checkpoint)
    # The blob is written: nothing is left to go on with.
    for seed in range(config.seed, config.seed + args.seeds):
        checkpoint_of(checkpoint, config, seed).unlink(missing_ok=True)
    return answer


def _check_flags(args: argparse.Namespace) -> None:
    """Refuse, before any training, what would be found wrong after it."""
    if args.seeds < 1:
        raise UsageError(f"--seeds is {args.seeds}", "give at least 1")
    if args.report is None:
        return
    if args.report.is_dir() or args.report.resolve() == args.out.resolve():
        what = "a folder" if args.report.is_dir() else "the blob itself"
        raise UsageError(f"--report {args.report} is {what}", "name an .html file")
    args.report.parent.mkdir(parents=True, exist_ok=True)


def _train_encoder(
    args: argparse.Namespace,
    loaded: "LoadedBase",
    task: "Task",
    config: TrainConfig,
    checkpoint: Path,
) -> dict[str, Any]:
    from promptdial.prompts.training.base import pick_device
    from promptdial.prompts.training.comparison.baselines import WEIGHTS, run_baseline
    from promptdial.prompts.training.graphs.graph_base import training_base
    from promptdial.prompts.training.packing import packed, require_fit
    from promptdial.prompts.training.reports.report import Trained, write_report
    from promptdial.prompts.training.search.few_shot import train_few_shot
    from promptdial.prompts.training.search.outcome import train_choice
    from promptdial.prompts.training.search.search import search
    from promptdial.prompts.training.search.search_log import note_blob
    from promptdial.prompts.training.seeds import train_seeds
    from promptdial.prompts.training.task import CHAT

    started = time.monotonic()
    base = training_base(loaded, pick_device(config.device), config)
    if CHAT in task.template:
        raise UsageError("a chat template belongs to decoders", "leave chat out")
    if config.few_shot:
        few = train_few_shot(base, task, config, args.out)
        write_blob(args.out, few.blob)
        note_blob(args.out, few.blob)
        return {"blob": str(args.out), "bytes": few.blob.size, **few.answer()}
    searched = None
    if config.budget:
        choice = search(base, task, config, args.out, args.seeds)
        outcome = train_choice(base, choice, config, args.seeds, checkpoint)
        task, runs = choice.task, outcome.runs
        searched = {**choice.answer(), "without_prompt": outcome.without_prompt}
    else:
        # Before the hours of training, not after them.
        require_fit(base, task, config)
        runs = train_seeds(base, task, config, args.seeds, checkpoint)
    config, result = runs.config, runs.result
    made = packed(task, config, result)
    blob = made.blob
    # First of all: what a baseline may fail at must not cost the prompt.
    write_blob(args.out, blob)
    if config.budget:
        note_blob(args.out, blob)
    warnings = [*result.warnings, *made.findings]
    found = {
        "blob": str(args.out),
        "bytes": blob.size,
        "task": task.name,
        "graph": base.trained_on,
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
        found["search"] = searched
    if args.seeds > 1:
        found["seed"] = config.seed
        found["seeds"] = {
            str(seed): round(value, 3) for seed, value in runs.dev_metrics.items()
        }
    names = WEIGHTS if args.baselines else ()
    baselines = tuple(run_baseline(name, base, task, config) for name in names)
    if baselines:
        found["baselines"] = {
            item.name: {
                "dev_metric": round(item.dev, 3),
                "parameters": item.parameters,
                "learning_rate": item.learning_rate,
                "seconds": round(item.seconds, 2),
            }
            for item in baselines
        }
    if args.report is not None:
        write_report(args.report, Trained(task, config, result, blob, baselines))
        found["report"] = str(args.report)
    return found


def _train_decoder(
    out: Path,
    loaded: "LoadedBase",
    task: "Task",
    config: TrainConfig,
    checkpoint: Path,
) -> dict[str, Any]:
    from promptdial.export.errors import Unsupported
    from promptdial.prompts.training.base import pick_device
    from promptdial.prompts.training.decoders.chat_template import without_chat
    from promptdial.prompts.training.decoders.decoder_base import decoder_base
    from promptdial.prompts.training.decoders.generation import (
        packed_generation,
        require_room,
        train_generation,
    )

    usual = TrainConfig()
    for name in ENCODER_OPTIONS:
        if getattr(config, name) != getattr(usual, name):
            raise UsageError(
                f"{name} is for encoders, this is a decoder", "leave it out"
            )
    if config.quantised:
        raise Unsupported(
            f"quantised {config.quantised!r}: training on decoder graphs is not built",
            "leave it out",
        )
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
    # Those of promptdial.prompts.training.scores.calibration.Calibration.
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
