"""One training step: loss, gradients, update, and the rates over time."""

import math

import torch
from torch import Tensor, nn

from promptdial.export.forward import PromptState
from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.training.base import FrozenBase, PromptBase
from promptdial.prompts.training.batches import Example, collate, target_tensor
from promptdial.prompts.training.config import TrainConfig, peak_rate
from promptdial.prompts.training.heads import Head, read
from promptdial.prompts.training.parameters import Prompt, keep_within
from promptdial.prompts.training.storage import EXACT, Storage


def make_optimiser(
    prompt: Prompt, head: Head | None, config: TrainConfig, rows: int
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with a linear rise and a cosine fall of the rates.

    Args:
        prompt: The virtual tokens.
        head: The class vectors; None for embedding.
        config: Rates and epochs.
        rows: Training rows.
    """
    groups = [
        {
            "params": list(prompt.parameters()),
            "lr": peak_rate(config),
            "weight_decay": 0.0,
        }
    ]
    if head is not None:
        vectors = [head.weight, head.bias]
        groups.append(
            {
                "params": vectors,
                "lr": config.head_learning_rate,
                "weight_decay": config.weight_decay,
            }
        )
        if head.mix is not None:
            # No decay: zero would be no level at all.
            rate = config.head_learning_rate
            groups.append({"params": [head.mix], "lr": rate, "weight_decay": 0.0})
        if head.query is not None:
            # Nor here: all queries would fall back to weighing all rows alike.
            rate = config.head_learning_rate
            groups.append({"params": [head.query], "lr": rate, "weight_decay": 0.0})
    optimiser = torch.optim.AdamW(groups)
    total = math.ceil(rows / config.batch_size) * config.epochs
    return optimiser, make_schedule(optimiser, total, config.warmup)


def make_schedule(
    optimiser: torch.optim.AdamW, total: int, warmup: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """A linear rise over a share of all steps, then half a cosine down to zero."""
    rise = max(1, int(total * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = (step - rise) / max(1, total - rise)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def storage_of(config: TrainConfig, step: int, total: int) -> Storage:
    """How a step's numbers are rounded: the last ones as the blob will store them.

    Args:
        config: For `rounded` and `precision`.
        step: Steps done.
        total: Steps of the whole run.
    """
    rounded = is_rounded(config, step, total)
    return Storage(config.precision) if rounded else EXACT


def is_rounded(config: TrainConfig, step: int, total: int) -> bool:
    """Whether a step is one of the last ones, which run on numbers as stored.

    Args:
        config: For `rounded`.
        step: Steps done.
        total: Steps of the whole run.
    """
    return step >= total * (1 - config.rounded)


def take_step(
    loss: Tensor,
    base: PromptBase,
    prompt: Prompt,
    head: Head | None,
    optimiser: torch.optim.AdamW,
    config: TrainConfig,
) -> bool:
    """One update, with gradients cut to a length.

    Args:
        loss: Of the batch.
        base: What it was computed on; its ranges hold the prompt.
        prompt: The virtual tokens.
        head: The class vectors; None for none.
        optimiser: Theirs.
        config: The length.

    Returns:
        Whether the prompt's gradients were cut.

    Raises:
        DataInvalid: The loss is not finite.
    """
    if not torch.isfinite(loss):
        raise DataInvalid(f"the loss is {float(loss.detach())}", "lower learning_rate")
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(list(prompt.parameters()), config.max_grad_norm)
    if head is not None:
        nn.utils.clip_grad_norm_(list(head.parameters()), config.max_grad_norm)
    optimiser.step()
    keep_within(prompt, base)
    return bool(norm > config.max_grad_norm)


def batch_loss(
    base: FrozenBase,
    config: TrainConfig,
    state: PromptState,
    head: Head | None,
    chosen: list[Example],
    pooling: str,
    storage: Storage = EXACT,
) -> Tensor:
    """Cross-entropy of a batch over classes, or over its positives (embedding).

    Args:
        base: The frozen model.
        config: Smoothing and temperature.
        state: The prompt, ready to run.
        head: The class vectors; None for embedding.
        chosen: The batch.
        pooling: How features are read.
        storage: What the class vectors are rounded to in the forward pass.
    """
    batch = collate([example.text for example in chosen], base.device)
    pooled = read(base, batch, state, pooling, head)
    if head is None:
        positives = [item.positive for item in chosen if item.positive is not None]
        other = collate(positives, base.device)
        right = read(base, other, state, pooling, None)
        # InfoNCE over the batch (van den Oord et al. 2018, arXiv:1807.03748).
        scores = pooled @ right.T / config.temperature
        scores = scores.masked_fill(_same_positive(chosen, base.device), -torch.inf)
        wanted = torch.arange(len(chosen), device=base.device)
        return nn.functional.cross_entropy(scores, wanted)
    targets = target_tensor(chosen, base.device)
    return nn.functional.cross_entropy(
        head(pooled, storage), targets, label_smoothing=config.label_smoothing
    )


def _same_positive(chosen: list[Example], device: torch.device) -> Tensor:
    """[B, B] True where another row's positive is the row's own: no negative then."""
    keys = [item.positive.ids.tobytes() for item in chosen if item.positive is not None]
    equal = [
        [one == two and i != j for j, two in enumerate(keys)]
        for i, one in enumerate(keys)
    ]
    return torch.tensor(equal, device=device)
