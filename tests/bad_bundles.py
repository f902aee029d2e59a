"""Bundles that break one rule each, with manifests that agree with their files."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

Breaker = Callable[[Path], None]
GRAPH = "model_int8.onnx"


def sign(bundle: Path, name: str) -> None:
    """Let the manifest agree with a file, as an attacker would."""
    data = (bundle / name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()

    def change(body: dict[str, Any]) -> None:
        body["files"][name] = {"sha256": digest, "bytes": len(data)}

    edit(bundle, change)


def edit(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = bundle / "manifest.json"
    body = json.loads(path.read_text("utf-8"))
    change(body)
    path.write_text(json.dumps(body), encoding="utf-8")


def edit_graph(change: Callable[[onnx.ModelProto], None]) -> Breaker:
    def act(bundle: Path) -> None:
        model = onnx.load(bundle / GRAPH, load_external_data=False)
        change(model)
        (bundle / GRAPH).write_bytes(model.SerializeToString())
        sign(bundle, GRAPH)

    return act


def flip_byte(bundle: Path) -> None:
    data = bytearray((bundle / GRAPH).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / GRAPH).write_bytes(data)


def add_file(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("hello")


def remove_file(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()


def symbolic_link(bundle: Path) -> None:
    moved = bundle.with_name("elsewhere.onnx")
    (bundle / GRAPH).rename(moved)
    (bundle / GRAPH).symlink_to(moved)


def hard_link(bundle: Path) -> None:
    os.link(bundle / GRAPH, bundle.with_name("second_name.onnx"))


def data_at(place: str) -> Callable[[onnx.ModelProto], None]:
    """Let the first external tensor name a place outside the folder."""

    def change(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = place
                    return
        raise AssertionError("no external data")

    return change


def other_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(onnx.helper.make_opsetid("evil.example", 1))
    model.graph.node[0].domain = "evil.example"


def far_opset(model: onnx.ModelProto) -> None:
    for entry in model.opset_import:
        if entry.domain == "":
            entry.version = 999


def custom_library(bundle: Path) -> None:
    (bundle / "custom_ops.so").write_bytes(b"\x7fELF")
    sign(bundle, "custom_ops.so")


def library_as_graph(bundle: Path) -> None:
    custom_library(bundle)
    edit(bundle, lambda b: b["graphs"]["int8"]["files"].append("custom_ops.so"))


def huge_constant(model: onnx.ModelProto) -> None:
    tensor = next(item for item in model.graph.initializer if item.external_data)
    del tensor.dims[:]
    tensor.dims.extend([2**40, 64])


def not_finite(model: onnx.ModelProto) -> None:
    """A layer norm that gives NaN, whatever goes in."""
    for tensor in model.graph.initializer:
        if tensor.name.endswith("LayerNorm.bias") and tensor.raw_data:
            values = np.full(list(tensor.dims), np.nan, np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
            return
    raise AssertionError("no layer norm")


def huge_dims(bundle: Path) -> None:
    edit(bundle, lambda body: body["dims"].update(vocab=2**40))


def runaway_pattern(bundle: Path) -> None:
    path = bundle / "tokenizer.json"
    body = json.loads(path.read_text("utf-8"))
    split = {"Regex": "(\\w+\\s?)+$"}
    body["pre_tokenizer"] = {
        "type": "Split",
        "pattern": split,
        "behavior": "Isolated",
        "invert": False,
    }
    path.write_text(json.dumps(body), encoding="utf-8")
    sign(bundle, "tokenizer.json")


BAD_BUNDLES: list[tuple[str, str, Breaker]] = [
    ("19", "a file's hash differs", flip_byte),
    ("20", "unlisted file", add_file),
    ("20", "missing file", remove_file),
    ("21", "symbolic link", symbolic_link),
    ("21", "hard link", hard_link),
    ("22", "external data with ..", edit_graph(data_at("../secret.data"))),
    ("22", "external data, absolute path", edit_graph(data_at("/etc/passwd"))),
    ("23", "unknown operator domain", edit_graph(other_domain)),
    ("23", "unknown opset", edit_graph(far_opset)),
    ("24", "custom-op library", custom_library),
    ("24", "custom-op library among a graph's files", library_as_graph),
    ("25", "a constant of 2^40 values", edit_graph(huge_constant)),
    ("25", "dimensions of 2^40 in the manifest", huge_dims),
    ("26", "tokenizer pattern that runs away", runaway_pattern),
]
