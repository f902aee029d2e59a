"""Training a prompt that writes, labels too: teacher forcing, loss on the target.

The prompt comes first, the text after it, then the target; each position sees what is
before it. The epoch with the lowest loss on dev is kept.
"""

import math
import operator
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from promptdial.export.forward import PromptState
from promptdial.prompts.blob import Golden, PromptBlob, PromptMeta, make_blob
from promptdial.prompts.distribution import reference
from promptdial.prompts.errors import DataInvalid, UsageError
from promptdial.prompts.metadata import LIKELIHOOD, NEUTRAL
from promptdial.prompts.training.batches import batches_of, encode_text
from promptdial.prompts.training.checkpoint import load, run_identity, save
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.decoders.decoder_base import DecoderBase
from promptdial.prompts.training.decoders.decoder_golden import golden_answers
from promptdial.prompts.training.decoders.decoder_reference import DecoderReader
from promptdial.prompts.training.decoders.generation_rows import (
    GenerationExample,
    collate_generation,
    encode_generation,
)
from promptdial.prompts.training.decoders.label_choice import (
    LabelChoice,
    choose_calibration,
)
from promptdial.prompts.training.diagnostics import Finding
from promptdial.prompts.training.initialise import starting_prompt
from promptdial.prompts.training.packing import (
    Packed,
    blob_meta,
    stored_pairs,
    stored_rows,
    with_reference,
)
from promptdial.prompts.training.parameters import (
    Prompt,
    flat,
    require_method,
)
from promptdial.prompts.training.progress import Progress
from promptdial.prompts.training.reference import blob_state
from promptdial.prompts.training.run_state import RunState
from promptdial.prompts.training.scores.calibration import calibrate, rule_of
from promptdial.prompts.training.scores.dev_reference import confidences
from promptdial.prompts.training.step import make_optimiser, storage_of, take_step
from promptdial.prompts.training.storage import Storage
from promptdial.prompts.training.task import Task
from promptdial.runtime.errors import PromptRefused
from promptdial.runtime.label_scoring import label_trie, verbalised
from promptdial.runtime.rows import Row


@dataclass(frozen=True)
class GenerationResult:
    """A finished run.

    Attributes:
        prompt: The trained virtual tokens.
        dev_loss: Mean loss of a target token of dev, in nats.
        zero_shot: The same without a prompt.
        epochs: Epochs that were run.
        losses: Mean loss of each epoch.
        distance: Length of the prompt's move over the length of its start.
        truncated_share: Share of training rows that were cut.
        seconds: Wall time.
        choice: Whether labels are calibrated; None where there are none.
    """

    prompt: Prompt
    dev_loss: float
    zero_shot: float
    epochs: int
    losses: list[float]
    distance: float
    truncated_share: float
    seconds: float
    choice: LabelChoice | None


def train_generation(
    base: DecoderBase, task: Task, config: TrainConfig, checkpoint: Path | None = None
) -> GenerationResult:
    """Train one prompt on a decoder.

    Args:
        base: The frozen model.
        task: Rows with targets, or with labels.
        config: Options.
        checkpoint: File to keep the state in after every epoch; None for none.

    Raises:
        DataInvalid: The loss is not finite, or a text leaves no room for its target.
        UsageError: The method has no meaning here, or the start or the checkpoint does
            not fit.
    """
    if config.method == "probe":
        raise UsageError("method probe is not for generation", "leave it out")
    _require_labels_apart(base, task)
    started = time.monotonic()
    torch.manual_seed(config.seed)
    window = base.dims.max_positions
    room = min(config.max_tokens or window, window) - config.num_virtual_tokens
    train, dev = (
        encode_generation(
            written_rows(rows), base.encoder, task.template, base.end_token, room
        )
        for rows in (task.train, task.dev)
    )
    prompt = starting_prompt(base, task, config)
    before = flat(prompt)
    zero_shot = mean_loss(base, dev, [], config.batch_size)
    run = RunState(prompt, math.inf, operator.lt)
    _loop(base, task, config, prompt, run, train, dev, checkpoint)
    run.back_to_best()
    choice = None
    if task.kind == "classification":
        with torch.no_grad():
            state = prompt.state(base, Storage(config.precision))
        reader = DecoderReader(base, state, _meta(base, task, config, 0))
        choice = choose_calibration(reader, task.dev)
    return GenerationResult(
        prompt=prompt,
        dev_loss=run.best_metric,
        zero_shot=zero_shot,
        epochs=len(run.losses),
        losses=run.losses,
        distance=float((flat(prompt) - before).norm() / before.norm()),
        truncated_share=sum(example.truncated for example in train) / len(train),
        seconds=time.monotonic() - started,
        choice=choice,
    )


def _require_labels_apart(base: DecoderBase, task: Task) -> None:
    """Refuse, before any training, labels that no device could tell apart.

    Raises:
        DataInvalid: Two have the same tokens, say.
    """
    if task.kind != "classification":
        return
    try:
        label_trie(base.encoder, base.end_token, task.labels)
    except PromptRefused as error:
        raise DataInvalid(error.message, "give one of them another name") from None


def require_room(base: DecoderBase, task: Task, config: TrainConfig) -> None:
    """Refuse, before any training, what would make a blob over 100 KB.

    Raises:
        NoPrefix: The base takes no prompt of this method.
        BlobTooBig: The virtual tokens alone are too big.
    """
    require_method(config.method, base)
    dims, count = base.dims, config.num_virtual_tokens
    pair = np.zeros((dims.kv_heads, count, dims.head_dim), np.float32)
    rows = np.zeros((count, dims.embedding), np.float32)
    deep = config.method == "prefix"
    make_blob(
        _meta(base, task, config, 0),
        embeddings=None if deep else rows,
        past=[(pair, pair)] * dims.layers if deep else None,
        precision=config.precision,
    )


def _meta(
    base: DecoderBase, task: Task, config: TrainConfig, epochs: int
) -> PromptMeta:
    pooling = LIKELIHOOD if task.kind == "classification" else ""
    return blob_meta(base, task, config, pooling, epochs)


def written_rows(rows: list[Row]) -> list[Row]:
    """Rows with a target: a label is written as its words."""
    return [
        row if row.label is None else replace(row, target=verbalised(row.label))
        for row in rows
    ]


def pack_generation(
    base: DecoderBase, task: Task, config: TrainConfig, result: GenerationResult
) -> PromptBlob:
    """The blob of `packed_generation`.

    Raises:
        PromptdialError: As `packed_generation`.
    """
    return packed_generation(base, task, config, result).blob


def packed_generation(
    base: DecoderBase, task: Task, config: TrainConfig, result: GenerationResult
) -> Packed:
    """The blob of a run; its golden answers are those of the stored, rounded numbers.

    Raises:
        BlobTooBig: The virtual tokens do not fit in 100 KB.
        BlobInvalid: A name or number breaks the format.
        UsageError: The task has no answers to abstain from, or no such label.
    """
    findings: tuple[Finding, ...] = ()
    metrics = {
        "dev_loss": round(result.dev_loss, 4),
        "zero_shot_loss": round(result.zero_shot, 4),
    }
    meta = _meta(base, task, config, result.epochs)
    rule = rule_of(config, task)
    template = dict(meta.template)
    if result.choice is not None:
        metrics["dev_accuracy"] = round(result.choice.plain, 3)
        metrics["dev_accuracy_calibrated"] = round(result.choice.calibrated, 3)
        metrics["dev_accuracy_rows"] = result.choice.rows
        if result.choice.neutral:
            template[NEUTRAL] = result.choice.neutral
        choice, share = result.choice, config.out_of_scope_share
        found = calibrate(choice.logs, choice.targets, task.labels, rule, share)
        metrics, findings = metrics | found.metrics, found.findings
        meta = replace(meta, scores=found.scores)
    meta = replace(meta, metrics=metrics, template=template)

    def make(golden: tuple[Golden, ...], more: dict[str, Any]) -> PromptBlob:
        return make_blob(
            replace(meta, golden=golden, metrics=meta.metrics | more),
            embeddings=stored_rows(result.prompt),
            past=stored_pairs(result.prompt),
            precision=config.precision,
        )

    reader = DecoderReader(base, blob_state(base, make((), {})), meta)
    golden = golden_answers(reader, task.dev)
    seen = _reference(base, task, meta, result.choice)
    return Packed(with_reference(make, golden, seen), findings)


def _reference(
    base: DecoderBase, task: Task, meta: PromptMeta, choice: LabelChoice | None
) -> dict[str, list[int]]:
    """Histograms of the dev rows: what is written has no confidence, labels have."""
    texts = [encode_text(base.encoder, it.text, None, task.template) for it in task.dev]
    sure = [] if choice is None else confidences(choice.logs, task.labels, meta.scores)
    return reference(sure, [len(text) for text in texts])


def mean_loss(
    base: DecoderBase,
    examples: list[GenerationExample],
    state: PromptState,
    batch_size: int,
) -> float:
    """Mean loss of a target token over a prompt, or over none (empty), in nats."""
    total, count = 0.0, 0
    with torch.no_grad():
        for indices in batches_of(examples, batch_size, None):
            batch = collate_generation([examples[i] for i in indices], base.device)
            losses = base.losses(batch, state)
            total, count = total + float(losses.sum()), count + len(losses)
    return total / max(1, count)


def _loop(
    base: DecoderBase,
    task: Task,
    config: TrainConfig,
    prompt: Prompt,
    run: RunState,
    train: list[GenerationExample],
    dev: list[GenerationExample],
    checkpoint: Path | None,
) -> None:
    """All epochs, from a checkpoint on where the configuration says so."""
    optimiser, schedule = make_optimiser(prompt, None, config, len(train))
    first, identity = 0, run_identity(base, task, config)
    if config.resume and checkpoint is not None and checkpoint.exists():
        kept = load(checkpoint, identity)
        first = run.resume(kept, optimiser, schedule)
    steps = math.ceil(len(train) / config.batch_size)
    until = time.monotonic() + (config.max_seconds or math.inf)
    if not config.epochs:
        run.keep_best(_stored_loss(base, config, prompt, dev), 0)
    with Progress(steps * config.epochs, task.name, first * steps) as progress:
        for epoch in range(first, config.epochs):
            if epoch - run.best_epoch > config.patience:
                break
            began, losses = time.monotonic(), []
            # A seed an epoch, so that a resumed run sees the order it would have seen.
            seed = config.seed * 1_000_003 + epoch
            batches = batches_of(train, config.batch_size, seed)
            for done, indices in enumerate(batches, epoch * steps):
                storage = storage_of(config, done, config.epochs * steps)
                batch = collate_generation([train[i] for i in indices], base.device)
                state = prompt.state(base, storage)
                loss = base.losses(batch, state, config.label_smoothing).mean()
                take_step(loss, base, prompt, None, optimiser, config)
                schedule.step()
                losses.append(float(loss.detach()))
                progress.step()
            run.losses.append(sum(losses) / len(losses))
            found = _stored_loss(base, config, prompt, dev)
            run.keep_best(found, epoch)
            progress.say(
                f"epoch {epoch + 1}/{config.epochs} loss {run.losses[-1]:.4f} "
                f"dev {found:.4f} best {run.best_metric:.4f}"
            )
            if checkpoint is not None:
                kept = run.checkpoint(epoch, optimiser, schedule)
                save(checkpoint, identity, kept)
            now = time.monotonic()
            if now + (now - began) > until:
                progress.say("stopped: another epoch would pass max_seconds")
                break


def _stored_loss(
    base: DecoderBase,
    config: TrainConfig,
    prompt: Prompt,
    dev: list[GenerationExample],
) -> float:
    """Loss on dev of the numbers that a blob of the run would hold now, in nats."""
    with torch.no_grad():
        state = prompt.state(base, Storage(config.precision))
    return mean_loss(base, dev, state, config.batch_size)
