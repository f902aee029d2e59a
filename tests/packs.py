"""Packs with random numbers, for tests of everything that takes packs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from blobs import LABELS, META, POOLING, normal
from numpy.typing import NDArray

from promptdial.prompts.metadata import PromptMeta
from promptdial.prompts.pack import Factor, Pack, TaskHead, make_pack
from promptdial.runtime.manifest import Base, Dims, Manifest

Floats = NDArray[np.float32]
TASKS = {
    "colour": "classification",
    "same": "pair",
    "spans": "token",
    "find": "embedding",
}
SMALL = Dims(
    layers=2,
    hidden=16,
    embedding=16,
    heads=2,
    kv_heads=2,
    head_dim=8,
    vocab=52,
    max_positions=64,
    token_types=2,
)
BASE = Base("tiny", "BertModel", META.base_fingerprint, META.tokenizer_fingerprint)


def metas_of(
    tasks: Mapping[str, str] = TASKS, base: Base = BASE, attention: str = "one_way"
) -> list[PromptMeta]:
    """Metadata of tasks by name and kind, in the order of their names."""
    return [
        replace(
            META,
            task=task,
            kind=kind,
            labels=LABELS[kind],
            pooling=POOLING[kind],
            attention=attention,
            base_fingerprint=base.fingerprint,
            tokenizer_fingerprint=base.tokenizer_fingerprint,
            training={"recipe": {"seed": 0}, "rows": 100 + index},
        )
        for index, (task, kind) in enumerate(tasks.items())
    ]


def random_pack(
    metas: Sequence[PromptMeta],
    dims: Dims = SMALL,
    deep: bool = True,
    length: int = 4,
    parts: Sequence[str] = ("value",),
    seed: int = 0,
    levels: int = 0,
    wide: bool = True,
    vector_bits: int = 8,
) -> Pack:
    """A pack of random numbers.

    Args:
        metas: Its tasks.
        dims: Sizes of the base.
        deep: Keys and values instead of rows.
        length: P, and the number of shared rows.
        parts: Those with factors, of a deep pack.
        seed: Of the numbers.
        levels: M, with queries; 0 for class vectors of the last level alone.
        wide: Factors have a width beside their mix.
        vector_bits: As `make_pack`.
    """
    count, layers = len(metas), dims.layers if deep else 1
    shape = (dims.layers, dims.kv_heads, length, dims.head_dim)
    width = dims.kv_heads * dims.head_dim if deep else dims.embedding
    factors = {
        part: Factor(
            normal(seed + index, count, layers, length, length),
            1 + normal(seed + index + 9, count, layers, width) if wide else None,
        )
        for index, part in enumerate(parts if deep else ("prompt_embeddings",))
    }
    heads = [
        _head(seed + index, meta, dims, levels) for index, meta in enumerate(metas)
    ]
    keys, values = normal(seed + 50, *shape), normal(seed + 51, *shape)
    rows = 0.2 * normal(seed + 52, length, dims.embedding)
    return make_pack(
        metas,
        embeddings=None if deep else rows.astype(np.float32),
        past=(keys, values) if deep else None,
        factors=factors,
        heads=heads,
        vector_bits=vector_bits,
    )


def _head(seed: int, meta: PromptMeta, dims: Dims, levels: int) -> TaskHead | None:
    count = len(meta.labels)
    if not count:
        return None
    weight = 10 * normal(seed + 20, count, max(levels, 1) * dims.hidden)
    mix = normal(seed + 30, levels, dims.layers + 1) if levels else None
    asks = levels and meta.kind != "token"
    query = normal(seed + 40, levels, dims.hidden) if asks else None
    return TaskHead(weight, normal(seed, count), mix, query)


def pack_for(
    manifest: Manifest, deep: bool = True, seed: int = 0, levels: int = 0
) -> Pack:
    """A pack of the four kinds that fits a bundle."""
    metas = metas_of(TASKS, manifest.base, manifest.attention)
    return random_pack(metas, manifest.dims, deep, seed=seed, levels=levels)
