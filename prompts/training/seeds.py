"""Several seeds of one recipe: the run that is best on dev, and whether they agree."""

from dataclasses import dataclass, replace
from pathlib import Path

from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.diagnostics import seed_findings
from promptdial.prompts.training.result import TrainResult
from promptdial.prompts.training.start import Start, prepare
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.trainer import train


@dataclass(frozen=True)
class SeedRuns:
    """Runs that differ in their seed alone.

    Attributes:
        config: Options of the best run, with its seed.
        result: The best run; its warnings say so where the seeds differ by much.
        dev_metrics: Best dev metric of each seed, percent.
    """

    config: TrainConfig
    result: TrainResult
    dev_metrics: dict[int, float]


def checkpoint_of(checkpoint: Path, config: TrainConfig, seed: int) -> Path:
    """The checkpoint of one seed: the run's own for the first of them."""
    if seed == config.seed:
        return checkpoint
    return checkpoint.with_name(f"{checkpoint.name}-{seed}")


def train_seeds(
    base: FrozenBase,
    task: Task,
    config: TrainConfig,
    count: int,
    checkpoint: Path | None,
    start: Start | None = None,
) -> SeedRuns:
    """Train one prompt a seed, from `config.seed` on.

    The dev metric of the best of many is too good by a little; the test rows tell.

    Args:
        base: The frozen model.
        task: Rows and labels.
        config: Options.
        count: Seeds, at least one.
        checkpoint: Of the first seed; the others' stand beside it. None for none.
        start: What `prepare` made of the same task; None to make it here.

    Raises:
        DataInvalid: As `train`.
        UsageError: As `train`.
    """
    metrics: dict[int, float] = {}
    best: SeedRuns | None = None
    # No seed changes what the rows and the probe are.
    if start is None and count > 1:
        start = prepare(base, task, config)
    for seed in range(config.seed, config.seed + count):
        own = replace(config, seed=seed)
        kept = None if checkpoint is None else checkpoint_of(checkpoint, config, seed)
        result = train(base, task, own, kept, start)
        metrics[seed] = result.dev_metric
        if best is None or result.dev_metric > best.result.dev_metric:
            best = SeedRuns(own, result, metrics)
    assert best is not None
    if count == 1:
        return best
    labels = best.result.facts.labels
    units = len(task.dev) if labels is None else sum(labels.dev.values())
    found = seed_findings(list(metrics.values()), units)
    return replace(
        best, result=replace(best.result, warnings=[*best.result.warnings, *found])
    )
