"""Channel smoothing: outlier channels move from activations into the weights.

A row's INT8 scale is set by its largest channel, and after LayerNorm a few channels
are always large. Dividing every channel by s and multiplying the weight's row by s
leaves the product as it is and makes the rows flat. Source: SmoothQuant, Xiao et al.
2022 (arXiv:2211.10438); s = max|x|^a / max|w|^(1-a), scaled to geometric mean 1.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from promptdial.export.onnx_edit import NORMS, GraphEdit, copy_model, location
from promptdial.export.session import cpu_session

ALPHA = 0.7  # best of 0.3, 0.5, 0.7, 0.85 on MiniLM

Floats = NDArray[np.float32]


def channel_maxima(
    model: onnx.ModelProto,
    feeds: Iterable[Mapping[str, NDArray[np.generic]]],
    names: Sequence[str] | None = None,
) -> dict[str, Floats]:
    """Largest magnitude of every channel of the rows to smooth, over all feeds.

    Args:
        model: The FP32 graph.
        feeds: Inputs of the graph, one mapping a text.
        names: Activations; None for those that are smoothed.

    Returns:
        By activation name: [H].
    """
    names = smoothed_inputs(model) if names is None else names
    if not names:  # onnxruntime takes no names for all of them
        return {}
    probe = copy_model(model)
    for name in names:
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        probe.graph.output.append(value)
    session = cpu_session(probe.SerializeToString())
    maxima: dict[str, Floats] = {}
    for feed in feeds:
        for name, rows in zip(names, session.run(names, dict(feed)), strict=True):
            top = np.abs(rows).reshape(-1, rows.shape[-1]).max(axis=0)
            maxima[name] = np.maximum(maxima.get(name, top), top)
    return maxima


def smoothed_inputs(model: onnx.ModelProto) -> list[str]:
    """Activations that are smoothed: LayerNorm's output where a weight reads it."""
    edit = GraphEdit(model)
    return [
        name
        for name in edit.by_input()
        if name in edit.producers and edit.producers[name].op_type in NORMS
    ]


def smooth(
    model: onnx.ModelProto, maxima: Mapping[str, Floats], alpha: float = ALPHA
) -> None:
    """Put `1/s` in front of the weights that read x, and s into them, in place.

    A norm whose output is read by these weights alone takes 1/s into its own weight
    (decoders); elsewhere (BERT, where the residual reads it too) x is multiplied.

    Args:
        model: The graph.
        maxima: As `channel_maxima` found them.
        alpha: How much of the difficulty moves into the weights, 0 to 1.
    """
    edit = GraphEdit(model)
    before: dict[str, onnx.NodeProto] = {}
    for source, matmuls in edit.by_input().items():
        if source not in maxima:
            continue
        path = location(matmuls[0].input[1])
        weights = [edit.array(node.input[1]).astype(np.float32) for node in matmuls]
        factor = _factors(maxima[source], weights, alpha)
        output = source
        if not _into_norm(edit, source, len(matmuls), 1.0 / factor):
            inverse = edit.constant(f"{path}.unsmooth", 1.0 / factor)
            output = f"{path}.smooth.Mul"
            before[matmuls[0].name] = onnx.helper.make_node(
                "Mul", [source, inverse], [output], name=output
            )
        for node, weight in zip(matmuls, weights, strict=True):
            name = f"{node.input[1]}.smooth"
            node.input[1] = edit.constant(name, weight * factor[:, None])
            node.input[0] = output
    edit.rewrite(
        lambda node: [before[node.name], node] if node.name in before else None
    )
    edit.prune()


def _into_norm(edit: GraphEdit, source: str, readers: int, factor: Floats) -> bool:
    """Multiply a norm's weight and bias by a factor [H], if nothing else reads it."""
    norm = edit.producers[source]
    if source in {output.name for output in edit.model.graph.output}:
        return False
    constants = all(name in edit.constants for name in norm.input[1:])
    if len(edit.consumers[source]) != readers or not constants:
        return False
    for place in range(1, len(norm.input)):
        values = edit.array(norm.input[place]).astype(np.float32) * factor
        norm.input[place] = edit.constant(f"{source}.{place}.smooth", values)
    return True


def _factors(top: Floats, weights: list[Floats], alpha: float) -> Floats:
    """Factors s [H]; channels that never spoke keep a finite factor."""
    reach = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)
    spread = np.maximum(top, 1e-5) ** alpha / np.maximum(reach, 1e-5) ** (1 - alpha)
    spread = spread / np.exp(np.log(spread).mean())
    return np.asarray(spread, np.float32)
