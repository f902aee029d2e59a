"""Blobs with random numbers, for tests of everything that takes blobs."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.blob import PromptBlob, PromptMeta, make_blob
from promptdial.prompts.metadata import feature_width
from promptdial.runtime.manifest import Manifest

POOLING = {
    "classification": "mean_l2",
    "pair": "segments_l2",
    "token": "first_token",
    "embedding": "mean_l2",
    "generation": "",
}
LABELS = {
    "classification": ("red", "green", "blue"),
    "pair": ("other", "same"),
    "token": ("O", "B-x", "I-x"),
    "embedding": (),
    "generation": (),
}

META = PromptMeta(
    task="colour",
    version=3,
    kind="classification",
    attention="one_way",
    base_model="tiny",
    base_fingerprint="ckpt1:" + "a" * 64,
    tokenizer_fingerprint="tok1:" + "b" * 64,
    labels=LABELS["classification"],
    pooling="mean_l2",
    metrics={"dev_accuracy": 90.5},
    license="Apache-2.0",
    created="2026-11-24T00:00:00Z",
)


def normal(seed: int, *shape: int) -> NDArray[np.float32]:
    """Numbers of the size that prompts have."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * 0.3).astype(np.float32)


def random_blob(
    manifest: Manifest,
    task: str = "colour",
    kind: str = "classification",
    length: int = 4,
    deep: bool = False,
    seed: int = 0,
    version: int = 1,
    mixes: int = 0,
    attends: bool = False,
    pooling: str = "",
) -> PromptBlob:
    """A blob that fits a bundle.

    Args:
        manifest: The bundle's.
        task: Its name.
        kind: classification, pair, token, embedding or generation.
        length: P; 0 for a head alone.
        deep: Keys and values instead of rows.
        seed: Of the numbers.
        version: The prompt's version.
        mixes: M sums of levels that the head reads; 0 for the last level alone.
        attends: With queries that weigh the rows of a text.
        pooling: How features are read; "" for the kind's usual way.
    """
    dims, labels = manifest.dims, LABELS[kind]
    meta = replace(
        META,
        task=task,
        version=version,
        kind=kind,
        attention="one_way" if deep else manifest.attention,
        labels=labels,
        pooling=pooling or POOLING[kind],
        base_fingerprint=manifest.base.fingerprint,
        tokenizer_fingerprint=manifest.base.tokenizer_fingerprint,
    )
    shape = (dims.kv_heads, length, dims.head_dim)
    wide = feature_width(meta.pooling, dims.hidden)
    pairs = [
        (normal(seed + 2 * i, *shape), normal(seed + 2 * i + 1, *shape))
        for i in range(dims.layers)
    ]
    return make_blob(
        meta,
        embeddings=normal(seed, length, dims.embedding)
        if length and not deep
        else None,
        past=pairs if length and deep else None,
        head_weight=10 * normal(seed + 99, len(labels), max(1, mixes) * wide)
        if labels
        else None,
        head_mix=normal(seed + 98, mixes, dims.layers + 1) if mixes else None,
        head_query=0.1 * normal(seed + 97, max(1, mixes), dims.hidden)
        if attends
        else None,
    )
