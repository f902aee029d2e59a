"""Training a prompt that writes, labels too: teacher forcing, loss on the target.

The prompt comes first, the text after it, then the target; each position sees what is
before it. The epoch with the lowest loss on dev is kept.
"""

import math
import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from promptdial.prompts.blob import PromptBlob, PromptMeta, make_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.metadata import LIKELIHOOD
from promptdial.prompts.training.batches import batches_of
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.decoder_base import DecoderBase
from promptdial.prompts.training.generation_rows import (
    GenerationExample,
    collate_generation,
    encode_generation,
)
from promptdial.prompts.training.initialise import prompt_rows
from promptdial.prompts.training.packing import blob_meta, stored_pairs, stored_rows
from promptdial.prompts.training.parameters import (
    Prompt,
    flat,
    make_prompt,
    require_method,
)
from promptdial.prompts.training.progress import Progress
from promptdial.prompts.training.step import make_optimiser, take_step
from promptdial.prompts.training.task import Task
from promptdial.runtime.label_scoring import verbalised
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
    """

    prompt: Prompt
    dev_loss: float
    zero_shot: float
    epochs: int
    losses: list[float]
    distance: float
    truncated_share: float
    seconds: float


@dataclass
class _Best:
    """The parameters of the best epoch until now."""

    loss: float = math.inf
    epoch: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)


def train_generation(
    base: DecoderBase, task: Task, config: TrainConfig
) -> GenerationResult:
    """Train one prompt on a decoder.

    Raises:
        DataInvalid: The loss is not finite, or a text leaves no room for its target.
        UsageError: The method has no meaning here, or the run was to be resumed.
    """
    if config.method == "probe" or config.resume:
        what = "method probe" if config.method == "probe" else "--resume"
        raise UsageError(f"{what} is not for generation", "leave it out")
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
    prompt = make_prompt(config.method, base, prompt_rows(base, task, config))
    prompt = prompt.to(base.device)
    before = flat(prompt)
    zero_shot = mean_loss(base, dev, None, config.batch_size)
    best, losses = _loop(base, task, config, prompt, train, dev)
    prompt.load_state_dict(best.state)
    return GenerationResult(
        prompt=prompt,
        dev_loss=best.loss,
        zero_shot=zero_shot,
        epochs=len(losses),
        losses=losses,
        distance=float((flat(prompt) - before).norm() / before.norm()),
        truncated_share=sum(example.truncated for example in train) / len(train),
        seconds=time.monotonic() - started,
    )


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
    """The blob of a run.

    Raises:
        BlobTooBig: The virtual tokens do not fit in 100 KB.
        BlobInvalid: A name or number breaks the format.
    """
    metrics = {
        "dev_loss": round(result.dev_loss, 4),
        "zero_shot_loss": round(result.zero_shot, 4),
    }
    meta = _meta(base, task, config, result.epochs)
    return make_blob(
        replace(meta, metrics=metrics),
        embeddings=stored_rows(result.prompt),
        past=stored_pairs(result.prompt),
        precision=config.precision,
    )


def mean_loss(
    base: DecoderBase,
    examples: list[GenerationExample],
    prompt: Prompt | None,
    batch_size: int,
) -> float:
    """Mean loss of a target token over a prompt, or without one, in nats."""
    total, count = 0.0, 0
    with torch.no_grad():
        state = prompt.state(base) if prompt is not None else []
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
    train: list[GenerationExample],
    dev: list[GenerationExample],
) -> tuple[_Best, list[float]]:
    """All epochs: what was best, and each one's mean loss."""
    best, means = _Best(), []
    optimiser, schedule = make_optimiser(prompt, None, config, len(train))
    steps = math.ceil(len(train) / config.batch_size)
    with Progress(steps * config.epochs, task.name) as progress:
        for epoch in range(config.epochs):
            if epoch - best.epoch > config.patience:
                break
            seed, losses = config.seed * 1_000_003 + epoch, []
            for indices in batches_of(train, config.batch_size, seed):
                batch = collate_generation([train[i] for i in indices], base.device)
                state = prompt.state(base)
                loss = base.losses(batch, state, config.label_smoothing).mean()
                take_step(loss, prompt, None, optimiser, config)
                schedule.step()
                losses.append(float(loss.detach()))
                progress.step()
            means.append(sum(losses) / len(losses))
            found = mean_loss(base, dev, prompt, config.batch_size)
            if found < best.loss:
                now = prompt.state_dict()
                kept = {key: value.detach().clone() for key, value in now.items()}
                best = _Best(found, epoch, kept)
            progress.say(
                f"epoch {epoch + 1}/{config.epochs} loss {means[-1]:.4f} "
                f"dev {found:.4f} best {best.loss:.4f}"
            )
    return best, means
