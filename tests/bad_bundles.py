"""Bad inputs 19 to 26 and 43: bundles whose maker means harm, manifest included.

Where a digest would catch a change, the manifest is written again over the changed
files: a manifest proves who wrote it at best, and here it was the attacker.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

GRAPH = "model_int8.onnx"
DATA = "model_int8.onnx.data"
EVIL = "(a+)+$"
Change = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class BundleCase:
    """One bad bundle.

    Attributes:
        number: Of the list of bad inputs.
        name: What it is.
        says: What the line must hold: the value seen, the value allowed.
        change: Makes it of a good copy.
        command: `run`, or `inspect` for what answering does not touch.
        code: The error's.
    """

    number: int
    name: str
    says: tuple[str, ...]
    change: Callable[[Path], None]
    command: str = "run"
    code: str = "BUNDLE_INVALID"


def signed(
    folder: Path, change: Callable[[dict[str, Any]], None] | None = None
) -> None:
    """Write the manifest again, over the files as they are now."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        manifest["files"][name] = {"sha256": digest, "bytes": len(data)}
    if change is not None:
        change(manifest)
    path.write_text(json.dumps(manifest))


def _graph(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        model = onnx.load(folder / GRAPH, load_external_data=False)
        change(model)
        (folder / GRAPH).write_bytes(model.SerializeToString())
        signed(folder)

    return apply


def _first_external(model: onnx.ModelProto) -> onnx.TensorProto:
    found: onnx.TensorProto = next(
        t for t in model.graph.initializer if t.data_location == 1
    )
    return found


def _entry(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def apply(model: onnx.ModelProto) -> None:
        for item in _first_external(model).external_data:
            if item.key == key:
                item.value = value

    return apply


def _flipped(folder: Path) -> None:
    data = bytearray((folder / DATA).read_bytes())
    data[100] ^= 1
    (folder / DATA).write_bytes(data)


def _unlisted(folder: Path) -> None:
    (folder / "notes.txt").write_text("hello")


def _linked(link: Callable[[Path, Path], None], name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        outside = folder.parent / f"outside-{name}"
        shutil.move(folder / name, outside)
        link(outside, folder / name)

    return apply


def _symbolic(target: Path, place: Path) -> None:
    place.symlink_to(target)


def _data_in(location: str, link: bool = False) -> Callable[[Path], None]:
    """External data of a tensor elsewhere: there is a file of the right size there."""

    def apply(folder: Path) -> None:
        outside = folder.parent / "outside.data"
        shutil.copy(folder / DATA, outside)
        if link:
            os.link(outside, folder / location)
        place = str(outside) if location == "/" else location
        _graph(_entry("location", place))(folder)

    return apply


def _domain(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="evil.ops", version=1)
    model.graph.node[0].domain = "evil.ops"


def _node_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "evil.ops"


def _opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 999


def _loop(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Loop"


def _library(folder: Path) -> None:
    (folder / "libops.so").write_bytes(b"\x7fELF")

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"]["libops.so"] = {
            "sha256": hashlib.sha256(b"\x7fELF").hexdigest(),
            "bytes": 4,
        }

    signed(folder, change)


def _library_key(folder: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["graphs"]["int8"]["custom_ops_library"] = "libops.so"

    signed(folder, change)


def _huge(model: onnx.ModelProto) -> None:
    _first_external(model).dims[0] = 2**40


def _huge_unused(model: onnx.ModelProto) -> None:
    """onnxruntime alone takes this one."""
    model.graph.initializer.add(
        name="big", data_type=1, dims=[2**40], raw_data=b"\0\0\0\0"
    )


def _huge_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**40


def _tokenizer(change: Change) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "tokenizer.json"
        body = json.loads(path.read_text())
        change(body)
        path.write_text(json.dumps(body))
        signed(folder)

    return apply


def _splits(body: dict[str, Any]) -> None:
    body["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": EVIL},
                "behavior": "Isolated",
                "invert": False,
            }
        ],
    }


def _untyped(body: dict[str, Any]) -> None:
    """An older form, which the library still reads."""
    body["normalizer"] = {"pattern": {"Regex": EVIL}, "content": "b"}


def _grows(body: dict[str, Any]) -> None:
    ten = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}
    body["normalizer"] = {"type": "Sequence", "normalizers": [ten] * 10}


def _long_words(body: dict[str, Any]) -> None:
    body["model"]["max_input_chars_per_word"] = 10**9


def _weights(value: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        model = onnx.load(folder / GRAPH, load_external_data=False)
        floats = [t for t in model.graph.initializer if t.data_type == 1]
        inline = next(t for t in floats if t.data_location != 1 and t.dims == [64])
        inline.raw_data = np.full(64, value, np.float32).tobytes()
        (folder / GRAPH).write_bytes(model.SerializeToString())
        signed(folder)

    return apply


BUNDLE_CASES = (
    BundleCase(19, "a file's hash differs", ("has SHA-256", ", not "), _flipped),
    BundleCase(
        20,
        "unlisted file",
        ("notes.txt is not in the manifest", "allowed: the"),
        _unlisted,
        "inspect",
    ),
    BundleCase(
        20,
        "missing file",
        (f"{DATA}: No such file",),
        lambda folder: (folder / DATA).unlink(),
    ),
    BundleCase(
        21,
        "symbolic link",
        (f"{DATA}: is a link", "allowed: a file of its own"),
        _linked(_symbolic, DATA),
    ),
    BundleCase(
        21,
        "hard link",
        (f"{DATA} is a link", "2 names", "allowed: a file of its own"),
        _linked(lambda target, place: os.link(target, place), DATA),
    ),
    BundleCase(
        21,
        "hard link as manifest.json",
        ("manifest.json is a link", "2 names"),
        _linked(lambda target, place: os.link(target, place), "manifest.json"),
    ),
    BundleCase(
        22,
        "external data with ..",
        ("lies in ['../outside.data']", DATA),
        _data_in("../outside.data"),
    ),
    BundleCase(
        22, "external data at an absolute path", ("lies in ['/", DATA), _data_in("/")
    ),
    BundleCase(
        22,
        "external data in a hard link that the manifest does not name",
        ("other.data is not in the manifest", "files that it lists"),
        _data_in("other.data", link=True),
    ),
    BundleCase(
        22,
        "external data beyond its file",
        ("ends at byte", "which has"),
        _graph(_entry("offset", str(2**40))),
    ),
    BundleCase(
        23,
        "unknown operator domain",
        ("domain 'evil.ops'", "allowed: '', 'ai.onnx', 'com.microsoft'"),
        _graph(_domain),
    ),
    BundleCase(
        23,
        "unknown operator domain of a node",
        ("domain 'evil.ops'", "allowed: '', 'ai.onnx', 'com.microsoft'"),
        _graph(_node_domain),
    ),
    BundleCase(23, "unknown opset", ("opset 999", "allowed: 1 to 64"), _graph(_opset)),
    BundleCase(
        23, "endless operator", ("operator Loop", "allowed: all"), _graph(_loop)
    ),
    BundleCase(
        24,
        "operator library among the files",
        ("libops.so is native", "allowed: weights"),
        _library,
    ),
    BundleCase(
        24,
        "operator library in the manifest",
        ("custom_ops_library 'libops.so'", "allowed: none"),
        _library_key,
    ),
    BundleCase(
        25,
        "dimensions of 2^40",
        ("1099511627776", "allowed: 2147483648 elements"),
        _graph(_huge),
    ),
    BundleCase(
        25,
        "dimensions of 2^40 of an unused tensor",
        ("1099511627776", "allowed: 2147483648 elements"),
        _graph(_huge_unused),
    ),
    BundleCase(
        25,
        "dimensions of 2^40 of an input",
        ("1099511627776", "allowed: 2147483648 elements"),
        _graph(_huge_input),
    ),
    BundleCase(
        26, "pattern that runs away", (EVIL, "allowed: the"), _tokenizer(_splits)
    ),
    BundleCase(
        26,
        "pattern in a form of older files",
        ("normalizer is 'None'", "allowed: BertNormalizer"),
        _tokenizer(_untyped),
    ),
    BundleCase(
        26,
        "replacements that grow",
        ("Replace writes 'aaaaaaaaaa'", "at most 1"),
        _tokenizer(_grows),
    ),
    BundleCase(
        26,
        "words without end",
        ("max_input_chars_per_word is 1000000000", "at most 256"),
        _tokenizer(_long_words),
    ),
    BundleCase(
        43,
        "weights of NaN",
        ("output holds NaN or infinity",),
        _weights(np.nan),
        code="NONFINITE",
    ),
    BundleCase(
        43,
        "weights of infinity",
        ("output holds NaN or infinity",),
        _weights(np.inf),
        code="NONFINITE",
    ),
)
