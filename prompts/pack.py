"""The pack: one safetensors file of at most 100 KB that holds many tasks of one base.

What the tasks share is stored once (pack_tensors.py, pack_metadata.py). A reader gets
ordinary blobs: equal packs give equal blobs, to the byte and on every processor, each
with its own digest and each checked as one that came alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.atomic import write_atomic
from promptdial.prompts.blob import PromptBlob, decode, encode
from promptdial.prompts.errors import BlobInvalid, BlobTooBig, FileFailed, PromptError
from promptdial.prompts.int4_rows import quantise_int4
from promptdial.prompts.metadata import PromptMeta, check_meta
from promptdial.prompts.pack_metadata import from_pack_strings, to_pack_strings
from promptdial.prompts.pack_tensors import (
    DEEP_PARTS,
    HEAD_INT4,
    HEAD_INT4_SCALE,
    SHARED_PROMPT,
    blob_tensors,
    check_pack_tensors,
    has_pack_query,
    pack_head_rows,
)
from promptdial.prompts.quantised_rows import quantise_rows, quantise_tokens
from promptdial.prompts.tensor_rules import BIAS, HEAD, HEAD_SCALE, MIX, QUERY
from promptdial.prompts.tensors import (
    ContainerInvalid,
    read_container,
    write_container,
)

MAX_PACK_BYTES = 102_400
MAX_PACK_HEADER_BYTES = 65_536
"""A blob's is half of that; here are the labels and golden inputs of all tasks."""

PACK_SUFFIX = ".pack.safetensors"

Array = NDArray[Any]
Floats = NDArray[np.float32]
_HINT = "get the pack again from its maker"


@dataclass(frozen=True, eq=False)
class Pack:
    """A pack that was read or made; its bytes and every blob of it are checked.

    Attributes:
        blobs: The blob of each task, in the pack's order.
        tensors: The stored arrays by name, read-only.
        digest: `sha256:` and the digest of the file's bytes.
        size: Bytes of the file.
    """

    blobs: tuple[PromptBlob, ...]
    tensors: Mapping[str, Array]
    digest: str
    size: int

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the pack's order."""
        return tuple(blob.meta.task for blob in self.blobs)

    def get(self, task: str) -> PromptBlob | None:
        """The blob of a task; None where the pack has none."""
        return next((blob for blob in self.blobs if blob.meta.task == task), None)


@dataclass(frozen=True, eq=False)
class Factor:
    """What makes a shared part a task's own, for all tasks.

    S shared rows become P rows of a task, (mix @ shared) * width.

    Attributes:
        mix: [N, L, P, S]; L is 1 for a soft prompt.
        width: [N, L, W]; W is H of a soft prompt and K*D of keys and values. None for
            ones.
    """

    mix: Floats
    width: Floats | None = None


@dataclass(frozen=True, eq=False)
class TaskHead:
    """What one task of a pack reads its answers with.

    Attributes:
        weight: Class vectors [C, M * H].
        bias: [C].
        mix: Weights of the levels [M, L+1]; None for the last level alone (M = 1).
        query: Queries [M, H] that weigh the rows of a text; None for equal weights.
    """

    weight: Floats
    bias: Floats
    mix: Floats | None = None
    query: Floats | None = None


def make_pack(
    metas: Sequence[PromptMeta],
    *,
    embeddings: Floats | None = None,
    past: tuple[Floats, Floats] | None = None,
    factors: Mapping[str, Factor],
    heads: Sequence[TaskHead | None],
    vector_bits: int = 8,
) -> Pack:
    """Make a pack from float32 numbers, stored in int8, class vectors as asked.

    Args:
        metas: What each task's blob says about itself.
        embeddings: The shared rows [S, H] of a soft prompt.
        past: The shared keys and values [L, K, S, D] of a deep one.
        factors: By part (`prompt_embeddings`, `key`, `value`).
        heads: Of each task; None where it has none. All have a mix or none has, of one
            M; queries are those of all tasks that read whole texts, or of none.
        vector_bits: Of class vectors, 8 or 4: half the bytes, for vectors that were
            trained with that rounding.

    Raises:
        BlobInvalid: The numbers or the metadata break the format.
        BlobTooBig: More than MAX_PACK_BYTES, or a task's blob would be too big.
    """
    _require_alike(metas, heads)
    if vector_bits not in (4, 8):
        raise BlobInvalid(f"class vectors of {vector_bits} bits, allowed: 4, 8")
    tensors: dict[str, Array] = {}
    if embeddings is not None:
        tensors[SHARED_PROMPT], scale = quantise_rows(embeddings)
        tensors[f"{SHARED_PROMPT}_scale"] = scale
    for part, array in zip(DEEP_PARTS, past or (), strict=False):
        name = f"shared.{part}"
        layers = [quantise_tokens(layer) for layer in array]
        tensors[name] = np.stack([levels for levels, _ in layers])
        tensors[f"{name}_scale"] = np.stack([scale for _, scale in layers])
    for part, factor in factors.items():
        _store(tensors, f"{part}.mix", factor.mix)
        if factor.width is not None:
            _store(tensors, f"{part}.width", factor.width)
    found = [head for head in heads if head is not None]
    if found:
        weights = np.concatenate([head.weight for head in found])
        tensors |= _vectors(weights, vector_bits)
        biases = np.concatenate([head.bias for head in found])
        tensors[BIAS] = biases.astype(np.float32)
    mixes = [head.mix for head in found if head.mix is not None]
    if mixes:
        tensors[MIX] = np.stack(mixes).astype(np.float32)
    queries = [head.query for head in found if head.query is not None]
    if queries:
        _store(tensors, QUERY, np.stack(queries))
    return decode_pack(encode_pack(metas, tensors))


def _vectors(weights: Floats, bits: int) -> dict[str, Array]:
    """Class vectors [C, M * H] as they are stored.

    Raises:
        BlobInvalid: A width that fills no whole bytes of int4.
    """
    if bits == 8:
        levels, scale = quantise_rows(weights)
        return {HEAD: levels, HEAD_SCALE: scale}
    if weights.shape[1] % 2:
        raise BlobInvalid(
            f"class vectors of width {weights.shape[1]} in int4, allowed: even widths"
        )
    halves, scale = quantise_int4(weights)
    return {HEAD_INT4: halves, HEAD_INT4_SCALE: scale}


def _require_alike(
    metas: Sequence[PromptMeta], heads: Sequence[TaskHead | None]
) -> None:
    """Refuse heads that no pack can hold, or that would become another task's.

    Raises:
        BlobInvalid: One of them.
    """
    if len(metas) != len(heads):
        raise BlobInvalid(f"{len(heads)} heads of {len(metas)} tasks")
    widths, queries = set(), set()
    for meta, head in zip(metas, heads, strict=True):
        rows = 0 if head is None else len(head.weight)
        if rows != pack_head_rows(meta):
            raise BlobInvalid(
                f"{rows} class vectors of {meta.task!r}, expected "
                f"{pack_head_rows(meta)}"
            )
        if head is None:
            continue
        mix = None if head.mix is None else head.mix.shape
        query = None if head.query is None else head.query.shape
        widths.add((head.weight.shape[1:], mix))
        if has_pack_query(meta):
            queries.add(query)
        elif query is not None:
            raise BlobInvalid(f"queries of {meta.task!r}, which reads each word")
    for what, found in (("class vectors and mixes", widths), ("queries", queries)):
        if len(found) > 1:
            raise BlobInvalid(
                f"{what} of {len(found)} shapes, {found}, allowed: one for all tasks"
            )


def encode_pack(metas: Sequence[PromptMeta], tensors: Mapping[str, Array]) -> bytes:
    """The canonical bytes of a pack; equal input gives equal bytes.

    Raises:
        BlobInvalid: Metadata or a dtype breaks the format.
        BlobTooBig: More than MAX_PACK_BYTES.
    """
    for meta in metas:
        check_meta(meta)
    try:
        data = write_container(to_pack_strings(metas), tensors)
    except ContainerInvalid as error:
        raise BlobInvalid(str(error)) from None
    _check_size(len(data))
    header = int.from_bytes(data[:8], "little")
    if header > MAX_PACK_HEADER_BYTES:
        raise BlobTooBig(
            f"header of {header} bytes, at most {MAX_PACK_HEADER_BYTES}",
            "use fewer tasks or golden inputs",
        )
    return data


def decode_pack(data: bytes) -> Pack:
    """Read a pack, and every blob of it, in one validating pass.

    Raises:
        BlobTooBig: The pack, or a blob of it, is over its limit.
        BlobTooNew: A newer format.
        BlobInvalid: Any other broken rule; the message names it.
    """
    _check_size(len(data))
    try:
        metadata, tensors = read_container(data, MAX_PACK_HEADER_BYTES)
    except ContainerInvalid as error:
        raise BlobInvalid(str(error), _HINT) from None
    metas = from_pack_strings(metadata)
    check_pack_tensors(metas, tensors)
    blobs = tuple(_blob(metas, tensors, index) for index in range(len(metas)))
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return Pack(blobs, tensors, digest, len(data))


def read_pack(path: Path) -> Pack:
    """Read a pack from a file.

    Raises:
        FileFailed: The file cannot be read.
        PromptError: As `decode_pack`.
    """
    try:
        with path.open("rb") as file:
            # One byte more than allowed: enough to refuse, never a whole huge file.
            data = file.read(MAX_PACK_BYTES + 1)
    except OSError as error:
        raise FileFailed(
            f"{path}: {error.strerror or error}", "check the path"
        ) from None
    return decode_pack(data)


def write_pack(path: Path, pack: Pack) -> None:
    """Write a pack whole or not at all.

    Raises:
        BlobInvalid: The file's name is not one of a pack.
        FileFailed: The file cannot be written.
        NoSpace: The disk is full.
    """
    require_pack_name(path)
    metas = [blob.meta for blob in pack.blobs]
    write_atomic(path, encode_pack(metas, pack.tensors))


def require_pack_name(path: Path) -> None:
    """Refuse a name by which no folder would know a pack.

    Raises:
        BlobInvalid: It does not end as a pack's does, or begins with that.
    """
    if not path.name.endswith(PACK_SUFFIX) or path.name == PACK_SUFFIX:
        raise BlobInvalid(
            f"a pack in a file named {path.name!r}", f"name it <name>{PACK_SUFFIX}"
        )


def _blob(
    metas: Sequence[PromptMeta], tensors: Mapping[str, Array], index: int
) -> PromptBlob:
    meta = metas[index]
    try:
        return decode(encode(meta, blob_tensors(metas, tensors, index)), meta.task)
    except PromptError as error:
        raise type(error)(f"task {meta.task!r}: {error.message}", error.hint) from None


def _store(tensors: dict[str, Array], name: str, array: Floats) -> None:
    """int8 with a float16 scale for each row of the last axis."""
    levels, scale = quantise_tokens(array.reshape(1, -1, array.shape[-1]))
    tensors[name] = levels.reshape(array.shape)
    tensors[f"{name}_scale"] = scale.reshape(array.shape[:-1])


def _check_size(size: int) -> None:
    if size > MAX_PACK_BYTES:
        raise BlobTooBig(
            f"{size} bytes of a pack, at most {MAX_PACK_BYTES}",
            "use fewer virtual tokens, golden inputs or tasks",
        )
