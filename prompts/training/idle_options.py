"""Options that have no part in a run: said or refused, so that none is silent."""

from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.diagnostics import Finding
from promptdial.prompts.training.task import Task

NO_EFFECT = "NO_EFFECT"

_OF_TRAINING = (
    *("init", "head_init", "init_text", "num_virtual_tokens", "epochs", "batch_size"),
    *("learning_rate", "head_learning_rate", "head_scale", "weight_decay", "warmup"),
    *("label_smoothing", "max_grad_norm", "patience", "rounded", "max_seconds"),
    *("word_dropout", "gradient_checkpointing"),
)
"""What a probe, which is fitted at once and has no virtual tokens, passes over."""
_OF_CLASS_VECTORS = (
    *("head_init", "head_levels", "head_scale", "head_learning_rate", "weight_decay"),
    "label_smoothing",
)
"""What an embedding task, which has no class vectors, passes over."""


def require_labels(task: Task, config: TrainConfig) -> None:
    """Refuse class vectors alone where there are no classes.

    Raises:
        UsageError: Method probe on an embedding task.
    """
    if config.method == "probe" and task.kind == "embedding":
        raise UsageError(
            f"method probe on task {task.name!r}, an embedding without class vectors",
            "train a prompt, or use the base alone",
        )


def idle_findings(config: TrainConfig, kind: str) -> list[Finding]:
    """A finding for each reason why options that differ from their default do nothing.

    Args:
        config: Of the run.
        kind: Of the task.
    """
    found = []
    if config.method == "probe":
        read = {"init", "head_init"} if config.head_init == "blob" else set[str]()
        names = tuple(name for name in _OF_TRAINING if name not in read)
        found += _finding(config, names, "a probe is fitted at once")
    if kind != "pair":
        found += _finding(config, ("pairs",), "the task has one text a row")
    if kind == "embedding":
        found += _finding(config, _OF_CLASS_VECTORS, "the task has no class vectors")
    else:
        found += _finding(config, ("temperature",), "it is for embedding tasks")
    return found


def _finding(config: TrainConfig, names: tuple[str, ...], reason: str) -> list[Finding]:
    usual = TrainConfig()
    idle = [name for name in names if getattr(config, name) != getattr(usual, name)]
    if not idle:
        return []
    message = f"{', '.join(idle)} without effect: {reason}; leave it out"
    return [Finding(NO_EFFECT, message)]
