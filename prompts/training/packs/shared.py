"""Training of a pack: many tasks at once on one frozen base, one shared prompt.

Multitask prompt tuning (Wang et al. 2023, arXiv:2303.02861), without its first stage of
prompts trained alone: all start from the shared prompt, and blobs that were trained
alone may be teachers (teachers.py).

Sizes on MiniLM (L 6, W 384) in bytes, of the 102,400 that a pack may have. A shared
row takes 388 as a row of the input, 4,632 as keys and values; a task's mix of values
12 P + 6 P * P, its mix and width of input rows 386 + 2 P + P * P; a class vector in
int4 with its bias 200 of one level, and 192 for each level more; a query 386. Twelve
tasks of 55 classes, without the header, which takes 5,000 and more:

    deep, P 5, four levels with queries      88,232   (the default)
    deep, P 12, one level without queries    78,680
    soft, P 16, four levels with queries     76,848

Class vectors are in int4 in the last steps of training (`rounded`), as the pack holds
them: what int8 would take more goes to levels. The blobs that come out have them in
int8: some 45 classes of four levels fit in one, 90 of two.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from promptdial.prompts.errors import DataInvalid, UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import (
    collate,
    target_tensor,
)
from promptdial.prompts.training.checkpoint import (
    Checkpoint,
    load,
    save,
)
from promptdial.prompts.training.config import TrainConfig, peak_rate
from promptdial.prompts.training.diagnostics import Finding
from promptdial.prompts.training.heads import Head, read
from promptdial.prompts.training.idle_options import idle_findings
from promptdial.prompts.training.initialise import prompt_rows
from promptdial.prompts.training.mask_check import mask_findings
from promptdial.prompts.training.packs.shared_members import (
    Member,
    epoch_batches,
    make_member,
    member_head,
    pack_identity,
    require_levels,
    require_shareable,
    shared_out,
)
from promptdial.prompts.training.packs.shared_prompt import SharedPrompt, start_of
from promptdial.prompts.training.packs.teachers import (
    TEACHER_WEIGHT,
    soft_loss,
)
from promptdial.prompts.training.progress import Progress
from promptdial.prompts.training.scoring import Reader, score
from promptdial.prompts.training.step import batch_loss, is_rounded, make_schedule
from promptdial.prompts.training.storage import EXACT, IN_PACKS, Storage
from promptdial.prompts.training.task import Task

FACTOR_RATES = {"prompt": 10.0, "prefix": 1.0}
"""Rate of the factors over that of the shared rows: factors are of the size of keys and
values, and ten times as large as embedding rows."""


@dataclass(frozen=True)
class SharedResult:
    """A finished run.

    Attributes:
        base: The frozen model.
        members: The tasks.
        prompt: Shared prompt and factors of the best epoch.
        heads: Class vectors by task; None for embedding.
        dev_metrics: Dev metric of each task in that epoch, percent.
        epochs: Epochs that were run.
        losses: Mean loss of each epoch.
        distances: Of each task, length of its prompt's move over that of its start.
        warnings: Known failures that the run shows.
        seconds: Wall time.
    """

    base: FrozenBase
    members: list[Member]
    prompt: SharedPrompt
    heads: list[Head | None]
    dev_metrics: list[float]
    epochs: int
    losses: list[float]
    distances: list[float]
    warnings: list[Finding]
    seconds: float


@dataclass
class _Run:
    """What changes while a run goes on."""

    prompt: SharedPrompt
    heads: list[Head | None]
    best_metric: float = -1.0
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)

    def modules(self) -> nn.ModuleDict:
        heads = {f"head{i}": head for i, head in enumerate(self.heads) if head}
        return nn.ModuleDict({"prompt": self.prompt, **heads})

    def keep_best(self, metric: float, epoch: int) -> None:
        """The whole at once: factors fit the shared prompt of their own epoch only."""
        if metric > self.best_metric:
            self.best_metric, self.best_epoch = metric, epoch
            state = self.modules().state_dict()
            self.best = {key: value.detach().clone() for key, value in state.items()}


def train_shared(
    base: FrozenBase,
    tasks: Sequence[Task],
    config: TrainConfig,
    checkpoint: Path | None = None,
    teachers: Path | None = None,
) -> SharedResult:
    """Train all tasks of a pack jointly; the epoch of the best mean dev metric stays.

    Args:
        base: The frozen model.
        tasks: Those of the pack; their names must differ.
        config: Options; `init` must not be `labels`, which are of one task.
        checkpoint: File to keep the state in after every epoch; None for none.
        teachers: Folder with a blob of each task that was trained alone, whose answers
            are learned beside the labels; None for labels alone.

    Raises:
        PromptError: A teacher cannot be read.
        DataInvalid: The loss is not finite.
        NoPrefix: Method `prefix` on a base that takes none.
        Unsupported: Class vectors are to read levels that a bundle's graph lacks.
        UsageError: The tasks, the options or the checkpoint do not fit.
    """
    require_shareable(tasks, config)
    started = time.monotonic()
    torch.manual_seed(config.seed)
    require_levels(base, tasks[0], config)
    members = [make_member(base, task, teachers) for task in tasks]
    rows = prompt_rows(base, tasks[0], config)
    warnings = mask_findings(base, members[0].train, rows)
    if all(member.task.kind != "embedding" for member in members):
        warnings += idle_findings(config, members[0].task.kind)
    start = start_of(config.method, base, rows)
    prompt = SharedPrompt(start, len(tasks), base.dims.kv_heads).to(base.device)
    before = [prompt.flat(index) for index in range(len(tasks))]
    run = _Run(prompt, [member_head(base, task, config) for task in tasks])
    _loop(base, members, config, run, checkpoint)
    run.modules().load_state_dict(run.best)
    moved = [
        float((prompt.flat(index) - start).norm() / start.norm())
        for index, start in enumerate(before)
    ]
    return SharedResult(
        base=base,
        members=members,
        prompt=prompt,
        heads=run.heads,
        dev_metrics=_dev_metrics(base, members, run),
        epochs=len(run.losses),
        losses=run.losses,
        distances=moved,
        warnings=warnings,
        seconds=time.monotonic() - started,
    )


def _optimiser(run: _Run, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; factors and heads of other tasks have no gradient in a step, and rest."""
    heads = [head for head in run.heads if head]
    vectors = [item for head in heads for item in (head.weight, head.bias)]
    reading = [item for head in heads for item in (head.mix, head.query)]
    return torch.optim.AdamW(
        [
            {
                "params": list(run.prompt.shared.parameters()),
                "lr": peak_rate(config),
                "weight_decay": 0.0,
            },
            {
                "params": list(run.prompt.tasks.parameters()),
                "lr": peak_rate(config) * FACTOR_RATES[config.method],
                "weight_decay": 0.0,
            },
            {
                "params": vectors,
                "lr": config.head_learning_rate,
                "weight_decay": config.weight_decay,
            },
            {
                # No decay, as in step.py.
                "params": [item for item in reading if item is not None],
                "lr": config.head_learning_rate,
                "weight_decay": 0.0,
            },
        ]
    )


def _loop(
    base: FrozenBase,
    members: list[Member],
    config: TrainConfig,
    run: _Run,
    checkpoint: Path | None,
) -> None:
    """All epochs, from a checkpoint on where the configuration says so."""
    optimiser = _optimiser(run, config)
    steps = sum(shared_out(members, config.batch_size))
    schedule = make_schedule(optimiser, steps * config.epochs, config.warmup)
    first, identity = 0, pack_identity(base, members, config)
    if config.resume and checkpoint is not None and checkpoint.exists():
        state = load(checkpoint, identity)
        if state.current.keys() != run.modules().state_dict().keys():
            raise UsageError(
                f"{checkpoint} is of a version that trained other parameters",
                "start again without --resume",
            )
        run.modules().load_state_dict(state.current)
        state.restore(optimiser, schedule)
        run.best, run.best_metric = state.best, state.best_metric
        run.best_epoch, run.losses = state.best_epoch, state.losses
        first = state.epoch
    if not config.epochs:
        metrics = _dev_metrics(base, members, run)
        run.keep_best(sum(metrics) / len(metrics), 0)
    with Progress(steps * config.epochs, "pack", first * steps) as progress:
        for epoch in range(first, config.epochs):
            if epoch - run.best_epoch > config.patience and run.best:
                break
            losses = []
            for place, (index, indices) in enumerate(
                epoch_batches(members, config, epoch), epoch * steps
            ):
                rounded = is_rounded(config, place, config.epochs * steps)
                storage = IN_PACKS if rounded else EXACT
                loss = _step(base, members[index], config, run, index, indices, storage)
                optimiser.step()
                schedule.step()
                losses.append(loss)
                progress.step()
            run.losses.append(sum(losses) / len(losses))
            metrics = _dev_metrics(base, members, run)
            run.keep_best(sum(metrics) / len(metrics), epoch)
            progress.say(_line(config, epoch, run, members, metrics))
            if checkpoint is not None:
                save(
                    checkpoint,
                    identity,
                    Checkpoint(
                        epoch=epoch + 1,
                        current=run.modules().state_dict(),
                        best=run.best,
                        best_metric=run.best_metric,
                        best_epoch=run.best_epoch,
                        losses=run.losses,
                        optimiser=optimiser.state_dict(),
                        schedule=schedule.state_dict(),
                    ),
                )


def _step(
    base: FrozenBase,
    member: Member,
    config: TrainConfig,
    run: _Run,
    index: int,
    indices: list[int],
    storage: Storage,
) -> float:
    """Loss and gradients of one batch of one task, with class vectors as stored."""
    run.modules().zero_grad()
    head = run.heads[index]
    chosen = [member.train[place] for place in indices]
    state = run.prompt.state(index, base)
    if member.teacher is None or head is None:
        loss = batch_loss(base, config, state, head, chosen, member.pooling, storage)
    else:
        soft = [member.teacher.logits[place] for place in indices]
        batch = collate([example.text for example in chosen], base.device)
        logits = head(read(base, batch, state, member.pooling, head), storage)
        targets = target_tensor(chosen, base.device)
        hard = nn.functional.cross_entropy(
            logits, targets, label_smoothing=config.label_smoothing
        )
        loss = (1 - TEACHER_WEIGHT) * hard + TEACHER_WEIGHT * soft_loss(logits, soft)
    if not torch.isfinite(loss):
        raise DataInvalid(
            f"the loss of {member.task.name!r} is {float(loss)}", "lower learning_rate"
        )
    loss.backward()  # type: ignore[no-untyped-call]
    for part in (run.prompt.shared, run.prompt.tasks[index], head):
        if part is not None:
            nn.utils.clip_grad_norm_(list(part.parameters()), config.max_grad_norm)
    return float(loss.detach())


def _dev_metrics(base: FrozenBase, members: Sequence[Member], run: _Run) -> list[float]:
    """Dev metric of each task, percent, with class vectors as a pack stores them."""
    found = []
    for index, member in enumerate(members):
        with torch.no_grad():
            state = run.prompt.state(index, base)
            own = run.heads[index]
            head = None if own is None else own.stored(IN_PACKS)
        task = member.task
        reader = Reader(base, state, head, task.kind, member.pooling, task.labels)
        found.append(score(reader, task.dev, member.dev))
    return found


def _line(
    config: TrainConfig,
    epoch: int,
    run: _Run,
    members: Sequence[Member],
    metrics: list[float],
) -> str:
    shown = " ".join(
        f"{member.task.name} {metric:.1f}"
        for member, metric in zip(members, metrics, strict=True)
    )
    return (
        f"epoch {epoch + 1}/{config.epochs} loss {run.losses[-1]:.4f} "
        f"dev {sum(metrics) / len(metrics):.2f} best {run.best_metric:.2f} ({shown})"
    )
