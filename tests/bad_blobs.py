"""Bad inputs 1 to 18: blobs that break one rule each, and what a user is told."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from blobs import META, normal, random_blob

from promptdial.prompts.blob import MAX_BLOB_BYTES, PromptBlob, encode, make_blob
from promptdial.prompts.metadata import Golden
from promptdial.runtime.manifest import Manifest

Header = dict[str, Any]
Change = Callable[[Header], None]


@dataclass(frozen=True)
class BlobCase:
    """One bad blob.

    Attributes:
        number: Of the list of bad inputs.
        name: What it is.
        code: The error's.
        says: What the line must hold: the value seen, the value allowed.
        make: Its bytes, for a bundle's manifest.
    """

    number: int
    name: str
    code: str
    says: tuple[str, ...]
    make: Callable[[Manifest], bytes]


def good(manifest: Manifest) -> PromptBlob:
    """The blob that all others are made from."""
    return random_blob(manifest, "colour")


def split(data: bytes) -> tuple[str, bytes]:
    """Header text and tensor bytes of a file."""
    length = int.from_bytes(data[:8], "little")
    return data[8 : 8 + length].decode(), data[8 + length :]


def joined(header: str | bytes, body: bytes = b"") -> bytes:
    """A file of a header and tensor bytes, with the right length before them."""
    raw = header.encode() if isinstance(header, str) else header
    return len(raw).to_bytes(8, "little") + raw + body


def stored(blob: PromptBlob) -> bytes:
    return encode(blob.meta, blob.tensors)


def _raw(data: bytes) -> Callable[[Manifest], bytes]:
    return lambda manifest: data


def _header(change: Change, extra: bytes = b"") -> Callable[[Manifest], bytes]:
    def make(manifest: Manifest) -> bytes:
        text, body = split(stored(good(manifest)))
        header = json.loads(text)
        change(header)
        return joined(json.dumps(header), body + extra)

    return make


def _text(old: str, new: str) -> Callable[[Manifest], bytes]:
    """A header whose text is changed: JSON objects cannot say a key twice."""

    def make(manifest: Manifest) -> bytes:
        text, body = split(stored(good(manifest)))
        assert old in text
        return joined(text.replace(old, new, 1), body)

    return make


def _tensors(**arrays: Any) -> Callable[[Manifest], bytes]:
    """Tensors added or replaced (`__` for a dot), None to drop one."""

    def make(manifest: Manifest) -> bytes:
        blob = good(manifest)
        found = {**blob.tensors}
        for key, array in arrays.items():
            name = key.replace("__", ".")
            found.pop(name, None)
            if array is not None:
                found[name] = array
        return encode(blob.meta, found)

    return make


def _meta(**changes: Any) -> Callable[[Manifest], bytes]:
    return lambda m: encode(replace(good(m).meta, **changes), good(m).tensors)


def _string(key: str, value: str) -> Callable[[Manifest], bytes]:
    return _header(lambda header: header["__metadata__"].update({key: value}))


def _moved(by: int) -> Callable[[Manifest], bytes]:
    """A tensor that begins and ends some bytes further on."""

    def change(header: Header) -> None:
        begin, end = header["head.weight"]["data_offsets"]
        header["head.weight"]["data_offsets"] = [begin + by, end + by]

    return _header(change, b"\0" * max(by, 0))


def _narrow(manifest: Manifest) -> bytes:
    meta = good(manifest).meta
    return stored(
        make_blob(meta, embeddings=normal(0, 4, 32), head_weight=normal(1, 3, 32))
    )


def _wild(manifest: Manifest) -> bytes:
    rows = 1000 * normal(0, 4, manifest.dims.hidden)
    head = normal(1, 3, manifest.dims.hidden)
    return stored(make_blob(good(manifest).meta, embeddings=rows, head_weight=head))


def _unknown_token(manifest: Manifest) -> bytes:
    golden = (Golden("good", None, (2, manifest.dims.vocab, 3), "red", 0.5),)
    return _meta(golden=golden)(manifest)


def _zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)
    return file.getvalue()


def _filled(value: float) -> np.ndarray[Any, Any]:
    return np.full((3,), value, np.float32)


_BAD = "BLOB_INVALID"
_BIAS = '"head.weight":{'
_SECOND = '"head.weight":{"dtype":"I8","shape":[3,64],"data_offsets":[0,192]},'

BLOB_CASES = (
    BlobCase(1, "empty", _BAD, ("0 bytes", "at least 8"), _raw(b"")),
    BlobCase(1, "under 8 bytes", _BAD, ("7 bytes", "at least 8"), _raw(b"1234567")),
    BlobCase(
        2,
        "header over 32 KB",
        _BAD,
        ("header of 40000 bytes", "at most 32768"),
        _raw(joined(b"{" + b" " * 39_999)),
    ),
    BlobCase(
        3,
        "header longer than the file",
        _BAD,
        ("header of 300 bytes", "in a file of 10"),
        _raw((300).to_bytes(8, "little") + b"{}"),
    ),
    BlobCase(
        4,
        "header not UTF-8",
        _BAD,
        ("header is no JSON", "0xff"),
        _raw(joined(b'{"\xff')),
    ),
    BlobCase(
        4,
        "header not JSON",
        _BAD,
        ("header is no JSON", "char 1"),
        _raw(joined("{odd")),
    ),
    BlobCase(
        5,
        "duplicate tensor name",
        _BAD,
        ("duplicate name 'head.weight'", "allowed: once"),
        _text(_BIAS, _SECOND + _BIAS),
    ),
    BlobCase(
        6,
        "duplicate metadata key",
        _BAD,
        ("duplicate name 'task'", "allowed: once"),
        _text('"task":"', '"task":"other","task":"'),
    ),
    BlobCase(
        7,
        "hole",
        _BAD,
        ("hole at data byte", "end to end"),
        _moved(4),
    ),
    BlobCase(
        7,
        "overlap",
        _BAD,
        ("overlap at data byte", "end to end"),
        _moved(-4),
    ),
    BlobCase(
        7,
        "trailing byte",
        _BAD,
        ("1 trailing bytes", "allowed: 0"),
        lambda m: stored(good(m)) + b"x",
    ),
    BlobCase(
        8,
        "missing tensor",
        _BAD,
        ("classification needs head.weight",),
        _tensors(head__weight=None, head__weight_scale=None),
    ),
    BlobCase(
        8,
        "extra tensor",
        _BAD,
        ("'lora_A' is not of the format", "allowed: head.bias"),
        _tensors(lora_A=normal(0, 2, 2)),
    ),
    BlobCase(
        9,
        "dtype not of the format",
        _BAD,
        ("dtype 'BF16'", "allowed: F32, F16, I8"),
        _header(lambda header: header["head.weight"].update(dtype="BF16")),
    ),
    BlobCase(
        9,
        "dtype not of the tensor",
        _BAD,
        ("head.weight is F32", "allowed: rank 2 of F16, I8"),
        _tensors(head__weight=normal(0, 3, 64), head__weight_scale=None),
    ),
    BlobCase(
        10,
        "wrong rank",
        _BAD,
        ("of rank 3", "allowed: rank 2"),
        _tensors(prompt_embeddings=normal(0, 4, 8, 8), prompt_embeddings_scale=None),
    ),
    BlobCase(
        10,
        "mix of rank 1",
        _BAD,
        ("head.mix is F32 of rank 1", "allowed: rank 2 of F32"),
        _tensors(head__mix=normal(0, 3)),
    ),
    BlobCase(
        10,
        "mix that the class vectors are not for",
        _BAD,
        ("head.mix has 3 rows", "64 wide"),
        _tensors(head__mix=normal(0, 3, 3)),
    ),
    BlobCase(
        10,
        "mix of another base's levels",
        _BAD,
        ("mixes 9 levels", "the base has 3"),
        _tensors(head__mix=normal(0, 1, 9)),
    ),
    BlobCase(
        10,
        "query of float32",
        _BAD,
        ("head.query is F32 of rank 2", "allowed: rank 2 of F16"),
        _tensors(head__query=normal(0, 1, 64)),
    ),
    BlobCase(
        10,
        "queries for more levels than are read",
        _BAD,
        ("head.query has shape (2, 64)", "read 1 levels"),
        _tensors(head__query=normal(0, 2, 64).astype(np.float16)),
    ),
    BlobCase(10, "other width", _BAD, ("are 32 wide", "the base 64"), _narrow),
    BlobCase(
        11,
        "NaN",
        _BAD,
        ("head.bias holds NaN", "finite"),
        _tensors(head__bias=_filled(np.nan)),
    ),
    BlobCase(
        11,
        "infinity",
        _BAD,
        ("head.weight_scale holds NaN or infinity", "finite"),
        _tensors(head__weight_scale=_filled(np.inf)),
    ),
    BlobCase(
        11,
        "finite scale of infinite products",
        _BAD,
        ("head.weight_scale holds 3e+38", "at most 1e+12"),
        _tensors(head__weight_scale=_filled(3e38)),
    ),
    BlobCase(12, "row norm over the limit", _BAD, ("has norm", "at most"), _wild),
    BlobCase(
        13,
        "token id not in the vocabulary",
        _BAD,
        ("has token id", "ends at"),
        _unknown_token,
    ),
    BlobCase(
        14,
        "duplicate label",
        _BAD,
        ("'red' occurs 2 times", "allowed: once"),
        _string("labels", '["red","red","blue"]'),
    ),
    BlobCase(
        14,
        "empty label",
        _BAD,
        ("label '' is empty", "64 characters"),
        _string("labels", '["","green","blue"]'),
    ),
    BlobCase(
        14,
        "unknown key in scores",
        _BAD,
        ("unknown key 'bias'", "allowed: temperature, threshold, "),
        _string("scores", '{"bias":1}'),
    ),
    BlobCase(
        14,
        "temperature of zero",
        _BAD,
        ("temperature 0, allowed: 0.01 to 100",),
        _string("scores", '{"temperature":0}'),
    ),
    BlobCase(
        14,
        "threshold over one",
        _BAD,
        ("threshold 1.5, allowed: 0 to 1",),
        _string("scores", '{"threshold":1.5}'),
    ),
    BlobCase(
        14,
        "threshold that is no number",
        _BAD,
        ("threshold 'True' is no number",),
        _string("scores", '{"threshold":true}'),
    ),
    BlobCase(
        14,
        "out-of-scope label of another prompt",
        _BAD,
        ("out_of_scope 'pink' is no label", "allowed: red, green, blue"),
        _string("scores", '{"out_of_scope":"pink"}'),
    ),
    BlobCase(
        15,
        "pickle",
        _BAD,
        ("this is a pickle file", "allowed: safetensors"),
        _raw(pickle.dumps({"prompt_embeddings": list(range(100))}, protocol=4)),
    ),
    BlobCase(
        15, "zip", _BAD, ("this is a zip file", "allowed: safetensors"), _raw(_zipped())
    ),
    BlobCase(
        16,
        "other base",
        "WRONG_BASE",
        ("is for base ckpt1:aaaaaa", "the bundle has ckpt1:"),
        _meta(base_fingerprint=META.base_fingerprint),
    ),
    BlobCase(
        16,
        "other tokenizer",
        "WRONG_BASE",
        ("is for tokenizer tok1:bbbbbb", "the bundle has tok1:"),
        _meta(tokenizer_fingerprint=META.tokenizer_fingerprint),
    ),
    BlobCase(
        17,
        "newer format",
        "UPGRADE_RUNTIME",
        ("format_version 2", "known up to 1", "upgrade promptdial"),
        _string("format_version", "2"),
    ),
    BlobCase(
        18,
        "over 100 KB",
        "QUOTA",
        (f"{MAX_BLOB_BYTES + 1} bytes", f"at most {MAX_BLOB_BYTES}"),
        lambda m: stored(good(m)).ljust(MAX_BLOB_BYTES + 1, b"\0"),
    ),
)
