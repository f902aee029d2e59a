"""The bundle's token table: int8 rows with one scale each, or exact, to be mapped.

A safetensors file with `embed_tokens.weight_scale` [V] F32 and `embed_tokens.weight`
[V, H] I8, or, in a bundle of exact graphs alone, with the latter alone as F32. The
header is padded with spaces so that the data begin at a multiple of 64 bytes: a reader
can lay arrays over the mapped file, and only rows that are used become resident.
"""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promptdial.export.errors import file_errors

WEIGHT_NAME = "embed_tokens.weight"
SCALE_NAME = "embed_tokens.weight_scale"
ALIGNMENT = 64

_ROW_NORM_QUANTILE = 0.999
_ROW_NORM_FACTOR = 20.0


def quantise_table(
    table: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 rows [V, H] and their scales [V]; rows of zeros have scale 0."""
    scale = (np.abs(table).max(axis=1) / 127).astype(np.float32)
    safe = np.where(scale > 0, scale, 1)[:, None]
    levels = np.clip(np.rint(table / safe), -127, 127).astype(np.int8)
    return levels, scale


def write_table(path: Path, table: NDArray[np.float32], *, exact: bool) -> None:
    """Write the table [V, H], in int8 or exactly; equal input gives equal bytes."""
    if exact:
        parts = [(WEIGHT_NAME, "F32", table.shape, table.astype("<f4").tobytes())]
    else:
        levels, scale = quantise_table(table)
        # Scales first: safetensors sorts by alignment, and F32 needs the larger one.
        parts = [
            (SCALE_NAME, "F32", scale.shape, scale.astype("<f4").tobytes()),
            (WEIGHT_NAME, "I8", levels.shape, levels.tobytes()),
        ]
    header: dict[str, object] = {}
    offset = 0
    for name, dtype, shape, data in parts:
        end = offset + len(data)
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with file_errors(path), path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for *_, data in parts:
            file.write(data)


def read_table(path: Path) -> NDArray[np.float32]:
    """The rows [V, H] as the device will see them, in float32."""
    from safetensors.numpy import load_file

    with file_errors(path):
        tensors = load_file(path)
    rows = tensors[WEIGHT_NAME].astype(np.float32)
    if SCALE_NAME in tensors:
        rows = rows * tensors[SCALE_NAME][:, None]
    return np.asarray(rows, np.float32)


def row_norm_limit(table: NDArray[np.float32]) -> float:
    """Largest L2 norm a prompt row may have: 20 times that of nearly all tokens.

    Trained rows grow well beyond tokens; rows beyond this bound are damage or abuse.
    """
    norms = np.linalg.norm(table, axis=1)
    return round(_ROW_NORM_FACTOR * float(np.quantile(norms, _ROW_NORM_QUANTILE)), 4)
