"""Channels of an activation function that stand far above the rest are brought down.

The second product of a feed-forward layer reads what GELU gives: in MiniLM, one channel
in 1,536 reaches 25 where 98 of 100 stay below 4, and one scale for all of them leaves
the others few levels. Such a channel is divided by its excess, and the weight's row is
multiplied by it, which leaves the product as it is. Dividing all channels by factors of
their own, as smoothing does behind a norm, is worse here: GELU ends at -0.17 in every
channel, and small ones would be stretched below it.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from promptdial.export.onnx_edit import NORMS, GraphEdit, location
from promptdial.export.smooth import Floats
from promptdial.export.targets.qdq import MOVES

KEPT = 0.98  # of 0.5 to 0.99, none was much better on MiniLM


def activations(model: onnx.ModelProto) -> list[str]:
    """What functions compute and weights read: no norm's, and not mixed values."""
    edit = GraphEdit(model)
    return [
        name
        for name in edit.by_input()
        if name in edit.producers
        and edit.producers[name].op_type not in (*NORMS, *MOVES, "Attention")
    ]


def bring_down(model: onnx.ModelProto, maxima: Mapping[str, Floats]) -> None:
    """Bring channels above the quantile KEPT down to it, in place.

    Args:
        model: The FP32 graph.
        maxima: Largest magnitude of each channel [I] of `activations`, by name.
    """
    edit = GraphEdit(model)
    before: dict[str, onnx.NodeProto] = {}
    for source, products in edit.by_input().items():
        if source not in maxima:
            continue
        top = np.maximum(maxima[source], 1e-5)
        factor = np.maximum(top / np.quantile(top, KEPT), 1.0).astype(np.float32)
        path = location(products[0].input[1])
        inverse = edit.constant(f"{path}.bring_down", 1.0 / factor)
        output = f"{path}.outliers.Mul"
        before[products[0].name] = helper.make_node(
            "Mul", [source, inverse], [output], name=output
        )
        for node in products:
            weight = edit.array(node.input[1]).astype(np.float32)
            name = f"{node.input[1]}.outliers"
            node.input[1] = edit.constant(name, weight * factor[:, None])
            node.input[0] = output
    edit.rewrite(
        lambda node: [before[node.name], node] if node.name in before else None
    )
    edit.prune()
