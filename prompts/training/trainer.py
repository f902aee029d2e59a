"""The training loop: one frozen base, one task, virtual tokens and class vectors."""

import math
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import (
    Example,
    batches_of,
    collate,
    encode_rows,
    target_tensor,
)
from promptdial.prompts.training.checkpoint import Checkpoint, load, save
from promptdial.prompts.training.config import TrainConfig, peak_rate
from promptdial.prompts.training.diagnostics import (
    Finding,
    RunFacts,
    mask_findings,
    run_findings,
)
from promptdial.prompts.training.heads import POOLING_OF_KIND, Head, features
from promptdial.prompts.training.initialise import class_vectors, prompt_rows
from promptdial.prompts.training.parameters import Prompt, flat, make_prompt
from promptdial.prompts.training.probe import extract, fit_probe
from promptdial.prompts.training.progress import Progress
from promptdial.prompts.training.scoring import (
    Reader,
    labels_of,
    logits_of,
    score,
    tags_of,
)
from promptdial.prompts.training.task import Task


@dataclass(frozen=True)
class TrainResult:
    """A finished run.

    Attributes:
        reader: The trained prompt and head on the base.
        prompt: The trained virtual tokens.
        dev_metric: Best dev metric, percent.
        zero_shot: Dev metric of the starting class vectors without a prompt, percent.
        probe: Dev metric of the linear probe, percent.
        probe_reader: The probe itself; of no use for embedding tasks.
        epochs: Epochs that were run.
        losses: Mean loss of each epoch.
        facts: What the diagnostics looked at.
        warnings: What they found.
        seconds: Wall time.
    """

    reader: Reader
    prompt: Prompt
    dev_metric: float
    zero_shot: float
    probe: float
    probe_reader: Reader
    epochs: int
    losses: list[float]
    facts: RunFacts
    warnings: list[Finding]
    seconds: float


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


def train(
    base: FrozenBase, task: Task, config: TrainConfig, checkpoint: Path | None = None
) -> TrainResult:
    """Train one prompt.

    Args:
        base: The frozen model.
        task: Rows and labels.
        config: Options.
        checkpoint: File to keep the state in after every epoch; None for none.

    Raises:
        DataInvalid: The loss is not finite, or no row is usable.
        UsageError: The start or the checkpoint does not fit.
    """
    started = time.monotonic()
    torch.manual_seed(config.seed)
    pooling = POOLING_OF_KIND[task.kind]
    examples = encode_rows(task.train, base.encoder, task.labels, task.template)
    dev = encode_rows(task.dev, base.encoder, task.labels, task.template)

    rows = prompt_rows(base, task, config)
    warnings = mask_findings(base, examples, rows)
    head = None
    if task.kind != "embedding":
        head = Head(class_vectors(base, task, config.head_scale)).to(base.device)
    start = Reader(base, [], head, task.kind, pooling, task.labels)
    zero_shot = score(start, task.dev, dev)
    probe_head, probe = head, zero_shot
    if task.kind != "embedding":
        probe_head, probe = _probe(start, task, examples, dev)

    if config.method == "probe":
        prompt = make_prompt("probe", base, rows)
        run = _Run(prompt, probe_head)
        run.keep_best(probe, 0)
    else:
        prompt = make_prompt(config.method, base, rows).to(base.device)
        if config.head_init == "probe" and task.kind != "embedding":
            with torch.no_grad():
                prompted = replace(start, past=prompt.past(base))
            head, _ = _probe(prompted, task, examples, dev)
        run = _Run(prompt, head)
        start_vector = flat(prompt)
        _loop(base, task, config, run, examples, dev, pooling, checkpoint)
        run.modules().load_state_dict(run.best)

    with torch.no_grad():
        past = run.prompt.past(base)
    reader = Reader(base, past, run.head, task.kind, pooling, task.labels)
    moved = 0.0
    if config.method != "probe":
        moved = float((flat(run.prompt) - start_vector).norm() / start_vector.norm())
    facts = RunFacts(
        method=config.method,
        distance=moved,
        answers_changed=_answers_changed(reader, dev) if past else 0.0,
        truncated_share=_mean([example.text.truncated for example in examples]),
        first_loss=run.losses[0] if run.losses else 0.0,
        last_loss=run.losses[-1] if run.losses else 0.0,
        dev_metric=run.best_metric,
        probe=probe if task.kind != "embedding" else None,
    )
    return TrainResult(
        reader=reader,
        prompt=run.prompt,
        dev_metric=run.best_metric,
        zero_shot=zero_shot,
        probe=probe,
        probe_reader=replace(start, head=probe_head),
        epochs=len(run.losses),
        losses=run.losses,
        facts=facts,
        warnings=warnings + run_findings(facts),
        seconds=time.monotonic() - started,
    )


def _probe(
    reader: Reader, task: Task, examples: list[Example], dev: list[Example]
) -> tuple[Head, float]:
    """A linear probe over the reader's prompt, and its dev metric."""
    trained = extract(reader.base, examples, reader.pooling, reader.past)
    chosen = extract(reader.base, dev, reader.pooling, reader.past)
    head, _ = fit_probe(trained, chosen, len(task.labels))
    return head, score(replace(reader, head=head), task.dev, dev)


def _loop(
    base: FrozenBase,
    task: Task,
    config: TrainConfig,
    run: _Run,
    examples: list[Example],
    dev: list[Example],
    pooling: str,
    checkpoint: Path | None,
) -> None:
    optimiser, schedule = _optimiser(run, config, len(examples))
    first = 0
    if config.resume and checkpoint is not None and checkpoint.exists():
        state = load(checkpoint, config)
        first = state.epoch
        run.modules().load_state_dict(state.current)
        state.restore(optimiser, schedule)
        run.best, run.best_metric = state.best, state.best_metric
        run.best_epoch, run.losses = state.best_epoch, state.losses
    steps = math.ceil(len(examples) / config.batch_size)
    total = steps * config.epochs
    with Progress(total, task.name, first * steps) as progress:
        for epoch in range(first, config.epochs):
            if epoch - run.best_epoch > config.patience and run.best:
                break
            # A seed an epoch, so that a resumed run sees the order it would have seen.
            seed = config.seed * 1_000_003 + epoch
            total_loss = 0.0
            for indices in batches_of(examples, config.batch_size, seed):
                loss = _loss(base, config, run, [examples[i] for i in indices], pooling)
                _step(loss, run, optimiser, config)
                schedule.step()
                total_loss += float(loss.detach())
                progress.step()
            run.losses.append(total_loss / steps)
            with torch.no_grad():
                past = run.prompt.past(base)
            reader = Reader(base, past, run.head, task.kind, pooling, task.labels)
            metric = score(reader, task.dev, dev)
            run.keep_best(metric, epoch)
            progress.say(
                f"epoch {epoch + 1}/{config.epochs} loss {run.losses[-1]:.4f} "
                f"dev {metric:.2f} best {run.best_metric:.2f}"
            )
            if checkpoint is not None:
                save(
                    checkpoint,
                    config,
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


def _optimiser(
    run: _Run, config: TrainConfig, rows: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with a linear rise and a cosine fall of the rates."""
    groups = [
        {
            "params": list(run.prompt.parameters()),
            "lr": peak_rate(config),
            "weight_decay": 0.0,
        }
    ]
    if run.head is not None:
        groups.append(
            {
                "params": list(run.head.parameters()),
                "lr": config.head_learning_rate,
                "weight_decay": config.weight_decay,
            }
        )
    optimiser = torch.optim.AdamW(groups)
    total = math.ceil(rows / config.batch_size) * config.epochs
    rise = max(1, int(total * config.warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(1, total - rise)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def _step(
    loss: Tensor, run: _Run, optimiser: torch.optim.AdamW, config: TrainConfig
) -> None:
    if not torch.isfinite(loss):
        raise DataInvalid(f"the loss is {float(loss)}", "lower learning_rate")
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(list(run.prompt.parameters()), config.max_grad_norm)
    if run.head is not None:
        nn.utils.clip_grad_norm_(list(run.head.parameters()), config.max_grad_norm)
    optimiser.step()


def _loss(
    base: FrozenBase,
    config: TrainConfig,
    run: _Run,
    chosen: list[Example],
    pooling: str,
) -> Tensor:
    past = run.prompt.past(base)
    batch = collate([example.text for example in chosen], base.device)
    pooled = features(base.hidden(batch, past), batch, pooling)
    if run.head is None:
        positives = [item.positive for item in chosen if item.positive is not None]
        other = collate(positives, base.device)
        right = features(base.hidden(other, past), other, pooling)
        # InfoNCE over the batch (van den Oord et al. 2018, arXiv:1807.03748).
        scores = pooled @ right.T / config.temperature
        scores = scores.masked_fill(_same_positive(chosen, base.device), -torch.inf)
        wanted = torch.arange(len(chosen), device=base.device)
        return nn.functional.cross_entropy(scores, wanted)
    targets = target_tensor(chosen, base.device)
    return nn.functional.cross_entropy(
        run.head(pooled), targets, label_smoothing=config.label_smoothing
    )


def _same_positive(chosen: list[Example], device: torch.device) -> Tensor:
    """[B, B] True where another row's positive is the row's own: no negative then."""
    keys = [item.positive.ids.tobytes() for item in chosen if item.positive is not None]
    equal = [
        [one == two and i != j for j, two in enumerate(keys)]
        for i, one in enumerate(keys)
    ]
    return torch.tensor(equal, device=device)


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
