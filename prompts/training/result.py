"""What a finished training run hands on."""

from dataclasses import dataclass

from promptdial.prompts.training.diagnostics import Finding, RunFacts
from promptdial.prompts.training.parameters import Prompt
from promptdial.prompts.training.scoring import Reader


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
        dev_metrics: Dev metric of each epoch, percent.
        facts: What the diagnostics looked at.
        warnings: What they found.
        seconds: Wall time, without `prepare` where what it made was given.
    """

    reader: Reader
    prompt: Prompt
    dev_metric: float
    zero_shot: float
    probe: float
    probe_reader: Reader
    epochs: int
    losses: list[float]
    dev_metrics: list[float]
    facts: RunFacts
    warnings: list[Finding]
    seconds: float
