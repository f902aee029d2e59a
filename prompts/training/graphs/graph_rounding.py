"""Rounded products of a bundle's graphs in torch, with gradients straight through.

The graphs round the rows that go into a product: INT8 as several nodes around
MatMulIntegerToFloat (promptdial.export.quantise), int4 inside MatMulNBits
(promptdial.export.quantise_blocks). Here both become two nodes: one that rounds rows
to what the product sees of them, and a product with the dequantised weight.

Rounding has no slope. Its gradient is taken as that of the identity (straight-through
estimator, Bengio et al. 2013, arXiv:1308.3432), and a row's scale as a constant: it
reaches the row's largest number, so nothing is cut off and the backward pass needs to
remember nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from promptdial.prompts.training.graphs.graph_operators import (
    Node,
    Operator,
    Values,
    refused,
)

_TINY = 1e-30
"""Rows of zeros: the graphs have 0 / 0 there, and 0 at the end."""

ROWS, BLOCKS, PRODUCT = "RoundRows", "RoundBlocks", "Product"


def with_rounded_products(
    nodes: Sequence[Node], constants: dict[str, Tensor]
) -> list[Node]:
    """A graph's nodes with the rounded products as ROWS or BLOCKS, and PRODUCT.

    Args:
        nodes: In the graph's order.
        constants: Weights by name; gets the dequantised ones [N, H] in addition.

    Raises:
        Unsupported: Rows are rounded in a way that promptdial's exports do not use.
    """
    makers = {name: node for node in nodes for name in node.outputs}
    graph = _Graph(constants, makers)
    change: Mapping[str, Callable[[Node], list[Node]]] = {
        "QuantizeLinear": graph.rows,
        "MatMulIntegerToFloat": graph.integer_product,
        "MatMulNBits": graph.block_product,
    }
    found: list[Node] = []
    for node in nodes:
        found += change[node.kind](node) if node.kind in change else [node]
    return found


@dataclass
class _Graph:
    """Turns nodes; remembers where rounded rows come from.

    Attributes:
        constants: Weights by name.
        makers: Nodes by the name of what they make.
        rounded: By the name of rounded rows: the name of their magnitude, the zero
            point, and the number of steps.
    """

    constants: dict[str, Tensor]
    makers: Mapping[str, Node]
    rounded: dict[str, tuple[str, int, int]] = field(default_factory=dict)

    def rows(self, node: Node) -> list[Node]:
        """QuantizeLinear(x / top): the nodes that make top are x's own magnitude."""
        shares, step, zero = node.inputs
        source, top = self._maker(node, shares, "Div").inputs
        largest, least = self._maker(node, top, "ReduceMax", "Max"), 0.0
        if largest.kind == "Max":
            self._maker(node, source, "Gelu")  # never below its least: nothing is cut
            least = float(self._constant(node, largest.inputs[1]))
            largest = self._maker(node, largest.inputs[0], "ReduceMax")
            measured = largest.inputs[0]
        else:
            measured = self._maker(node, largest.inputs[0], "Abs").inputs[0]
        axes = self._constant(node, largest.inputs[1]).tolist()
        if measured != source or axes != [-1]:
            raise refused(node, "rows are rounded by another row's magnitude")
        steps = round(1 / float(self._constant(node, step)))
        zero_point = int(self._constant(node, zero))
        self.rounded[node.outputs[0]] = (top, zero_point, steps)
        return [Node(ROWS, (source,), node.outputs, {"steps": steps, "least": least})]

    def integer_product(self, node: Node) -> list[Node]:
        """MatMulIntegerToFloat; its column scales are by the step of the rows."""
        levels, weight, top, scale, zero = node.inputs
        *known, steps = self.rounded.get(levels, ("", 0, 0))
        if known != [top, int(self._constant(node, zero))]:
            raise refused(node, "rows come from no rounding that is built")
        columns = self._constant(node, scale).reshape(-1) * steps
        dense = self._constant(node, weight).float() * columns
        name = f"{weight}.dense"
        self.constants[name] = dense.t().contiguous()
        return [Node(PRODUCT, (levels, name), node.outputs)]

    def block_product(self, node: Node) -> list[Node]:
        """MatMulNBits with accuracy level 4."""
        bits, level = node.get("bits", 4), node.get("accuracy_level", 0)
        if bits != 4 or level != 4 or any(node.inputs[4:]):
            raise refused(node, f"bits {bits}, accuracy level {level}, or a bias")
        source, weight, scale, zero = (*node.inputs, "")[:4]
        size, width = node.get("block_size", 0), node.get("K", 0)
        packed = self._constant(node, weight)
        levels = _unpacked(packed).reshape(packed.shape[0], -1, size).float()
        scales = self._constant(node, scale).reshape(len(levels), -1, 1)
        zeros: Tensor | float = 8.0
        if zero:
            found = _unpacked(self._constant(node, zero).reshape(len(levels), -1))
            zeros = found[:, : levels.shape[1], None].float()
        dense = ((levels - zeros) * scales).flatten(1)[:, :width]
        name, rows = f"{weight}.dense", f"{node.outputs[0]}.rows"
        self.constants[name] = dense.contiguous()
        return [
            Node(BLOCKS, (source,), (rows,), {"size": size}),
            Node(PRODUCT, (rows, name), node.outputs),
        ]

    def _maker(self, node: Node, name: str, *kinds: str) -> Node:
        found = self.makers.get(name)
        if found is None or found.kind not in kinds:
            raise refused(node, f"{name} does not come from {' or '.join(kinds)}")
        return found

    def _constant(self, node: Node, name: str) -> Tensor:
        if name not in self.constants:
            raise refused(node, f"{name} is no constant")
        return self.constants[name]


def _unpacked(packed: Tensor) -> Tensor:
    """Numbers of 4 bits, two a byte, the lower half first."""
    halves = torch.stack([packed & 15, packed >> 4], dim=-1)
    return halves.flatten(-2)


class RoundRows(torch.autograd.Function):
    """Rows [..., H] as whole steps of their own largest magnitude."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, steps: int, least: float) -> Tensor:
        """The rounded rows.

        Args:
            ctx: Unused.
            rows: [..., H].
            steps: Of a row's magnitude.
            least: The magnitude is at least this; 0 for the absolute maximum.
        """
        if least:
            top = rows.amax(dim=-1, keepdim=True).clamp_(min=least)
        else:
            top = rows.abs().amax(dim=-1, keepdim=True).clamp_(min=_TINY)
        # As the graph does it, division by division: the same ties are met.
        step = torch.tensor(1 / steps, dtype=torch.float32).item()
        return (rows / top).div_(step).round_().mul_(top / steps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Straight through."""
        return gradients[0], None, None


class RoundBlocks(torch.autograd.Function):
    """Rows [..., H] in whole steps, each block of them with a step of its own."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, size: int) -> Tensor:
        """The rounded rows.

        Args:
            ctx: Unused.
            rows: [..., H].
            size: Numbers of a block; the last one may have fewer.
        """
        width = rows.shape[-1]
        padded = functional.pad(rows, (0, -width % size))
        count = padded.shape[-1] // size
        blocks = padded.reshape(*rows.shape[:-1], count, size)
        step = blocks.abs().amax(dim=-1, keepdim=True).clamp_(min=_TINY).div_(127)
        rounded = (blocks / step).round_().mul_(step).reshape(padded.shape)
        return rounded[..., :width]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Straight through."""
        return gradients[0], None


def _round_rows(node: Node, values: Values) -> Sequence[Tensor]:
    options = node.attributes
    return (applied(RoundRows, values[0], options["steps"], options["least"]),)


def _round_blocks(node: Node, values: Values) -> Sequence[Tensor]:
    return (applied(RoundBlocks, values[0], node.attributes["size"]),)


def applied(function: type[torch.autograd.Function], *values: Any) -> Tensor:
    """What one of the functions above answers."""
    found: Tensor = function.apply(*values)  # type: ignore[no-untyped-call]
    return found


def _product(node: Node, values: Values) -> Sequence[Tensor]:
    rows, weight = values
    assert rows is not None and weight is not None
    return (functional.linear(rows, weight),)


ROUNDED: dict[str, Operator] = {
    ROWS: _round_rows,
    BLOCKS: _round_blocks,
    PRODUCT: _product,
}
"""The operators that stand for rounded products."""
