"""What a search hands over: its choice trained to the end, or class vectors alone.

A short budget may end before a prompt has caught up with the linear probe, which is
fitted on the way anyhow; nobody who names a time wants the worse of the two.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.config import MEAN, TrainConfig
from promptdial.prompts.training.progress import say
from promptdial.prompts.training.search.search import Choice
from promptdial.prompts.training.seeds import SeedRuns, train_seeds
from promptdial.prompts.training.start import Start, prepare
from promptdial.prompts.training.trainer import train


@dataclass(frozen=True)
class Outcome:
    """A trained choice.

    Attributes:
        runs: The run to pack, with its options.
        without_prompt: Why class vectors alone; None where the prompt stays.
    """

    runs: SeedRuns
    without_prompt: str | None


def train_choice(
    base: FrozenBase,
    choice: Choice,
    asked: TrainConfig,
    seeds: int = 1,
    checkpoint: Path | None = None,
) -> Outcome:
    """Train what a search chose; the linear probe where that is better on dev.

    A method that the user asked for is kept, whatever it gives.

    Args:
        base: The frozen model.
        choice: What the search found.
        asked: The options searched from.
        seeds: How many, at least one.
        checkpoint: Of the first seed; None for none.

    Raises:
        DataInvalid: As `train`.
        UsageError: As `train`.
    """
    start = prepare(base, choice.task, choice.config)
    runs = train_seeds(base, choice.task, choice.config, seeds, checkpoint, start)
    result = runs.result
    free = asked.method == TrainConfig().method and choice.task.kind != "embedding"
    if not free or result.dev_metric >= result.probe:
        return Outcome(runs, None)
    return _without_prompt(base, choice, runs, start)


def _without_prompt(
    base: FrozenBase, choice: Choice, runs: SeedRuns, start: Start
) -> Outcome:
    """The probe of the same rows as a run of its own."""
    config = replace(
        runs.config,
        method="probe",
        head_init=TrainConfig().head_init,
        head_levels=0,
        head_pooling=MEAN,
    )
    reason = (
        f"{choice.name} has {runs.result.dev_metric:.2f} on dev after "
        f"{runs.result.epochs} epochs, class vectors alone {runs.result.probe:.2f}: "
        "the prompt does not pay in this time"
    )
    say(choice.task.name, reason)
    result = train(base, choice.task, config, None, start)
    return Outcome(SeedRuns(config, result, runs.dev_metrics), reason)
