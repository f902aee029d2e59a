"""The training loop: one frozen base, one task, virtual tokens and class vectors."""

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from promptdial.export.forward import PromptState
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import Example, batches_of
from promptdial.prompts.training.checkpoint import load, run_identity, save
from promptdial.prompts.training.config import MEAN, TrainConfig
from promptdial.prompts.training.diagnostics import RunFacts, run_findings
from promptdial.prompts.training.heads import Head, pooling_of
from promptdial.prompts.training.idle_options import idle_findings, require_labels
from promptdial.prompts.training.initialise import (
    prompt_rows,
    starting_head,
    starting_prompt,
)
from promptdial.prompts.training.mask_check import mask_findings
from promptdial.prompts.training.parameters import Prompt, flat
from promptdial.prompts.training.progress import Progress
from promptdial.prompts.training.range_check import range_findings
from promptdial.prompts.training.result import TrainResult
from promptdial.prompts.training.run_state import RunState
from promptdial.prompts.training.scoring import Reader, score
from promptdial.prompts.training.start import Start, prepare, probe_over
from promptdial.prompts.training.step import (
    batch_loss,
    make_optimiser,
    storage_of,
    take_step,
)
from promptdial.prompts.training.storage import Storage
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.units import answer_facts
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
class _Run:
    """A prompt and a head in training."""

    prompt: Prompt
    head: Head | None
    state: RunState


def _run(prompt: Prompt, head: Head | None) -> _Run:
    parts: dict[str, nn.Module] = {"prompt": prompt}
    if head is not None:
        parts["head"] = head
    return _Run(prompt, head, RunState(nn.ModuleDict(parts)))


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
        UsageError: The start or the checkpoint does not fit; or a probe of embeddings.
    """
    started = time.monotonic()
    require_labels(task, config)
    torch.manual_seed(config.seed)
    start = start or prepare(base, task, config)
    pooling = start.reader.pooling
    if pooling != pooling_of(task.kind, config):
        raise UsageError(
            f"pairs is {config.pairs!r}, the start reads by {pooling}",
            "prepare the task with the options that it is trained with",
        )
    job = _Job(base, task, config, start.train, start.dev, pooling)
    prompt = starting_prompt(base, task, config)
    rows = prompt_rows(base, task, config)
    warnings = mask_findings(base, job.train, rows) + start.warnings
    warnings += idle_findings(config, task.kind)
    head = None if start.reader.head is None else starting_head(base, task, config)
    opening = job.reader([], head)
    probe, probe_metric = start.probe, start.probe_metric
    before = flat(prompt)
    if config.method == "probe":
        usual = config.head_levels == 0 and config.head_pooling == MEAN
        own = probe if usual else probe_over(start, opening, config.seed)
        run = _run(prompt, own.head)
        run.state.keep_best(job.dev_metric(job.stored_reader(run)), 0)
    else:
        run = _run(prompt, _starting_head(job, start, opening, prompt))
        _loop(job, run, checkpoint)
        run.state.back_to_best()
    reader = job.stored_reader(run)
    facts = _facts(job, run, reader, before, start)
    outside = range_findings(base, run.prompt, Storage(config.precision))
    return TrainResult(
        reader=reader,
        prompt=run.prompt,
        dev_metric=run.state.best_metric,
        zero_shot=start.zero_shot,
        probe=probe_metric,
        probe_reader=probe,
        epochs=len(run.state.losses),
        losses=run.state.losses,
        dev_metrics=run.state.dev_metrics,
        facts=facts,
        warnings=warnings + run_findings(facts) + outside,
        seconds=time.monotonic() - started,
    )


def _starting_head(
    job: _Job, start: Start, opening: Reader, prompt: Prompt
) -> Head | None:
    if opening.head is None or job.config.head_init != "probe":
        return opening.head
    with torch.no_grad():
        state = prompt.state(job.base)
    return probe_over(start, replace(opening, state=state), job.config.seed).head


def _facts(
    job: _Job, run: _Run, reader: Reader, before: Tensor, start: Start
) -> RunFacts:
    moved = 0.0
    if len(before):
        moved = float((flat(run.prompt) - before).norm() / before.norm())
    steps = len(run.state.losses) * math.ceil(len(job.train) / job.config.batch_size)
    truncated = sum(example.text.truncated for example in job.train)
    changed, labels = answer_facts(job.task, job.dev, reader, start.probe_answers)
    return RunFacts(
        method=job.config.method,
        distance=moved,
        answers_changed=changed,
        truncated_share=truncated / max(1, len(job.train)),
        cut_share=run.state.cut_steps / max(1, steps),
        losses=tuple(run.state.losses),
        dev_metrics=tuple(run.state.dev_metrics),
        dev_metric=run.state.best_metric,
        probe=None if labels is None else start.probe_metric,
        classes=len(job.task.labels),
        labels=labels,
    )


def _loop(job: _Job, run: _Run, checkpoint: Path | None) -> None:
    """All epochs, from a checkpoint on where the configuration says so."""
    config = job.config
    optimiser, schedule = make_optimiser(run.prompt, run.head, config, len(job.train))
    first, identity = 0, run_identity(job.base, job.task, config)
    if config.resume and checkpoint is not None and checkpoint.exists():
        kept = load(checkpoint, identity)
        first = run.state.resume(kept, optimiser, schedule)
    if not config.epochs:
        run.state.keep_best(job.dev_metric(job.stored_reader(run)), 0)
    steps = math.ceil(len(job.train) / config.batch_size)
    until = time.monotonic() + (config.max_seconds or math.inf)
    with Progress(steps * config.epochs, job.task.name, first * steps) as progress:
        for epoch in range(first, config.epochs):
            if epoch - run.state.best_epoch > config.patience and run.state.best:
                break
            began = time.monotonic()
            run.state.losses.append(
                _epoch(job, run, epoch, optimiser, schedule, progress)
            )
            metric = job.dev_metric(job.stored_reader(run))
            run.state.dev_metrics.append(metric)
            run.state.keep_best(metric, epoch)
            progress.say(
                f"epoch {epoch + 1}/{config.epochs} loss {run.state.losses[-1]:.4f} "
                f"dev {metric:.2f} best {run.state.best_metric:.2f}"
            )
            if checkpoint is not None:
                kept = run.state.checkpoint(epoch, optimiser, schedule)
                save(checkpoint, identity, kept)
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
    words = np.random.default_rng(seed)
    for done, indices in enumerate(batches, epoch * len(batches)):
        chosen = [job.train[index] for index in indices]
        chosen = without_words(chosen, config.word_dropout, words)
        storage = storage_of(config, done, config.epochs * len(batches))
        state = run.prompt.state(job.base, storage)
        loss = batch_loss(
            job.base, config, state, run.head, chosen, job.pooling, storage
        )
        cut = take_step(loss, job.base, run.prompt, run.head, optimiser, config)
        run.state.cut_steps += int(cut)
        schedule.step()
        losses.append(float(loss.detach()))
        progress.step()
    return sum(losses) / len(losses)
