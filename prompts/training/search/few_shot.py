"""Few-shot mode: N rows a class, everything chosen by folds of them, no dev rows.

A prompt is trained from class means, on texts with words left out, and then the class
vectors are fitted again on the features over the finished prompt: the few epochs that
a prompt takes leave them behind. Whether there is a prompt at all, which one, and how
hard the class vectors are held and what they read, stratified folds decide.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from promptdial.prompts.blob import Golden, PromptBlob, make_blob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import encode_rows
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.diagnostics import Finding
from promptdial.prompts.training.heads import Head
from promptdial.prompts.training.idle_options import idle_findings
from promptdial.prompts.training.packing import (
    blob_meta,
    golden_inputs,
    stored_pairs,
    stored_rows,
    with_golden,
)
from promptdial.prompts.training.parameters import Prompt
from promptdial.prompts.training.progress import say
from promptdial.prompts.training.range_check import range_findings
from promptdial.prompts.training.reference import blob_reader
from promptdial.prompts.training.scoring import logits_of
from promptdial.prompts.training.search.candidates import Candidate, usable
from promptdial.prompts.training.search.few_shot_rows import FOLDS, draw
from promptdial.prompts.training.search.few_shot_runs import (
    PROBE,
    FoldRuns,
    Held,
    Way,
    percent,
)
from promptdial.prompts.training.search.search_log import (
    SearchLog,
    Trial,
    log_path,
    search_identity,
)
from promptdial.prompts.training.storage import Storage
from promptdial.prompts.training.task import Task

_COMMON = {"epochs": 8, "label_smoothing": 0.1, "word_dropout": 0.1, "head_scale": 15.0}
CANDIDATES = (
    Candidate(
        "deep 8",
        {"method": "prefix", "num_virtual_tokens": 8, "learning_rate": 2e-2, **_COMMON},
        "few rows: short, and at less than half the usual rate",
    ),
    Candidate(
        "soft 20",
        {
            "method": "prompt",
            "num_virtual_tokens": 20,
            "learning_rate": 5e-3,
            **_COMMON,
        },
        "what bases without a prefix take",
    ),
)

_GOLDEN_ROWS = 400
"""Training rows among which golden inputs are looked for."""


@dataclass(frozen=True)
class FewShot:
    """A finished few-shot run.

    Attributes:
        blob: The blob.
        task: The rows that were drawn.
        chosen: The candidate's name.
        reason: Why it, in words.
        accuracy: Over the folds, percent.
        probe: The same of a linear probe on the last level.
        trials: What was tried; `rung` is the fold, `rows` those trained on.
        warnings: What the user should know.
        seconds: Wall time.
    """

    blob: PromptBlob
    task: Task
    chosen: str
    reason: str
    accuracy: float
    probe: float
    trials: list[Trial]
    warnings: list[Finding]
    seconds: float

    def answer(self) -> dict[str, Any]:
        """What `train` says of it."""
        return {
            "task": self.task.name,
            "metric": self.task.metric,
            "dev_metric": None,
            "folds_metric": round(self.accuracy, 3),
            "probe": round(self.probe, 3),
            "rows": len(self.task.train),
            "warnings": [f"{item.code}: {item.message}" for item in self.warnings],
            "seconds": round(self.seconds, 2),
            "search": {
                "chosen": self.chosen,
                "reason": self.reason,
                "tried": [asdict(trial) for trial in self.trials],
            },
        }


def train_few_shot(
    base: FrozenBase, task: Task, config: TrainConfig, out: Path
) -> FewShot:
    """Draw, choose by folds, and train on all that was drawn.

    Args:
        base: The frozen model.
        task: Rows and labels; dev and test are not looked at.
        config: Options; those that differ from their default are kept.
        out: The blob to be; what was tried is kept beside it.

    Raises:
        UsageError: The task has no classes, or an option has no meaning here.
        DataInvalid: A class has less than two rows.
        BlobTooBig: The class vectors do not fit.
    """
    if config.resume:
        raise UsageError("resume with few_shot", "these runs are short: start again")
    usual = TrainConfig()
    for name in _NOT_HERE:
        if getattr(config, name) != getattr(usual, name):
            raise UsageError(
                f"few_shot with {name} {getattr(config, name)!r}, which means nothing",
                f"leave {name} out",
            )
    started = time.monotonic()
    drawn = draw(task, config.few_shot, config.seed)
    identity = search_identity(base.base.fingerprint, task, config)
    run = FoldRuns(
        base, drawn, config, SearchLog(log_path(out), identity, resume=False)
    )
    bare = run.folds(None)
    choice = _choose(run, bare)
    prompt, head = run.train(choice.config, run.examples, choice.way)
    accuracy, alone = percent(choice.right), percent(bare.of_last_level().best()[0])
    name = choice.candidate.name if choice.candidate else PROBE
    run.log.add_choice(
        {
            "name": name,
            "reason": choice.reason,
            "reads": choice.way.reading.name,
            "penalty": choice.way.penalty,
        }
    )
    say(task.name, choice.reason)
    warnings = idle_findings(config, task.kind)
    warnings += range_findings(base, prompt, Storage(config.precision))
    metrics = {f"folds_{task.metric}": round(accuracy, 3), "probe": round(alone, 3)}
    return FewShot(
        blob=packed(run, choice.config, prompt, head, metrics),
        task=drawn,
        chosen=name,
        reason=choice.reason,
        accuracy=accuracy,
        probe=alone,
        trials=run.log.trials,
        warnings=warnings,
        seconds=time.monotonic() - started,
    )


_NOT_HERE = (
    *("budget", "abstain", "head_levels", "head_pooling", "head_init"),
    *("rounded", "patience", "max_seconds"),
)
"""Options that a choice by folds has no use for."""


@dataclass(frozen=True)
class _Choice:
    """What the folds say: a candidate (None for class vectors alone) and its rows."""

    candidate: Candidate | None
    config: TrainConfig
    right: Tensor
    way: Way
    reason: str


def _choose(run: FoldRuns, bare: Held) -> _Choice:
    """The prompt that the first fold prefers, if the folds say it pays."""
    probe, way = bare.best()
    without = replace(run.config, method="probe")
    if run.config.method == "probe":
        return _Choice(None, without, probe, way, "class vectors alone, as asked")
    tried = usable(run.base, run.task, run.config, CANDIDATES)
    if not tried:
        reason = "no prompt fits beside the class vectors"
        return _Choice(None, without, probe, way, reason)
    first = [run.folds(item, (0,)) for item in tried]
    index = preferred([held.best()[0] for held in first])
    candidate, config = tried[index]
    held = while_hopeful(
        first[index], probe, lambda fold: run.folds(tried[index], (fold,))
    )
    right, prompted = held.best()
    rows = right.shape[-1]
    gain, error = difference(right, probe[:rows])
    folds = f"{FOLDS} folds" if rows == len(probe) else "the first folds, the rest left"
    seen = (
        f"{candidate.name} has {percent(right):.2f} over {folds}, class vectors alone "
        f"{percent(probe[:rows]):.2f}; standard error of the difference {error:.2f}"
    )
    if gain <= error:
        reason = f"{seen}: the prompt does not pay, class vectors alone"
        return _Choice(None, without, probe, way, reason)
    return _Choice(candidate, config, right, prompted, f"{seen}: the prompt pays")


def while_hopeful(first: Held, probe: Tensor, more: Callable[[int], Held]) -> Held:
    """The first fold and, while there is hope, the others.

    Args:
        first: Of fold 0.
        probe: What class vectors alone get right, of all folds [N].
        more: Runs one fold.
    """
    held = first
    for fold in range(1, FOLDS):
        if hopeless(held.best()[0], probe):
            break
        held = Held(held.ways, torch.cat([held.right, more(fold).right], dim=1))
    return held


def hopeless(right: Tensor, probe: Tensor) -> bool:
    """Whether a prompt's further folds are not worth their time.

    A prompt that is a standard error behind class vectors alone would have to be as
    far ahead on the folds to come.

    Args:
        right: Its answers of the first folds [M].
        probe: Those of class vectors alone, of all folds in the same order [N].
    """
    gain, error = difference(right, probe[: len(right)])
    return gain < -error


def preferred(right: Sequence[Tensor]) -> int:
    """Place of the candidate to go on with, of their answers on the same rows [N].

    The first one, unless another is better by more than a standard error: one fold of
    few rows cannot tell them apart, and where it chose the soft one, the deep one had
    more on test rows (HWU64 on MiniLM, benchmarks/README.md).
    """
    best = 0
    for place in range(1, len(right)):
        gain, error = difference(right[place], right[0])
        if gain > error and percent(right[place]) > percent(right[best]):
            best = place
    return best


def difference(one: Tensor, two: Tensor) -> tuple[float, float]:
    """Mean difference of answers on the same rows [N], and its standard error.

    Args:
        one: True where the label is right.
        two: The same of what it is compared with.

    Returns:
        Both in points.
    """
    gain = one.float() - two.float()
    return 100.0 * float(gain.mean()), 100.0 * float(gain.std()) / len(gain) ** 0.5


def packed(
    run: FoldRuns,
    config: TrainConfig,
    prompt: Prompt,
    head: Head,
    metrics: dict[str, float],
) -> PromptBlob:
    """The blob; its golden inputs are training rows, for want of others."""
    meta = blob_meta(run.base, run.task, config, run.pooling, config.epochs)

    def make(golden: tuple[Golden, ...]) -> PromptBlob:
        return make_blob(
            replace(meta, golden=golden, metrics=dict(metrics)),
            embeddings=stored_rows(prompt),
            past=stored_pairs(prompt),
            head_weight=head.weight.detach().cpu().numpy(),
            head_bias=head.bias.detach().cpu().numpy(),
            head_mix=None if head.mix is None else head.mix.detach().cpu().numpy(),
            precision=config.precision,
        )

    reader = blob_reader(run.base, make(()))
    shown = replace(run.task, dev=run.task.train[:_GOLDEN_ROWS])
    rows = encode_rows(
        shown.dev, run.base.encoder, shown.labels, shown.template, run.pooling
    )
    golden = golden_inputs(shown, reader, rows, logits_of(reader, rows))
    return with_golden(make, golden)
