"""The tasks of a pack in training: their rows, and which come when."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import (
    Example,
    batches_of,
    collate,
    encode_rows,
)
from promptdial.prompts.training.checkpoint import run_identity
from promptdial.prompts.training.config import (
    MEAN,
    NOT_IN_PACKS,
    PACK_DEFAULTS,
    TrainConfig,
)
from promptdial.prompts.training.heads import POOLED_KINDS, Head, pooling_of
from promptdial.prompts.training.initialise import starting_head
from promptdial.prompts.training.packs.teachers import Teacher, read_teacher
from promptdial.prompts.training.task import Task

_SEED_STRIDE = 1_000_003
"""Between the seeds of two epochs, as in trainer.py; tasks count up from there."""


@dataclass(frozen=True)
class Member:
    """One task of a pack in training.

    Attributes:
        task: Rows and labels.
        train: Its encoded training rows.
        dev: Its encoded dev rows.
        pooling: How its features are read.
        teacher: Soft targets of its training rows; None for labels alone.
    """

    task: Task
    train: list[Example]
    dev: list[Example]
    pooling: str
    teacher: Teacher | None = None


def require_shareable(tasks: Sequence[Task], config: TrainConfig) -> None:
    """Refuse tasks and options that no pack can have.

    Raises:
        UsageError: One of them; the message names it.
    """
    names = [task.name for task in tasks]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two tasks named {name!r}", "give each once")
    for name, value, allowed in (
        ("method", config.method, ("prompt", "prefix")),
        ("init", config.init, ("vocab", "text", "random")),
        ("head_init", config.head_init, ("labels",)),
        ("precision", config.precision, ("int8",)),
    ):
        if value not in allowed:
            raise UsageError(
                f"{name} is {value!r} for a pack", f"choose from {', '.join(allowed)}"
            )
    for name in NOT_IN_PACKS:
        if getattr(config, name) != getattr(PACK_DEFAULTS, name):
            raise UsageError(
                f"{name} is {getattr(config, name)!r} for a pack", "leave it out"
            )
    for task in tasks:
        if task.kind == "generation":
            raise UsageError(f"task {task.name!r} writes", "packs are for encoders")


def shared_out(members: Sequence[Member], batch_size: int) -> list[int]:
    """Steps of each task in an epoch: by the square root of its rows, at least one.

    In proportion to the rows, the largest task would have the shared prompt to itself;
    in equal shares, the smallest would be learned by heart (Wang et al. 2023 sample by
    rows up to a limit; the square root needs none).
    """
    total = sum(math.ceil(len(member.train) / batch_size) for member in members)
    roots = [math.sqrt(len(member.train)) for member in members]
    return [max(1, round(total * root / sum(roots))) for root in roots]


def make_member(base: FrozenBase, task: Task, teachers: Path | None) -> Member:
    """Encode a task's rows, and ask its teacher about them.

    Raises:
        PromptError: The teacher cannot be read.
        UsageError: It is of another base, or has other labels.
    """
    train = encode_rows(task.train, base.short, task.labels, task.template)
    teacher = None
    # Features have no distribution to learn.
    if teachers is not None and task.kind != "embedding":
        teacher = read_teacher(base, task, teachers)
    dev = encode_rows(task.dev, base.encoder, task.labels, task.template)
    return Member(task, train, dev, pooling_of(task.kind, PACK_DEFAULTS), teacher)


def member_config(task: Task, config: TrainConfig) -> TrainConfig:
    """The options as they are for one task: tags read each word by itself."""
    if task.kind == "embedding":
        return replace(config, head_levels=0, head_pooling=MEAN)
    if task.kind not in POOLED_KINDS:
        return replace(config, head_pooling=MEAN)
    return config


def member_head(base: FrozenBase, task: Task, config: TrainConfig) -> Head | None:
    """The starting head of a task; None for embedding."""
    if task.kind == "embedding":
        return None
    return starting_head(base, task, member_config(task, config))


def require_levels(base: FrozenBase, task: Task, config: TrainConfig) -> None:
    """Refuse a base that does not give the levels which class vectors are to read.

    Raises:
        Unsupported: The graph of a bundle that gives the last level alone.
    """
    if config.head_levels:
        batch = collate([base.encoder.encode(task.name)], base.device)
        with torch.no_grad():
            base.levels(batch, [])


def epoch_batches(
    members: Sequence[Member], config: TrainConfig, epoch: int
) -> list[tuple[int, list[int]]]:
    """Task and row indices of every step of an epoch, the tasks mixed."""
    seed = config.seed * _SEED_STRIDE + epoch
    found: list[tuple[int, list[int]]] = []
    for index, steps in enumerate(shared_out(members, config.batch_size)):
        stream = _endless(members[index].train, config.batch_size, (seed, index))
        found += [(index, next(stream)) for _ in range(steps)]
    order = np.random.default_rng((seed, len(members))).permutation(len(found))
    return [found[int(place)] for place in order]


def _endless(
    examples: list[Example], batch_size: int, seed: tuple[int, int]
) -> Iterator[list[int]]:
    """Batches of a task, pass after pass, each in an order of its own."""
    random = np.random.default_rng(seed)
    while True:
        yield from batches_of(examples, batch_size, int(random.integers(2**31)))


def pack_identity(
    base: FrozenBase, members: Sequence[Member], config: TrainConfig
) -> dict[str, object]:
    """What makes a run what it is: options, base, and every task's data in order."""
    found: dict[str, object] = {"tasks": [member.task.name for member in members]}
    # Its best epoch was judged with them.
    found["class vectors"] = "int4"
    options = {*asdict(config), "base", "tokenizer"}
    for member in members:
        for key, value in run_identity(base, member.task, config).items():
            found[key if key in options else f"{member.task.name} {key}"] = value
        digest = "" if member.teacher is None else member.teacher.digest
        found[f"{member.task.name} teacher"] = digest
    return found
