"""Rows of a few-shot run: drawn class by class, and dealt out to folds."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from promptdial.prompts.errors import DataInvalid, UsageError
from promptdial.prompts.training.task import Task

FOLDS = 3


def draw(task: Task, count: int, seed: int) -> Task:
    """The task with `count` training rows a class, all where there are fewer, no dev.

    Raises:
        UsageError: The task has no classes.
        DataInvalid: A class has less than two rows.
    """
    if task.kind not in ("classification", "pair"):
        raise UsageError(f"few_shot on a {task.kind} task", "it is for classes")
    generator = np.random.default_rng(seed)
    rows = []
    for label in task.labels:
        own = [row for row in task.train if row.label == label]
        if len(own) < 2:
            raise DataInvalid(
                f"{task.name}: label {label!r} has {len(own)} training rows",
                "give at least 2 a class",
            )
        order = generator.permutation(len(own))[:count]
        rows += [own[index] for index in order]
    return replace(task, train=rows, dev=[])


def fold_of(rows: list[int]) -> Tensor:
    """Fold of each row [N]: rows of a class go round the folds.

    Args:
        rows: Class of each row.
    """
    seen: dict[int, int] = {}
    found = []
    for label in rows:
        found.append(seen.get(label, 0) % FOLDS)
        seen[label] = seen.get(label, 0) + 1
    return torch.tensor(found)
