"""int8 with one scale a row: half the bytes of float16, error at most scale / 2."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]
_LEVELS = 127.0


def quantise_rows(rows: Floats) -> tuple[Array, Floats]:
    """int8 [N, W] and scales [N] of float32 rows [N, W], symmetric."""
    largest = np.abs(rows).max(axis=1)
    scale = (largest / _LEVELS).astype(np.float32)
    return _rounded(rows, scale[:, None]), scale


def restore_rows(rows: Array, scale: Array | None) -> Floats:
    """float32 [N, W] of stored rows; float rows are only widened."""
    wide = rows.astype(np.float32)
    if scale is not None:
        wide *= scale.astype(np.float32)[:, None]
    return wide


def quantise_tokens(array: Floats) -> tuple[Array, Array]:
    """int8 [K, P, D] and float16 scales [P] of float32 keys or values [K, P, D]."""
    largest = np.abs(array).max(axis=(0, 2))
    scale = (largest / _LEVELS).astype(np.float16)
    return _rounded(array, scale.astype(np.float32)[None, :, None]), scale


def restore_tokens(array: Array, scale: Array | None) -> Floats:
    """float32 [K, P, D] of stored keys or values."""
    wide = array.astype(np.float32)
    if scale is not None:
        wide *= scale.astype(np.float32)[None, :, None]
    return wide


def _rounded(values: Floats, scale: Floats) -> Array:
    # A scale of zero stands for a row of zeros; any divisor gives zeros then.
    safe = np.where(scale > 0, scale, 1.0)
    levels = np.clip(np.rint(values / safe), -_LEVELS, _LEVELS)
    return np.asarray(levels.astype(np.int8))
