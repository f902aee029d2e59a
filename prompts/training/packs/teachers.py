"""The teachers of a pack: blobs of its tasks that were trained alone.

The second stage of multitask prompt tuning (Wang et al. 2023, arXiv:2303.02861, section
3.3).
"""

from pathlib import Path

from promptdial.prompts.blob import SUFFIX, read_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import Example
from promptdial.prompts.training.reference import blob_reader
from promptdial.prompts.training.scoring import logits_of
from promptdial.prompts.training.soft_targets import with_soft_targets
from promptdial.prompts.training.task import Task


def read_teacher(
    base: FrozenBase, task: Task, train: list[Example], folder: Path
) -> tuple[str, list[Example]]:
    """Ask `<folder>/<task>.safetensors` about the training rows.

    Returns:
        The blob's digest, and the rows with what it says of them.

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
    logits = logits_of(blob_reader(base, blob), train)
    return blob.digest, with_soft_targets(train, logits)
