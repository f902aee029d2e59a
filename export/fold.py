"""Constant folding: what no input reaches is computed once, at export.

DeBERTa projects its relative positions with every layer's key and query weights in
each pass: some 512 rows, more work than a short text itself. They never change.
"""

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from promptdial.export.onnx_edit import Array, GraphEdit

_MAX_BYTES = 16 << 20
"""A folded value is stored in the graph: larger ones are left to the device."""


def fold_constants(model: onnx.ModelProto) -> None:
    """Replace nodes that read constants alone by their values, in place."""
    edit = GraphEdit(model)
    folded = set()
    for node in model.graph.node:
        names = [name for name in node.input if name]
        if not names or any(name not in edit.constants for name in names):
            continue
        arrays = _values(model, node, {name: edit.array(name) for name in names})
        if sum(array.nbytes for array in arrays) > _MAX_BYTES:
            continue
        for name, array in zip(node.output, arrays, strict=True):
            edit.constant(name, array)
        folded.add(node.name)
    edit.rewrite(lambda node: [] if node.name in folded else None)
    edit.prune()


def _values(
    model: onnx.ModelProto, node: onnx.NodeProto, inputs: dict[str, Array]
) -> list[Array]:
    """What a node makes of constants."""
    if node.op_type == "GatherElements":
        # onnx's own evaluator fails on more than 32 columns.
        data, indices = (inputs[name] for name in node.input)
        axis = next((item.i for item in node.attribute if item.name == "axis"), 0)
        # Along the other axes, indices may end before the data do.
        part = [slice(size) for size in indices.shape]
        part[axis] = slice(None)
        return [np.take_along_axis(data[tuple(part)], indices.astype(np.int64), axis)]
    # T5 takes the logarithm of 0 where it then takes another value.
    with np.errstate(divide="ignore", invalid="ignore"):
        values = ReferenceEvaluator(_alone(model, node)).run(None, inputs)
    return [np.asarray(value) for value in values]


def _alone(model: onnx.ModelProto, node: onnx.NodeProto) -> onnx.ModelProto:
    """A model of one node; its types are those of the values it is given."""
    inputs = [
        onnx.helper.make_value_info(name, onnx.TypeProto())
        for name in dict.fromkeys(node.input)
        if name
    ]
    outputs = [
        onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.output
    ]
    graph = onnx.helper.make_graph([node], node.name or "node", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=list(model.opset_import))
