"""Our reader against safetensors: what that one refuses ours refuses, and more."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
from bad_blobs import joined, split
from blobs import META, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from mutation import damaged_file
from safetensors import SafetensorError
from safetensors.numpy import load as stock_load

from promptdial.prompts.blob import PromptBlob, decode, encode, make_blob
from promptdial.prompts.errors import PromptError
from promptdial.prompts.tensors import ContainerInvalid, read_container

EXAMPLES = 600


def seeds() -> list[bytes]:
    """Files of each kind: soft in three precisions, deep, a head alone, a search."""
    rows, head, bias = normal(0, 2, 8), normal(1, 3, 8), normal(2, 3)
    pairs = [(normal(i, 2, 2, 4), normal(i + 9, 2, 2, 4)) for i in range(2)]
    blobs = [
        make_blob(META, embeddings=rows, head_weight=head, precision=precision)
        for precision in ("int8", "f16", "f32")
    ]
    blobs.append(make_blob(META, past=pairs, head_weight=head, head_bias=bias))
    blobs.append(make_blob(META, head_weight=head, head_bias=bias))
    return [encode(blob.meta, blob.tensors) for blob in blobs]


SEEDS = seeds()


def stock_takes(data: bytes) -> bool:
    try:
        stock_load(data)
    except SafetensorError:
        return False
    except KeyError:
        # A dtype that numpy lacks: safetensors took the file, its numpy side cannot.
        return True
    return True


def ours(data: bytes) -> PromptBlob | None:
    """The blob, or None where it is refused; any other error fails the test."""
    try:
        return decode(data)
    except PromptError as error:
        line = str(error)
        assert "\n" not in line
        line.encode("utf-8")
        return None


def check(data: bytes) -> bool:
    """The property; whether our reader took the file."""
    blob = ours(data)
    try:
        read_container(data, 32_768)
    except ContainerInvalid:
        assert blob is None
        return False
    # The container alone, before any rule of prompts: nothing that stock refuses.
    assert stock_takes(data)
    if blob is None:
        return False
    found = stock_load(data)
    assert set(found) == set(blob.tensors)
    for name, array in blob.tensors.items():
        np.testing.assert_array_equal(found[name], array)
    return True


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(data=st.sampled_from(SEEDS), random=st.randoms(use_true_random=False))
def test_changed_headers_and_numbers(data: bytes, random: Random) -> None:
    check(damaged_file(data, random))


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    data=st.sampled_from(SEEDS),
    changes=st.lists(
        st.tuples(st.integers(0, 4000), st.integers(0, 255)), min_size=1, max_size=4
    ),
    cut=st.integers(0, 12),
)
def test_changed_bytes(data: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    found = bytearray(data)
    for place, value in changes:
        found[place % len(found)] = value
    check(bytes(found[: len(found) - cut]))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    assert not check(data)
    assert not check(joined(b"{" + data))


def test_the_damage_reaches_every_depth() -> None:
    """Else the properties above would hold for want of cases."""
    counts = {"taken": 0, "container": 0, "stock": 0, "blob": 0}
    for seed in range(2000):
        data = damaged_file(SEEDS[seed % len(SEEDS)], Random(seed))
        if ours(data) is not None:
            counts["taken"] += 1
        elif not stock_takes(data):
            counts["stock"] += 1
        else:
            try:
                read_container(data, 32_768)
                counts["blob"] += 1
            except ContainerInvalid:
                counts["container"] += 1
    assert min(counts.values()) >= 40, counts


def _changed(change: Callable[[dict[str, Any]], None]) -> bytes:
    text, body = split(SEEDS[0])
    header = json.loads(text)
    change(header)
    return joined(json.dumps(header), body)


def _replaced(old: str, new: str) -> bytes:
    text, body = split(SEEDS[0])
    assert old in text
    return joined(text.replace(old, new, 1), body)


def _with(**arrays: np.ndarray[Any, Any]) -> bytes:
    blob = decode(SEEDS[1])
    renamed = {name.replace("__", "."): array for name, array in arrays.items()}
    return encode(blob.meta, {**blob.tensors, **renamed})


def _bfloat(header: dict[str, Any]) -> None:
    entry = header["head.weight"]
    entry["dtype"], entry["shape"] = "BF16", [3, 4]


_EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}

STOCK_TAKES = {
    "duplicate tensor": _replaced(
        '"head.weight":{',
        '"head.weight":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},"head.weight":{',
    ),
    "duplicate metadata key": _replaced('"task":"', '"task":"other","task":"'),
    "header begins with a blank": joined(" " + split(SEEDS[0])[0], split(SEEDS[0])[1]),
    "extra field": _changed(lambda header: header["head.weight"].update(more=1)),
    "empty tensor": _changed(lambda header: header.update(empty=_EMPTY)),
    "no tensors": joined(json.dumps({"__metadata__": {"format": "promptdial.prompt"}})),
    "a path as a name": _changed(lambda header: header.update({"../\0x": _EMPTY})),
    "bfloat16": _changed(_bfloat),
    "NaN": _with(head__bias=np.full(3, np.nan, np.float32)),
    "infinity": _with(head__bias=np.full(3, np.inf, np.float32)),
    "3e38": _with(head__bias=np.full(3, 3e38, np.float32)),
    "many empty tensors": joined(json.dumps({f"t{i}": _EMPTY for i in range(400)})),
}


@pytest.mark.parametrize("name", STOCK_TAKES)
def test_what_stock_takes_and_ours_refuses(name: str) -> None:
    assert stock_takes(STOCK_TAKES[name])
    assert ours(STOCK_TAKES[name]) is None
    assert ours(SEEDS[0]) is not None
