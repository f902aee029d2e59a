"""The teacher of a single prompt: a copy of the base with all weights tuned.

What a prompt is compared with may as well teach it. The copy is thrown away once it
has answered the training rows; the base stays as it is.
"""

from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import Example
from promptdial.prompts.training.comparison.weight_tuning import every_weight, tune
from promptdial.prompts.training.config import TEACHER_TUNING, TrainConfig
from promptdial.prompts.training.progress import say
from promptdial.prompts.training.scoring import logits_of
from promptdial.prompts.training.soft_targets import with_soft_targets
from promptdial.prompts.training.task import Task


def require_teachable(task: Task, config: TrainConfig) -> None:
    """Refuse, before any training, a teacher that would have nothing to say.

    Raises:
        UsageError: The task has no classes, or its words are left out at random.
    """
    if not config.teacher:
        return
    if task.kind == "embedding":
        raise UsageError(
            f"teacher {config.teacher!r}: task {task.name!r} is embedding and has no "
            "classes to teach",
            "leave teacher out",
        )
    if task.kind == "token" and config.word_dropout:
        raise UsageError(
            "word_dropout beside a teacher: it says something of every word",
            "give one of the two",
        )


def taught(
    base: FrozenBase, task: Task, config: TrainConfig, train: list[Example]
) -> list[Example]:
    """The training rows, with what a tuned copy of the base says of each.

    Args:
        base: The frozen model; unchanged.
        task: Rows and labels; dev chooses the copy's epoch.
        config: The run's options; its seed is the copy's too.
        train: Encoded training rows.

    Raises:
        UsageError: As require_teachable.
        DataInvalid: The copy's loss is not finite.
    """
    require_teachable(task, config)
    tuned = tune(base, task, config, TEACHER_TUNING, every_weight)
    say(task.name, f"the teacher, all weights tuned, has {tuned.dev:.2f} on dev")
    return with_soft_targets(train, logits_of(tuned.reader, train))
