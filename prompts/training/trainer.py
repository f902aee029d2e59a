"""The training loop: one frozen base, one task, virtual tokens and class vectors."""

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from promptdial.export.forward import PromptState
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import (
    Example,
    batches_of,
    encode_rows,
)
from promptdial.prompts.training.checkpoint import (
    Checkpoint,
    load,
    run_identity,
    save,
)
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.diagnostics import RunFacts, run_findings
from promptdial.prompts.training.heads import POOLING_OF_KIND, Head
from promptdial.prompts.training.initialise import (
    prompt_rows,
    starting_head,
    starting_prompt,
)
from promptdial.prompts.training.mask_check import mask_findings
from promptdial.prompts.training.parameters import Prompt, flat
from promptdial.prompts.training.probe import extract, fit_probe
from promptdial.prompts.training.progress import Progress
from promptdial.prompts.training.result import TrainResult
from promptdial.prompts.training.scoring import Reader, score, share_changed
from promptdial.prompts.training.step import (
    batch_loss,
    make_optimiser,
    storage_of,
    take_step,
)
from promptdial.prompts.training.storage import Storage
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.units import label_facts


@dataclass(frozen=True)
class _Job:
    """What a run works on and never changes."""

    base: FrozenBase
    task: Task
    config: TrainConfig
    train: list[Example]
    dev: list[Example]
    pooling: str

    def reader(self, state: PromptState, head: Head | None) -> Reader:
        task = self.task
        return Reader(self.base, state, head, task.kind, self.pooling, task.labels)

    def stored_reader(self, run: "_Run") -> Reader:
        """What reads with the numbers that a blob of the run would hold now."""
        storage = Storage(self.config.precision)
        with torch.no_grad():
            state = run.prompt.state(self.base, storage)
            head = None if run.head is None else run.head.stored(storage)
        return self.reader(state, head)

    def dev_metric(self, reader: Reader) -> float:
        return score(reader, self.task.dev, self.dev)


@dataclass(frozen=True)
class Start:
    """What runs of one task on one base have in common, whatever their options.

    Attributes:
        train: Encoded training rows.
        dev: Encoded dev rows.
        reader: Class vectors from label names, no prompt.
        zero_shot: Its dev metric, percent.
        probe: The linear probe; of no use for embedding tasks.
        probe_metric: Its dev metric, percent.
    """

    train: list[Example]
    dev: list[Example]
    reader: Reader
    zero_shot: float
    probe: Reader
    probe_metric: float


@dataclass
class _Run:
    """What changes while a run goes on."""

    prompt: Prompt
    head: Head | None
    best_metric: float = -1.0
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    dev_metrics: list[float] = field(default_factory=list)
    cut_steps: int = 0

    def modules(self) -> nn.ModuleDict:
        parts: dict[str, nn.Module] = {"prompt": self.prompt}
        if self.head is not None:
            parts["head"] = self.head
        return nn.ModuleDict(parts)

    def keep_best(self, metric: float, epoch: int) -> None:
        if metric > self.best_metric:
            self.best_metric, self.best_epoch = metric, epoch
            state = self.modules().state_dict()
            self.best = {key: value.detach().clone() for key, value in state.items()}


def prepare(base: FrozenBase, task: Task, config: TrainConfig) -> Start:
    """Encode the rows, and fit the probe on the features without a prompt."""
    job = _Job(
        base=base,
        task=task,
        config=config,
        train=encode_rows(task.train, base.encoder, task.labels, task.template),
        dev=encode_rows(task.dev, base.encoder, task.labels, task.template),
        pooling=POOLING_OF_KIND[task.kind],
    )
    plain = None
    if task.kind != "embedding":
        # What a prompt is measured against reads the last level, as probes do.
        named = replace(config, head_levels=0, head_init="labels")
        plain = starting_head(base, task, named)
    reader = job.reader([], plain)
    probe = reader if plain is None else _probe(job, reader)
    zero_shot, probe_metric = job.dev_metric(reader), job.dev_metric(probe)
    return Start(job.train, job.dev, reader, zero_shot, probe, probe_metric)


def train(
    base: FrozenBase,
    task: Task,
    config: TrainConfig,
    checkpoint: Path | None = None,
    start: Start | None = None,
) -> TrainResult:
    """Train one prompt.

    Args:
        base: The frozen model.
        task: Rows and labels.
        config: Options.
        checkpoint: File to keep the state in after every epoch; None for none.
        start: What `prepare` made of the same task; None to make it here.

    Raises:
        DataInvalid: The loss is not finite, or no row is usable.
        UsageError: The start or the checkpoint does not fit.
    """
    started = time.monotonic()
    torch.manual_seed(config.seed)
    start = start or prepare(base, task, config)
    pooling = start.reader.pooling
    job = _Job(base, task, config, start.train, start.dev, pooling)
    prompt = starting_prompt(base, task, config)
    warnings = mask_findings(base, job.train, prompt_rows(base, task, config))
    head = None if start.reader.head is None else starting_head(base, task, config)
    opening = job.reader([], head)
    probe, probe_metric = start.probe, start.probe_metric
    before = flat(prompt)
    if config.method == "probe":
        own = _probe(job, opening) if config.head_levels else probe
        run = _Run(prompt, own.head)
        run.keep_best(job.dev_metric(own), 0)
    else:
        run = _Run(prompt, _starting_head(job, opening, prompt))
        _loop(job, run, checkpoint)
        run.modules().load_state_dict(run.best)
    reader = job.stored_reader(run)
    facts = _facts(job, run, reader, before, None if head is None else probe)
    return TrainResult(
        reader=reader,
        prompt=run.prompt,
        dev_metric=run.best_metric,
        zero_shot=start.zero_shot,
        probe=probe_metric,
        probe_reader=probe,
        epochs=len(run.losses),
        losses=run.losses,
        dev_metrics=run.dev_metrics,
        facts=facts,
        warnings=warnings + run_findings(facts),
        seconds=time.monotonic() - started,
    )


def _probe(job: _Job, reader: Reader) -> Reader:
    """The reader with a linear probe over its own features as its head."""
    mix = reader.head.mix if reader.head else None
    trained = extract(job.base, job.train, job.pooling, reader.state, mix)
    chosen = extract(job.base, job.dev, job.pooling, reader.state, mix)
    head, _ = fit_probe(trained, chosen, len(job.task.labels))
    return replace(reader, head=Head(head.weight, head.bias, mix))


def _starting_head(job: _Job, start: Reader, prompt: Prompt) -> Head | None:
    if start.head is None or job.config.head_init != "probe":
        return start.head
    with torch.no_grad():
        state = prompt.state(job.base)
    return _probe(job, replace(start, state=state)).head


def _facts(
    job: _Job, run: _Run, reader: Reader, before: Tensor, probe: Reader | None
) -> RunFacts:
    moved = 0.0
    if len(before):
        moved = float((flat(run.prompt) - before).norm() / before.norm())
    steps = len(run.losses) * math.ceil(len(job.train) / job.config.batch_size)
    return RunFacts(
        method=job.config.method,
        distance=moved,
        answers_changed=share_changed(reader, job.dev) if reader.state else 0.0,
        truncated_share=_mean([example.text.truncated for example in job.train]),
        cut_share=run.cut_steps / max(1, steps),
        losses=tuple(run.losses),
        dev_metrics=tuple(run.dev_metrics),
        dev_metric=run.best_metric,
        probe=None if probe is None else job.dev_metric(probe),
        classes=len(job.task.labels),
        labels=None if probe is None else label_facts(job.task, job.dev, reader, probe),
    )


def _loop(job: _Job, run: _Run, checkpoint: Path | None) -> None:
    """All epochs, from a checkpoint on where the configuration says so."""
    config = job.config
    optimiser, schedule = make_optimiser(run.prompt, run.head, config, len(job.train))
    first, identity = 0, run_identity(job.base, job.task, config)
    if config.resume and checkpoint is not None and checkpoint.exists():
        first = _resume(run, load(checkpoint, identity), optimiser, schedule)
    if not config.epochs:
        run.keep_best(job.dev_metric(job.stored_reader(run)), 0)
    steps = math.ceil(len(job.train) / config.batch_size)
    until = time.monotonic() + (config.max_seconds or math.inf)
    with Progress(steps * config.epochs, job.task.name, first * steps) as progress:
        for epoch in range(first, config.epochs):
            if epoch - run.best_epoch > config.patience and run.best:
                break
            began = time.monotonic()
            run.losses.append(_epoch(job, run, epoch, optimiser, schedule, progress))
            metric = job.dev_metric(job.stored_reader(run))
            run.dev_metrics.append(metric)
            run.keep_best(metric, epoch)
            progress.say(
                f"epoch {epoch + 1}/{config.epochs} loss {run.losses[-1]:.4f} "
                f"dev {metric:.2f} best {run.best_metric:.2f}"
            )
            if checkpoint is not None:
                save(checkpoint, identity, _state(run, epoch, optimiser, schedule))
            now = time.monotonic()
            if now + (now - began) > until:
                progress.say("stopped: another epoch would pass max_seconds")
                break


def _epoch(
    job: _Job,
    run: _Run,
    epoch: int,
    optimiser: torch.optim.AdamW,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    progress: Progress,
) -> float:
    """One pass over the training rows; its mean loss."""
    config = job.config
    # A seed an epoch, so that a resumed run sees the order it would have seen.
    seed = config.seed * 1_000_003 + epoch
    losses = []
    batches = list(batches_of(job.train, config.batch_size, seed))
    for done, indices in enumerate(batches, epoch * len(batches)):
        chosen = [job.train[index] for index in indices]
        storage = storage_of(config, done, config.epochs * len(batches))
        state = run.prompt.state(job.base, storage)
        loss = batch_loss(
            job.base, config, state, run.head, chosen, job.pooling, storage
        )
        cut = take_step(loss, run.prompt, run.head, optimiser, config)
        run.cut_steps += int(cut)
        schedule.step()
        losses.append(float(loss.detach()))
        progress.step()
    return sum(losses) / len(losses)


def _resume(
    run: _Run,
    state: Checkpoint,
    optimiser: torch.optim.AdamW,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> int:
    """Put a run where its checkpoint left it; the epochs that are done."""
    run.modules().load_state_dict(state.current)
    state.restore(optimiser, schedule)
    run.best, run.best_metric = state.best, state.best_metric
    run.best_epoch, run.losses = state.best_epoch, state.losses
    run.dev_metrics, run.cut_steps = state.dev_metrics, state.cut_steps
    return state.epoch


def _state(
    run: _Run,
    epoch: int,
    optimiser: torch.optim.AdamW,
    schedule: torch.optim.lr_scheduler.LambdaLR,
) -> Checkpoint:
    return Checkpoint(
        epoch=epoch + 1,
        current=run.modules().state_dict(),
        best=run.best,
        best_metric=run.best_metric,
        best_epoch=run.best_epoch,
        losses=run.losses,
        dev_metrics=run.dev_metrics,
        cut_steps=run.cut_steps,
        optimiser=optimiser.state_dict(),
        schedule=schedule.state_dict(),
    )


def _mean(values: list[bool]) -> float:
    return sum(values) / max(1, len(values))
