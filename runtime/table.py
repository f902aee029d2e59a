"""The token table [V, H] on disk: int8 or float rows; those in use are in memory."""

import json
import mmap
import os
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.errors import BundleInvalid

WEIGHT = "embed_tokens.weight"
SCALE = "embed_tokens.weight_scale"
_MAX_HEADER = 65_536

Ids = NDArray[np.int64]
Rows = NDArray[np.int8] | NDArray[np.float32]


class _Source(Protocol):
    """What gives rows [T, H] by id [T]; an id that has none is an IndexError."""

    def __getitem__(self, ids: Ids, /) -> Rows: ...


class TokenTable:
    """Token embeddings [V, H] by id. Safe to share among threads."""

    def __init__(
        self, path: Path, vocab: int, hidden: int, *, mapped: bool = True
    ) -> None:
        """Open the file.

        Args:
            path: embed_tokens.safetensors of a bundle.
            vocab: Rows it must have.
            hidden: Length of each.
            mapped: Look rows up in a mapping of the file; else read each when used.

        Raises:
            BundleInvalid: It is no table of [vocab, hidden].
        """
        self._rows: _Source
        try:
            with path.open("rb") as file:
                dtype, weight, scale = _layout(file, vocab, hidden)
                self._scale: NDArray[np.float32] | None = None
                if scale:
                    file.seek(scale)
                    self._scale = np.frombuffer(file.read(4 * vocab), np.float32)
                if mapped:
                    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                    rows = np.frombuffer(data, dtype, vocab * hidden, weight)
                    self._rows = rows.reshape(vocab, hidden)
                else:
                    own = os.dup(file.fileno())
                    self._rows = _FileRows(own, dtype, weight, vocab, hidden)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise BundleInvalid(f"{path.name}: {error}", "export it again") from None
        self._vocab = vocab

    def embed(self, ids: Ids) -> NDArray[np.float32]:
        """Embeddings [T, H] of token ids [T], as transformers' `inputs_embeds`.

        Raises:
            BundleInvalid: The tokenizer gave an id that has no row.
        """
        try:
            rows = self._rows[ids]
        except IndexError:
            raise BundleInvalid(
                f"tokenizer.json has token id {ids.max()}, the table {self._vocab} "
                "rows",
                "export the bundle again",
            ) from None
        if self._scale is None:
            return np.asarray(rows, np.float32)
        return np.multiply(rows, self._scale[ids, None], dtype=np.float32)


class _FileRows:
    """Rows of an open file, read one by one."""

    def __init__(
        self,
        descriptor: int,
        dtype: np.dtype[Any],
        offset: int,
        vocab: int,
        hidden: int,
    ) -> None:
        """Take over a descriptor whose rows begin at a byte offset."""
        self._descriptor = descriptor
        self._dtype = dtype
        self._offset = offset
        self._vocab = vocab
        self._hidden = hidden

    def __getitem__(self, ids: Ids) -> Rows:
        found = np.empty((len(ids), self._hidden), self._dtype)
        size = self._hidden * self._dtype.itemsize
        for row, token in zip(found, ids.tolist(), strict=True):
            if not 0 <= token < self._vocab:
                raise IndexError(token)
            data = os.pread(self._descriptor, size, self._offset + token * size)
            if len(data) != size:
                raise BundleInvalid(
                    "the token table was cut while it was open", "open it again"
                )
            row[:] = np.frombuffer(data, self._dtype)
        return found

    def __del__(self) -> None:
        os.close(self._descriptor)


def _layout(file: BinaryIO, vocab: int, hidden: int) -> tuple[np.dtype[Any], int, int]:
    """Type of the rows, and byte offsets of rows and scales; 0 where there are none."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        raise ValueError(f"header of {length} bytes")
    header = json.loads(file.read(length))
    offsets = [0, 0]
    kind = "F32" if header[WEIGHT]["dtype"] == "F32" else "I8"
    rows = np.dtype("<f4" if kind == "F32" else "i1")
    wanted = [(WEIGHT, kind, [vocab, hidden], rows.itemsize * vocab * hidden)]
    if kind == "I8":
        wanted.append((SCALE, "F32", [vocab], 4 * vocab))
    for place, (name, dtype, shape, count) in enumerate(wanted):
        item = header[name]
        begin, end = item["data_offsets"]
        if item["dtype"] != dtype or item["shape"] != shape or end - begin != count:
            raise ValueError(f"{name} is {item['dtype']} {item['shape']}, not {shape}")
        if not 0 <= begin <= end <= size - 8 - length:
            raise ValueError(f"{name} lies outside the file")
        offsets[place] = 8 + length + begin
    return rows, offsets[0], offsets[1]
