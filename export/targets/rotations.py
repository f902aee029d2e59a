"""Rotary positions of a static decoder as tables, and rotations as two products.

Cosines and sines of every position in the window are computed at export, by the base's
own graph, whatever scaling it has. A head x is then rotated as x * cos + swapped * sin,
where `swapped` has its halves in each other's place, and the table of sines has the
sign of the first half.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from promptdial.export.errors import Unsupported
from promptdial.export.onnx_edit import GraphEdit
from promptdial.export.session import cpu_session
from promptdial.export.targets.static_graph import shapes_of
from promptdial.runtime.manifest import StaticBucket
from promptdial.runtime.static_feed import POSITIONS_NAME

Floats = NDArray[np.float32]

_ROTATION = "RotaryEmbedding"
_COSINES, _SINES = 1, 2  # places among the operator's inputs
_OF_SIZE = ("ReduceMax", "Shape", "Size")
_HINT = "leave --target out; cpu graphs take every decoder"


def write_out_rotations(
    model: onnx.ModelProto, exact: onnx.ModelProto, bucket: StaticBucket
) -> None:
    """Replace every rotation of a static graph, in place; none is fine.

    Args:
        model: The static graph.
        exact: The graph that it was made from, of which the tables are computed.
        bucket: Its `text` is T, its `prefix` the window W.

    Raises:
        Unsupported: They are of another kind, or depend on more than positions.
    """
    nodes = [node for node in model.graph.node if node.op_type == _ROTATION]
    if not nodes:
        return
    for node in nodes:
        _require_halves(node)
    names = {name for node in nodes for name in node.input[_COSINES:]}
    halves = _of_every_position(exact, names, bucket.prefix)
    writer = _Writer(GraphEdit(model), halves, shapes_of(model), bucket.text)
    written: dict[str, list[onnx.NodeProto]] = {}
    for node in nodes:
        written[node.name] = writer.rotation(node)
    writer.edit.rewrite(lambda node: written.get(node.name))


def _require_halves(node: onnx.NodeProto) -> None:
    options = {item.name: helper.get_attribute_value(item) for item in node.attribute}
    if (
        options.get("interleaved")
        or options.get("rotary_embedding_dim")
        or len(node.input) != 3
    ):
        raise Unsupported(f"rotation {node.name} is not one of halves", _HINT)


class _Writer:
    """Emits rotations; each table, and what is picked from it, is there once."""

    def __init__(
        self,
        edit: GraphEdit,
        halves: Mapping[str, Floats],
        shapes: Mapping[str, tuple[int, ...]],
        text: int,
    ) -> None:
        self.edit = edit
        self._halves = halves
        self._shapes = shapes
        self._text = text
        self._picked: set[str] = set()

    def rotation(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes in place of one rotation of (parts of) heads [1, N, T, R]."""
        nodes: list[onnx.NodeProto] = []
        path, source = node.name, node.input[0]
        whole = self._shapes[source][-1]
        half = whole // 2

        def step(name: str, kind: str, *inputs: str, output: str = "") -> str:
            output = output or f"{path}.{name}"
            nodes.append(
                helper.make_node(kind, inputs, [output], name=f"{path}.{name}")
            )
            return output

        cosines = self._rows(node.input[_COSINES], whole, nodes, signed=False)
        sines = self._rows(node.input[_SINES], whole, nodes, signed=True)
        first, second = (
            step(name, "Slice", source, *self._part(start, end))
            for name, start, end in (("first", 0, half), ("second", half, whole))
        )
        swapped = step("swapped", "Concat", second, first)
        nodes[-1].attribute.append(helper.make_attribute("axis", -1))
        plain = step("cosine", "Mul", source, cosines)
        turned = step("sine", "Mul", swapped, sines)
        step("sum", "Add", plain, turned, output=node.output[0])
        return nodes

    def _part(self, start: int, end: int) -> Sequence[str]:
        return [
            self.edit.constant(f"rotary.{value}", np.array([value]))
            for value in (start, end, 3)
        ]

    def _rows(
        self, name: str, width: int, nodes: list[onnx.NodeProto], *, signed: bool
    ) -> str:
        """Rows [1, 1, T, R] of a table at the positions."""
        half = self._halves[name]
        if 2 * half.shape[-1] != width:
            raise Unsupported(
                f"rotations turn {2 * half.shape[-1]} of {width} numbers", _HINT
            )
        table = np.concatenate([-half if signed else half, half], axis=-1)
        path = f"rotary.{hashlib.sha256(table.tobytes()).hexdigest()[:8]}"
        picked, rows = f"{path}.Gather", f"{path}.rows"
        if path not in self._picked:
            self._picked.add(path)
            stored = self.edit.constant(f"{path}.table", table)
            shape = np.array((1, 1, self._text, width), np.int64)
            sizes = self.edit.constant("rotary.shape", shape)
            make = helper.make_node
            nodes += [
                make("Gather", [stored, POSITIONS_NAME], [picked], name=picked, axis=0),
                make("Reshape", [picked, sizes], [rows], name=rows),
            ]
        return rows


def _of_every_position(
    exact: onnx.ModelProto, names: Collection[str], count: int
) -> dict[str, Floats]:
    """Values [W, R/2] of the positions 0 to W-1.

    Raises:
        Unsupported: They depend on more than each position by itself.
    """
    graph, needed = exact.graph, set(names)
    nodes: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.insert(0, node)
            needed.update(node.input)
    read = [item for item in graph.input if item.name in needed]
    alone = [item.name for item in read] == [POSITIONS_NAME]
    if not alone or any(node.op_type in _OF_SIZE for node in nodes):
        raise Unsupported("rotations depend on more than positions", _HINT)
    outputs = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in sorted(names)
    ]
    constants = [item for item in graph.initializer if item.name in needed]
    part = helper.make_graph(nodes, "rotations", read, outputs, constants)
    model = helper.make_model(
        part, opset_imports=list(exact.opset_import), ir_version=exact.ir_version
    )
    steps = np.arange(count, dtype=np.int64)[None]
    found = cpu_session(model.SerializeToString()).run(
        sorted(names), {POSITIONS_NAME: steps}
    )
    return {
        name: np.asarray(values[0], np.float32)
        for name, values in zip(sorted(names), found, strict=True)
    }
