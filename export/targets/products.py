"""8-bit products in a static graph: the inputs of weights in uint8, all else in float.

OpenVINO runs operators in float beside products in 8 bits, in one graph. In uint8 a
tensor has 256 levels, too few for scores, residuals and norms; for what weights read
they are enough once no channel stands far above the rest (outliers.py). Prompts enter
in float: keys and values are never cut into levels themselves, and the graph that
makes them, which runs once a prompt, has levels in its weights alone.

Weights are int8 from -96 to 96, one scale a column: on x86 processors without VNNI,
OpenVINO adds pairs of products of u8 and s8 in 16 bits, which overflow with large ones.
MiniLM on such a processor: mean cosine to PyTorch 0.9963 with 127, where the CPU
provider has 0.9972; 0.9972 on both with 96; 0.9957 on both with 63.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import helper

from promptdial.export.onnx_edit import GraphEdit, copy_model
from promptdial.export.quantise import quantise_columns
from promptdial.export.targets.qdq import Range, encoding

SCHEME = "qdq-uint8-weight-inputs per-column-int8-weights-96 smooth-0.7 outliers-0.98"
WEIGHTS_SCHEME = "per-column-int8-weights"
_STEPS = 255
_SUMMED_TOP = 96
_TOP = 127


def quantise_products(
    model: onnx.ModelProto, ranges: Mapping[str, Range]
) -> onnx.ModelProto:
    """Fix the ranges of what constant matrices are multiplied with.

    Args:
        model: The FP32 graph; left as it is.
        ranges: (low, high) of values by name; a product whose input has none reads it
            in float.

    Returns:
        The graph with its ranges; equal input gives equal bytes.
    """
    return _quantised(model, ranges, _SUMMED_TOP)


def quantise_weights(
    model: onnx.ModelProto, ranges: Mapping[str, Range]
) -> onnx.ModelProto:
    """The same weights as `quantise_products` has, and no ranges at all."""
    del ranges
    return _quantised(model, {}, _SUMMED_TOP)


def quantise_weights_alone(
    model: onnx.ModelProto, ranges: Mapping[str, Range]
) -> onnx.ModelProto:
    """Weights in all their levels, for no product of the graph is in 8 bits."""
    del ranges
    return _quantised(model, {}, _TOP)


def _quantised(
    model: onnx.ModelProto, ranges: Mapping[str, Range], top: int
) -> onnx.ModelProto:
    result = copy_model(model)
    edit = GraphEdit(result)
    work = _Products(edit, ranges, top)
    edit.rewrite(lambda node: work.product(node) if work.is_weighted(node) else None)
    edit.prune()
    return result


@dataclass
class _Products:
    """Makes the nodes; remembers the inputs that are cut already.

    Attributes:
        edit: The graph.
        ranges: Of what weights read, by name.
        top: Highest level of a weight.
        done: Names that are cut.
    """

    edit: GraphEdit
    ranges: Mapping[str, Range]
    top: int
    done: set[str] = field(default_factory=set)

    def is_weighted(self, node: onnx.NodeProto) -> bool:
        """Whether a node multiplies with a constant matrix."""
        if node.op_type != "MatMul" or node.input[1] not in self.edit.constants:
            return False
        return len(self.edit.constants[node.input[1]].dims) == 2

    def product(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The node with its row input and its weight in levels."""
        source, weight = node.input[:2]
        before = []
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for place, name, make in (
            (0, source, self._rows),
            (1, weight, self._weight),
        ):
            if place == 0 and name not in self.ranges:
                continue
            made.input[place] = f"{name}.real"
            if name not in self.done:
                self.done.add(name)
                before += make(name)
        return [*before, made]

    def _rows(self, name: str) -> list[onnx.NodeProto]:
        found = encoding(self.ranges[name], _STEPS)
        constant = self.edit.constant
        parameters = [
            constant(f"{name}.scale", np.asarray(found.scale)),
            constant(f"{name}.zero", np.asarray(np.uint8(found.zero))),
        ]
        levels = f"{name}.levels"
        make = helper.make_node
        return [
            make(
                "QuantizeLinear",
                [name, *parameters],
                [levels],
                name=f"{name}.QuantizeLinear",
            ),
            make(
                "DequantizeLinear",
                [levels, *parameters],
                [f"{name}.real"],
                name=f"{name}.DequantizeLinear",
            ),
        ]

    def _weight(self, name: str) -> list[onnx.NodeProto]:
        values = self.edit.array(name).astype(np.float32)
        matrix, scales = quantise_columns(values, self.top)
        constant = self.edit.constant
        inputs = [
            constant(f"{name}.levels", matrix),
            constant(f"{name}.scale", scales),
            constant(f"{name}.zero", np.zeros(len(scales), np.int8)),
        ]
        restored = helper.make_node(
            "DequantizeLinear",
            inputs,
            [f"{name}.real"],
            name=f"{name}.DequantizeLinear",
            axis=1,
        )
        return [restored]
