"""What changes while a run goes on: parameters, the best epoch, the losses."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from promptdial.prompts.training.checkpoint import Checkpoint

Optimiser = torch.optim.AdamW
Schedule = torch.optim.lr_scheduler.LambdaLR


@dataclass
class RunState:
    """A run between two epochs.

    Attributes:
        module: Everything that is trained.
        best_metric: Dev metric in percent, or dev loss in nats (generation), of the
            best epoch; infinitely bad before the first.
        better: Whether the first of two metrics is the better one.
        best_epoch: The best epoch, from 0.
        best: Its parameters by name.
        losses: Mean loss of each epoch.
        dev_metrics: Dev metric of each epoch; empty for generation.
        cut_steps: Steps in which the prompt's gradients were cut.
    """

    module: nn.Module
    best_metric: float = -1.0
    better: Callable[[float, float], bool] = operator.gt
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    dev_metrics: list[float] = field(default_factory=list)
    cut_steps: int = 0

    def keep_best(self, metric: float, epoch: int) -> None:
        """Keep the parameters of an epoch that is better than all before."""
        if self.better(metric, self.best_metric):
            self.best_metric, self.best_epoch = metric, epoch
            state = self.module.state_dict()
            self.best = {key: value.detach().clone() for key, value in state.items()}

    def back_to_best(self) -> None:
        """Put the parameters where the best epoch left them."""
        self.module.load_state_dict(self.best)

    def checkpoint(
        self, epoch: int, optimiser: Optimiser, schedule: Schedule
    ) -> Checkpoint:
        """The state after an epoch, counted from 0."""
        return Checkpoint(
            epoch=epoch + 1,
            current=self.module.state_dict(),
            best=self.best,
            best_metric=self.best_metric,
            best_epoch=self.best_epoch,
            losses=self.losses,
            dev_metrics=self.dev_metrics,
            cut_steps=self.cut_steps,
            optimiser=optimiser.state_dict(),
            schedule=schedule.state_dict(),
        )

    def resume(self, kept: Checkpoint, optimiser: Optimiser, schedule: Schedule) -> int:
        """Go on where a checkpoint left off; the epochs that are done."""
        self.module.load_state_dict(kept.current)
        kept.restore(optimiser, schedule)
        self.best, self.best_metric = kept.best, kept.best_metric
        self.best_epoch, self.losses = kept.best_epoch, kept.losses
        self.dev_metrics, self.cut_steps = kept.dev_metrics, kept.cut_steps
        return kept.epoch
