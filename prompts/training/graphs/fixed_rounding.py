"""Fixed ranges of a bundle's static graphs in torch, with gradients straight through.

Those graphs cut each value to the levels of a calibrated range: QuantizeLinear and
DequantizeLinear behind one another (promptdial.export.targets.qdq and products). Here
both become one node, and weights are restored from their levels once.

A number within its range has the gradient of the identity (straight-through
estimator, Bengio et al. 2013, arXiv:1308.3432); one that is cut has none, for moving
it changes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from promptdial.prompts.training.graphs.graph_operators import (
    Node,
    Operator,
    Values,
    refused,
)
from promptdial.prompts.training.graphs.graph_rounding import applied

FIXED = "FixedRange"
_TOPS = {torch.uint8: 255, torch.uint16: 65_535}
"""The highest level of each type that activations have."""


def with_fixed_ranges(
    nodes: Sequence[Node], constants: dict[str, Tensor]
) -> list[Node]:
    """A graph's nodes with FIXED in the place of two, and weights restored.

    Args:
        nodes: In the graph's order.
        constants: Weights by name; gets the restored ones in addition.

    Raises:
        Unsupported: Levels are of a type, or read in a way, that promptdial's exports
            do not use.
    """
    work = _Ranges(constants)
    found: list[Node] = []
    for node in nodes:
        if node.kind == "QuantizeLinear":
            work.cut[node.outputs[0]] = node
        elif node.kind == "DequantizeLinear":
            found += work.restored(node)
        else:
            found.append(node)
    return found


@dataclass
class _Ranges:
    """Turns nodes; remembers what was cut to levels.

    Attributes:
        constants: Weights by name.
        cut: The QuantizeLinear of each name of levels.
    """

    constants: dict[str, Tensor]
    cut: dict[str, Node] = field(default_factory=dict)

    def restored(self, node: Node) -> list[Node]:
        """What stands for a DequantizeLinear: nothing where it reads a constant."""
        levels, *parameters = node.inputs
        scale, zero = (self._constant(node, name) for name in parameters)
        if levels in self.constants:
            axis = node.get("axis", 1)
            self.constants[node.outputs[0]] = _real(
                self.constants[levels], scale, zero, axis
            )
            return []
        cut = self.cut.get(levels)
        if cut is None or list(cut.inputs[1:]) != parameters:
            raise refused(node, "levels come from no rounding that is built")
        if zero.dtype not in _TOPS or scale.numel() != 1:
            raise refused(node, f"levels of {zero.dtype} with {scale.numel()} scales")
        attributes = {
            "scale": float(scale),
            "zero": int(zero),
            "top": _TOPS[zero.dtype],
        }
        return [Node(FIXED, cut.inputs[:1], node.outputs, attributes)]

    def _constant(self, node: Node, name: str) -> Tensor:
        if name not in self.constants:
            raise refused(node, f"{name} is no constant")
        return self.constants[name]


def _real(levels: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    """Numbers of levels; with one scale, or one for each place of an axis."""
    shape = [1] * levels.dim()
    if scale.numel() > 1:
        shape[axis] = -1
    # Through whole numbers of 32 bits: torch calculates with few in 16 without sign.
    steps = levels.int() - zero.int().reshape(shape)
    return steps.to(scale.device).float() * scale.reshape(shape)


class RoundFixed(torch.autograd.Function):
    """Numbers as levels of one fixed range; what is outside becomes an end of it."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: float, zero: int, top: int) -> Tensor:
        """The rounded numbers.

        Args:
            ctx: Gets where nothing was cut.
            values: Of any shape.
            scale: Of a level.
            zero: The level of 0.
            top: The highest level; the lowest is 0.
        """
        levels = (values / scale).round_().add_(zero)
        within = (levels >= 0) & (levels <= top)
        ctx.save_for_backward(within)
        return levels.clamp_(0, top).sub_(zero).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Straight through where nothing was cut."""
        (within,) = ctx.saved_tensors
        return gradients[0] * within, None, None, None


def _fixed(node: Node, values: Values) -> Sequence[Tensor]:
    options = node.attributes
    rounded = applied(
        RoundFixed, values[0], options["scale"], options["zero"], options["top"]
    )
    return (rounded,)


RANGES: dict[str, Operator] = {FIXED: _fixed}
"""The operator that stands for a fixed range."""
