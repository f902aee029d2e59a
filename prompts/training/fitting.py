"""The nearest options whose blob is not too big: less prompt, then fewer levels."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from promptdial.prompts.errors import BlobTooBig
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.packing import require_fit
from promptdial.prompts.training.task import Task

LEAST_TOKENS = 4
"""Virtual tokens that are worth more than another level for the class vectors."""


def fitting(
    base: FrozenBase, task: Task, config: TrainConfig, least: int = 1
) -> TrainConfig:
    """The configuration itself, or with many classes a smaller one.

    Args:
        base: The frozen model.
        task: For its labels.
        config: The wanted options.
        least: Fewest virtual tokens that are wanted.

    Raises:
        BlobTooBig: The class vectors and so many virtual tokens are too big.
        UsageError: As require_fit.
    """
    for levels, count in _sizes(config, base.dims.layers + 1, least):
        smaller = replace(config, head_levels=levels, num_virtual_tokens=count)
        try:
            require_fit(base, task, smaller)
        except BlobTooBig:
            continue
        return smaller
    beside = f" and {least} virtual tokens" if least > 1 else ""
    raise BlobTooBig(
        f"{task.name}: class vectors alone{beside} are too big", "fewer labels"
    )


def _sizes(config: TrainConfig, levels: int, fewest: int) -> Iterator[tuple[int, int]]:
    """Levels and virtual tokens to try: the wanted ones first."""
    wanted = config.num_virtual_tokens
    least = min(LEAST_TOKENS, wanted)
    # More levels than there are means all of them.
    fewer = range(min(config.head_levels, levels) - 1, -1, -1)
    tokens = range(wanted, max(least, fewest) - 1, -1)
    yield from itertools.product([config.head_levels, *fewer], tokens)
    yield from itertools.product([0], range(least - 1, fewest - 1, -1))
