"""FP32 graph to INT8 with one activation scale a row: the scheme that ships.

Every weight MatMul becomes: the row's largest magnitude, the row as shares of it,
QuantizeLinear to uint8 with a step that all rows share, and MatMulIntegerToFloat
against int8 weights, which multiplies by the row's magnitude and the column's scale at
its end. No scale is shared between rows, so a row's answer does not depend on its
neighbours in a batch, nor a prompt's keys on who asked first.

Rows that come out of GELU are never below -0.17: they use the range [-16, 239] of
steps instead of [-127, 127], nearly one bit more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

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
_GELU_LEAST = 2.56  # of a row's magnitude: 16 steps of it reach below GELU's -0.17
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
    rows = _Rows(edit, ranks(model))
    targets = {node.name for node in edit.weight_matmuls()}
    edit.rewrite(lambda node: rows.matmul(node) if node.name in targets else None)
    edit.require_domain(MICROSOFT, 1)
    edit.prune()


def quantise_columns(weight: Floats, top: int = 127) -> tuple[NDArray[np.int8], Floats]:
    """Symmetric INT8 weights [H, N], from -top to top, and their scales [N]."""
    scale = np.maximum(np.abs(weight).max(axis=0), _LEAST_SCALE) / top
    levels = np.clip(np.rint(weight / scale), -top, top).astype(np.int8)
    return levels, scale.astype(np.float32)


@dataclass(frozen=True)
class _QuantisedRows:
    """Names of an activation in integers, and the steps that its rows are cut into.

    Attributes:
        levels: Rows [..., H], uint8.
        top: Largest magnitude [..., 1] of each row.
        steps: How many steps that magnitude has.
        zero: Zero point, a scalar.
    """

    levels: str
    top: str
    steps: int
    zero: str


@dataclass
class _Rows:
    """Emits the nodes; remembers what several MatMuls share."""

    edit: GraphEdit
    ranks: dict[str, int]
    quantised: dict[str, _QuantisedRows] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def matmul(self, node: onnx.NodeProto) -> list[onnx.NodeProto]:
        """The nodes that take the place of a weight MatMul."""
        self.nodes = []
        path = location(node.input[1])
        weight = self.edit.array(node.input[1]).astype(np.float32)
        source = node.input[0]
        if source not in self.quantised:
            self.quantised[source] = self._quantise(source, path)
        rows = self.quantised[source]
        levels, scale = quantise_columns(weight)
        inputs = [
            rows.levels,
            self.edit.constant(f"{path}.weight_int8", levels),
            rows.top,
            self._column_scale(
                path, scale / np.float32(rows.steps), self.ranks.get(source, 3)
            ),
            rows.zero,
        ]
        self._emit(
            path,
            "MatMulIntegerToFloat",
            inputs,
            domain=MICROSOFT,
            output=node.output[0],
        )
        return self.nodes

    def _column_scale(self, path: str, scale: Floats, rank: int) -> str:
        """Scales of the columns, as many dimensions as the product has.

        Given as [N], onnxruntime multiplies them with the rows' scale one by one in
        every call, which one token of a small decoder feels. In three dimensions they
        are one vectorised product at the end.
        """
        shape = (1,) * (rank - 1) + (-1,)
        values = np.asarray(scale, np.float32).reshape(shape if rank > 2 else -1)
        return self.edit.constant(f"{path}.weight_scale", values)

    def _quantise(self, source: str, path: str) -> _QuantisedRows:
        """Rows as shares of their own largest magnitude.

        A row of zeros gives 0 / 0 here, and 0 at the end: its magnitude is a factor of
        the product.
        """
        path, constant = f"{path}.rows", self.edit.constant
        axis = constant("int8.axis", np.array([-1], np.int64))
        producer = self.edit.producers.get(source)
        if producer is not None and producer.op_type == "Gelu":
            zero, steps = _GELU_STEPS_BELOW, 255 - _GELU_STEPS_BELOW
            largest = self._emit(path, "ReduceMax", [source, axis], keepdims=1)
            least = constant("int8.gelu_least", np.array(_GELU_LEAST, np.float32))
            top = self._emit(path, "Max", [largest, least])
        else:
            zero, steps = _MIDDLE, 127
            sizes = self._emit(path, "Abs", [source])
            top = self._emit(path, "ReduceMax", [sizes, axis], keepdims=1)
        step = constant(f"int8.step.{steps}", np.array(1 / steps, np.float32))
        zero_point = constant(f"int8.zero.{zero}", np.array(zero, np.uint8))
        shares = self._emit(path, "Div", [source, top])
        levels = self._emit(path, "QuantizeLinear", [shares, step, zero_point])
        return _QuantisedRows(levels, top, steps, zero_point)

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
