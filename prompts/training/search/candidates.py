"""What a search tries: one table, the most promising first, each with its reason."""

from dataclasses import dataclass, replace
from typing import Any

from promptdial.export.errors import NoPrefix
from promptdial.prompts.errors import BlobTooBig, UsageError
from promptdial.prompts.metadata import APART
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.blending import FROM, blended
from promptdial.prompts.training.config import (
    ATTENTION,
    PAIRS_APART,
    PAIRS_TOGETHER,
    ROW_METHODS,
    TrainConfig,
)
from promptdial.prompts.training.fitting import fitting
from promptdial.prompts.training.heads import POOLED_KINDS
from promptdial.prompts.training.parameters import require_method
from promptdial.prompts.training.task import Task

_HEAD_OPTIONS = {"head_init", "head_levels", "head_pooling", "label_smoothing"}
"""Of no meaning where there are no class vectors."""


@dataclass(frozen=True)
class Candidate:
    """One line of the table.

    Attributes:
        name: For people and the log.
        changes: Options that differ from the configuration searched from.
        reason: Why it is worth a try.
    """

    name: str
    changes: dict[str, Any]
    reason: str


CANDIDATES = (
    Candidate(
        "deep 16, weighed",
        {
            "method": "prefix",
            "num_virtual_tokens": 16,
            "learning_rate": 2e-2,
            "batch_size": 8,
            "head_levels": 4,
            "head_pooling": ATTENTION,
        },
        "four levels whose words are weighed, and many small steps from label names",
    ),
    Candidate(
        "deep 16",
        {"method": "prefix", "num_virtual_tokens": 16, "learning_rate": 5e-2},
        "wins where the base's own features are weak: tags, grammar, emotions",
    ),
    Candidate(
        "soft 20",
        {"method": "prompt", "num_virtual_tokens": 20, "learning_rate": 5e-3},
        "a tenth of the bytes, as good where label names say it all: intents",
    ),
    Candidate(
        "deep 12, all levels",
        {
            "method": "prefix",
            "num_virtual_tokens": 12,
            "learning_rate": 5e-2,
            "head_levels": 256,
        },
        "grammar and word form, which the last level has pooled away; few classes",
    ),
    Candidate(
        "deep 16, weighed, slow",
        {
            "method": "prefix",
            "num_virtual_tokens": 16,
            "learning_rate": 5e-3,
            "batch_size": 8,
            "head_levels": 4,
            "head_pooling": ATTENTION,
        },
        "few or noisy rows are known by heart at the usual rate",
    ),
    Candidate(
        "deep 16, from the probe",
        {"method": "prefix", "num_virtual_tokens": 16, "head_init": "probe"},
        "labels whose names mean little start from what the features tell",
    ),
    Candidate(
        "soft 20, fast",
        {"method": "prompt", "num_virtual_tokens": 20, "learning_rate": 2e-2},
        "rows move little in few steps (Lester et al. 2021 used 0.3 on T5)",
    ),
    Candidate(
        "deep 6",
        {"method": "prefix", "num_virtual_tokens": 6, "learning_rate": 5e-2},
        "a third of the bytes, and all that fits beside 150 class vectors",
    ),
    Candidate(
        "deep 16, fast",
        {"method": "prefix", "num_virtual_tokens": 16, "learning_rate": 1e-1},
        "hard tasks are still falling at the usual rate when the epochs end",
    ),
    Candidate(
        "deep 16, smoothed",
        {"method": "prefix", "num_virtual_tokens": 16, "label_smoothing": 0.1},
        "wrong labels in train cost less",
    ),
)


OF_PAIRS = (
    Candidate(
        "deep 16, pairs apart",
        {
            "method": "prefix",
            "num_virtual_tokens": 16,
            "learning_rate": 1e-2,
            "batch_size": 16,
            "pairs": PAIRS_APART,
        },
        "sentence encoders were trained to put one text beside another",
    ),
)
"""What pairs alone can try."""


def table_of(kind: str) -> tuple[Candidate, ...]:
    """What to try on a kind of task. Pairs try heads of several levels last."""
    if kind != "pair":
        return CANDIDATES
    # On MRPC products of lower levels were learned by heart, on RTE they were not: dev
    # decides, this is but the order in which a short budget tries them.
    later = sorted(CANDIDATES, key=lambda item: "head_levels" in item.changes)
    return (*OF_PAIRS, *later)


def usable(
    base: FrozenBase,
    task: Task,
    config: TrainConfig,
    table: tuple[Candidate, ...] | None = None,
) -> list[tuple[Candidate, TrainConfig]]:
    """The candidates that mean something here, with their configurations.

    An option that differs from its default was wanted by the user: no candidate
    changes it: candidates of another method are left out, and those that then are
    alike are tried once. A start from a blob gives all its length, and leaves out what
    is of another kind. What does not fit in a blob is made smaller until it does, but
    for a length that the user set.

    Args:
        base: The frozen model.
        task: For its labels.
        config: Options searched from.
        table: What to try; None for `table_of` the task's kind.

    Raises:
        PromptError: A blob to start from cannot be read.
        UsageError: It is of another base, or no candidate can begin there.
    """
    found: list[tuple[Candidate, TrainConfig]] = []
    table = table_of(task.kind) if table is None else table
    methods = {candidate.changes["method"] for candidate in table}
    usual = TrainConfig()
    held = config.method != usual.method and config.method in methods
    start = _start_of(config, base)
    for candidate in table:
        if held and candidate.changes["method"] != config.method:
            continue
        wanted, least = _changed(task, config, candidate), 1
        if config.num_virtual_tokens != usual.num_virtual_tokens:
            least = wanted.num_virtual_tokens
        if start is not None:
            if start.deep != (wanted.method == "prefix"):
                continue
            if config.head_init == "blob" and wanted.pairs != start.pairs:
                continue
            wanted, least = replace(wanted, num_virtual_tokens=start.rows), start.rows
        try:
            require_method(wanted.method, base)
            changed = fitting(base, task, wanted, least)
        except (NoPrefix, BlobTooBig):
            continue
        if config.head_levels not in (0, changed.head_levels):
            continue
        if changed not in [other for _, other in found]:
            found.append((candidate, changed))
    if start is not None and not found:
        raise UsageError(
            f"init {config.init!r}, {start.rows} {'deep' if start.deep else 'soft'} "
            "virtual tokens: of another method, or too big beside the class vectors",
            "start from another blob, or leave init out",
        )
    return found


@dataclass(frozen=True)
class _Start:
    """Length [P], kind and reading of pairs of the blob that `init` names."""

    rows: int
    deep: bool
    pairs: str


def _start_of(config: TrainConfig, base: FrozenBase) -> _Start | None:
    if not config.init.startswith(FROM):
        return None
    first = blended(config.init, base).blobs[0]
    rows, asked = first.num_virtual_tokens, config.num_virtual_tokens
    if not rows or asked not in (TrainConfig().num_virtual_tokens, rows):
        raise UsageError(
            f"init {config.init!r} has {rows} virtual tokens, num_virtual_tokens is "
            f"{asked}",
            "start from a blob with virtual tokens, and leave num_virtual_tokens out",
        )
    pairs = PAIRS_APART if first.meta.pooling == APART else PAIRS_TOGETHER
    return _Start(rows, bool(first.past_key_values), pairs)


def numbers(base: FrozenBase, config: TrainConfig) -> int:
    """Numbers that a configuration's virtual tokens store: what a blob costs."""
    dims, count = base.dims, config.num_virtual_tokens
    if config.method == "prefix":
        return 2 * dims.layers * dims.kv_heads * dims.head_dim * count
    return dims.embedding * count if config.method in ROW_METHODS else 0


def _changed(task: Task, config: TrainConfig, candidate: Candidate) -> TrainConfig:
    usual = TrainConfig()
    free = {
        name: value
        for name, value in candidate.changes.items()
        if getattr(config, name) == getattr(usual, name)
        and (task.labels or name not in _HEAD_OPTIONS)
        and (task.kind in POOLED_KINDS or name != "head_pooling")
    }
    # A rate belongs to its method: where the method is held, so is the method's own.
    if "method" not in free and config.method != candidate.changes["method"]:
        free.pop("learning_rate", None)
    return replace(config, **free)
