"""State of a run between epochs: one safetensors file, written atomically.

safetensors and JSON instead of torch.save: a checkpoint is data and never code.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from promptdial.prompts.atomic import write_atomic
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.base import PromptBase
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.task import Task, data_digest


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had not stopped.

    Attributes:
        epoch: Epochs done.
        current: Parameters now, by name.
        best: Parameters of the best epoch, by name.
        best_metric: Its dev metric in percent, or its dev loss in nats (generation).
        best_epoch: Its epoch, from 0.
        losses: Mean loss of each epoch.
        optimiser: The optimiser's state_dict.
        schedule: The schedule's state_dict.
        dev_metrics: Dev metric of each epoch; empty for generation.
        cut_steps: Steps in which the prompt's gradients were cut.
    """

    epoch: int
    current: dict[str, Tensor]
    best: dict[str, Tensor]
    best_metric: float
    best_epoch: int
    losses: list[float]
    optimiser: dict[str, Any]
    schedule: dict[str, Any]
    dev_metrics: list[float] = field(default_factory=list)
    cut_steps: int = 0

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


def run_identity(base: PromptBase, task: Task, config: TrainConfig) -> dict[str, Any]:
    """What makes a run what it is: options, base and data.

    A run that was stopped for want of memory may go on with gradient checkpointing, and
    one for want of time with more of it; when to abstain is chosen once it is done. A
    bundle may have moved: its graph counts, not its path.
    """
    found = asdict(config)
    for name in (
        "resume",
        "gradient_checkpointing",
        "quantised",
        "variant",
        "max_seconds",
        "abstain",
        "out_of_scope_share",
    ):
        found.pop(name)
    return {
        **found,
        "base": base.base.fingerprint,
        "graph": base.trained_on,
        "tokenizer": base.base.tokenizer_fingerprint,
        "kind": task.kind,
        "labels": list(task.labels),
        "template": dict(task.template),
        "train rows": data_digest(task.train),
        "dev rows": data_digest(task.dev),
    }


def save(path: Path, run: dict[str, Any], state: Checkpoint) -> None:
    """Write the state; the file is whole or the one before.

    Args:
        path: The file.
        run: The run's identity (`run_identity`).
        state: What to write.

    Raises:
        PromptdialError: The file cannot be written.
    """
    found: dict[str, Tensor] = {}
    for group, items in (("current", state.current), ("best", state.best)):
        found.update({f"{group}/{name}": value for name, value in items.items()})
    for index, slots in state.optimiser["state"].items():
        found.update({f"optimiser/{index}/{name}": x for name, x in slots.items()})
    # Keys and values are laid out as the model laid them out: the format wants them
    # contiguous, and each with a memory of its own.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in found.items()
    }
    facts = {
        "run": run,
        "epoch": state.epoch,
        "best_metric": state.best_metric,
        "best_epoch": state.best_epoch,
        "losses": state.losses,
        "dev_metrics": state.dev_metrics,
        "cut_steps": state.cut_steps,
        "rates": [group["lr"] for group in state.optimiser["param_groups"]],
        "last_epoch": state.schedule["last_epoch"],
        "step_count": state.schedule["_step_count"],
    }
    write_atomic(path, to_bytes(tensors, {"promptdial": json.dumps(facts)}))


def load(path: Path, run: dict[str, Any]) -> Checkpoint:
    """Read the state of an earlier part of the same run.

    Args:
        path: The file.
        run: The run's identity (`run_identity`).

    Raises:
        UsageError: The file is no checkpoint, or of a run with other options, another
            base or other data.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["promptdial"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{path} is no checkpoint: {error}", "delete it and train again"
        ) from None
    for key, value in run.items():
        then = facts.get("run", {}).get(key)
        if then != value:
            raise UsageError(
                f"checkpoint has {key} {then!r}, this run {value!r}",
                "use the same options and data, or train without --resume",
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
        dev_metrics=facts.get("dev_metrics", []),
        cut_steps=facts.get("cut_steps", 0),
    )
