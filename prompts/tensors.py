"""The safetensors container, read strictly and written canonically.

Layout (https://huggingface.co/docs/safetensors): 8 bytes header length, a JSON
header, the data. This reader refuses all that the stock one refuses and also what
that one lets through: duplicate names and keys, extra fields, empty tensors, a header
that begins with a blank.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.strict_json import JsonInvalid, parse_json

Array = NDArray[Any]

DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_RANK = 4
_MAX_TENSORS = 1024
_MAX_NAME = 128
_FOREIGN = {b"\x80": "pickle", b"PK\x03\x04": "zip", b"\x1f\x8b": "gzip"}
"""First bytes of what is renamed to .safetensors at times."""


class ContainerInvalid(ValueError):
    """The bytes break a rule of the container; the message names it."""


def read_container(
    data: bytes, max_header: int
) -> tuple[dict[str, str], dict[str, Array]]:
    """Metadata and tensors of a file, checked in one pass.

    Args:
        data: The whole file.
        max_header: Largest header allowed, in bytes.

    Returns:
        The metadata, and read-only arrays that view `data`, sorted by name.

    Raises:
        ContainerInvalid: A rule is broken.
    """
    if len(data) < 8:
        raise ContainerInvalid(f"{len(data)} bytes, at least 8 expected")
    length = int.from_bytes(data[:8], "little")
    if length > max_header:
        kind = next((k for magic, k in _FOREIGN.items() if data.startswith(magic)), "")
        raise ContainerInvalid(
            f"header of {length} bytes, at most {max_header}"
            + (f": this is a {kind} file, allowed: safetensors" if kind else "")
        )
    if length > len(data) - 8:
        raise ContainerInvalid(
            f"header of {length} bytes in a file of {len(data)}, at most "
            f"{len(data) - 8}"
        )
    header = _header(data[8 : 8 + length])
    metadata = _metadata(header.pop("__metadata__", {}))
    if len(header) > _MAX_TENSORS:
        raise ContainerInvalid(f"{len(header)} tensors, at most {_MAX_TENSORS}")
    return metadata, _tensors(header, data, 8 + length)


def write_container(metadata: Mapping[str, str], tensors: Mapping[str, Array]) -> bytes:
    """The canonical bytes: equal input gives equal bytes.

    Tensors lie by element size, largest first, then by name, so that each is aligned
    (the order of the stock writer); JSON keys are sorted and the header is padded
    with blanks to a multiple of 8.

    Raises:
        ContainerInvalid: A dtype that the format does not have.
    """
    for name, array in tensors.items():
        if array.dtype not in _NAMES:
            raise ContainerInvalid(f"tensor {name} has dtype {array.dtype}")
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name in order:
        array = tensors[name]
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    raw = text.encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    body = b"".join(np.ascontiguousarray(tensors[name]).tobytes() for name in order)
    return len(raw).to_bytes(8, "little") + raw + body


def _header(raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise ContainerInvalid("header does not begin with {")
    try:
        header = parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ContainerInvalid(f"header is no JSON in UTF-8: {error}") from None
    except JsonInvalid as error:
        raise ContainerInvalid(f"header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise ContainerInvalid("header is no JSON object")
    return header


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ContainerInvalid("__metadata__ is no JSON object")
    for key, text in value.items():
        if not isinstance(text, str):
            raise ContainerInvalid(f"metadata {key[:64]!r} is not a string")
    return value


def _tensors(header: dict[str, Any], data: bytes, start: int) -> dict[str, Array]:
    found: dict[str, Array] = {}
    spans: list[tuple[int, int]] = []
    size = len(data) - start
    for name in sorted(header):
        dtype, shape, begin, end = _entry(name, header[name])
        wanted = dtype.itemsize * math.prod(shape)
        if end - begin != wanted or end > size:
            raise ContainerInvalid(
                f"tensor {name[:64]!r} at {begin}..{end} of {size} data bytes, "
                f"its shape takes {wanted}"
            )
        spans.append((begin, end))
        count = wanted // dtype.itemsize
        found[name] = np.frombuffer(data, dtype, count, start + begin).reshape(shape)
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            kind = "hole" if begin > position else "overlap"
            raise ContainerInvalid(
                f"{kind} at data byte {min(begin, position)}, allowed: tensors that "
                "lie end to end"
            )
        position = end
    if position != size:
        raise ContainerInvalid(
            f"{size - position} trailing bytes after the tensors, allowed: 0"
        )
    return found


def _entry(name: str, item: object) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    shown = name[:64]
    if not name or len(name) > _MAX_NAME or not name.isprintable():
        raise ContainerInvalid(f"tensor name {shown!r}")
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise ContainerInvalid(f"tensor {shown!r} has other fields than the format's")
    kind, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(kind, str) or kind not in DTYPES:
        raise ContainerInvalid(
            f"tensor {shown!r} has dtype {str(kind)[:16]!r}, allowed: "
            f"{', '.join(DTYPES)}"
        )
    if not _counts(shape) or not 1 <= len(shape) <= _MAX_RANK or 0 in shape:
        raise ContainerInvalid(f"tensor {shown!r} has shape {str(shape)[:64]}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ContainerInvalid(f"tensor {shown!r} has offsets {str(offsets)[:64]}")
    return DTYPES[kind], tuple(shape), offsets[0], offsets[1]


def _counts(value: object) -> bool:
    """Whether a value is a list of integers of 0 to 2**40."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**40 for item in value
    )
