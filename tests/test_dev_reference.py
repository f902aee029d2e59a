"""The reference in a blob: what a device counts of the same rows, and in the limit."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blobs import META, normal
from stores import new_store
from training_tasks import colour_task, embedding_task, pair_task, token_task

from promptdial.prompts.blob import (
    MAX_BLOB_BYTES,
    MAX_HEADER_BYTES,
    Golden,
    PromptBlob,
    decode,
    encode,
    make_blob,
)
from promptdial.prompts.distribution import (
    CONFIDENCE,
    REFERENCE,
    TOKENS,
    reference,
    reference_of,
)
from promptdial.prompts.errors import BlobTooBig
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.packing import pack, with_reference
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.trainer import train
from promptdial.runtime import Engine

QUICK = TrainConfig(epochs=2, batch_size=8, num_virtual_tokens=4, learning_rate=0.02)
SEEN = reference([0.5] * 500, [10] * 500)


@pytest.mark.parametrize(
    "task",
    [colour_task(), pair_task(), token_task(), embedding_task()],
    ids=lambda task: task.kind,
)
def test_it_is_what_a_device_counts_of_the_dev_rows(
    base: FrozenBase, tiny_bundle: Path, tmp_path: Path, task: Task
) -> None:
    task = replace(task, dev=task.train)
    blob = pack(task, QUICK, train(base, task, QUICK))
    made = reference_of(decode(encode(blob.meta, blob.tensors)).meta.metrics)
    with new_store(tmp_path / "store") as store:
        store.install(blob)
        store.activate(task.name)
        with Engine(tiny_bundle, store, threads=1, variant="fp32") as engine:
            for row in task.dev:
                if row.tokens:
                    engine.tag(task.name, row.tokens)
                else:
                    engine.run(task.name, row.text, row.text_pair)
        counted = store.figures.counted()[task.name, 1].bins
        assert list(store.figures.shifts()) == []
    assert made[TOKENS] == counted[TOKENS]
    assert sum(made[TOKENS]) == len(task.dev)
    if task.kind == "embedding":
        assert CONFIDENCE not in made and not any(counted[CONFIDENCE])
        return
    # The two differ in a last bit here and there, which may be a bin's edge: then a
    # row, and with it those that read alike, is found one bin further.
    moved = np.cumsum(made[CONFIDENCE]) - np.cumsum(counted[CONFIDENCE])
    assert np.abs(moved).sum() <= len(task.dev) / 4
    assert sum(counted[CONFIDENCE]) > 0


def maker(room: int) -> Callable[[tuple[Golden, ...], dict[str, Any]], PromptBlob]:
    """Makes a blob that has `room` bytes left without golden inputs and reference."""

    def make(golden: tuple[Golden, ...], more: dict[str, Any]) -> PromptBlob:
        meta = replace(META, golden=golden, metrics={"dev": 1.0} | more)
        head = normal(1, 3, 8)
        rows = normal(2, 250, 380)
        bare = make_blob(
            replace(META, metrics={"dev": 1.0}), embeddings=rows, head_weight=head
        )
        padding = MAX_BLOB_BYTES - room - bare.size
        meta = replace(meta, license="x" * padding)
        return make_blob(meta, embeddings=rows, head_weight=head)

    return make


GOLDEN = tuple(Golden(f"text {n}", None, (1, 2, 3), "red", 0.9) for n in range(2))


@pytest.mark.parametrize(
    ("room", "golden", "has_reference"),
    [(1000, 2, True), (120, 2, False), (60, 1, False), (0, 0, False)],
)
def test_the_reference_leaves_before_the_golden_inputs(
    room: int, golden: int, has_reference: bool
) -> None:
    blob = with_reference(maker(room), GOLDEN, SEEN)
    assert blob.size <= MAX_BLOB_BYTES
    assert len(blob.meta.golden) == golden
    assert (REFERENCE in blob.meta.metrics) is has_reference


def test_the_headers_limit_counts_too() -> None:
    rows = normal(2, 4, 8)

    def make(golden: tuple[Golden, ...], more: dict[str, Any]) -> PromptBlob:
        room = MAX_HEADER_BYTES - 752
        meta = replace(META, kind="embedding", labels=(), license="x" * room)
        meta = replace(meta, golden=golden, metrics={"dev": 1} | more)
        return make_blob(meta, embeddings=rows)

    several = (*GOLDEN * 3,)
    blob = with_reference(make, several, SEEN)
    assert REFERENCE not in blob.meta.metrics
    assert 0 < len(blob.meta.golden) < len(several)


def test_the_limit_holds_all_the_same() -> None:
    with pytest.raises(BlobTooBig):
        with_reference(maker(-64), GOLDEN, SEEN)
