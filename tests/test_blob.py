"""The blob format: round trips, and every rule that a bad file can break."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blobs import META, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load as stock_load

from promptdial.prompts.blob import (
    MAX_BLOB_BYTES,
    PromptBlob,
    decode,
    encode,
    make_blob,
    read_blob,
    write_blob,
)
from promptdial.prompts.errors import (
    BlobInvalid,
    BlobTooBig,
    BlobTooNew,
    FileFailed,
    PromptError,
)
from promptdial.prompts.metadata import Golden, to_strings
from promptdial.prompts.tensors import ContainerInvalid, read_container

H = 16


def soft(precision: str = "int8") -> PromptBlob:
    return make_blob(
        META,
        embeddings=normal(0, 4, H),
        head_weight=normal(1, 3, H),
        head_bias=normal(2, 3),
        precision=precision,
    )


def deep() -> PromptBlob:
    pairs = [(normal(i, 2, 5, 8), normal(i + 9, 2, 5, 8)) for i in range(3)]
    return make_blob(META, past=pairs, head_weight=normal(1, 3, H))


def stored(blob: PromptBlob) -> bytes:
    return encode(blob.meta, blob.tensors)


@pytest.mark.parametrize("precision", ["int8", "f16", "f32"])
def test_reading_and_writing_again_gives_the_same_bytes(precision: str) -> None:
    data = stored(soft(precision))
    again = decode(data, "colour")
    assert stored(again) == data
    assert again.meta == META
    assert again.size == len(data)


def test_deep_prompts_round_trip() -> None:
    blob = decode(stored(deep()))
    assert blob.num_virtual_tokens == 5
    assert len(blob.past_key_values) == 3
    error = np.abs(blob.past_key_values[2][1] - normal(11, 2, 5, 8)).max()
    assert error < np.abs(normal(11, 2, 5, 8)).max() / 127


def test_int8_rows_are_within_half_a_step() -> None:
    rows = soft().prompt_embeddings
    assert rows is not None
    steps = np.abs(normal(0, 4, H)).max(1, keepdims=True) / 127
    assert (np.abs(rows - normal(0, 4, H)) <= steps * 0.501).all()


def test_golden_inputs_and_templates_survive() -> None:
    golden = (Golden("a red thing", None, (2, 5, 3), "red", 0.75),)
    meta = replace(META, golden=golden, template={"before": "it is "})
    blob = make_blob(meta, head_weight=normal(1, 3, H))
    assert decode(stored(blob)).meta == meta


@pytest.mark.parametrize("blob", [soft(), soft("f16"), deep()])
def test_the_stock_reader_sees_the_same_tensors(blob: PromptBlob) -> None:
    found = stock_load(stored(blob))
    assert set(found) == set(blob.tensors)
    for name, array in blob.tensors.items():
        np.testing.assert_array_equal(found[name], array)


def test_files_are_written_whole_under_their_task_name(tmp_path: Path) -> None:
    path = tmp_path / "colour.safetensors"
    write_blob(path, soft())
    assert read_blob(path).digest == soft().digest
    assert [item.name for item in tmp_path.iterdir()] == ["colour.safetensors"]
    with pytest.raises(BlobInvalid, match="in a file named 'other"):
        write_blob(tmp_path / "other.safetensors", soft())
    path.rename(tmp_path / "shape.safetensors")
    with pytest.raises(BlobInvalid, match="task is 'colour' in a file named 'shape'"):
        read_blob(tmp_path / "shape.safetensors")


def test_a_file_that_cannot_be_read_or_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileFailed, match="No such file"):
        read_blob(tmp_path / "colour.safetensors")
    with pytest.raises(FileFailed):
        write_blob(tmp_path / "none" / "colour.safetensors", soft())


def container(change: Callable[[dict[str, Any]], None]) -> bytes:
    """A good blob with a changed header."""
    data = stored(soft())
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data[8 + length :]


def raw_header(text: bytes, body: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + body


def with_meta(key: str, value: str | None) -> bytes:
    def change(header: dict[str, Any]) -> None:
        if value is None:
            del header["__metadata__"][key]
        else:
            header["__metadata__"][key] = value

    return container(change)


def with_tensor(name: str, **fields: object) -> bytes:
    return container(lambda header: header[name].update(fields))


def with_tensors(**arrays: np.ndarray[Any, Any]) -> bytes:
    tensors = {name.replace("__", "."): array for name, array in arrays.items()}
    return encode(META, {**soft("f16").tensors, **tensors})


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "short": (b"1234567", "7 bytes"),
    "header over the limit": ((40_000).to_bytes(8, "little") * 6000, "at most 32768"),
    "header over the file": (raw_header(b"{}")[:9], "header of 2 bytes in a file"),
    "no JSON": (raw_header(b"{nonsense"), "header is no JSON"),
    "no UTF-8": (raw_header(b'{"\xff": 1}'), "header is no JSON"),
    "leading blank": (raw_header(b" {}"), "does not begin with {"),
    "deep nesting": (raw_header(b'{"a":' * 6000), "header is no JSON"),
    "duplicate tensor": (raw_header(b'{"a":1,"a":2}'), "duplicate name 'a'"),
    "duplicate metadata": (
        raw_header(b'{"__metadata__":{"x":"1","x":"2"}}'),
        "duplicate name 'x'",
    ),
    "NaN in JSON": (raw_header(b'{"a": NaN}'), "NaN is no JSON"),
    "metadata no string": (raw_header(b'{"__metadata__":{"x":1}}'), "not a string"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00" + b"x" * 40, "header of"),
    "zip": (b"PK\x03\x04\x14\x00\x00\x00" + b"x" * 40, "header of"),
    "no metadata": (raw_header(b"{}"), "format ''"),
    "lone surrogate": (with_meta("license", "\ud800"), "a lone surrogate"),
    "lone surrogate inside": (
        with_meta("template", '{"before":"\\ud800"}'),
        "template is no JSON: a lone surrogate",
    ),
    "version of 5000 digits": (with_meta("version", "1" * 5000), "version '1111"),
    "other format": (with_meta("format", "pt"), "format 'pt'"),
    "hole": (with_tensor("head.bias", data_offsets=[4, 16]), "hole at data byte 0"),
    "size": (with_tensor("head.bias", data_offsets=[0, 8]), "its shape takes 12"),
    "trailing byte": (stored(soft()) + b"x", "1 trailing bytes"),
    "truncated": (stored(soft())[:-1], "data bytes"),
    "extra field": (with_tensor("head.bias", more=1), "other fields"),
    "unknown dtype": (with_tensor("head.bias", dtype="BF16"), "dtype 'BF16'"),
    "negative shape": (with_tensor("head.bias", shape=[-3]), "shape [-3]"),
    "empty shape": (with_tensor("head.bias", shape=[]), "shape []"),
    "reversed offsets": (with_tensor("head.bias", data_offsets=[12, 0]), "offsets"),
    "unknown key": (with_meta("colour", "red"), "'colour' is unknown"),
    "missing key": (with_meta("license", None), "'license' is missing"),
    "version zero": (with_meta("version", "0"), "version '0'"),
    "version text": (with_meta("version", "1.5"), "version '1.5'"),
    "format version text": (with_meta("format_version", "x"), "format_version 'x'"),
    "task with a path": (with_meta("task", "../x"), "task '../x'"),
    "unknown kind": (with_meta("kind", "poem"), "kind 'poem'"),
    "unknown attention": (with_meta("attention", "half"), "attention 'half'"),
    "wrong pooling": (with_meta("pooling", "first_token"), "pooling 'first_token'"),
    "no fingerprint": (with_meta("base_fingerprint", "md5:1"), "fingerprint 'md5:1'"),
    "no time": (with_meta("created", "yesterday"), "created 'yesterday'"),
    "labels no list": (with_meta("labels", "{}"), "labels is no list"),
    "label twice": (with_meta("labels", '["a","a","b"]'), "label 'a' occurs 2 times"),
    "label empty": (with_meta("labels", '["","a","b"]'), "label ''"),
    "label with a control sign": (
        with_meta("labels", '["a\\u0000","b","c"]'),
        "unprintable",
    ),
    "too few labels": (with_meta("labels", '["a","b"]'), "2 labels, 3 class vectors"),
    "template": (with_meta("template", '{"middle":"x"}'), "template has other keys"),
    "golden": (with_meta("golden", '[["a"]]'), "golden entry"),
    "number without end": (
        with_meta("metrics", '{"dev": 1e999}'),
        "metrics is no JSON: number 1e999",
    ),
    "metrics no object": (with_meta("metrics", "[]"), "metrics is no JSON object"),
    "metadata no JSON": (with_meta("training", "{"), "training is no JSON"),
    "a tensor of no one": (with_tensors(extra=normal(0, 2)), "'extra' is not of"),
    "both kinds of prompt": (
        with_tensors(past_key_values__0__key=normal(0, 2, 4, 8).astype(np.float16)),
        "both prompt_embeddings and",
    ),
    "rank": (with_tensors(prompt_embeddings=normal(0, 4)), "of rank 1"),
    "head in float32": (with_tensors(head__weight=normal(0, 3, H)), "is F32"),
    "scale with floats": (
        with_tensors(prompt_embeddings_scale=np.abs(normal(0, 4))),
        "goes with I8",
    ),
    "bias shape": (with_tensors(head__bias=normal(0, 2)), "head.bias has shape"),
    "too many rows": (with_tensors(prompt_embeddings=normal(0, 600, H)), "at most 512"),
    "NaN": (with_tensors(head__bias=np.full(3, np.nan, np.float32)), "NaN or infinity"),
    "infinity": (
        with_tensors(prompt_embeddings=np.full((4, H), np.inf, np.float32)),
        "NaN or infinity",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_name(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises((BlobInvalid, BlobTooBig)) as caught:
        decode(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_newer_format_asks_for_an_upgrade() -> None:
    with pytest.raises(BlobTooNew, match="UPGRADE_RUNTIME: format_version 2"):
        decode(with_meta("format_version", "2"))


def test_a_blob_over_100_kb_is_neither_made_nor_read() -> None:
    with pytest.raises(BlobTooBig, match="at most 102400"):
        make_blob(META, embeddings=normal(0, 500, 300), head_weight=normal(1, 3, 300))
    with pytest.raises(BlobTooBig):
        decode(b"x" * (MAX_BLOB_BYTES + 1))


def test_metadata_is_checked_before_writing() -> None:
    with pytest.raises(BlobInvalid, match="no positive integer"):
        encode(replace(META, version=0), {})
    with pytest.raises(BlobInvalid, match="has no B-x"):
        labels = ("O", "I-x", "B-y")
        meta = replace(META, kind="token", pooling="first_token", labels=labels)
        make_blob(meta, head_weight=normal(1, 3, H))


def test_deep_prompts_need_every_layer() -> None:
    tensors = dict(deep().tensors)
    del tensors["past_key_values.1.value"], tensors["past_key_values.1.value_scale"]
    with pytest.raises(BlobInvalid, match=r"past_key_values\.1\.value is missing"):
        decode(encode(META, tensors))


def test_no_cut_of_a_file_is_taken_for_a_blob() -> None:
    data = stored(soft())
    for length in range(0, len(data), 97):
        with pytest.raises(PromptError):
            decode(data[:length])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_what_the_stock_reader_refuses_is_refused(data: st.DataObject) -> None:
    """Also: nothing but our own error ever comes out of a damaged file."""
    whole = bytearray(stored(soft()))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    damaged = bytes(whole)
    try:
        read_container(damaged, 32_768)
    except ContainerInvalid:
        return
    try:
        stock_load(damaged)
    except SafetensorError as error:  # pragma: no cover
        pytest.fail(f"we took what the stock reader refused: {error}")


def test_strings_of_the_metadata_are_canonical() -> None:
    strings = to_strings(replace(META, metrics={"b": 1, "a": 2}))
    assert strings["metrics"] == '{"a":2,"b":1}'
