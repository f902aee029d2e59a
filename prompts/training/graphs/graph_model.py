"""A bundle's own graph in torch: what the device computes, with gradients.

The nodes of the exported file are run one after the other on its own weights, so a
prompt that is trained through them meets the rounding that it will meet on the device.
Gradients reach `inputs_embeds` and `past_key_values.*`; weights are constants.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from promptdial.export.errors import Unsupported
from promptdial.export.forward import ONE_WAY, PromptState, state_length
from promptdial.export.graph_names import HIDDEN_NAME
from promptdial.prompts.training.graphs.graph_operators import (
    Node,
    Operator,
    operator_of,
)
from promptdial.prompts.training.graphs.graph_rounding import (
    ROUNDED,
    with_rounded_products,
)
from promptdial.runtime.graph_state import flat, level_names, past_names, present_names
from promptdial.runtime.manifest import Dims


@dataclass(frozen=True)
class Program:
    """The part of a graph that some outputs need.

    Attributes:
        steps: Nodes with their operators, in order.
        last_use: Names that no later step reads, by the number of the step.
        outputs: Names of what is answered.
        constants: Weights and shapes by name.
    """

    steps: tuple[tuple[Node, Operator], ...]
    last_use: tuple[tuple[str, ...], ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, Tensor]

    def run(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs, in their order, for inputs by name."""
        values: dict[str, Tensor] = dict(inputs)
        for (node, operator), done in zip(self.steps, self.last_use, strict=True):
            found = operator(
                node,
                [
                    values[name] if name in values else self.constants.get(name)
                    for name in node.inputs
                ],
            )
            values.update(zip(node.outputs, found, strict=True))
            for name in done:
                values.pop(name, None)
        return [values[name] for name in self.outputs]


@dataclass(frozen=True)
class EncoderGraph:
    """An encoder's graph as prompts run on it; stands beside FrozenModel.

    Attributes:
        hidden_program: Text over a prompt to the last layer's hidden rows.
        levels_program: The same to those of every level; None where the graph gives
            none (bundles of before them).
        state_program: Prompt rows to keys and values; None where the base takes none.
        dims: Sizes of the base.
        attention: `one_way` or `full`.
    """

    hidden_program: Program
    levels_program: Program | None
    state_program: Program | None
    dims: Dims
    attention: str

    def state_of(self, rows: Tensor) -> PromptState:
        """Prompt rows [P, H] ready to run: their keys and values, or themselves."""
        if self.state_program is None:
            return [(rows[None],)]
        ones = torch.ones(1, len(rows), dtype=torch.long, device=rows.device)
        feed = self._feed(rows[None], ones, ones - 1, [])
        found = self.state_program.run(feed)
        return list(zip(found[0::2], found[1::2], strict=True))

    def hidden(
        self, embeds: Tensor, mask: Tensor, type_ids: Tensor, state: PromptState
    ) -> Tensor:
        """Hidden rows [B, T, H] of texts over a prompt.

        Args:
            embeds: [B, T, H].
            mask: [B, T], 0 for padding.
            type_ids: [B, T] segments.
            state: The prompt; empty for none.
        """
        feed = self._feed(embeds, mask, type_ids, state)
        return self.hidden_program.run(feed)[0][:, -embeds.shape[1] :]

    def levels(
        self, embeds: Tensor, mask: Tensor, type_ids: Tensor, state: PromptState
    ) -> list[Tensor]:
        """What enters each layer and leaves the last: L + 1 of [B, T, H].

        Arguments are those of `hidden`.

        Raises:
            Unsupported: The graph does not give them.
        """
        if self.levels_program is None:
            raise Unsupported(
                "a head that reads several levels: the bundle's graph gives only the "
                "last",
                "export the bundle again, or give --head-levels 0",
            )
        found = self.levels_program.run(self._feed(embeds, mask, type_ids, state))
        return [level[:, -embeds.shape[1] :] for level in found]

    def _feed(
        self, embeds: Tensor, mask: Tensor, type_ids: Tensor, state: PromptState
    ) -> dict[str, Tensor]:
        batch, length = embeds.shape[:2]
        count = state_length(state)
        positions = self._positions(batch, length, embeds.device)
        seen = torch.cat([mask.new_ones(batch, count), mask.long()], dim=1)
        past: dict[str, Tensor] = {}
        if self.attention == ONE_WAY:
            shape = (1, self.dims.kv_heads, 0, self.dims.head_dim)
            pairs = state or [(embeds.new_zeros(shape),) * 2] * self.dims.layers
            for names, pair in zip(past_names(self.dims), pairs, strict=True):
                past.update(zip(names, pair, strict=True))
        elif state:
            embeds = torch.cat([state[0][0].expand(batch, -1, -1), embeds], dim=1)
            before = self._positions(batch, count, embeds.device)
            positions = torch.cat([before, positions], dim=1)
            type_ids = torch.cat([type_ids.new_zeros(batch, count), type_ids], dim=1)
        types = {"token_type_ids": type_ids} if self.dims.token_types else {}
        return {
            "inputs_embeds": embeds,
            "attention_mask": seen,
            "position_ids": positions,
            **types,
            **past,
        }

    def _positions(self, batch: int, length: int, device: torch.device) -> Tensor:
        steps = torch.arange(length, device=device) + self.dims.position_offset
        return steps.expand(batch, length)


def read_graph(
    path: Path, dims: Dims, attention: str, device: torch.device
) -> EncoderGraph:
    """Read an encoder's graph file.

    Args:
        path: The .onnx file, its weights beside it.
        dims: Sizes of the base.
        attention: `one_way` or `full`.
        device: Where it shall run.

    Raises:
        Unsupported: A node has no counterpart in torch; the message names it.
    """
    graph = onnx.load(path).graph
    constants = {item.name: tensor_of(item, device) for item in graph.initializer}
    nodes = with_rounded_products([node_of(item) for item in graph.node], constants)
    state = None
    if attention == ONE_WAY:
        state = program(nodes, constants, flat(present_names(dims)))
    hidden, levels = program(nodes, constants, [HIDDEN_NAME]), None
    names = level_names(dims)
    if {item.name for item in graph.output}.issuperset(names):
        levels = program(nodes, constants, [*names, HIDDEN_NAME])
    return EncoderGraph(hidden, levels, state, dims, attention)


def program(
    nodes: Sequence[Node],
    constants: Mapping[str, Tensor],
    outputs: Sequence[str],
    more: Mapping[str, Operator] = ROUNDED,
) -> Program:
    """The nodes that some outputs need.

    Args:
        nodes: In the graph's order.
        constants: Weights and shapes by name.
        outputs: Names of what is wanted, in order.
        more: Operators beside ONNX's own.

    Raises:
        Unsupported: One of them has no counterpart in torch.
    """
    needed = set(outputs)
    chosen: list[Node] = []
    last_use: list[tuple[str, ...]] = []
    for node in reversed(nodes):
        if needed.isdisjoint(node.outputs):
            continue
        unused = [name for name in node.outputs if name not in needed]
        later = [name for name in node.inputs if name and name not in needed]
        needed.update(node.inputs)
        chosen.append(node)
        last_use.append((*unused, *later))
    steps = [(node, operator_of(node, more)) for node in reversed(chosen)]
    used = {name: constants[name] for name in needed if name in constants}
    return Program(tuple(steps), tuple(reversed(last_use)), tuple(outputs), used)


def node_of(item: onnx.NodeProto) -> Node:
    """A node of the file."""
    attributes: dict[str, Any] = {
        entry.name: helper.get_attribute_value(entry) for entry in item.attribute
    }
    return Node(item.op_type, tuple(item.input), tuple(item.output), attributes)


def tensor_of(item: onnx.TensorProto, device: torch.device) -> Tensor:
    """A constant of the file; whole numbers stay on the CPU."""
    values = torch.from_numpy(numpy_helper.to_array(item).copy())
    # They are shapes and places, which torch reads there.
    return values.to(device) if values.is_floating_point() else values
