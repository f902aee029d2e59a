"""Soft targets: what a teacher says of each training row, learned beside the labels.

With the loss of Hinton et al. 2015 (arXiv:1503.02531, section 2).
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from promptdial.prompts.training.batches import Example
from promptdial.prompts.training.scoring import joined

TEACHER_WEIGHT = 0.7
"""Of the soft targets; the rest is the labels'."""

TEACHER_TEMPERATURE = 2.0


def with_soft_targets(
    examples: Sequence[Example], logits: Sequence[Tensor]
) -> list[Example]:
    """The examples, each with a teacher's logits [C], or [W, C] over its words."""
    return [
        replace(example, teacher=own)
        for example, own in zip(examples, logits, strict=True)
    ]


def blended_loss(hard: Tensor, logits: Tensor, chosen: Sequence[Example]) -> Tensor:
    """The loss of the labels, blended with that of soft targets where there are any.

    Args:
        hard: Loss of the labels.
        logits: The student's [B, C], or [N, C] over the words of the batch.
        chosen: The batch; all of its rows have a teacher's logits, or none.
    """
    soft = [example.teacher for example in chosen if example.teacher is not None]
    if not soft:
        return hard
    return (1 - TEACHER_WEIGHT) * hard + TEACHER_WEIGHT * soft_loss(logits, soft)


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
