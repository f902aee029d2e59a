"""What a prompt is measured against: zero-shot, linear probe, LoRA, full fine-tuning.

All see the same rows, read the mean of the last level, whatever levels and pooling the
prompt's class vectors read, and are chosen on the same dev. LoRA and full fine-tuning
change weights, of a copy: what the prompt gives up by leaving the one frozen model to
all tasks.
"""

import time
from dataclasses import dataclass

import torch

from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import encode_rows
from promptdial.prompts.training.comparison.weight_tuning import (
    Tuned,
    every_weight,
    lora,
    tune,
)
from promptdial.prompts.training.config import (
    FULL_TUNING,
    LORA_TUNING,
    TrainConfig,
)
from promptdial.prompts.training.heads import KINDS, Head, pooling_of
from promptdial.prompts.training.initialise import class_vectors
from promptdial.prompts.training.probe import extract, fit_probe
from promptdial.prompts.training.scoring import Reader, score
from promptdial.prompts.training.task import Task

FROZEN = ("zero_shot", "probe")
WEIGHTS = ("lora", "full")
BASELINES = (*FROZEN, *WEIGHTS)


@dataclass(frozen=True)
class Baseline:
    """A trained baseline.

    Attributes:
        name: One of `BASELINES`.
        dev: Dev metric, percent.
        test: Test metric, percent; None where the task has no test rows.
        parameters: Trained numbers.
        learning_rate: Of the weights, chosen on dev; 0 where none is trained.
        epochs: Epochs up to the best one on dev.
        seconds: Wall time of all rates together.
    """

    name: str
    dev: float
    test: float | None
    parameters: int
    learning_rate: float
    epochs: int
    seconds: float


def require_baseline(name: str, task: Task) -> None:
    """Refuse, before any training, a baseline that does not exist.

    Raises:
        UsageError: The name is unknown, or the task has no class to start from.
    """
    if name not in BASELINES:
        raise UsageError(f"baseline is {name!r}", f"choose from {', '.join(BASELINES)}")
    if task.kind not in KINDS:
        raise UsageError(
            f"task {task.name!r} is {task.kind}: baselines are built for encoders",
            "leave baselines out",
        )
    if name == "probe" and task.kind == "embedding":
        raise UsageError(
            f"task {task.name!r} is embedding and has no classes to fit a probe to",
            "leave the probe out",
        )


def run_baseline(
    name: str, base: FrozenBase, task: Task, config: TrainConfig
) -> Baseline:
    """Train one baseline; the base stays as it is.

    Args:
        name: One of `BASELINES`.
        base: The frozen model.
        task: Rows and labels.
        config: The run's options; the rates and epochs of the weights are
            `LORA_TUNING` and `FULL_TUNING`.

    Raises:
        UsageError: As `require_baseline`.
        DataInvalid: The loss is not finite at any rate.
    """
    require_baseline(name, task)
    started = time.monotonic()
    if name == "lora":
        found = tune(base, task, config, LORA_TUNING, lora)
    elif name == "full":
        found = tune(base, task, config, FULL_TUNING, every_weight)
    else:
        found = _frozen(name, base, task, config)
    seconds = time.monotonic() - started
    test = None
    if task.test:
        pooling = pooling_of(task.kind, config)
        rows = encode_rows(task.test, base.encoder, task.labels, task.template, pooling)
        test = score(found.reader, task.test, rows)
    return Baseline(
        name=name,
        dev=found.dev,
        test=test,
        parameters=found.parameters,
        learning_rate=found.learning_rate,
        epochs=found.epochs,
        seconds=seconds,
    )


def _frozen(name: str, base: FrozenBase, task: Task, config: TrainConfig) -> Tuned:
    """Class vectors alone: as the label names start them, or fitted to the rows."""
    pooling = pooling_of(task.kind, config)
    labels, template = task.labels, task.template
    dev = encode_rows(task.dev, base.encoder, labels, template, pooling)
    head, count = None, 0
    if name == "probe":
        train = encode_rows(task.train, base.short, labels, template, pooling)
        head, _ = fit_probe(
            extract(base, train, pooling, []),
            extract(base, dev, pooling, []),
            len(task.labels),
        )
        count = sum(item.numel() for item in head.parameters())
    elif task.kind != "embedding":
        head = Head(class_vectors(base, task, config)).to(base.device)
    reader = Reader(base, [], head, task.kind, pooling, task.labels)
    with torch.no_grad():
        metric = score(reader, task.dev, dev)
    return Tuned(reader, metric, 0.0, 0, count)
