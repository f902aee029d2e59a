"""RMS norms written out, for compilers that have no operator for them.

OpenVINO 2025.4 (onnxruntime-openvino 1.24.1) does not take ONNX's RMSNormalization,
and knows what it is when it is written out (Zhang & Sennrich 2019, arXiv:1910.07467,
equation 4).
"""

import numpy as np
import onnx
from onnx import helper

from promptdial.export.onnx_edit import GraphEdit

_EPSILON = 1e-5  # ONNX's, where the node has none


def write_out_norms(model: onnx.ModelProto) -> onnx.ModelProto:
    """RMSNormalization over the last axis as products, a mean and a root, in place."""
    edit = GraphEdit(model)
    last = edit.constant("rms.axes", np.array([-1], np.int64))

    def written(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        if node.op_type != "RMSNormalization":
            return None
        source, weight = node.input
        path = node.output[0]
        options = {
            item.name: helper.get_attribute_value(item) for item in node.attribute
        }
        epsilon = np.array(options.get("epsilon", _EPSILON), np.float32)
        little = edit.constant(f"rms.{float(epsilon):g}", epsilon)

        def step(name: str, kind: str, *inputs: str) -> onnx.NodeProto:
            return helper.make_node(
                kind, inputs, [f"{path}.{name}"], name=f"{path}.{name}"
            )

        return [
            step("squares", "Mul", source, source),
            step("mean", "ReduceMean", f"{path}.squares", last),
            step("more", "Add", f"{path}.mean", little),
            step("root", "Sqrt", f"{path}.more"),
            step("unit", "Div", source, f"{path}.root"),
            helper.make_node("Mul", [f"{path}.unit", weight], node.output, name=path),
        ]

    edit.rewrite(written)
    edit.prune()
    return model
