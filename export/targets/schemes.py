"""How the static graphs of each target are made: one scheme a target and family."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from promptdial.export.channel_calibration import calibrated_maxima
from promptdial.export.model import LoadedBase
from promptdial.export.onnx_edit import copy_model
from promptdial.export.smooth import smooth, smoothed_inputs
from promptdial.export.targets import products, qdq
from promptdial.export.targets.calibrate import HEADROOM, Ranges
from promptdial.export.targets.norms import write_out_norms
from promptdial.export.targets.outliers import activations, bring_down
from promptdial.runtime.rows import Row

Quantise = Callable[[onnx.ModelProto, Ranges], onnx.ModelProto]
Arrange = Callable[[LoadedBase, onnx.ModelProto, Sequence[Row]], onnx.ModelProto]


@dataclass(frozen=True)
class Scheme:
    """From an FP32 graph to one with ranges.

    Attributes:
        name: As the manifest has it.
        headroom: How much more than calibration saw a range has room for.
        arrange: Makes ranges narrow, before sizes are fixed: base, graph and texts to
            another graph that computes the same. What makes a prefix is not arranged:
            prompts stand out in other channels than texts, and over a shipped prompt
            MiniLM's last keys and values were off by a third, instead of a twentieth.
        quantise: Fixes the ranges of a graph that takes texts.
        quantise_maker: Of the one that makes a prefix.
    """

    name: str
    headroom: float
    arrange: Arrange
    quantise: Quantise
    quantise_maker: Quantise


def _as_it_is(
    loaded: LoadedBase, exact: onnx.ModelProto, rows: Sequence[Row]
) -> onnx.ModelProto:
    del loaded, rows
    return exact


def _flattened(
    loaded: LoadedBase, exact: onnx.ModelProto, rows: Sequence[Row]
) -> onnx.ModelProto:
    """No channel of what weights read stands far above the others."""
    norms, functions = smoothed_inputs(exact), activations(exact)
    maxima = calibrated_maxima(loaded, exact, rows, [*norms, *functions])
    result = copy_model(exact)
    smooth(result, {name: maxima[name] for name in norms})
    bring_down(result, {name: maxima[name] for name in functions})
    return result


def _products(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    return write_out_norms(products.quantise_products(model, ranges))


def _weights(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    return write_out_norms(products.quantise_weights(model, ranges))


def _weights_alone(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    return write_out_norms(products.quantise_weights_alone(model, ranges))


SCHEMES = {
    "qnn": Scheme(
        qdq.SCHEME, HEADROOM, _as_it_is, qdq.quantise_static, qdq.quantise_static
    ),
    # A bit of eight is dear: MiniLM's mean cosine is 0.9970 with 1.25, 0.9962 with 1.5.
    "openvino": Scheme(
        products.SCHEME,
        1.25,
        _flattened,
        _products,
        _weights,
    ),
}
"""Of encoders, by target."""


@dataclass(frozen=True)
class DecoderScheme:
    """From a decoder's graph of fixed sizes to one with ranges.

    Attributes:
        name: As the manifest has it.
        quantise: Fixes the ranges of a graph that reads, or of the one that writes.
    """

    name: str
    quantise: Quantise


DECODER_SCHEMES = {
    "qnn": DecoderScheme(qdq.SCHEME, qdq.quantise_static),
    # Weights alone: their bytes are what a token costs, and one graph reads prompts,
    # which stand out in other channels than texts.
    "openvino": DecoderScheme(products.WEIGHTS_SCHEME, _weights_alone),
}
"""Of decoders, by target."""
