"""The operators of a bundle's graphs in torch, each as ONNX defines it.

Shapes and other whole numbers are tensors on the CPU, as constants of the graph are.
Of attributes and inputs, what promptdial's own exports use is built; anything else is
refused by name. Source: the operator schemas of ONNX 1.19, opset 23.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from promptdial.export.errors import Unsupported

Values = Sequence[Tensor | None]
Operator = Callable[["Node", Values], Sequence[Tensor]]

_TYPES = {
    1: torch.float32,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
}
"""ONNX's numbers of element types."""


@dataclass(frozen=True)
class Node:
    """One operation of a graph.

    Attributes:
        kind: Name of the operator.
        inputs: Names of its inputs; "" for one that is left out.
        outputs: Names of its outputs.
        attributes: By name.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, default: Any) -> Any:
        """An attribute, or ONNX's default."""
        return self.attributes.get(name, default)


def operator_of(node: Node, more: Mapping[str, Operator]) -> Operator:
    """What runs a node.

    Args:
        node: The node.
        more: Operators beside ONNX's own.

    Raises:
        Unsupported: Nothing here does.
    """
    found = more.get(node.kind) or _OPERATORS.get(node.kind)
    if found is None:
        raise refused(node, "the operator is not built in torch")
    return found


def refused(node: Node, why: str) -> Unsupported:
    """The error about a node that cannot be run."""
    where = node.outputs[0] if node.outputs else "?"
    return Unsupported(
        f"graph node {node.kind} (output {where}): {why}",
        "train without --quantised, or report the model",
    )


def _given(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _numbers(value: Tensor | None) -> list[int]:
    return [int(item) for item in _given(value).reshape(-1).tolist()]


def _together(values: Values) -> list[Tensor]:
    """Tensors on one device: constants follow what depends on the input."""
    found = [_given(value) for value in values]
    places = [value.device for value in found if value.device.type != "cpu"]
    return [value.to(places[0]) for value in found] if places else found


def _each(function: Callable[..., Tensor]) -> Operator:
    """An operator of elements, over inputs that broadcast."""
    return lambda node, values: (function(*_together(values)),)


def _fold(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator over two elements, for any number of inputs."""

    def run(node: Node, values: Values) -> Sequence[Tensor]:
        first, *rest = _together(values)
        for other in rest:
            first = function(first, other)
        return (first,)

    return run


def _div(one: Tensor, two: Tensor) -> Tensor:
    whole = not (one.is_floating_point() or two.is_floating_point())
    return torch.div(one, two, rounding_mode="trunc") if whole else one / two


def _cast(node: Node, values: Values) -> Sequence[Tensor]:
    kind = _TYPES.get(node.get("to", 0))
    if kind is None:
        raise refused(node, f"element type {node.get('to', 0)}")
    return (_given(values[0]).to(kind),)


def _clip(node: Node, values: Values) -> Sequence[Tensor]:
    low, high = [*values[1:], None, None][:2]
    return (torch.clamp(_given(values[0]), low, high),)


def _concat(node: Node, values: Values) -> Sequence[Tensor]:
    return (torch.cat(_together(values), dim=node.get("axis", 0)),)


def _expand(node: Node, values: Values) -> Sequence[Tensor]:
    source = _given(values[0])
    # Both ways: where the shape has a 1, the source keeps its size.
    shape = np.broadcast_shapes(tuple(source.shape), tuple(_numbers(values[1])))
    return (source.expand(shape),)


def _gather(node: Node, values: Values) -> Sequence[Tensor]:
    table, places = _together(values)
    axis = node.get("axis", 0) % table.dim()
    flat = table.index_select(axis, places.reshape(-1).remainder(table.shape[axis]))
    shape = (*table.shape[:axis], *places.shape, *table.shape[axis + 1 :])
    return (flat.reshape(shape),)


def _gather_elements(node: Node, values: Values) -> Sequence[Tensor]:
    table, places = _together(values)
    axis = node.get("axis", 0) % table.dim()
    # torch gathers from as many rows as it is asked for, ONNX from broadcast ones too.
    return (torch.gather(table, axis, places.remainder(table.shape[axis])),)


def _gather_nd(node: Node, values: Values) -> Sequence[Tensor]:
    if node.get("batch_dims", 0):
        raise refused(node, "batch_dims is not 0")
    table, places = _together(values)
    return (table[tuple(places.unbind(-1))],)


def _gelu(node: Node, values: Values) -> Sequence[Tensor]:
    kind = _text(node.get("approximate", "none"))
    return (functional.gelu(_given(values[0]), approximate=kind),)


def _identity(node: Node, values: Values) -> Sequence[Tensor]:
    return (_given(values[0]),)


def _layer_norm(node: Node, values: Values) -> Sequence[Tensor]:
    source, weight, bias = [*values, None][:3]
    rows = _given(source)
    if node.get("axis", -1) % rows.dim() != rows.dim() - 1:
        raise refused(node, f"axis {node.get('axis', -1)} is not the last")
    width = rows.shape[-1:]
    return (
        functional.layer_norm(rows, width, weight, bias, node.get("epsilon", 1e-5)),
    )


def _rms_norm(node: Node, values: Values) -> Sequence[Tensor]:
    rows, weight = _given(values[0]), _given(values[1])
    if node.get("axis", -1) % rows.dim() != rows.dim() - 1:
        raise refused(node, f"axis {node.get('axis', -1)} is not the last")
    epsilon = node.get("epsilon", 1e-5)
    return (functional.rms_norm(rows, rows.shape[-1:], weight, epsilon),)


def _range(node: Node, values: Values) -> Sequence[Tensor]:
    start, end, step = (_given(value).item() for value in values)
    return (torch.arange(start, end, step, dtype=_given(values[0]).dtype),)


def _reduced(function: Callable[[Tensor, list[int], bool], Tensor]) -> Operator:
    def run(node: Node, values: Values) -> Sequence[Tensor]:
        source = _given(values[0])
        axes = _numbers(values[1]) if len(values) > 1 else list(range(source.dim()))
        return (function(source, axes, bool(node.get("keepdims", 1))),)

    return run


def _reshape(node: Node, values: Values) -> Sequence[Tensor]:
    source, shape = _given(values[0]), _numbers(values[1])
    if not node.get("allowzero", 0):
        shape = [size or source.shape[axis] for axis, size in enumerate(shape)]
    return (source.reshape(shape),)


def _rotary(node: Node, values: Values) -> Sequence[Tensor]:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) of heads [B, K, T, D]."""
    heads, cos, sin, places = [*values, None][:4]
    rows = _given(heads)
    cos, sin = _given(cos), _given(sin)
    if places is not None:
        cos, sin = cos[places], sin[places]
    if rows.dim() != 4 or node.get("interleaved", 0):
        raise refused(node, "interleaved, or heads not in an axis of their own")
    width = node.get("rotary_embedding_dim", 0) or rows.shape[-1]
    turned, rest = rows[..., :width], rows[..., width:]
    one, two = turned.chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    parts = [one * cos - two * sin, two * cos + one * sin, rest]
    return (torch.cat(parts, dim=-1),)


def _shape(node: Node, values: Values) -> Sequence[Tensor]:
    sizes = list(_given(values[0]).shape)
    return (torch.tensor(sizes[node.get("start", 0) : node.get("end", None)]),)


def _slice(node: Node, values: Values) -> Sequence[Tensor]:
    found = _given(values[0])
    starts, ends = _numbers(values[1]), _numbers(values[2])
    axes = _numbers(values[3]) if len(values) > 3 else list(range(len(starts)))
    steps = _numbers(values[4]) if len(values) > 4 else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise refused(node, f"step {step}")
        cut = [slice(None)] * found.dim()
        cut[axis] = slice(start, end, step)
        found = found[tuple(cut)]
    return (found,)


def _softmax(node: Node, values: Values) -> Sequence[Tensor]:
    return (torch.softmax(_given(values[0]), node.get("axis", -1)),)


def _split(node: Node, values: Values) -> Sequence[Tensor]:
    source, axis = _given(values[0]), node.get("axis", 0)
    sizes: int | list[int]
    if len(values) > 1:
        sizes = _numbers(values[1])
    else:  # equal parts, and a smaller last one
        sizes = math.ceil(source.shape[axis] / len(node.outputs))
    parts: tuple[Tensor, ...]
    parts = torch.split(source, sizes, dim=axis)
    return parts


def _squeeze(node: Node, values: Values) -> Sequence[Tensor]:
    source = _given(values[0])
    if len(values) < 2:
        return (source.squeeze(),)
    return (source.squeeze(tuple(_numbers(values[1]))),)


def _unsqueeze(node: Node, values: Values) -> Sequence[Tensor]:
    found = _given(values[0])
    axes = _numbers(values[1])
    rank = found.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        found = found.unsqueeze(axis)
    return (found,)


def _tile(node: Node, values: Values) -> Sequence[Tensor]:
    return (_given(values[0]).tile(tuple(_numbers(values[1]))),)


def _transpose(node: Node, values: Values) -> Sequence[Tensor]:
    source = _given(values[0])
    order = node.get("perm", None) or list(reversed(range(source.dim())))
    return (source.permute(order),)


def _attention(node: Node, values: Values) -> Sequence[Tensor]:
    """Heads [B, K, T, D] over keys and values [B, K, P+T, D] under a mask."""
    query, key, value, mask, *more = [*values, None][: max(4, len(values))]
    odd = [name for name in ("softcap", "is_causal") if node.get(name, 0)]
    if odd or any(item is not None for item in more) or _given(query).dim() != 4:
        raise refused(node, f"{odd or 'a cache, or heads in one axis'}")
    heads, theirs = _given(query), _given(key)
    attended = functional.scaled_dot_product_attention(
        heads,
        theirs,
        _given(value),
        attn_mask=mask,
        scale=node.get("scale", None),
        enable_gqa=heads.shape[1] != theirs.shape[1],
    )
    return (attended,)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


_OPERATORS: dict[str, Operator] = {
    "Abs": _each(torch.abs),
    "Add": _each(torch.add),
    "And": _each(torch.logical_and),
    "Attention": _attention,
    "Cast": _cast,
    "Ceil": _each(torch.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "Cos": _each(torch.cos),
    "Div": _each(_div),
    "Expand": _expand,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "Greater": _each(torch.gt),
    "GreaterOrEqual": _each(torch.ge),
    "Identity": _identity,
    "LayerNormalization": _layer_norm,
    "Less": _each(torch.lt),
    "LessOrEqual": _each(torch.le),
    "Log": _each(torch.log),
    "MatMul": _each(torch.matmul),
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Mul": _each(torch.mul),
    "Neg": _each(torch.neg),
    "Not": _each(torch.logical_not),
    "Pow": _each(torch.pow),
    "Range": _range,
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "Reshape": _reshape,
    "RMSNormalization": _rms_norm,
    "RotaryEmbedding": _rotary,
    "Shape": _shape,
    "Sign": _each(torch.sign),
    "Sin": _each(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _each(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _each(torch.sub),
    "Tanh": _each(torch.tanh),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _each(torch.where),
}
