"""Blobs that break one rule each, as bytes."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from blobs import normal, random_blob
from numpy.typing import NDArray

from promptdial.prompts.blob import Golden, encode
from promptdial.prompts.metadata import PromptMeta, to_strings
from promptdial.prompts.tensors import DTYPES, write_container
from promptdial.runtime.manifest import Manifest

TASK = "colour"
Arrays = dict[str, NDArray[Any]]
Header = dict[str, Any]
Maker = Callable[[Manifest], bytes]


def parts(manifest: Manifest) -> tuple[PromptMeta, Arrays]:
    """Metadata and tensors of a good blob, in F16 and without scales."""
    blob = random_blob(manifest, TASK)
    assert blob.prompt_embeddings is not None and blob.head_weight is not None
    arrays: Arrays = {
        "prompt_embeddings": blob.prompt_embeddings.astype(np.float16),
        "head.weight": blob.head_weight.astype(np.float16),
    }
    return blob.meta, arrays


def framed(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def with_tensors(change: Callable[[Arrays], None]) -> Maker:
    def make(manifest: Manifest) -> bytes:
        meta, arrays = parts(manifest)
        change(arrays)
        return write_container(to_strings(meta), arrays)

    return make


def with_meta(**changes: str) -> Maker:
    def make(manifest: Manifest) -> bytes:
        meta, arrays = parts(manifest)
        return write_container(to_strings(meta) | changes, arrays)

    return make


def with_header(change: Callable[[Header], None], extra: bytes = b"") -> Maker:
    def make(manifest: Manifest) -> bytes:
        meta, arrays = parts(manifest)
        data = write_container(to_strings(meta), arrays)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        return framed(json.dumps(header).encode(), data[8 + length :] + extra)

    return make


def with_text(old: str, new: str) -> Maker:
    """Replace a text of the header, which JSON could not say twice otherwise."""

    def make(manifest: Manifest) -> bytes:
        meta, arrays = parts(manifest)
        data = write_container(to_strings(meta), arrays)
        length = int.from_bytes(data[:8], "little")
        header = data[8 : 8 + length].decode()
        assert old in header
        return framed(header.replace(old, new, 1).encode(), data[8 + length :])

    return make


def repeated_tensor(manifest: Manifest) -> bytes:
    meta, arrays = parts(manifest)
    data = write_container(to_strings(meta), arrays)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    again = json.dumps({"head.weight": header["head.weight"]})[1:-1]
    text = json.dumps(header)[:-1] + f", {again}}}"
    return framed(text.encode(), data[8 + length :])


def other_offsets(begin: int, end: int) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        first, last = header["prompt_embeddings"]["data_offsets"]
        header["prompt_embeddings"]["data_offsets"] = [first + begin, last + end]

    return change


def other_dtype(header: Header) -> None:
    header["head.weight"]["dtype"] = "BF16"


def one_value(value: float) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays["prompt_embeddings"][1, 2] = value

    return change


def flat_rows(arrays: Arrays) -> None:
    arrays["prompt_embeddings"] = arrays["prompt_embeddings"].reshape(-1)


def narrow_rows(arrays: Arrays) -> None:
    arrays["prompt_embeddings"] = normal(0, 4, 8).astype(np.float16)


def long_row(manifest: Manifest) -> bytes:
    meta, arrays = parts(manifest)
    rows = arrays["prompt_embeddings"].astype(np.float32)
    rows[0] *= 10 * manifest.row_norm_limit / np.linalg.norm(rows[0])
    arrays["prompt_embeddings"] = rows
    return write_container(to_strings(meta), arrays)


def high_token(manifest: Manifest) -> bytes:
    meta, arrays = parts(manifest)
    golden = Golden("good", None, (2, manifest.dims.vocab, 3), "red", 0.9)
    return write_container(to_strings(replace(meta, golden=(golden,))), arrays)


def pickled(_: Manifest) -> bytes:
    return pickle.dumps({"prompt_embeddings": [[0.0] * 64] * 4})


def zipped(_: Manifest) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.pkl", b"0" * 100)
    return file.getvalue()


def endless_scale(arrays: Arrays) -> None:
    """Finite as stored, infinite once restored."""
    rows = np.full(arrays["prompt_embeddings"].shape, 127, np.int8)
    arrays["prompt_embeddings"] = rows
    arrays["prompt_embeddings_scale"] = np.full(len(rows), 3e38, np.float32)


def encoded_good(manifest: Manifest) -> bytes:
    blob = random_blob(manifest, TASK)
    return encode(blob.meta, blob.tensors)


def newer(manifest: Manifest) -> bytes:
    return with_meta(format_version="2")(manifest)


BAD_BLOBS: list[tuple[str, str, str, Maker]] = [
    ("1", "empty file", "BLOB_INVALID", lambda _: b""),
    ("1", "under 8 bytes", "BLOB_INVALID", lambda _: b"1234567"),
    ("2", "header over 32 KB", "BLOB_INVALID", lambda _: framed(b"{" + b" " * 40_000)),
    (
        "3",
        "header longer than the file",
        "BLOB_INVALID",
        lambda _: (9000).to_bytes(8, "little") + b"{}",
    ),
    ("4", "header not UTF-8", "BLOB_INVALID", lambda _: framed(b'{"\xff": 1}')),
    ("4", "header not JSON", "BLOB_INVALID", lambda _: framed(b"{nonsense}")),
    ("5", "duplicate tensor name", "BLOB_INVALID", repeated_tensor),
    (
        "6",
        "duplicate metadata key",
        "BLOB_INVALID",
        with_text('"kind":', '"task":"colour","kind":'),
    ),
    ("7", "hole", "BLOB_INVALID", with_header(other_offsets(8, 8), b"\0" * 8)),
    ("7", "overlap", "BLOB_INVALID", with_header(other_offsets(-8, -8))),
    ("7", "trailing byte", "BLOB_INVALID", with_header(lambda _: None, b"\0")),
    (
        "8",
        "missing tensor",
        "BLOB_INVALID",
        with_tensors(lambda arrays: arrays.__delitem__("head.weight")),
    ),
    (
        "8",
        "extra tensor",
        "BLOB_INVALID",
        with_tensors(lambda arrays: arrays.update(more=normal(0, 2))),
    ),
    ("9", "dtype not allowed", "BLOB_INVALID", with_header(other_dtype)),
    ("10", "wrong rank", "BLOB_INVALID", with_tensors(flat_rows)),
    ("10", "width of another base", "BLOB_INVALID", with_tensors(narrow_rows)),
    ("11", "NaN", "BLOB_INVALID", with_tensors(one_value(np.nan))),
    ("11", "infinity", "BLOB_INVALID", with_tensors(one_value(np.inf))),
    ("11", "infinity once restored", "BLOB_INVALID", with_tensors(endless_scale)),
    ("12", "row norm over the limit", "BLOB_INVALID", long_row),
    ("13", "token id not in the vocabulary", "BLOB_INVALID", high_token),
    (
        "14",
        "duplicate label",
        "BLOB_INVALID",
        with_meta(labels='["red","green","red"]'),
    ),
    ("14", "empty label", "BLOB_INVALID", with_meta(labels='["red","","blue"]')),
    ("15", "pickle renamed", "BLOB_INVALID", pickled),
    ("15", "zip renamed", "BLOB_INVALID", zipped),
    (
        "16",
        "fingerprint of another base",
        "WRONG_BASE",
        with_meta(base_fingerprint="ckpt1:" + "0" * 64),
    ),
    ("17", "newer format", "UPGRADE_RUNTIME", newer),
    ("18", "file over 100 KB", "QUOTA", lambda _: b"\0" * 102_401),
]

assert set(DTYPES) == {"F32", "F16", "I8"}
