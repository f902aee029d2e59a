"""Training of weights, for comparison only: all of a copy's, or LoRA's on a copy.

The frozen base stays as it is. Rows, start of the class vectors, seed, loss and early
stop are those of a prompt's run; the last level's mean is read, and no word is dropped.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import Example, batches_of, encode_rows
from promptdial.prompts.training.config import (
    LORA_ALPHA,
    LORA_DROPOUT,
    LORA_RANK,
    TrainConfig,
    WeightConfig,
)
from promptdial.prompts.training.heads import Head, pooling_of
from promptdial.prompts.training.initialise import class_vectors
from promptdial.prompts.training.progress import Progress
from promptdial.prompts.training.scoring import Reader, score
from promptdial.prompts.training.step import batch_loss
from promptdial.prompts.training.task import Task

Adapt = Callable[[nn.Module], nn.Module]
"""Makes parameters of a copied model trainable; the model itself, or with new parts."""


@dataclass(frozen=True)
class Tuned:
    """Trained weights.

    Attributes:
        reader: The changed copy of the model, with its head.
        dev: Best dev metric, percent.
        learning_rate: The rate it was reached with.
        epochs: Epochs up to it.
        parameters: Trained numbers, those of the head included.
    """

    reader: Reader
    dev: float
    learning_rate: float
    epochs: int
    parameters: int


def every_weight(model: nn.Module) -> nn.Module:
    """Full fine-tuning: every parameter is trained."""
    return model.requires_grad_(True)


def lora(model: nn.Module) -> nn.Module:
    """LoRA through PEFT (Hu et al. 2021, arXiv:2106.09685).

    On the modules that PEFT names for the architecture (query and value of most), or
    on every linear layer where it names none.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as NAMED,
    )

    named = model.config.model_type in NAMED  # type: ignore[union-attr, operator]
    config = LoraConfig(
        r=LORA_RANK,
        lora_alpha=LORA_ALPHA,
        lora_dropout=LORA_DROPOUT,
        target_modules=None if named else "all-linear",
    )
    changed = inject_adapter_in_model(config, model)
    assert isinstance(changed, nn.Module)
    return changed


def tune(
    base: FrozenBase,
    task: Task,
    config: TrainConfig,
    recipe: WeightConfig,
    adapt: Adapt,
) -> Tuned:
    """Train weights of copies of the model, one a rate; the best on dev.

    Args:
        base: The frozen model; unchanged.
        task: Rows and labels.
        config: The run's options: batch size, seed, patience, rate of the head.
        recipe: Rates and epochs of the weights.
        adapt: Which weights.

    Raises:
        DataInvalid: The loss is not finite at any of the rates.
    """
    labels, template = task.labels, task.template
    pooling = pooling_of(task.kind, config)
    train = encode_rows(task.train, base.short, labels, template, pooling)
    dev = encode_rows(task.dev, base.encoder, labels, template, pooling)
    found: list[Tuned] = []
    for rate in recipe.learning_rates:
        torch.manual_seed(config.seed)
        run = _start(base, task, config, adapt)
        try:
            tuned = _tune_at(rate, run, task, config, recipe, train, dev)
        except DataInvalid as error:
            failure = error
        else:
            found.append(tuned)
    if not found:
        raise failure
    return max(found, key=lambda item: item.dev)


@dataclass(frozen=True)
class _Copy:
    """A copy of the base in training."""

    base: FrozenBase
    head: Head | None

    def trained(self) -> dict[str, nn.Parameter]:
        """Every parameter that changes, by name."""
        modules = nn.ModuleDict({"model": self.base.model})
        if self.head is not None:
            modules["head"] = self.head
        named = modules.named_parameters()
        return {name: item for name, item in named if item.requires_grad}


def _start(base: FrozenBase, task: Task, config: TrainConfig, adapt: Adapt) -> _Copy:
    head = None
    if task.kind != "embedding":
        head = Head(class_vectors(base, task, config)).to(base.device)
    model = adapt(copy.deepcopy(base.model))
    # Weights are trained in PyTorch, also where the prompt runs on a graph.
    plain = replace(base, model=model, graph=None, table=None, graph_name="")
    return _Copy(plain, head)


def _tune_at(
    rate: float,
    run: _Copy,
    task: Task,
    config: TrainConfig,
    recipe: WeightConfig,
    train: list[Example],
    dev: list[Example],
) -> Tuned:
    """One run at one rate, put back to its best epoch."""
    trained = run.trained()
    steps = math.ceil(len(train) / config.batch_size)
    epochs = max(recipe.epochs, math.ceil(recipe.least_steps / steps))
    patience = config.patience * epochs / recipe.epochs
    optimiser, schedule = _optimiser(trained, rate, config, recipe, steps * epochs)
    pooling = pooling_of(task.kind, config)
    reader = Reader(run.base, [], run.head, task.kind, pooling, task.labels)
    best, best_epoch, kept = -1.0, 0, dict[str, Tensor]()
    with Progress(steps * epochs, f"{task.name} weights {rate:g}") as progress:
        for epoch in range(epochs):
            if epoch - best_epoch > patience or best == 100.0:
                break
            run.base.model.train()
            # The order of a prompt's run with the same seed.
            seed = config.seed * 1_000_003 + epoch
            for indices in batches_of(train, config.batch_size, seed):
                chosen = [train[index] for index in indices]
                loss = batch_loss(run.base, config, [], run.head, chosen, pooling)
                _take_step(loss, trained, optimiser, config)
                schedule.step()
                progress.step()
            run.base.model.eval()
            metric = score(reader, task.dev, dev)
            progress.say(f"epoch {epoch + 1}/{epochs} dev {metric:.2f}")
            if metric > best:
                best, best_epoch = metric, epoch
                kept = {name: x.detach().clone() for name, x in trained.items()}
    with torch.no_grad():
        for name, value in kept.items():
            trained[name].copy_(value)
    count = sum(item.numel() for item in trained.values())
    return Tuned(reader, best, rate, best_epoch + 1, count)


def _optimiser(
    trained: dict[str, nn.Parameter],
    rate: float,
    config: TrainConfig,
    recipe: WeightConfig,
    total: int,
) -> tuple[torch.optim.AdamW, torch.optim.lr_scheduler.LambdaLR]:
    """AdamW with a linear rise and a linear fall of the rates, as BERT is tuned."""
    weights = [x for name, x in trained.items() if name.startswith("model.")]
    optimiser = torch.optim.AdamW(
        [
            {
                "params": [x for x in weights if x.dim() > 1],
                "lr": rate,
                "weight_decay": recipe.weight_decay,
            },
            {
                "params": [x for x in weights if x.dim() == 1],
                "lr": rate,
                "weight_decay": 0.0,
            },
            {
                "params": [x for key, x in trained.items() if key.startswith("head.")],
                "lr": config.head_learning_rate,
                "weight_decay": config.weight_decay,
            },
        ]
    )
    rise = max(1, int(total * recipe.warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return max(0.0, (total - step) / max(1, total - rise))

    return optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def _take_step(
    loss: Tensor,
    trained: dict[str, nn.Parameter],
    optimiser: torch.optim.AdamW,
    config: TrainConfig,
) -> None:
    if not torch.isfinite(loss):
        raise DataInvalid(
            f"the loss is {float(loss.detach())}", "lower the learning rates"
        )
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(list(trained.values()), config.max_grad_norm)
    optimiser.step()
