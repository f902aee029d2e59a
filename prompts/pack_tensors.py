"""The tensors of a pack: their rules, and the tensors of each task's blob from them.

N tasks, S shared rows, W width of a row (H, or K*D of keys and values), C all class
vectors of all tasks, one task after the other; R tasks have class vectors, and Q of
them read whole texts (all but `token`), in the tasks' order:

    shared.prompt_embeddings   [S, H]        a soft prompt; L is 1 then
    shared.key, shared.value   [L, K, S, D]  or a deep one
    PART.mix                   [N, L, P, S]  PART is one of the three above
    PART.width                 [N, L, W]
    head.weight, head.bias     [C, M*H], [C]
    head.weight_int4           [C, M*H/2]    instead: two int4 a byte (int4_rows.py)
    head.mix                   [R, M, L+1]   without it M is 1, the last level
    head.query                 [Q, M, H]     without it all rows of a text count alike

A task's rows of a part are (mix @ shared) * width. Multitask prompt tuning has a
diagonal mix (Wang et al. 2023, arXiv:2303.02861: shared times an outer product). Both
may be left out; a part with neither is the same for all tasks: keys are, at little loss
(arXiv:2508.17032). All are F16, or I8 with a tensor `NAME_scale` of one number a row;
biases are F16 or F32, the mix of levels F32, as it is in a blob. A blob's queries are
F16: those of I8 are rounded to it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.blob import MAX_BLOB_BYTES
from promptdial.prompts.errors import BlobInvalid, BlobTooBig
from promptdial.prompts.int4_rows import LEVELS, unpack_int4
from promptdial.prompts.metadata import LIKELIHOOD, PromptMeta
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
    MAX_VALUE,
    MAX_VIRTUAL_TOKENS,
    MIX,
    PROMPT,
    PROMPT_SCALE,
    QUERY,
)

Array = NDArray[Any]
Floats = NDArray[np.float32]

SHARED_PROMPT = f"shared.{PROMPT}"
HEAD_INT4 = f"{HEAD}_int4"
HEAD_INT4_SCALE = f"{HEAD_INT4}_scale"
DEEP_PARTS = ("key", "value")
PARTS = (PROMPT, *DEEP_PARTS)

_STEMS = {HEAD, HEAD_INT4, QUERY, *(f"shared.{part}" for part in PARTS)}
_STEMS |= {f"{part}.{factor}" for part in PARTS for factor in ("mix", "width")}
_KNOWN = {BIAS, MIX, *_STEMS, *(f"{stem}_scale" for stem in _STEMS)}
_HINT = "get the pack again from its maker"
_MAX_F16 = 65504.0
_MAX_LEVEL = 127.0


def check_pack_tensors(
    metas: Sequence[PromptMeta], tensors: Mapping[str, Array]
) -> None:
    """Check the tensors of a pack against its tasks and the format.

    Raises:
        BlobInvalid: A rule is broken; the message names it.
    """
    odd = sorted(set(tensors) - _KNOWN)
    if odd:
        raise BlobInvalid(
            f"tensor {odd[0][:64]!r} is not of a pack, allowed: "
            f"{', '.join(sorted(_KNOWN))}",
            _HINT,
        )
    for name, array in tensors.items():
        _check_values(name, array)
    for stem in _STEMS:
        _check_scale(tensors, stem)
    deep = [part for part in DEEP_PARTS if f"shared.{part}" in tensors]
    if (SHARED_PROMPT in tensors) == bool(deep) or len(deep) == 1:
        raise BlobInvalid(
            f"shared tensors are {sorted(n for n in tensors if n.startswith('sh'))}, "
            f"allowed: {SHARED_PROMPT}, or shared.key and shared.value",
            _HINT,
        )
    for part in PARTS:
        _check_part(len(metas), tensors, part)
    _check_heads(metas, tensors)


def blob_tensors(
    metas: Sequence[PromptMeta], tensors: Mapping[str, Array], index: int
) -> dict[str, Array]:
    """The tensors of one task's blob, int8 where a product was taken.

    Only sums and products of single numbers in a fixed order: every processor gives
    the same bytes.

    Raises:
        BlobInvalid: A product has no int8 with a scale.
    """
    found = _head_tensors(metas, tensors, index)
    if SHARED_PROMPT in tensors:
        rows = tensors[SHARED_PROMPT]
        scale = tensors.get(f"{SHARED_PROMPT}_scale")
        factors = _factors(tensors, PROMPT, index)
        if factors is None:
            found[PROMPT] = rows
            if scale is not None:
                found[PROMPT_SCALE] = scale
            return found
        mix, width = (None if item is None else item[0] for item in factors)
        made = _product(restore_rows(rows, scale), mix, width)
        _check_product(made, MAX_VALUE, metas[index], PROMPT)
        found[PROMPT], found[PROMPT_SCALE] = quantise_rows(made)
        return found
    for part in DEEP_PARTS:
        found |= _deep_tensors(tensors, part, index, metas[index])
    return found


def pack_head_rows(meta: PromptMeta) -> int:
    """C, or 0 where a task has no class vectors."""
    labelled = meta.kind in ("classification", "pair", "token")
    return len(meta.labels) if labelled and meta.pooling != LIKELIHOOD else 0


def has_pack_query(meta: PromptMeta) -> bool:
    """Whether a task has its queries in a pack that has any."""
    return pack_head_rows(meta) > 0 and meta.kind != "token"


def _check_values(name: str, array: Array) -> None:
    if array.dtype.kind != "f":
        return
    # NaN is not at most anything.
    largest = float(np.abs(array).max())
    if not largest <= MAX_VALUE:
        raise BlobInvalid(
            f"tensor {name} holds {largest:.3g}, allowed: finite numbers of at most "
            f"{MAX_VALUE:.0e}",
            _HINT,
        )
    if name.endswith("_scale") and bool((array < 0).any()):
        raise BlobInvalid(f"tensor {name} holds a negative scale", _HINT)


def _check_scale(tensors: Mapping[str, Array], stem: str) -> None:
    """A scale goes with I8 and nothing else: one number a row."""
    array, scale = tensors.get(stem), tensors.get(f"{stem}_scale")
    if array is None:
        if scale is not None:
            raise BlobInvalid(f"{stem}_scale without {stem}", _HINT)
        return
    if (array.dtype == np.int8) != (scale is not None):
        raise BlobInvalid(f"{stem}_scale goes with I8 and with nothing else", _HINT)
    if array.dtype == np.float32:
        allowed = "I8" if stem == HEAD_INT4 else "F16, I8"
        raise BlobInvalid(f"{stem} is F32, allowed: {allowed}", _HINT)
    if scale is None:
        return
    shape = array.shape[:-1]
    if stem in ("shared.key", "shared.value") and array.ndim == 4:
        shape = (array.shape[0], array.shape[2])
    if scale.shape != shape or scale.dtype == np.int8:
        raise BlobInvalid(f"{stem}_scale has shape {scale.shape}, not {shape}", _HINT)


def _check_part(count: int, tensors: Mapping[str, Array], part: str) -> None:
    """The shapes of a shared part and of its factors."""
    shared = tensors.get(f"shared.{part}")
    factors = {name: tensors.get(f"{part}.{name}") for name in ("mix", "width")}
    if shared is None:
        for name, array in factors.items():
            if array is not None:
                raise BlobInvalid(f"{part}.{name} without shared.{part}", _HINT)
        return
    rank = 2 if part == PROMPT else 4
    if shared.ndim != rank:
        raise BlobInvalid(
            f"shared.{part} is of rank {shared.ndim}, allowed: rank {rank}", _HINT
        )
    layers, length, width = _sizes(shared)
    mix = factors["mix"]
    made = mix.shape[2] if mix is not None and mix.ndim == 4 else length
    for name, shape in (
        ("mix", (count, layers, made, length)),
        ("width", (count, layers, width)),
    ):
        array = factors[name]
        if array is not None and array.shape != shape:
            raise BlobInvalid(
                f"{part}.{name} has shape {array.shape}, expected {shape}", _HINT
            )
    if max(length, made) > MAX_VIRTUAL_TOKENS:
        raise BlobInvalid(
            f"{max(length, made)} virtual tokens, at most {MAX_VIRTUAL_TOKENS}", _HINT
        )
    # Before the product: a small mix can ask for a large one.
    if layers * made * width > MAX_BLOB_BYTES:
        raise BlobTooBig(
            f"{layers * made * width} numbers in {part} of every task, at most "
            f"{MAX_BLOB_BYTES}",
            _HINT,
        )


def _check_heads(metas: Sequence[PromptMeta], tensors: Mapping[str, Array]) -> None:
    total = sum(pack_head_rows(meta) for meta in metas)
    head, bias = tensors.get(HEAD), tensors.get(BIAS)
    halves = tensors.get(HEAD_INT4)
    if halves is not None:
        if head is not None:
            raise BlobInvalid(f"both {HEAD} and {HEAD_INT4}", _HINT)
        if halves.dtype != np.int8:
            raise BlobInvalid(f"{HEAD_INT4} is F16, allowed: I8", _HINT)
        if halves.ndim == 2 and bool((unpack_int4(halves) < -LEVELS).any()):
            raise BlobInvalid(f"{HEAD_INT4} holds -8, allowed: -7 to 7", _HINT)
        head = halves
    name = HEAD if halves is None else HEAD_INT4
    rows = 0 if head is None else head.shape[0]
    if rows != total or (head is not None and head.ndim != 2):
        raise BlobInvalid(f"{total} labels with class vectors, {rows} in {name}", _HINT)
    if bias is not None and (bias.shape != (total,) or bias.dtype == np.int8):
        raise BlobInvalid(f"{BIAS} has shape {bias.shape}, not ({total},)", _HINT)
    readers = sum(pack_head_rows(meta) > 0 for meta in metas)
    mix, query = tensors.get(MIX), tensors.get(QUERY)
    if mix is not None and (
        mix.dtype != np.float32 or mix.ndim != 3 or len(mix) != readers
    ):
        raise BlobInvalid(
            f"{MIX} is {mix.dtype.name} {mix.shape}, allowed: float32 "
            f"({readers}, M, L+1)",
            _HINT,
        )
    pooling = sum(map(has_pack_query, metas))
    if query is not None and (query.ndim != 3 or len(query) != pooling):
        raise BlobInvalid(
            f"{QUERY} has shape {query.shape}, expected ({pooling}, M, H)", _HINT
        )


def _head_tensors(
    metas: Sequence[PromptMeta], tensors: Mapping[str, Array], index: int
) -> dict[str, Array]:
    """The task's rows of the class vectors, as they are stored."""
    begin = sum(pack_head_rows(meta) for meta in metas[:index])
    end = begin + pack_head_rows(metas[index])
    if begin == end:
        return {}
    names = (HEAD, HEAD_SCALE, BIAS)
    found = {name: tensors[name][begin:end] for name in names if name in tensors}
    if HEAD_INT4 in tensors:
        found[HEAD] = unpack_int4(tensors[HEAD_INT4][begin:end])
        found[HEAD_SCALE] = tensors[HEAD_INT4_SCALE][begin:end]
    if MIX in tensors:
        place = sum(pack_head_rows(meta) > 0 for meta in metas[:index])
        found[MIX] = tensors[MIX][place]
    if QUERY in tensors and has_pack_query(metas[index]):
        place = sum(map(has_pack_query, metas[:index]))
        query = _restored(tensors, QUERY, place)
        assert query is not None, "there is one, as was seen above"
        _check_product(query, _MAX_F16, metas[index], QUERY)
        found[QUERY] = query.astype(np.float16)
    return found


def _deep_tensors(
    tensors: Mapping[str, Array], part: str, index: int, meta: PromptMeta
) -> dict[str, Array]:
    """Keys or values of every layer."""
    shared, scales = tensors[f"shared.{part}"], tensors.get(f"shared.{part}_scale")
    factors = _factors(tensors, part, index)
    found: dict[str, Array] = {}
    for layer, stored in enumerate(shared):
        name = f"past_key_values.{layer}.{part}"
        scale = None if scales is None else scales[layer]
        if factors is None:
            found[name] = stored
            if scale is not None:
                found[f"{name}_scale"] = scale
            continue
        heads, length, width = stored.shape
        wide = restore_tokens(stored, scale).transpose(1, 0, 2).reshape(length, -1)
        made = _product(wide, *(None if it is None else it[layer] for it in factors))
        _check_product(made, _MAX_LEVEL * _MAX_F16, meta, name)
        split = made.reshape(len(made), heads, width).transpose(1, 0, 2)
        found[name], found[f"{name}_scale"] = quantise_tokens(split)
    return found


def _factors(
    tensors: Mapping[str, Array], part: str, index: int
) -> tuple[Floats | None, Floats | None] | None:
    """Mix [L, P, S] and width [L, W] of a task; None for a part without either."""
    mix = _restored(tensors, f"{part}.mix", index)
    width = _restored(tensors, f"{part}.width", index)
    return None if mix is None and width is None else (mix, width)


def _restored(tensors: Mapping[str, Array], name: str, index: int) -> Floats | None:
    array, scale = tensors.get(name), tensors.get(f"{name}_scale")
    if array is None:
        return None
    wide: Floats = array[index].astype(np.float32)
    if scale is not None:
        wide *= scale[index].astype(np.float32)[..., None]
    return wide


def _product(shared: Floats, mix: Floats | None, width: Floats | None) -> Floats:
    """(mix [P, S] @ shared [S, W]) * width [W].

    One row after the other instead of a matrix product, whose order of sums differs
    from processor to processor.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        made = shared
        if mix is not None:
            made = np.zeros((len(mix), shared.shape[1]), np.float32)
            for column, row in zip(mix.T, shared, strict=True):
                made += column[:, None] * row[None, :]
        return made if width is None else made * width


def _check_product(made: Floats, most: float, meta: PromptMeta, name: str) -> None:
    largest = float(np.abs(made).max())
    if not largest <= most:
        raise BlobInvalid(
            f"the product of stored numbers in {name} of {meta.task!r} is "
            f"{largest:.3g}, at most {most:.3g}",
            _HINT,
        )


def _sizes(shared: Array) -> tuple[int, int, int]:
    """L, S and W of a shared part."""
    if shared.ndim == 2:
        return 1, shared.shape[0], shared.shape[1]
    layers, heads, length, width = shared.shape
    return layers, length, heads * width
