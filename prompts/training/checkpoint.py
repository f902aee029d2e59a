"""State of a run between epochs: one safetensors file, written atomically.

safetensors and JSON instead of torch.save: a checkpoint is data and never code.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from promptdial.prompts.atomic import write_atomic
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.config import TrainConfig


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had not stopped.

    Attributes:
        epoch: Epochs done.
        current: Parameters now, by name.
        best: Parameters of the best dev metric, by name.
        best_metric: That metric, percent.
        best_epoch: Its epoch, from 0.
        losses: Mean loss of each epoch.
        optimiser: The optimiser's state_dict.
        schedule: The schedule's state_dict.
    """

    epoch: int
    current: dict[str, Tensor]
    best: dict[str, Tensor]
    best_metric: float
    best_epoch: int
    losses: list[float]
    optimiser: dict[str, Any]
    schedule: dict[str, Any]

    def restore(
        self,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
    ) -> None:
        """Put optimiser and schedule where they were."""
        fresh = optimiser.state_dict()
        fresh["state"] = self.optimiser["state"]
        for group, rate in zip(
            fresh["param_groups"], self.optimiser["rates"], strict=True
        ):
            group["lr"] = rate
        optimiser.load_state_dict(fresh)
        schedule.load_state_dict({**schedule.state_dict(), **self.schedule})


def _identity(config: TrainConfig) -> dict[str, Any]:
    """The options that make a run what it is.

    A run that was stopped for want of memory may go on with gradient checkpointing.
    """
    found = asdict(config)
    for name in ("resume", "gradient_checkpointing"):
        found.pop(name)
    return found


def save(path: Path, config: TrainConfig, state: Checkpoint) -> None:
    """Write the state; the file is whole or the one before.

    Raises:
        PromptdialError: The file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    for group, items in (("current", state.current), ("best", state.best)):
        for name, value in items.items():
            tensors[f"{group}/{name}"] = value.detach().cpu().contiguous().clone()
    for index, slots in state.optimiser["state"].items():
        for name, value in slots.items():
            tensors[f"optimiser/{index}/{name}"] = value.detach().cpu().clone()
    facts = {
        "config": _identity(config),
        "epoch": state.epoch,
        "best_metric": state.best_metric,
        "best_epoch": state.best_epoch,
        "losses": state.losses,
        "rates": [group["lr"] for group in state.optimiser["param_groups"]],
        "last_epoch": state.schedule["last_epoch"],
        "step_count": state.schedule["_step_count"],
    }
    write_atomic(path, to_bytes(tensors, {"promptdial": json.dumps(facts)}))


def load(path: Path, config: TrainConfig) -> Checkpoint:
    """Read the state of an earlier part of the same run.

    Raises:
        UsageError: The file is no checkpoint, or of a run with other options.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["promptdial"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is no checkpoint: {error}", "delete it and train again"
        ) from None
    for key, value in _identity(config).items():
        then = facts["config"].get(key)
        if then != value:
            raise UsageError(
                f"checkpoint has {key} {then!r}, this run {value!r}",
                "use the same options, or train without --resume",
            )
    slots: dict[int, dict[str, Tensor]] = {}
    parts: dict[str, dict[str, Tensor]] = {"current": {}, "best": {}}
    for name, value in tensors.items():
        group, rest = name.split("/", 1)
        if group == "optimiser":
            index, slot = rest.split("/")
            slots.setdefault(int(index), {})[slot] = value
        else:
            parts[group][rest] = value
    return Checkpoint(
        epoch=facts["epoch"],
        current=parts["current"],
        best=parts["best"],
        best_metric=facts["best_metric"],
        best_epoch=facts["best_epoch"],
        losses=facts["losses"],
        optimiser={"state": slots, "rates": facts["rates"]},
        schedule={
            "last_epoch": facts["last_epoch"],
            "_step_count": facts["step_count"],
        },
    )
