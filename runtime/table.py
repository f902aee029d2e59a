"""The token table: int8 rows in a mapped file, so that only used rows are resident."""

import json
import mmap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.errors import BundleInvalid

WEIGHT = "embed_tokens.weight"
SCALE = "embed_tokens.weight_scale"
_MAX_HEADER = 65_536


class TokenTable:
    """Token embeddings [V, H] by id. Safe to share among threads."""

    def __init__(self, path: Path, vocab: int, hidden: int) -> None:
        """Map the file.

        Raises:
            BundleInvalid: It is no table of [vocab, hidden].
        """
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            weight, scale = _layout(self._map, vocab, hidden)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleInvalid(f"{path.name}: {error}", "export it again") from None
        rows = np.frombuffer(self._map, np.int8, vocab * hidden, weight)
        self._rows = rows.reshape(vocab, hidden)
        self._scale = np.frombuffer(self._map, np.float32, vocab, scale)

    def embed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings [T, H] of token ids [T], as transformers' `inputs_embeds`.

        Raises:
            BundleInvalid: The tokenizer gave an id that has no row.
        """
        try:
            rows, scale = self._rows[ids], self._scale[ids]
        except IndexError:
            raise BundleInvalid(
                f"tokenizer.json has token id {ids.max()}, the table {len(self._rows)} "
                "rows",
                "export the bundle again",
            ) from None
        return np.multiply(rows, scale[:, None], dtype=np.float32)


def _layout(data: mmap.mmap, vocab: int, hidden: int) -> tuple[int, int]:
    """Byte offsets of rows and scales."""
    length = int.from_bytes(data[:8], "little")
    if length > _MAX_HEADER:
        raise ValueError(f"header of {length} bytes")
    header = json.loads(data[8 : 8 + length])
    offsets = []
    for name, dtype, shape, size in (
        (WEIGHT, "I8", [vocab, hidden], vocab * hidden),
        (SCALE, "F32", [vocab], 4 * vocab),
    ):
        item = header[name]
        begin, end = item["data_offsets"]
        if item["dtype"] != dtype or item["shape"] != shape or end - begin != size:
            raise ValueError(f"{name} is {item['dtype']} {item['shape']}, not {shape}")
        if not 0 <= begin <= end <= len(data) - 8 - length:
            raise ValueError(f"{name} lies outside the file")
        offsets.append(8 + length + begin)
    return offsets[0], offsets[1]
