"""FP32 graph to 4-bit weights in blocks: the int4 variant, of both families.

Every weight MatMul becomes onnxruntime's MatMulNBits: a column is cut into blocks of
numbers that share a scale and a zero point, 4 bits a number. With accuracy level 4 the
product rounds an activation row to int8 as well, block by block with a scale of the
row's own, so a row's answer does not depend on its neighbours. onnxruntime multiplies a
single row by another kernel than several, whose sums end in other last bits: alone and
in company, answers are equal to 1e-6, where INT8's are equal bit for bit.

A block's range is shrunk where that lessens the sum of its squared errors: the few
largest numbers are cut off, and all others gain finer steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass

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
)
from promptdial.export.smooth import Floats, smooth

BLOCK = 32  # 16 are nearer, and slower than FP32 without VNNI; 64 are further off
INT4_ALPHA = 0.5  # best of 0, 0.3, 0.5 and 0.7 on MiniLM
INT4_SCHEME = f"weights-int4 blocks-{BLOCK} smooth-{INT4_ALPHA}"

_BITS = 4
_TOP = 2**_BITS - 1
_ACCURACY_LEVEL = 4  # activations in int8
_SHARES = (1.0, 0.95, 0.9, 0.85, 0.8)
_LEAST_SCALE = 1e-8


def quantise_int4(
    model: onnx.ModelProto, maxima: Mapping[str, Floats], alpha: float = INT4_ALPHA
) -> onnx.ModelProto:
    """Quantise the weights of an FP32 graph: smooth, fuse, then blocks of 4 bits.

    Args:
        model: The FP32 graph; left as it is.
        maxima: Channel maxima of calibration; empty for no smoothing.
        alpha: Strength of the smoothing. Here it guards the weights of loud channels,
            as in AWQ (Lin et al. 2023, arXiv:2306.00978).

    Returns:
        The int4 graph; equal input gives equal bytes.
    """
    result = copy_model(model)
    smooth(result, maxima, alpha)
    fuse_shared_inputs(result)
    edit = GraphEdit(result)
    targets = {node.name for node in edit.weight_matmuls()}
    edit.rewrite(lambda node: [_product(edit, node)] if node.name in targets else None)
    edit.require_domain(MICROSOFT, 1)
    edit.prune()
    return result


@dataclass(frozen=True)
class Blocks:
    """A weight [H, N] in blocks of its columns; S is the number of blocks in one.

    Attributes:
        levels: [N, S, block], 0 to 15.
        scale: [N, S].
        zero: [N, S], the level of zero.
    """

    levels: NDArray[np.uint8]
    scale: Floats
    zero: NDArray[np.uint8]


def quantise_blocks(weight: Floats, block: int = BLOCK) -> Blocks:
    """The nearest 4-bit blocks of a weight [H, N]; H is filled up with zeros."""
    height, columns = weight.shape
    filled = np.pad(weight, ((0, -height % block), (0, 0)))
    numbers = np.ascontiguousarray(filled.T).reshape(columns, -1, block)
    low = np.minimum(numbers.min(axis=-1), 0)
    high = np.maximum(numbers.max(axis=-1), 0)
    best: Blocks | None = None
    least = np.full(low.shape, np.inf, np.float32)
    for share in _SHARES:
        found = _rounded(numbers, low * share, high * share)
        steps = found.levels.astype(np.float32) - found.zero[..., None]
        error = ((steps * found.scale[..., None] - numbers) ** 2).sum(axis=-1)
        best = found if best is None else _better(best, found, error < least)
        least = np.minimum(least, error)
    assert best is not None
    return best


def _rounded(numbers: Floats, low: Floats, high: Floats) -> Blocks:
    scale = np.maximum((high - low) / _TOP, _LEAST_SCALE).astype(np.float32)
    zero = np.clip(np.rint(-low / scale), 0, _TOP)
    levels = np.rint(numbers / scale[..., None]) + zero[..., None]
    return Blocks(
        np.clip(levels, 0, _TOP).astype(np.uint8), scale, zero.astype(np.uint8)
    )


def _better(one: Blocks, two: Blocks, chosen: NDArray[np.bool_]) -> Blocks:
    """Blocks of `two` where chosen [N, S], and of `one` elsewhere."""
    return Blocks(
        np.where(chosen[..., None], two.levels, one.levels),
        np.where(chosen, two.scale, one.scale),
        np.where(chosen, two.zero, one.zero),
    )


def _product(edit: GraphEdit, node: onnx.NodeProto) -> onnx.NodeProto:
    """The node that takes the place of a weight MatMul."""
    weight = edit.array(node.input[1]).astype(np.float32)
    path = location(node.input[1])
    blocks = quantise_blocks(weight)
    inputs = [
        node.input[0],
        edit.constant(f"{path}.weight_int4", _packed(blocks.levels)),
        edit.constant(f"{path}.weight_scale", blocks.scale.reshape(-1)),
        edit.constant(f"{path}.weight_zero", _packed(blocks.zero).reshape(-1)),
    ]
    return helper.make_node(
        "MatMulNBits",
        inputs,
        [node.output[0]],
        name=f"{path}.MatMulNBits",
        domain=MICROSOFT,
        K=weight.shape[0],
        N=weight.shape[1],
        bits=_BITS,
        block_size=BLOCK,
        accuracy_level=_ACCURACY_LEVEL,
    )


def _packed(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two of the last axis a byte, the lower half first; an odd one stands alone."""
    if levels.shape[-1] % 2:
        levels = np.pad(levels, [(0, 0)] * (levels.ndim - 1) + [(0, 1)])
    return np.asarray(levels[..., 0::2] | (levels[..., 1::2] << 4), np.uint8)
