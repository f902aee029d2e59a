"""From a finished run to a blob: stored rows, golden inputs, metrics, provenance."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from promptdial.prompts.blob import Golden, PromptBlob, PromptMeta, make_blob
from promptdial.prompts.distribution import REFERENCE
from promptdial.prompts.errors import BlobTooBig, UsageError
from promptdial.prompts.metadata import feature_width
from promptdial.prompts.scores import Scores
from promptdial.prompts.training.base import FrozenBase, PromptBase
from promptdial.prompts.training.batches import Example, encode_rows, target_tensor
from promptdial.prompts.training.config import (
    ATTENTION,
    ROW_METHODS,
    TrainConfig,
    recipe_of,
)
from promptdial.prompts.training.diagnostics import Finding
from promptdial.prompts.training.heads import (
    POOLED_KINDS,
    pooling_of,
    starting_mix,
)
from promptdial.prompts.training.idle_options import require_labels
from promptdial.prompts.training.parameters import (
    DeepPrompt,
    NoPrompt,
    Prompt,
)
from promptdial.prompts.training.reference import blob_reader
from promptdial.prompts.training.result import TrainResult
from promptdial.prompts.training.scores.calibration import (
    Calibration,
    calibrate,
    rule_of,
)
from promptdial.prompts.training.scores.dev_reference import dev_reference
from promptdial.prompts.training.scoring import (
    Reader,
    joined,
    logits_of,
    score_of_logits,
    tags_of_logits,
)
from promptdial.prompts.training.task import Task, data_digest
from promptdial.runtime.deciding import calibrated, decide
from promptdial.runtime.rows import Row

GOLDEN_COUNT = 4
GOLDEN_MARGIN = 0.5
"""Of the scores: far above what quantisation and other processors change."""
GOLDEN_TOKENS = 32
"""Longest golden input."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Packed:
    """A blob, and what its maker should know of it.

    Attributes:
        blob: The blob.
        findings: About its scores.
    """

    blob: PromptBlob
    findings: tuple[Finding, ...]


def pack(task: Task, config: TrainConfig, result: TrainResult) -> PromptBlob:
    """The blob of `packed`.

    Raises:
        PromptdialError: As `packed`.
    """
    return packed(task, config, result).blob


def packed(task: Task, config: TrainConfig, result: TrainResult) -> Packed:
    """The blob of a run; scores and dev metric are of the stored, rounded numbers.

    Golden inputs are left out one by one where the blob would be too big with them.

    Raises:
        BlobTooBig: The class vectors and virtual tokens do not fit in 100 KB.
        BlobInvalid: A name or number breaks the format.
        UsageError: The task has no answers to abstain from, or no such label.
    """
    base = result.reader.base
    pooling = result.reader.pooling
    dev = encode_rows(task.dev, base.encoder, task.labels, task.template, pooling)
    # Twice: golden inputs and metrics must be those of the rounded numbers.
    draft = _make(task, config, result, (), {}, Calibration())
    reader = blob_reader(base, draft)
    logits = logits_of(reader, dev)
    calibration = _calibration(task, config, dev, logits)
    reader = replace(reader, scores=calibration.scores)
    metrics = {
        f"dev_{task.metric}": round(score_of_logits(reader, task.dev, dev, logits), 3),
        "zero_shot": round(result.zero_shot, 3),
        "probe": round(result.probe, 3),
        **calibration.metrics,
    }
    golden = golden_inputs(task, reader, dev, logits)
    blob = with_reference(
        lambda some, more: _make(
            task, config, result, some, metrics | more, calibration
        ),
        golden,
        dev_reference(reader, dev, logits),
    )
    return Packed(blob, calibration.findings)


def _calibration(
    task: Task, config: TrainConfig, dev: list[Example], logits: list[Tensor]
) -> Calibration:
    rule = rule_of(config, task)
    if task.kind == "embedding":
        return Calibration()
    targets = target_tensor(dev, torch.device("cpu")).numpy()
    rows = joined(logits).double().numpy()
    share = config.out_of_scope_share
    return calibrate(rows, targets, task.labels, rule, share)


def with_reference(
    make: Callable[[tuple[Golden, ...], dict[str, Any]], PromptBlob],
    golden: tuple[Golden, ...],
    found: dict[str, list[int]],
) -> PromptBlob:
    """The blob with its reference, and as many of its golden inputs as fit.

    The reference leaves first: without it a device does not hear of other texts,
    without golden inputs it may serve a prompt that is wrong there.

    Args:
        make: Takes golden inputs, and metrics besides its own.
        golden: Those there are.
        found: The reference.

    Raises:
        BlobTooBig: It is too big without any.
    """
    with suppress(BlobTooBig):
        return make(golden, {REFERENCE: found})
    return with_golden(lambda some: make(some, {}), golden)


def with_golden(
    make: Callable[[tuple[Golden, ...]], PromptBlob], golden: tuple[Golden, ...]
) -> PromptBlob:
    """The blob with as many of its golden inputs as fit.

    Raises:
        BlobTooBig: It is too big without any.
    """
    while golden:
        try:
            return make(golden)
        except BlobTooBig:
            golden = golden[:-1]
    return make(())


def require_fit(base: FrozenBase, task: Task, config: TrainConfig) -> None:
    """Refuse, before any training, what would make a blob over 100 KB.

    Raises:
        BlobTooBig: Class vectors and virtual tokens alone are too big.
        UsageError: Attention pooling where nothing is pooled, or a probe of embeddings.
    """
    require_labels(task, config)
    dims, count = base.dims, config.num_virtual_tokens
    classes = len(task.labels)
    pair = np.zeros((dims.kv_heads, count, dims.head_dim), np.float32)
    rows = np.zeros((count, dims.embedding), np.float32)
    mix = starting_mix(config.head_levels, dims.layers + 1)
    mixes = 1 if mix is None else len(mix)
    pooling = pooling_of(task.kind, config)
    wide = mixes * feature_width(pooling, dims.hidden)
    attends = config.head_pooling == ATTENTION
    if attends and task.kind not in POOLED_KINDS:
        raise UsageError(
            f"head_pooling {ATTENTION} on kind {task.kind}, which pools no rows",
            f"it is for {', '.join(POOLED_KINDS)}",
        )
    make_blob(
        blob_meta(base, task, config, pooling, 0),
        embeddings=rows if config.method in ROW_METHODS else None,
        past=[(pair, pair)] * dims.layers if config.method == "prefix" else None,
        head_weight=np.zeros((classes, wide), np.float32) if classes else None,
        head_bias=np.zeros(classes, np.float32) if classes else None,
        head_mix=None if mix is None or not classes else _array(mix),
        head_query=np.zeros((mixes, dims.hidden), np.float32) if attends else None,
        precision=config.precision,
    )


def pack_probe(task: Task, config: TrainConfig, result: TrainResult) -> PromptBlob:
    """The run's linear probe as a blob of its own, without virtual tokens.

    Raises:
        BlobTooBig: The class vectors do not fit in 100 KB.
    """
    probe = replace(result, reader=result.probe_reader, prompt=NoPrompt())
    return pack(task, replace(config, method="probe"), probe)


def _make(
    task: Task,
    config: TrainConfig,
    result: TrainResult,
    golden: tuple[Golden, ...],
    metrics: dict[str, Any],
    calibration: Calibration,
) -> PromptBlob:
    reader, head = result.reader, result.reader.head
    meta = blob_meta(reader.base, task, config, reader.pooling, result.epochs)
    return make_blob(
        replace(meta, golden=golden, metrics=dict(metrics), scores=calibration.scores),
        embeddings=stored_rows(result.prompt),
        past=stored_pairs(result.prompt),
        head_weight=None if head is None else _array(head.weight),
        head_bias=None if head is None else _array(head.bias),
        head_mix=None if head is None or head.mix is None else _array(head.mix),
        head_query=None if head is None or head.query is None else _array(head.query),
        precision=config.precision,
    )


def blob_meta(
    base: PromptBase, task: Task, config: TrainConfig, pooling: str, epochs: int
) -> PromptMeta:
    """What a blob says about itself, but for metrics and golden inputs."""
    return PromptMeta(
        task=task.name,
        version=config.version,
        kind=task.kind,
        attention=base.attention,
        base_model=base.base.model,
        base_fingerprint=base.base.fingerprint,
        tokenizer_fingerprint=base.base.tokenizer_fingerprint,
        labels=task.labels,
        template=dict(task.template),
        pooling=pooling,
        scores=Scores(out_of_scope=task.out_of_scope),
        training=_provenance(base, task, config, epochs),
        license=task.license,
        created=_created(),
    )


def _provenance(
    base: PromptBase, task: Task, config: TrainConfig, epochs: int
) -> dict[str, object]:
    dev = {"dev": data_digest(task.dev)} if task.dev else {}
    return {
        "recipe": recipe_of(config),
        "rows": len(task.train),
        "data": data_digest(task.train),
        **dev,
        "graph": base.trained_on,
        "epochs": epochs,
    }


def _created() -> str:
    """Now in UTC, or SOURCE_DATE_EPOCH where it is set (reproducible builds)."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    seconds = int(epoch) if epoch and epoch.isdigit() else int(time.time())
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def stored_rows(prompt: Prompt) -> Array | None:
    """The folded rows [P, H] of a prompt of rows; None of a deep one or of none."""
    if isinstance(prompt, DeepPrompt | NoPrompt):
        return None
    return _array(prompt.embeddings())


def stored_pairs(prompt: Prompt) -> list[tuple[Array, Array]] | None:
    """Keys and values [K, P, D] of a deep prompt, by layer; None of a soft one."""
    if not isinstance(prompt, DeepPrompt):
        return None
    return [(_array(key), _array(value)) for key, value in prompt.pairs()]


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().float().numpy())


def golden_inputs(
    task: Task, reader: Reader, dev: list[Example], logits: list[Tensor]
) -> tuple[Golden, ...]:
    """Clear, right answers of different labels among short dev inputs.

    Args:
        task: For its dev rows.
        reader: What the blob makes of a text.
        dev: The rows, encoded.
        logits: What `logits_of` gave of them.
    """
    found: list[Golden] = []
    seen: set[str] = set()
    if task.kind == "embedding":
        return ()
    for row, example, own in zip(task.dev, dev, logits, strict=True):
        if len(example.text) > GOLDEN_TOKENS or example.text.truncated:
            continue
        if task.kind == "token":
            tags = tags_of_logits(reader, [example], [own])[0]
            label, gold = " ".join(tags), " ".join(row.tags)
            margin = _least_margin(own, reader)
        else:
            decision = decide(own.numpy(), task.labels, reader.scores)
            label, gold = task.labels[decision.best], row.label or ""
            margin = 0.0 if decision.abstained else decision.margin
        if label != gold or label in seen or margin < GOLDEN_MARGIN:
            continue
        seen.add(label)
        found.append(_entry(row, example, label, margin))
        if len(found) == GOLDEN_COUNT:
            break
    return tuple(found)


def _least_margin(logits: Tensor, reader: Reader) -> float:
    """Distance of the two best tags' scores, of the weakest word [W, C]."""
    two = np.sort(calibrated(logits.numpy(), reader.labels, reader.scores))[:, -2:]
    return float((two[:, -1] - two[:, 0]).min())


def _entry(row: Row, example: Example, label: str, margin: float) -> Golden:
    return Golden(
        text=row.text,
        text_pair=row.text_pair,
        tokens=tuple(int(token) for token in example.text.ids),
        label=label,
        margin=round(margin, 4),
    )
