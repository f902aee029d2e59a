"""The prompt blob: one safetensors file of at most 100 KB that holds one task."""

import hashlib
import re
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
MAX_VIRTUAL_TOKENS = 512
SUFFIX = ".safetensors"

Array = NDArray[Any]
Floats = NDArray[np.float32]
KeyValue = tuple[Floats, Floats]

_PROMPT = "prompt_embeddings"
_PROMPT_SCALE = "prompt_embeddings_scale"
_HEAD = "head.weight"
_HEAD_SCALE = "head.weight_scale"
_BIAS = "head.bias"
_PAST = re.compile(r"past_key_values\.(\d{1,4})\.(key|value)(_scale)?")


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
        if _PROMPT not in self.tensors:
            return None
        return restore_rows(self.tensors[_PROMPT], self.tensors.get(_PROMPT_SCALE))

    @property
    def past_key_values(self) -> tuple[KeyValue, ...]:
        """Keys and values of a deep prompt: L pairs [K, P, D]; () for other prompts."""
        layers = sum(1 for name in self.tensors if name.endswith(".key"))
        return tuple(
            (self._past(i, "key"), self._past(i, "value")) for i in range(layers)
        )

    @property
    def head_weight(self) -> Floats | None:
        """Class vectors [C, H] in float32; None where there is no head."""
        if _HEAD not in self.tensors:
            return None
        return restore_rows(self.tensors[_HEAD], self.tensors.get(_HEAD_SCALE))

    @property
    def head_bias(self) -> Floats | None:
        """Biases [C] in float32; None where there are none."""
        bias = self.tensors.get(_BIAS)
        return None if bias is None else bias.astype(np.float32)

    @property
    def num_virtual_tokens(self) -> int:
        """P; 0 where the blob is a head alone."""
        if _PROMPT in self.tensors:
            return int(self.tensors[_PROMPT].shape[0])
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
    precision: str = "int8",
) -> PromptBlob:
    """Make a blob from float32 numbers.

    Args:
        meta: What the blob says about itself.
        embeddings: [P, H].
        past: L pairs of [K, P, D].
        head_weight: [C, H].
        head_bias: [C].
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
        _store_rows(tensors, _PROMPT, embeddings, precision)
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
        _store_rows(tensors, _HEAD, head_weight, head_precision)
    if head_bias is not None:
        tensors[_BIAS] = head_bias.astype(np.float32)
    return decode(encode(meta, tensors))


def encode(meta: PromptMeta, tensors: Mapping[str, Array]) -> bytes:
    """The canonical bytes of a blob; equal input gives equal bytes.

    Raises:
        BlobInvalid: Metadata or a dtype breaks the format.
        BlobTooBig: More than MAX_BLOB_BYTES.
    """
    check_meta(meta)
    try:
        data = write_container(to_strings(meta), tensors)
    except ContainerInvalid as error:
        raise BlobInvalid(str(error)) from None
    _check_size(len(data))
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
    _check_tensors(meta, tensors)
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
    if path.name != f"{blob.meta.task}{SUFFIX}":
        raise BlobInvalid(
            f"task {blob.meta.task!r} in a file named {path.name!r}",
            f"name it {blob.meta.task}{SUFFIX}",
        )
    write_atomic(path, encode(blob.meta, blob.tensors))


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


def _check_tensors(meta: PromptMeta, tensors: Mapping[str, Array]) -> None:
    past = {name for name in tensors if _PAST.fullmatch(name)}
    known = {_PROMPT, _PROMPT_SCALE, _HEAD, _HEAD_SCALE, _BIAS}
    odd = sorted(set(tensors) - known - past)
    if odd:
        raise BlobInvalid(f"tensor {odd[0]!r} is not of the format")
    if past and _PROMPT in tensors:
        raise BlobInvalid("both prompt_embeddings and past_key_values")
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
            raise BlobInvalid(f"tensor {name} holds NaN or infinity")
        if name.endswith("_scale") and bool((array < 0).any()):
            raise BlobInvalid(f"tensor {name} holds a negative scale")
    _check_rows(tensors, _PROMPT, _PROMPT_SCALE, ("F32", "F16", "I8"))
    if _PROMPT in tensors and tensors[_PROMPT].shape[0] > MAX_VIRTUAL_TOKENS:
        raise BlobInvalid(
            f"{tensors[_PROMPT].shape[0]} virtual tokens, at most {MAX_VIRTUAL_TOKENS}"
        )
    _check_past(tensors, past)
    _check_head(meta, tensors)


_DTYPE_NAMES = {"float32": "F32", "float16": "F16", "int8": "I8"}


def _check_rows(
    tensors: Mapping[str, Array], name: str, scale: str, allowed: tuple[str, ...]
) -> None:
    """Rules of a matrix and its row scales; the scales go with int8 only."""
    rows = tensors.get(name)
    if rows is None:
        if scale in tensors:
            raise BlobInvalid(f"{scale} without {name}")
        return
    dtype = _DTYPE_NAMES[rows.dtype.name]
    if dtype not in allowed or rows.ndim != 2:
        raise BlobInvalid(
            f"{name} is {dtype} of rank {rows.ndim}, "
            f"allowed: rank 2 of {', '.join(allowed)}"
        )
    _check_scale(tensors, name, scale, rows.shape[0])


def _check_scale(
    tensors: Mapping[str, Array], name: str, scale: str, count: int
) -> None:
    scales = tensors.get(scale)
    if (tensors[name].dtype == np.int8) != (scales is not None):
        raise BlobInvalid(f"{scale} goes with I8 and with nothing else")
    if scales is not None and (scales.shape != (count,) or scales.dtype == np.int8):
        raise BlobInvalid(f"{scale} has shape {scales.shape}, expected ({count},)")


def _check_past(tensors: Mapping[str, Array], past: set[str]) -> None:
    if not past:
        return
    layers = len([name for name in past if name.endswith(".key")])
    first = tensors.get("past_key_values.0.key")
    if first is None:
        raise BlobInvalid("past_key_values.0.key is missing")
    for layer in range(layers):
        for part in ("key", "value"):
            name = f"past_key_values.{layer}.{part}"
            array = tensors.get(name)
            if array is None:
                raise BlobInvalid(f"{name} is missing")
            if array.ndim != 3 or array.shape != first.shape:
                raise BlobInvalid(f"{name} has shape {array.shape}, not {first.shape}")
            if array.dtype == np.float32:
                raise BlobInvalid(f"{name} is F32, allowed: F16, I8")
            _check_scale(tensors, name, f"{name}_scale", array.shape[1])
    scaled = 2 if first.dtype == np.int8 else 1
    if len(past) != 2 * layers * scaled:
        raise BlobInvalid("past_key_values has gaps or extra tensors")
    if first.shape[1] > MAX_VIRTUAL_TOKENS:
        raise BlobInvalid(
            f"{first.shape[1]} virtual tokens, at most {MAX_VIRTUAL_TOKENS}"
        )


def _check_head(meta: PromptMeta, tensors: Mapping[str, Array]) -> None:
    _check_rows(tensors, _HEAD, _HEAD_SCALE, ("F16", "I8"))
    wants_head = meta.kind in ("classification", "pair", "token")
    head, bias = tensors.get(_HEAD), tensors.get(_BIAS)
    if wants_head != (head is not None):
        raise BlobInvalid(
            f"kind {meta.kind} {'needs' if wants_head else 'takes no'} head.weight"
        )
    if head is not None and head.shape[0] != len(meta.labels):
        raise BlobInvalid(f"{len(meta.labels)} labels, {head.shape[0]} class vectors")
    if wants_head and len(meta.labels) < 2:
        raise BlobInvalid(f"{len(meta.labels)} labels, at least 2")
    if bias is not None and (
        head is None or bias.shape != (head.shape[0],) or bias.dtype == np.int8
    ):
        raise BlobInvalid(f"head.bias has shape {bias.shape}")
    prompt = tensors.get(_PROMPT)
    if prompt is not None and head is not None and prompt.shape[1] != head.shape[1]:
        raise BlobInvalid(
            f"prompt rows are {prompt.shape[1]} wide, class vectors {head.shape[1]}"
        )
