"""Fuzzing of what comes from outside: blobs, manifests, rows of task data.

    python tests/fuzz.py blob|manifest|rows CORPUS [-runs=N] ...

CORPUS is a folder; seeds are put into it first. Further options are libFuzzer's. A
target may refuse its input with an error of the project's own and with nothing else:
any other exception is a crash.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports():
    from promptdial.prompts.blob import PromptMeta, decode, encode, make_blob
    from promptdial.prompts.errors import DataInvalid, PromptError
    from promptdial.runtime.manifest import (
        Base,
        Dims,
        FileEntry,
        GraphVariant,
        Manifest,
        ManifestInvalid,
        from_json,
        to_json,
    )
    from promptdial.runtime.rows import parse_rows

import numpy as np
from json_mutator import mutate_json

_RAW, _FRAMED = b"r", b"f"
"""First byte of a blob input: the bytes as they are, or a header to be framed."""

_BODY = 64
"""Data bytes behind a framed header, so that its offsets can be right."""


def fuzz_blob(data: bytes) -> None:
    """A file of bytes, or a header with the right length before it."""
    kind, rest = data[:1], data[1:]
    if kind == _FRAMED:
        rest = len(rest).to_bytes(8, "little") + rest + bytes(_BODY)
    try:
        blob = decode(rest)
    except PromptError:
        return
    # What is accepted can be used, and says the same when it is written again.
    assert encode(blob.meta, blob.tensors) is not None
    assert blob.num_virtual_tokens >= 0
    for rows in (blob.prompt_embeddings, blob.head_weight, blob.head_bias):
        assert rows is None or bool(np.isfinite(rows).all())


def fuzz_manifest(data: bytes) -> None:
    """The text of a manifest.json."""
    try:
        manifest = from_json(data.decode("utf-8", "replace"))
    except ManifestInvalid:
        return
    assert from_json(to_json(manifest)) == manifest


def fuzz_rows(data: bytes) -> None:
    """Lines of task data."""
    try:
        parse_rows(data.decode("utf-8", "replace").splitlines(), "rows.jsonl")
    except DataInvalid:
        return


TARGETS: dict[str, Callable[[bytes], None]] = {
    "blob": fuzz_blob,
    "manifest": fuzz_manifest,
    "rows": fuzz_rows,
}


def seeds(name: str) -> list[bytes]:
    """Good inputs to begin with."""
    if name == "blob":
        return _blob_seeds()
    if name == "manifest":
        return [_manifest_seed()]
    rows = (
        {"text": "good", "label": "a"},
        {"text": "one", "text_pair": "two", "label": "b"},
        {"tokens": ["wake", "me"], "tags": ["O", "B-x"]},
        {"text": "how", "positive": "so"},
    )
    return [json.dumps(row).encode() + b"\n" for row in rows]


def _meta() -> PromptMeta:
    return PromptMeta(
        task="t",
        version=1,
        kind="classification",
        attention="one_way",
        base_model="m",
        base_fingerprint="ckpt1:" + "a" * 64,
        tokenizer_fingerprint="tok1:" + "b" * 64,
        labels=("x", "y"),
        pooling="mean_l2",
    )


def _blob_seeds() -> list[bytes]:
    ones = np.ones((2, 4), np.float32)
    found = []
    for precision in ("int8", "f16"):
        for deep in (False, True):
            pairs = [(np.ones((1, 2, 2), np.float32),) * 2] if deep else None
            blob = make_blob(
                _meta(),
                embeddings=None if deep else ones,
                past=[(key, value) for key, value in pairs] if pairs else None,
                head_weight=ones,
                precision=precision,
            )
            data = encode(blob.meta, blob.tensors)
            length = int.from_bytes(data[:8], "little")
            found += [_RAW + data, _FRAMED + data[8 : 8 + length]]
    return found


def _manifest_seed() -> bytes:
    manifest = Manifest(
        family="encoder",
        dims=Dims(1, 4, 4, 1, 1, 4, 10, 8),
        prefix=True,
        attention="one_way",
        input_multiplier=1.0,
        row_norm_limit=2.0,
        base=Base("m", "A", "ckpt1:a", "tok1:b"),
        graphs={
            "int8": GraphVariant(("g.onnx",), "cpu", "int8", ranges={"x": (0.0, 1.0)})
        },
        files={"g.onnx": FileEntry("ab", 3)},
    )
    return to_json(manifest).encode()


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """libFuzzer's own mutation, or one that keeps the JSON of an input valid."""
    mark, text = (_FRAMED, data[1:]) if data[:1] == _FRAMED else (b"", data)
    changed = mutate_json(text, seed) if seed % 4 else None
    if changed is None or len(changed) + 1 > max_size:
        return bytes(atheris.Mutate(data, max_size))
    return mark + changed


def main() -> None:
    """Fuzz one target."""
    if len(sys.argv) < 3 or sys.argv[1] not in TARGETS:
        sys.exit(__doc__)
    name, corpus = sys.argv[1], Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    arguments = [sys.argv[0], *sys.argv[2:]]
    atheris.Setup(arguments, TARGETS[name], custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
