"""What a search hands over: its choice trained to the end, or class vectors alone.

A short budget may end before a prompt has caught up with the linear probe, which is
fitted on the way anyhow; nobody who names a time wants the worse of the two.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.idle_options import NO_EFFECT
from promptdial.prompts.training.progress import say
from promptdial.prompts.training.search.search import Choice
from promptdial.prompts.training.seeds import SeedRuns, train_seeds
from promptdial.prompts.training.start import prepare
from promptdial.prompts.training.trainer import train

_OF_A_PROMPT = (
    *("method", "init", "init_text", "num_virtual_tokens", "encoder_hidden_size"),
    *("head_init", "head_levels", "head_pooling"),
)
"""Options that a probe has no use for: who sets one wants a prompt, or such a head."""


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

    A prompt that the user has set options of is kept, whatever it gives.

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
    began = time.monotonic()
    start = prepare(base, choice.task, choice.config)
    runs = train_seeds(base, choice.task, choice.config, seeds, checkpoint, start)
    reason = None
    if _may_go(choice, asked) and runs.result.dev_metric < runs.result.probe:
        pairs, seed = choice.config.pairs, runs.config.seed
        config = replace(asked, method="probe", pairs=pairs, seed=seed)
        probe = train(base, choice.task, config, None, start)
        # Options of the search, which the user was right to give.
        said = [item for item in probe.warnings if item.code != NO_EFFECT]
        probe = replace(probe, warnings=said)
        # Once more, with the numbers that its blob holds.
        if runs.result.dev_metric < probe.dev_metric:
            reason = (
                f"{choice.name} has {runs.result.dev_metric:.2f} on dev after "
                f"{runs.result.epochs} epochs, class vectors alone "
                f"{probe.dev_metric:.2f}: the prompt does not pay in this time"
            )
            say(choice.task.name, reason)
            runs = SeedRuns(config, probe, {config.seed: probe.dev_metric})
    seconds = time.monotonic() - began
    return Outcome(replace(runs, result=replace(runs.result, seconds=seconds)), reason)


def _may_go(choice: Choice, asked: TrainConfig) -> bool:
    """Whether class vectors alone would be an answer to what was asked."""
    usual = TrainConfig()
    free = all(getattr(asked, name) == getattr(usual, name) for name in _OF_A_PROMPT)
    return free and choice.task.kind != "embedding"
