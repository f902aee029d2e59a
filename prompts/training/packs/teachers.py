"""Soft targets: what a pack's tasks learn from blobs that were trained alone.

The second stage of multitask prompt tuning (Wang et al. 2023, arXiv:2303.02861, section
3.3), with the loss of Hinton et al. 2015 (arXiv:1503.02531).
"""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from promptdial.prompts.blob import SUFFIX, read_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import encode_rows
from promptdial.prompts.training.reference import blob_reader
from promptdial.prompts.training.scoring import joined, logits_of
from promptdial.prompts.training.task import Task

TEACHER_WEIGHT = 0.5
"""Of the soft targets; the rest is the labels'."""

TEACHER_TEMPERATURE = 2.0


@dataclass(frozen=True)
class Teacher:
    """A task's blob, and what it says of every training row.

    Attributes:
        digest: Of the blob.
        logits: Of each row: [C], or one row a word [W, C].
    """

    digest: str
    logits: list[Tensor]


def read_teacher(base: FrozenBase, task: Task, folder: Path) -> Teacher:
    """Ask `<folder>/<task>.safetensors` about the training rows.

    Raises:
        PromptError: The blob cannot be read.
        UsageError: It is of another base, or has other labels.
    """
    path = folder / f"{task.name}{SUFFIX}"
    blob = read_blob(path)
    if (blob.meta.kind, blob.meta.labels) != (task.kind, task.labels):
        raise UsageError(
            f"{path} is {blob.meta.kind} of {', '.join(blob.meta.labels)[:200]}; the "
            f"task is {task.kind} of {', '.join(task.labels)[:200]}",
            "give a teacher of the same task",
        )
    # Pairs as the teacher reads them, which need not be as a pack does.
    pooling = blob.meta.pooling
    rows = encode_rows(task.train, base.short, task.labels, task.template, pooling)
    return Teacher(blob.digest, logits_of(blob_reader(base, blob), rows))


def soft_loss(logits: Tensor, teacher: list[Tensor]) -> Tensor:
    """Distance of the student's distribution from the teacher's.

    Args:
        logits: The student's [B, C], or [N, C] over the words of the batch.
        teacher: The teacher's logits of each row of the batch.
    """
    wanted = joined(teacher).to(logits.device) / TEACHER_TEMPERATURE
    found = nn.functional.log_softmax(logits / TEACHER_TEMPERATURE, -1)
    distance = nn.functional.kl_div(
        found, wanted.log_softmax(-1), reduction="batchmean", log_target=True
    )
    # Gradients shrink with the square of the temperature.
    return distance * TEACHER_TEMPERATURE**2
