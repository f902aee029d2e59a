"""The training loop: one frozen base, one task, virtual tokens and class vectors."""

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
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
from promptdial.prompts.training.diagnostics import (
    RunFacts,
    mask_findings,
    run_findings,
)
from promptdial.prompts.training.heads import POOLING_OF_KIND, Head
from promptdial.prompts.training.initialise import class_vectors, prompt_rows
from promptdial.prompts.training.parameters import Prompt, flat, make_prompt
from promptdial.prompts.training.probe import extract, fit_probe
from promptdial.prompts.training.progress import Progress
from promptdial.prompts.training.result import TrainResult
from promptdial.prompts.training.scoring import (
    Reader,
    labels_of,
    logits_of,
    score,
    tags_of,
)
from promptdial.prompts.training.step import batch_loss, make_optimiser, take_step
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.word_dropout import without_words


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
    head = None
    if task.kind != "embedding":
        head = Head(class_vectors(base, task, config.head_scale)).to(base.device)
    reader = job.reader([], head)
    probe = reader if head is None else _probe(job, reader)
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
    rows = prompt_rows(base, task, config)
    warnings = mask_findings(base, job.train, rows)
    probe, probe_metric = start.probe, start.probe_metric

    prompt = make_prompt(config.method, base, rows).to(base.device)
    before = flat(prompt)
    if config.method == "probe":
        run = _Run(prompt, probe.head)
        run.keep_best(probe_metric, 0)
    else:
        run = _Run(prompt, _starting_head(job, start.reader, prompt))
        _loop(job, run, checkpoint)
        run.modules().load_state_dict(run.best)
    with torch.no_grad():
        reader = job.reader(run.prompt.state(base), run.head)
    facts = _facts(
        job, run, reader, before, None if probe.head is None else probe_metric
    )
    return TrainResult(
        reader=reader,
        prompt=run.prompt,
        dev_metric=run.best_metric,
        zero_shot=start.zero_shot,
        probe=probe_metric,
        probe_reader=probe,
        epochs=len(run.losses),
        losses=run.losses,
        facts=facts,
        warnings=warnings + run_findings(facts),
        seconds=time.monotonic() - started,
    )


def _probe(job: _Job, reader: Reader) -> Reader:
    """The reader with a linear probe over its own features as its head."""
    trained = extract(job.base, job.train, job.pooling, reader.state)
    chosen = extract(job.base, job.dev, job.pooling, reader.state)
    head, _ = fit_probe(trained, chosen, len(job.task.labels))
    return replace(reader, head=head)


def _starting_head(job: _Job, start: Reader, prompt: Prompt) -> Head | None:
    if start.head is None:
        return None
    if job.config.head_init == "labels":
        # A copy: other runs begin with the same vectors.
        return Head(start.head.weight, start.head.bias)
    with torch.no_grad():
        state = prompt.state(job.base)
    return _probe(job, replace(start, state=state)).head


def _facts(
    job: _Job, run: _Run, reader: Reader, before: Tensor, probe: float | None
) -> RunFacts:
    moved = 0.0
    if len(before):
        moved = float((flat(run.prompt) - before).norm() / before.norm())
    return RunFacts(
        method=job.config.method,
        distance=moved,
        answers_changed=_answers_changed(reader, job.dev) if reader.state else 0.0,
        truncated_share=_mean([example.text.truncated for example in job.train]),
        first_loss=run.losses[0] if run.losses else 0.0,
        last_loss=run.losses[-1] if run.losses else 0.0,
        dev_metric=run.best_metric,
        probe=probe,
    )


def _loop(job: _Job, run: _Run, checkpoint: Path | None) -> None:
    """All epochs, from a checkpoint on where the configuration says so."""
    config = job.config
    optimiser, schedule = make_optimiser(run.prompt, run.head, config, len(job.train))
    first, identity = 0, run_identity(job.base, job.task, config)
    if config.resume and checkpoint is not None and checkpoint.exists():
        first = _resume(run, load(checkpoint, identity), optimiser, schedule)
    steps = math.ceil(len(job.train) / config.batch_size)
    until = time.monotonic() + (config.max_seconds or math.inf)
    with Progress(steps * config.epochs, job.task.name, first * steps) as progress:
        for epoch in range(first, config.epochs):
            if epoch - run.best_epoch > config.patience and run.best:
                break
            began = time.monotonic()
            run.losses.append(_epoch(job, run, epoch, optimiser, schedule, progress))
            with torch.no_grad():
                state = run.prompt.state(job.base)
            metric = job.dev_metric(job.reader(state, run.head))
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
    words = np.random.default_rng(seed)
    for indices in batches_of(job.train, config.batch_size, seed):
        chosen = [job.train[index] for index in indices]
        chosen = without_words(chosen, config.word_dropout, words)
        loss = batch_loss(job.base, config, run.prompt, run.head, chosen, job.pooling)
        take_step(loss, run.prompt, run.head, optimiser, config)
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
        optimiser=optimiser.state_dict(),
        schedule=schedule.state_dict(),
    )


def _answers_changed(reader: Reader, dev: list[Example]) -> float:
    """Share of dev answers that differ when the prompt is taken away."""
    bare = Reader(
        reader.base, [], reader.head, reader.kind, reader.pooling, reader.labels
    )
    if reader.kind == "token":
        pairs = zip(tags_of(reader, dev), tags_of(bare, dev), strict=True)
        return _mean([one != two for one, two in pairs])
    if reader.kind == "embedding":
        with_prompt = torch.stack(logits_of(reader, dev))
        without = torch.stack(logits_of(bare, dev))
        return _mean([(with_prompt - without).abs().max().item() > 1e-3])
    pairs_ = zip(labels_of(reader, dev), labels_of(bare, dev), strict=True)
    return _mean([one != two for one, two in pairs_])


def _mean(values: list[bool]) -> float:
    return sum(values) / max(1, len(values))
