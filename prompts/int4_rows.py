"""int4 with one scale a row, two numbers a byte: what packs hold class vectors in.

A quarter of the bytes of float16. The error is at most scale / 2, with a scale eighteen
times as large as int8's: for numbers that were trained with this rounding.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Floats = NDArray[np.float32]
LEVELS = 7.0


def quantise_int4(rows: Floats) -> tuple[Array, Floats]:
    """Bytes [N, W/2] and scales [N] of float32 rows [N, W] of even width, symmetric.

    A byte is int8 and holds columns 2i (its low half) and 2i + 1.
    """
    scale = (np.abs(rows).max(axis=1) / LEVELS).astype(np.float32)
    # A scale of zero stands for a row of zeros; any divisor gives zeros then.
    safe = np.where(scale > 0, scale, 1.0)[:, None]
    levels = np.clip(np.rint(rows / safe), -LEVELS, LEVELS).astype(np.int8)
    # Seen as unsigned, not cast: what a negative float becomes there is undefined.
    levels = levels.view(np.uint8)
    halves = (levels[:, 0::2] & 0x0F) | (levels[:, 1::2] << 4)
    return halves.view(np.int8), scale


def unpack_int4(halves: Array) -> Array:
    """int8 [N, W] of bytes [N, W/2]: the same numbers, with the same scales."""
    found = np.empty((len(halves), 2 * halves.shape[1]), np.int8)
    # Shifts of int8 keep the sign.
    found[:, 0::2] = (halves << 4) >> 4
    found[:, 1::2] = halves >> 4
    return found
