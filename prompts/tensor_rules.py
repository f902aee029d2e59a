"""Rules of a blob's tensors: names, kinds, shapes, finite values."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.errors import BlobInvalid
from promptdial.prompts.metadata import LIKELIHOOD, PromptMeta, feature_width

MAX_VIRTUAL_TOKENS = 512
MAX_VALUE = 1e12
"""Of float32 numbers: 127 times this, squared and summed over a row, is finite."""

PROMPT = "prompt_embeddings"
PROMPT_SCALE = "prompt_embeddings_scale"
HEAD = "head.weight"
HEAD_SCALE = "head.weight_scale"
BIAS = "head.bias"
MIX = "head.mix"
QUERY = "head.query"

Array = NDArray[Any]

_PAST = re.compile(r"past_key_values\.(\d{1,4})\.(key|value)(_scale)?")
_DTYPE_NAMES = {"float32": "F32", "float16": "F16", "int8": "I8"}


def check_tensors(meta: PromptMeta, tensors: Mapping[str, Array]) -> None:
    """Check the tensors of a blob against its metadata and the format.

    Raises:
        BlobInvalid: A rule is broken; the message names it.
    """
    past = {name for name in tensors if _PAST.fullmatch(name)}
    known = {PROMPT, PROMPT_SCALE, HEAD, HEAD_SCALE, BIAS, MIX, QUERY}
    odd = sorted(set(tensors) - known - past)
    if odd:
        raise BlobInvalid(
            f"tensor {odd[0]!r} is not of the format, allowed: "
            f"{', '.join(sorted(known))}, past_key_values.0.key ..."
        )
    if past and PROMPT in tensors:
        raise BlobInvalid("both prompt_embeddings and past_key_values")
    for name, array in tensors.items():
        if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
            raise BlobInvalid(
                f"tensor {name} holds NaN or infinity, allowed: finite numbers"
            )
        if array.dtype == np.float32 and float(np.abs(array).max()) > MAX_VALUE:
            raise BlobInvalid(
                f"tensor {name} holds {float(np.abs(array).max()):.3g}, "
                f"at most {MAX_VALUE:.0e}"
            )
        if name.endswith("_scale") and bool((array < 0).any()):
            raise BlobInvalid(f"tensor {name} holds a negative scale")
    _check_rows(tensors, PROMPT, PROMPT_SCALE, ("F32", "F16", "I8"))
    if PROMPT in tensors and tensors[PROMPT].shape[0] > MAX_VIRTUAL_TOKENS:
        raise BlobInvalid(
            f"{tensors[PROMPT].shape[0]} virtual tokens, at most {MAX_VIRTUAL_TOKENS}"
        )
    _check_past(tensors, past)
    _check_head(meta, tensors)


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
    _check_rows(tensors, HEAD, HEAD_SCALE, ("F16", "I8"))
    labelled = meta.kind in ("classification", "pair", "token")
    wants_head = labelled and meta.pooling != LIKELIHOOD
    head, bias = tensors.get(HEAD), tensors.get(BIAS)
    if wants_head != (head is not None):
        raise BlobInvalid(
            f"kind {meta.kind} {'needs' if wants_head else 'takes no'} head.weight"
        )
    if head is not None and head.shape[0] != len(meta.labels):
        raise BlobInvalid(f"{len(meta.labels)} labels, {head.shape[0]} class vectors")
    if labelled and len(meta.labels) < 2:
        raise BlobInvalid(f"{len(meta.labels)} labels, at least 2")
    if bias is not None and (
        head is None or bias.shape != (head.shape[0],) or bias.dtype == np.int8
    ):
        raise BlobInvalid(f"head.bias has shape {bias.shape}")
    _check_mix(tensors)
    _check_query(meta, tensors)


def _check_mix(tensors: Mapping[str, Array]) -> None:
    """Weights of the levels [M, L+1]; the class vectors are M times as wide."""
    mix, head = tensors.get(MIX), tensors.get(HEAD)
    if mix is None:
        return
    if head is None or mix.dtype != np.float32 or mix.ndim != 2:
        raise BlobInvalid(
            f"{MIX} is {_DTYPE_NAMES[mix.dtype.name]} of rank {mix.ndim}, "
            "allowed: rank 2 of F32, beside head.weight"
        )
    if head.shape[1] % mix.shape[0]:
        raise BlobInvalid(
            f"{MIX} has {mix.shape[0]} rows, the class vectors are {head.shape[1]} "
            "wide, which is no multiple of it"
        )


def _check_query(meta: PromptMeta, tensors: Mapping[str, Array]) -> None:
    """Queries [M, H], one for each level that class vectors read; tags pool no rows."""
    query, head = tensors.get(QUERY), tensors.get(HEAD)
    if query is None:
        return
    if head is None or query.dtype != np.float16 or query.ndim != 2:
        raise BlobInvalid(
            f"{QUERY} is {_DTYPE_NAMES[query.dtype.name]} of rank {query.ndim}, "
            "allowed: rank 2 of F16, beside head.weight"
        )
    if meta.kind == "token":
        raise BlobInvalid(f"kind token takes no {QUERY}: each word is read by itself")
    levels = tensors[MIX].shape[0] if MIX in tensors else 1
    wide = levels * feature_width(meta.pooling, query.shape[1])
    if query.shape[0] != levels or wide != head.shape[1]:
        raise BlobInvalid(
            f"{QUERY} has shape {query.shape}, the class vectors read {levels} levels "
            f"and are {head.shape[1]} wide"
        )
