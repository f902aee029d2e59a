"""Fixed ranges in a static graph: QuantizeLinear and DequantizeLinear about each value.

Activations are uint16 over the range that calibration gives them, as are vectors and
tables; weight matrices are int8 with one scale a column, which MiniLM needs: with one
scale a matrix its cosine to FP32 is 0.97 instead of 0.999. Operators that move values
about and do not change them keep their range.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from promptdial.export.onnx_edit import GraphEdit, copy_model
from promptdial.export.quantise import quantise_columns

Range = tuple[float, float]

SCHEME = "qdq-uint16-activations per-column-int8-weights"
MOVES = ("Reshape", "Transpose")
_STEPS = 65_535
_LEAST_SPAN = 1e-4
_LEAST_SHARE = 1e-4
"""Of the largest scale of a matrix: the least of a column's. QNN gives an end of the
range for a column of zeros whose scale is next to nothing, such as a padding token's.
"""


@dataclass(frozen=True)
class Encoding:
    """A range in uint16 levels: value = (level - zero) * scale."""

    scale: np.float32
    zero: int

    def levels(self, values: NDArray[np.floating]) -> NDArray[np.uint16]:
        """The levels of values; what is outside becomes an end of the range."""
        found = np.rint(values / self.scale) + self.zero
        return np.asarray(np.clip(found, 0, _STEPS), np.uint16)


def encoding(found: Range, steps: int = _STEPS) -> Encoding:
    """The levels of a range, which is made to hold 0; `steps` above the least."""
    low, high = min(found[0], 0.0), max(found[1], 0.0)
    span = max(high - low, _LEAST_SPAN)
    return Encoding(np.float32(span / steps), round(-low / span * steps))


def quantise_static(
    model: onnx.ModelProto, ranges: Mapping[str, Range]
) -> onnx.ModelProto:
    """Fix the range of every floating-point value of a static graph.

    Args:
        model: The FP32 graph; left as it is.
        ranges: (low, high) by name, of the inputs and of what operators compute; those
            of MOVES take their input's.

    Returns:
        The graph with its ranges; equal input gives equal bytes.
    """
    result = copy_model(model)
    del result.graph.value_info[:]  # of values that get other names now
    edit = GraphEdit(result)
    work = _Ranges(edit, ranges)
    inputs = {
        item.name
        for item in result.graph.input
        if item.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    nodes = [made for name in sorted(inputs) for made in work.cut(name, f"{name}.real")]
    for node in result.graph.node:
        nodes += work.operator(node, inputs)
    edit.replace(nodes)
    edit.prune()
    return result


@dataclass
class _Ranges:
    """Makes the nodes; remembers the encodings, and the constants that are done."""

    edit: GraphEdit
    ranges: Mapping[str, Range]
    encodings: dict[str, Encoding] = field(default_factory=dict)
    restored: set[str] = field(default_factory=set)

    def operator(self, node: onnx.NodeProto, inputs: set[str]) -> list[onnx.NodeProto]:
        """A node with its operands restored from levels, and its result in levels."""
        name = node.output[0]
        if node.op_type in MOVES:
            self.encodings[name] = self._encoding(node.input[0])
        made = onnx.NodeProto()
        made.CopyFrom(node)
        before: list[onnx.NodeProto] = []
        for place, value in enumerate(node.input):
            if value in inputs:
                made.input[place] = f"{value}.real"
            elif self._is_real(value):
                made.input[place] = f"{value}.real"
                before += self._constant(node, value)
        made.output[0] = f"{name}.exact"
        return [*before, made, *self.cut(name, name, f"{name}.exact")]

    def cut(self, name: str, target: str, source: str = "") -> list[onnx.NodeProto]:
        """A value to levels and back: `source`, else the value itself, to `target`."""
        found = self._encoding(name)
        scale, zero = self._parameters(name, found.scale, np.uint16(found.zero))
        levels = f"{name}.levels"
        make = helper.make_node
        return [
            make(
                "QuantizeLinear",
                [source or name, scale, zero],
                [levels],
                name=f"{name}.QuantizeLinear",
            ),
            make(
                "DequantizeLinear",
                [levels, scale, zero],
                [target],
                name=f"{name}.DequantizeLinear",
            ),
        ]

    def _constant(self, node: onnx.NodeProto, name: str) -> list[onnx.NodeProto]:
        """A constant in levels, and the node that restores it; once for all readers."""
        if name in self.restored:
            return []
        self.restored.add(name)
        values = self.edit.array(name).astype(np.float32)
        axis: int | None = None
        if node.op_type == "MatMul" and values.ndim == 2:
            _, scales = quantise_columns(values)
            scales = np.maximum(scales, scales.max() * _LEAST_SHARE)
            matrix = np.rint(values / scales).astype(np.int8)
            zeros = np.zeros(len(scales), np.int8)
            levels: NDArray[np.generic] = matrix
            scale, zero = self._parameters(name, scales, zeros)
            axis = 1
        else:
            # What Gather takes from a table has the table's range.
            of_table = node.op_type == "Gather"
            span = (float(values.min()), float(values.max()))
            found = self._encoding(node.output[0]) if of_table else encoding(span)
            levels = found.levels(values)
            scale, zero = self._parameters(name, found.scale, np.uint16(found.zero))
        stored = self.edit.constant(f"{name}.levels", levels)
        restore = helper.make_node(
            "DequantizeLinear",
            [stored, scale, zero],
            [f"{name}.real"],
            name=f"{name}.DequantizeLinear",
            axis=axis,
        )
        return [restore]

    def _encoding(self, name: str) -> Encoding:
        if name not in self.encodings:
            self.encodings[name] = encoding(self.ranges[name])
        return self.encodings[name]

    def _parameters(
        self,
        name: str,
        scale: np.float32 | NDArray[np.float32],
        zero: np.uint16 | NDArray[np.int8],
    ) -> tuple[str, str]:
        first = self.edit.constant(f"{name}.scale", np.asarray(scale))
        return first, self.edit.constant(f"{name}.zero", np.asarray(zero))

    def _is_real(self, name: str) -> bool:
        constant = self.edit.constants.get(name)
        return constant is not None and constant.data_type == onnx.TensorProto.FLOAT
