"""Schemes that were weighed against the ones that ship; a benchmark compares them.

All take and give a model in memory. See `benchmarks/int8_schemes.py`.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

from promptdial.export.onnx_edit import copy_model, fuse_shared_inputs
from promptdial.export.quantise import quantise
from promptdial.export.quantise_blocks import quantise_int4
from promptdial.export.smooth import Floats

Builder = Callable[[onnx.ModelProto, Mapping[str, Floats]], onnx.ModelProto]


def fp32(model: onnx.ModelProto, maxima: Mapping[str, Floats]) -> onnx.ModelProto:
    """The graph as it is, query, key and value fused."""
    fused = copy_model(model)
    fuse_shared_inputs(fused)
    return fused


def dynamic_per_tensor(
    model: onnx.ModelProto, maxima: Mapping[str, Floats]
) -> onnx.ModelProto:
    """Dynamic INT8 as onnxruntime has it: one activation scale for the whole batch.

    Fast, and a row's answer depends on its neighbours.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, source)
        _quietly(
            lambda: quantize_dynamic(
                source,
                target,
                # Left alone it rewrites opset 23's Attention into an invalid graph.
                op_types_to_quantize=["MatMul", "Gemm"],
                weight_type=QuantType.QInt8,
            )
        )
        return onnx.load(target)


def per_row_plain(
    model: onnx.ModelProto, maxima: Mapping[str, Floats]
) -> onnx.ModelProto:
    """One scale a row, without channel smoothing."""
    return quantise(model, {})


def per_row_smooth(
    model: onnx.ModelProto, maxima: Mapping[str, Floats]
) -> onnx.ModelProto:
    """The scheme that ships."""
    return quantise(model, maxima)


def weight_only(
    bits: int, block: int, model: onnx.ModelProto, maxima: Mapping[str, Floats]
) -> onnx.ModelProto:
    """MatMulNBits: weights of 4 or 8 bits in blocks, rows quantised block by block."""
    config = DefaultWeightOnlyQuantConfig(
        block_size=block, is_symmetric=True, accuracy_level=4, bits=bits
    )
    quantiser = MatMulNBitsQuantizer(copy_model(model), algo_config=config)
    _quietly(quantiser.process)
    result = quantiser.model.model
    assert isinstance(result, onnx.ModelProto)
    return result


CANDIDATES: dict[str, Builder] = {
    "fp32": fp32,
    "dynamic per tensor": dynamic_per_tensor,
    "per row": per_row_plain,
    "per row, smoothed": per_row_smooth,
    "MatMulNBits 8 bit": partial(weight_only, 8, 32),
    "MatMulNBits 4 bit": partial(weight_only, 4, 32),
    "int4, smoothed": quantise_int4,
}


def _quietly(work: Callable[[], object]) -> None:
    """Run with onnxruntime's advice on the root logger switched off."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        work()
    finally:
        logging.disable(level)
