"""From a finished joint run to a pack: stored numbers, golden inputs, metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from promptdial.prompts.blob import Golden, PromptMeta
from promptdial.prompts.distribution import REFERENCE
from promptdial.prompts.errors import BlobTooBig
from promptdial.prompts.pack import Pack, TaskHead, make_pack
from promptdial.prompts.pack_tensors import DEEP_PARTS
from promptdial.prompts.tensor_rules import PROMPT
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.config import (
    NOT_IN_PACKS,
    TrainConfig,
    recipe_of,
)
from promptdial.prompts.training.diagnostics import Finding, RunFacts, run_findings
from promptdial.prompts.training.heads import Head, pooling_of
from promptdial.prompts.training.packing import (
    GOLDEN_COUNT,
    Array,
    blob_meta,
    golden_inputs,
)
from promptdial.prompts.training.packs.shared import SharedResult
from promptdial.prompts.training.packs.shared_members import (
    Member,
    member_config,
    member_head,
)
from promptdial.prompts.training.packs.shared_prompt import SharedPrompt
from promptdial.prompts.training.range_check import blob_findings
from promptdial.prompts.training.reference import blob_reader
from promptdial.prompts.training.scores.dev_reference import dev_reference
from promptdial.prompts.training.scoring import logits_of, score_of_logits
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.units import share_changed, units_of_logits
from promptdial.prompts.training.unknown_words import unknown_findings


@dataclass(frozen=True)
class PackedTask:
    """What the stored numbers of one task give.

    Attributes:
        dev_metric: Dev metric, percent.
        answers_changed: Share of dev answers that differ without the prompt.
        warnings: Known failures that it shows.
    """

    dev_metric: float
    answers_changed: float
    warnings: list[Finding]


def pack_shared(
    config: TrainConfig, result: SharedResult
) -> tuple[Pack, list[PackedTask]]:
    """The pack of a run; its dev metrics are of the stored, rounded numbers.

    Every task keeps as many golden inputs as all can have, and the reference of its
    dev rows if there is room for everyone's.

    Raises:
        BlobTooBig: It does not fit in 100 KB without any.
        BlobInvalid: A name or number breaks the format.
    """
    metas = [_meta(config, result, member) for member in result.members]
    # Twice: golden inputs and metrics must be those of the rounded numbers.
    draft = _make(metas, result.prompt, result.heads)
    golden: list[tuple[Golden, ...]] = []
    seen: list[dict[str, Any]] = []
    found: list[PackedTask] = []
    for index, member in enumerate(result.members):
        reader = blob_reader(result.base, draft.blobs[index])
        logits = logits_of(reader, member.dev)
        metric = score_of_logits(reader, member.task.dev, member.dev, logits)
        metric = round(metric, 3)
        seen.append({REFERENCE: dev_reference(reader, member.dev, logits)})
        answers = units_of_logits(reader, member.dev, logits)
        changed = share_changed(reader, member.dev, answers)
        packed = _packed(config, result, index, metric, changed)
        outside = blob_findings(reader, draft.blobs[index])
        found.append(replace(packed, warnings=packed.warnings + outside))
        golden.append(golden_inputs(member.task, reader, member.dev, logits))
        metrics = {f"dev_{member.task.metric}": metric}
        metas[index] = replace(metas[index], metrics=metrics)
    # References leave before golden inputs, as those of single blobs do.
    bare: list[dict[str, Any]] = [{}] * len(metas)
    counts = range(GOLDEN_COUNT, -1, -1)
    for count, more in [(GOLDEN_COUNT, seen), *((count, bare) for count in counts)]:
        some = [
            replace(meta, golden=inputs[:count], metrics=meta.metrics | own)
            for meta, inputs, own in zip(metas, golden, more, strict=True)
        ]
        try:
            return _make(some, result.prompt, result.heads), found
        except BlobTooBig:
            if not count:
                raise
    raise AssertionError("unreachable: the last count raises")


def require_pack_fits(
    base: FrozenBase, tasks: Sequence[Task], config: TrainConfig
) -> int:
    """Refuse, before any training, what would make a pack over 100 KB.

    Returns:
        Bytes of the pack without golden inputs and metrics.

    Raises:
        BlobTooBig: Shared prompt, factors and class vectors alone are too big, or the
            blob of a task, whose class vectors are in int8.
    """
    dims, count = base.dims, config.num_virtual_tokens
    width = dims.kv_heads * dims.head_dim
    if config.method == "prompt":
        start = {PROMPT: torch.zeros(1, count, dims.embedding)}
    else:
        start = dict.fromkeys(DEEP_PARTS, torch.zeros(dims.layers, count, width))
    heads = [member_head(base, task, config) for task in tasks]
    metas = [
        _task_meta(base, task, config, pooling_of(task.kind, config), 0)
        for task in tasks
    ]
    prompt = SharedPrompt(start, len(tasks), dims.kv_heads)
    try:
        return _make(metas, prompt, heads).size
    except BlobTooBig as error:
        raise BlobTooBig(
            error.message,
            "give fewer --head-levels, --num-virtual-tokens or tasks",
        ) from None


def _meta(config: TrainConfig, result: SharedResult, member: Member) -> PromptMeta:
    meta = _task_meta(result.base, member.task, config, member.pooling, result.epochs)
    if member.teacher is None:
        return meta
    return replace(meta, training={**meta.training, "teacher": member.teacher.digest})


def _task_meta(
    base: FrozenBase, task: Task, config: TrainConfig, pooling: str, epochs: int
) -> PromptMeta:
    """As of a single blob, with the options that a pack has.

    Without the digest of the dev rows, which `train-all` alone asks for: bytes are few.
    """
    own = member_config(task, config)
    meta = blob_meta(base, task, own, pooling, epochs)
    recipe = {
        name: value
        for name, value in recipe_of(own).items()
        if name not in NOT_IN_PACKS
    }
    made = {name: value for name, value in meta.training.items() if name != "dev"}
    return replace(meta, training={**made, "recipe": recipe})


def _make(
    metas: Sequence[PromptMeta], prompt: SharedPrompt, heads: Sequence[Head | None]
) -> Pack:
    return make_pack(
        metas,
        embeddings=prompt.stored_rows(),
        past=prompt.stored_pairs(),
        factors=prompt.stored_factors(),
        heads=[None if head is None else _task_head(head) for head in heads],
        vector_bits=4,
    )


def _task_head(head: Head) -> TaskHead:
    mix, query = (
        None if item is None else _array(item) for item in (head.mix, head.query)
    )
    return TaskHead(_array(head.weight), _array(head.bias), mix, query)


def _packed(
    config: TrainConfig,
    result: SharedResult,
    index: int,
    metric: float,
    changed: float,
) -> PackedTask:
    examples = result.members[index].train
    truncated = sum(example.text.truncated for example in examples)
    facts = RunFacts(
        method=config.method,
        distance=result.distances[index],
        answers_changed=changed,
        truncated_share=truncated / len(examples),
        cut_share=0.0,
        losses=tuple(result.losses),
        dev_metrics=(metric,),
        dev_metric=metric,
        probe=None,
        # The losses are those of all tasks together: no task's guess compares.
        classes=0,
        labels=None,
    )
    unknown = unknown_findings(result.base.encoder, examples)
    return PackedTask(metric, changed, unknown + run_findings(facts))


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().float().numpy())
