"""The prompt blob: one safetensors file of at most 100 KB that holds one task."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.atomic import write_atomic
from promptdial.prompts.errors import BlobInvalid, BlobTooBig, FileFailed, UsageError
from promptdial.prompts.metadata import (
    Golden,
    PromptMeta,
    check_meta,
    from_strings,
    to_strings,
)
from promptdial.prompts.quantised_rows import (
    quantise_rows,
    quantise_tokens,
    restore_rows,
    restore_tokens,
)
from promptdial.prompts.tensor_rules import (
    BIAS,
    HEAD,
    HEAD_SCALE,
    MAX_VIRTUAL_TOKENS,
    MIX,
    PROMPT,
    PROMPT_SCALE,
    QUERY,
    check_tensors,
)
from promptdial.prompts.tensors import (
    ContainerInvalid,
    read_container,
    write_container,
)

__all__ = [
    "MAX_BLOB_BYTES",
    "MAX_HEADER_BYTES",
    "MAX_VIRTUAL_TOKENS",
    "Golden",
    "PromptBlob",
    "PromptMeta",
    "decode",
    "encode",
    "make_blob",
    "read_blob",
    "write_blob",
]

MAX_BLOB_BYTES = 102_400
MAX_HEADER_BYTES = 32_768
SUFFIX = ".safetensors"

Array = NDArray[Any]
Floats = NDArray[np.float32]
KeyValue = tuple[Floats, Floats]


@dataclass(frozen=True, eq=False)
class PromptBlob:
    """A blob that was read or made; its bytes are checked.

    Attributes:
        meta: What it says about itself.
        tensors: The stored arrays by name, read-only.
        digest: `sha256:` and the digest of the file's bytes.
        size: Bytes of the file.
    """

    meta: PromptMeta
    tensors: Mapping[str, Array]
    digest: str
    size: int

    @property
    def prompt_embeddings(self) -> Floats | None:
        """Rows of the input [P, H] in float32; None for other prompts."""
        if PROMPT not in self.tensors:
            return None
        return restore_rows(self.tensors[PROMPT], self.tensors.get(PROMPT_SCALE))

    @property
    def past_key_values(self) -> tuple[KeyValue, ...]:
        """Keys and values of a deep prompt: L pairs [K, P, D]; () for other prompts."""
        layers = sum(1 for name in self.tensors if name.endswith(".key"))
        return tuple(
            (self._past(i, "key"), self._past(i, "value")) for i in range(layers)
        )

    @property
    def head_weight(self) -> Floats | None:
        """Class vectors [C, M * H] in float32; None where there is no head.

        M is 1 but for `head_mix`.
        """
        if HEAD not in self.tensors:
            return None
        return restore_rows(self.tensors[HEAD], self.tensors.get(HEAD_SCALE))

    @property
    def head_bias(self) -> Floats | None:
        """Biases [C] in float32; None where there are none."""
        bias = self.tensors.get(BIAS)
        return None if bias is None else bias.astype(np.float32)

    @property
    def head_mix(self) -> Floats | None:
        """Weights [M, L+1] of the levels that the head reads; None for the last one."""
        mix = self.tensors.get(MIX)
        return None if mix is None else mix.astype(np.float32)

    @property
    def head_query(self) -> Floats | None:
        """Queries [M, H] that weigh the rows of a text; None for equal weights."""
        query = self.tensors.get(QUERY)
        return None if query is None else query.astype(np.float32)

    @property
    def num_virtual_tokens(self) -> int:
        """P; 0 where the blob is a head alone."""
        if PROMPT in self.tensors:
            return int(self.tensors[PROMPT].shape[0])
        key = self.tensors.get("past_key_values.0.key")
        return 0 if key is None else int(key.shape[1])

    def _past(self, layer: int, part: str) -> Floats:
        name = f"past_key_values.{layer}.{part}"
        return restore_tokens(self.tensors[name], self.tensors.get(f"{name}_scale"))


def make_blob(
    meta: PromptMeta,
    *,
    embeddings: Floats | None = None,
    past: Sequence[KeyValue] | None = None,
    head_weight: Floats | None = None,
    head_bias: Floats | None = None,
    head_mix: Floats | None = None,
    head_query: Floats | None = None,
    precision: str = "int8",
) -> PromptBlob:
    """Make a blob from float32 numbers.

    Args:
        meta: What the blob says about itself.
        embeddings: [P, H].
        past: L pairs of [K, P, D].
        head_weight: [C, M * H].
        head_bias: [C].
        head_mix: [M, L+1] weights of levels; None for the last one (M = 1).
        head_query: [M, H] what the rows of a text are weighed by, kept in float16; None
            for equal weights.
        precision: How prompt and class vectors are stored: `int8`, `f16` or `f32`
            (`f32` keeps f16 for `past`, which has no f32 in the format).

    Raises:
        UsageError: An unknown precision.
        BlobInvalid: The numbers or the metadata break the format.
        BlobTooBig: More than MAX_BLOB_BYTES.
    """
    if precision not in ("int8", "f16", "f32"):
        raise UsageError(f"precision {precision!r}", "choose int8, f16 or f32")
    tensors: dict[str, Array] = {}
    if embeddings is not None:
        _store_rows(tensors, PROMPT, embeddings, precision)
    for layer, pair in enumerate(past or ()):
        for part, array in zip(("key", "value"), pair, strict=True):
            name = f"past_key_values.{layer}.{part}"
            if precision == "int8":
                tensors[name], tensors[f"{name}_scale"] = quantise_tokens(array)
            else:
                tensors[name] = array.astype(np.float16)
    if head_weight is not None:
        # The format has no float32 head: float16 loses nothing that matters there.
        head_precision = "f16" if precision == "f32" else precision
        _store_rows(tensors, HEAD, head_weight, head_precision)
    if head_bias is not None:
        tensors[BIAS] = head_bias.astype(np.float32)
    if head_mix is not None:
        tensors[MIX] = head_mix.astype(np.float32)
    if head_query is not None:
        tensors[QUERY] = head_query.astype(np.float16)
    return decode(encode(meta, tensors))


def encode(meta: PromptMeta, tensors: Mapping[str, Array]) -> bytes:
    """The canonical bytes of a blob; equal input gives equal bytes.

    Raises:
        BlobInvalid: Metadata or a dtype breaks the format.
        BlobTooBig: More than MAX_BLOB_BYTES, or MAX_HEADER_BYTES of its header.
    """
    check_meta(meta)
    try:
        data = write_container(to_strings(meta), tensors)
    except ContainerInvalid as error:
        raise BlobInvalid(str(error)) from None
    _check_size(len(data))
    header = int.from_bytes(data[:8], "little")
    if header > MAX_HEADER_BYTES:
        raise BlobTooBig(
            f"header of {header} bytes, at most {MAX_HEADER_BYTES}",
            "use fewer golden inputs or shorter labels",
        )
    return data


def decode(data: bytes, name: str | None = None) -> PromptBlob:
    """Read a blob in one validating pass.

    Args:
        data: The file's bytes.
        name: The task it must be of (the file's stem); None for any.

    Raises:
        BlobTooBig: More than MAX_BLOB_BYTES.
        BlobTooNew: A newer format.
        BlobInvalid: Any other broken rule; the message names it.
    """
    _check_size(len(data))
    try:
        metadata, tensors = read_container(data, MAX_HEADER_BYTES)
    except ContainerInvalid as error:
        raise BlobInvalid(str(error), "get the prompt again from its maker") from None
    meta = from_strings(metadata)
    if name is not None and meta.task != name:
        raise BlobInvalid(
            f"task is {meta.task!r} in a file named {name!r}", "rename the file"
        )
    check_tensors(meta, tensors)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return PromptBlob(meta, tensors, digest, len(data))


def read_blob(path: Path) -> PromptBlob:
    """Read a blob from a file; its task must be the file's stem.

    Raises:
        FileFailed: The file cannot be read.
        PromptError: As `decode`.
    """
    try:
        with path.open("rb") as file:
            # One byte more than allowed: enough to refuse, never a whole huge file.
            data = file.read(MAX_BLOB_BYTES + 1)
    except OSError as error:
        raise FileFailed(
            f"{path}: {error.strerror or error}", "check the path"
        ) from None
    return decode(data, path.name.removesuffix(SUFFIX))


def write_blob(path: Path, blob: PromptBlob) -> None:
    """Write a blob whole or not at all.

    Raises:
        BlobInvalid: The file's stem is not the task.
        FileFailed: The file cannot be written.
        NoSpace: The disk is full.
    """
    require_blob_name(path, blob.meta.task)
    write_atomic(path, encode(blob.meta, blob.tensors))


def require_blob_name(path: Path, task: str) -> None:
    """Refuse a name by which no folder would know the task's blob.

    Raises:
        BlobInvalid: The file's stem is not the task.
    """
    if path.name != f"{task}{SUFFIX}":
        raise BlobInvalid(
            f"task {task!r} in a file named {path.name!r}", f"name it {task}{SUFFIX}"
        )


def _store_rows(
    tensors: dict[str, Array], name: str, rows: Floats, precision: str
) -> None:
    if precision == "int8":
        tensors[name], tensors[f"{name}_scale"] = quantise_rows(rows)
    else:
        tensors[name] = rows.astype(np.float16 if precision == "f16" else np.float32)


def _check_size(size: int) -> None:
    if size > MAX_BLOB_BYTES:
        raise BlobTooBig(
            f"{size} bytes, at most {MAX_BLOB_BYTES}",
            "use fewer virtual tokens or int8",
        )
