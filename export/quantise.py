"""FP32 graph to INT8 with one activation scale a row: the scheme that ships.

Every weight MatMul becomes: the row's largest magnitude -> its scale, QuantizeLinear
to uint8, MatMulIntegerToFloat against int8 weights with a scale a column, times the
row's scale. No scale is shared between rows, so a row's answer does not depend on
its neighbours in a batch, nor a prompt's keys on who asked first.

Rows that come out of GELU are never below -0.17: they use the range [-16, 239] of
steps instead of [-127, 127], nearly one bit more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from promptdial.export.graph_names import KEEP_NAME
from promptdial.export.onnx_edit import (
    MICROSOFT,
    GraphEdit,
    copy_model,
    fuse_shared_inputs,
    location,
    ranks,
)
from promptdial.export.smooth import ALPHA, Floats, smooth

SCHEME = "per-row-dynamic-int8 smooth-0.7"

_GELU_STEPS_BELOW = 16
_GELU_LEAST_SCALE = 0.0107  # 16 steps reach below GELU's minimum of -0.17
_MIDDLE = 128
_LEAST_SCALE = 1e-8


def quantise(
    model: onnx.ModelProto, maxima: Mapping[str, Floats], alpha: float = ALPHA
) -> onnx.ModelProto:
    """Quantise an FP32 graph: smooth, fuse, then one scale a row.

    Args:
        model: The FP32 graph; left as it is.
        maxima: Channel maxima of calibration; empty for no smoothing.
        alpha: Strength of the smoothing.

    Returns:
        The INT8 graph; equal input gives equal bytes.
    """
    result = copy_model(model)
    smooth(result, maxima, alpha)
    fuse_shared_inputs(result)
    quantise_rows(result)
    return result


def quantise_rows(model: onnx.ModelProto) -> None:
    """Turn every weight MatMul into an integer one, in place."""
    edit = GraphEdit(model)
    rows = _Rows(edit, ranks(model), edit.reached(KEEP_NAME))
    targets = {node.name for node in edit.weight_matmuls()}
    edit.rewrite(lambda node: rows.matmul(node) if node.name in targets else None)
    edit.require_domain(MICROSOFT, 1)
    edit.prune()


def quantise_columns(weight: Floats) -> tuple[NDArray[np.int8], Floats]:
    """Symmetric INT8 weights [H, N] and their scales [N]."""
    scale = np.maximum(np.abs(weight).max(axis=0), _LEAST_SCALE) / 127
    levels = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
    return levels, scale.astype(np.float32)


@dataclass(frozen=True)
class _QuantisedRows:
    """Names: uint8 rows [R, H], their scales [R, 1], their zero point (a scalar)."""

    levels: str
    scale: str
    zero: str


@dataclass
class _Rows:
    """Emits the nodes; remembers what several MatMuls share."""

    edit: GraphEdit
    ranks: dict[str, int]
    kept: set[str]  # values of the last rows alone, not of all B*T
    quantised: dict[str, _QuantisedRows] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def matmul(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that take the place of a weight MatMul."""
        self.nodes = []
        path = location(node.input[1])
        weight = self.edit.array(node.input[1]).astype(np.float32)
        source = node.input[0]
        if source not in self.quantised:
            self.quantised[source] = self._quantise(source, path, weight.shape[0])
        rows = self.quantised[source]
        levels, scale = quantise_columns(weight)
        inputs = [
            rows.levels,
            self.edit.constant(f"{path}.weight_int8", levels),
            self.edit.constant("int8.one", np.array(1, np.float32)),
            self.edit.constant(f"{path}.weight_scale", scale),
            rows.zero,
        ]
        product = self._emit(path, "MatMulIntegerToFloat", inputs, domain=MICROSOFT)
        if self.ranks.get(source) == 2:  # GPT-2, OPT: rows of all texts in one list
            self._emit(path, "Mul", [product, rows.scale], output=node.output[0])
            return self.nodes
        scaled = self._emit(path, "Mul", [product, rows.scale])
        shape = self._shape(source, weight.shape[1])
        self._emit(path, "Reshape", [scaled, shape], output=node.output[0])
        return self.nodes

    def _quantise(self, source: str, path: str, width: int) -> _QuantisedRows:
        path = f"{path}.rows"
        constant = self.edit.constant
        shape = constant(f"int8.flat.{width}", np.array([-1, width], np.int64))
        axis = constant("int8.axis", np.array([1], np.int64))
        flat = self._emit(path, "Reshape", [source, shape])
        scale, zero = self._scale(source, flat, path, axis)
        zeros = self._zeros(scale, zero, self._rows_of(source))
        levels = self._emit(path, "QuantizeLinear", [flat, scale, zeros], axis=0)
        column = self._emit(path, "Unsqueeze", [scale, axis])
        name = constant(f"int8.zero.{zero}", np.array(zero, np.uint8))
        return _QuantisedRows(levels, column, name)

    def _scale(self, source: str, flat: str, path: str, axis: str) -> tuple[str, int]:
        """Scales [R] of the rows, and their zero point."""
        constant = self.edit.constant
        producer = self.edit.producers.get(source)
        if producer is not None and producer.op_type == "Gelu":
            top, zero, steps = flat, _GELU_STEPS_BELOW, 255 - _GELU_STEPS_BELOW
            least = _GELU_LEAST_SCALE
        else:
            top, zero, steps = self._emit(path, "Abs", [flat]), _MIDDLE, 127
            least = _LEAST_SCALE
        step = constant(f"int8.step.{steps}", np.array(1 / steps, np.float32))
        floor = constant(f"int8.least.{steps}", np.array(least, np.float32))
        largest = self._emit(path, "ReduceMax", [top, axis], keepdims=0)
        wanted = self._emit(path, "Mul", [largest, step])
        return self._emit(path, "Max", [wanted, floor]), zero

    def _rows_of(self, source: str) -> str:
        """Which rows an activation has: values of the same have the same number."""
        return "kept." if source in self.kept else ""

    def _zeros(self, scale: str, zero: int, rows: str) -> str:
        """Zero points [R]: one vector serves every activation of the same rows."""
        path = f"int8.zeros.{rows}{zero}"
        if path not in self.shared:
            count = self._emit(path, "Shape", [scale])
            value = helper.make_tensor("value", TensorProto.UINT8, [1], [zero])
            self.shared[path] = self._emit(
                path, "ConstantOfShape", [count], value=value
            )
        return self.shared[path]

    def _shape(self, source: str, width: int) -> str:
        """Shape [B, T, width]."""
        rows = self._rows_of(source)
        path = f"int8.shape.{rows}{width}"
        if path not in self.shared:
            lead = f"{rows}lead"
            if lead not in self.shared:
                self.shared[lead] = self._emit(
                    f"int8.shape{'.kept' if rows else ''}",
                    "Shape",
                    [source if rows else "inputs_embeds"],
                    start=0,
                    end=2,
                )
            tail = self.edit.constant(f"int8.width.{width}", np.array([width]))
            inputs = [self.shared[lead], tail]
            self.shared[path] = self._emit(path, "Concat", inputs, axis=0)
        return self.shared[path]

    def _emit(
        self,
        path: str,
        kind: str,
        inputs: list[str],
        output: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> str:
        name = f"{path}.{kind}"
        node = helper.make_node(
            kind, inputs, [output or name], name=name, domain=domain, **attributes
        )
        self.nodes.append(node)
        return str(node.output[0])
