"""A bundle's static graphs in torch: one text a graph on the device, batches here.

Graphs of fixed sizes take one row. Nothing in them mixes rows but their shapes, whose
leading 1 stands for the row; with ONNX's 0 in its place, which keeps the size that is
there, the same nodes take a batch. It is padded to the smallest bucket that has room
for its longest text, and padding is hidden as the runtime hides it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from promptdial.export.errors import Unsupported
from promptdial.export.forward import PromptState, state_length
from promptdial.export.graph_names import HIDDEN_NAME
from promptdial.prompts.training.graphs.fixed_rounding import RANGES, with_fixed_ranges
from promptdial.prompts.training.graphs.graph_model import (
    Program,
    node_of,
    program,
    tensor_of,
)
from promptdial.prompts.training.graphs.graph_operators import Node
from promptdial.runtime.graph_state import flat, level_names, past_names, present_names
from promptdial.runtime.manifest import Dims, GraphVariant, StaticBucket
from promptdial.runtime.static_feed import (
    BIAS_NAME,
    EMBEDS_NAME,
    TYPES_NAME,
    smallest,
)


@dataclass(frozen=True)
class StaticPasses:
    """An encoder's static graphs as prompts run on them; stands beside FrozenModel.

    Attributes:
        hidden_programs: Text over a prompt to the last layer's hidden rows, by bucket.
        levels_programs: The same to those of every level; none where the graphs give
            none.
        state_program: Prompt rows to keys and values.
        maker: Sizes of the state program.
        dims: Sizes of the base.
        hide: Bias of keys that are not seen.
    """

    hidden_programs: Mapping[StaticBucket, Program]
    levels_programs: Mapping[StaticBucket, Program]
    state_program: Program
    maker: StaticBucket
    dims: Dims
    hide: float

    def state_of(self, rows: Tensor) -> PromptState:
        """Keys and values, L pairs [1, K, P, D], of prompt rows [P, H].

        Raises:
            Unsupported: There are more rows than the graph has room for.
        """
        count, room = len(rows), self.maker.text
        if count > room:
            raise _too_long(f"{count} virtual tokens", room)
        mask = torch.ones(1, count, dtype=torch.long, device=rows.device)
        feed = self._rows(rows[None], mask, mask - 1, self.maker)
        found = [part[:, :, :count] for part in self.state_program.run(feed)]
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

        Raises:
            Unsupported: No graph has room for the longest text, or for the prompt.
        """
        feed, bucket = self._feed(embeds, mask, type_ids, state)
        return self.hidden_programs[bucket].run(feed)[0][:, : embeds.shape[1]]

    def levels(
        self, embeds: Tensor, mask: Tensor, type_ids: Tensor, state: PromptState
    ) -> list[Tensor]:
        """What enters each layer and leaves the last: L + 1 of [B, T, H].

        Arguments are those of `hidden`.

        Raises:
            Unsupported: The graphs do not give them, or as `hidden`.
        """
        if not self.levels_programs:
            raise Unsupported(
                "a head that reads several levels: the variant's graphs give only the "
                "last",
                "export the variant again, or give --head-levels 0",
            )
        feed, bucket = self._feed(embeds, mask, type_ids, state)
        found = self.levels_programs[bucket].run(feed)
        return [level[:, : embeds.shape[1]] for level in found]

    def _feed(
        self, embeds: Tensor, mask: Tensor, type_ids: Tensor, state: PromptState
    ) -> tuple[dict[str, Tensor], StaticBucket]:
        batch, length = embeds.shape[:2]
        count = state_length(state)
        buckets = list(self.hidden_programs)
        bucket = smallest(buckets, count, length)
        if bucket is None:
            rooms = [(one.prefix, one.text) for one in buckets]
            raise _too_long(f"{count} virtual tokens and {length} of text", rooms)
        more = bucket.prefix - count
        seen = functional.pad(mask.new_ones(batch, count), (more, 0))
        feed = self._rows(embeds, mask, type_ids, bucket, seen)
        none = embeds.new_zeros(1, self.dims.kv_heads, 0, self.dims.head_dim)
        pairs = state or [(none, none)] * self.dims.layers
        for names, pair in zip(past_names(self.dims), pairs, strict=True):
            for name, part in zip(names, pair, strict=True):
                padded = functional.pad(part, (0, 0, more, 0))
                feed[name] = padded.expand(batch, -1, -1, -1)
        return feed, bucket

    def _rows(
        self,
        embeds: Tensor,
        mask: Tensor,
        type_ids: Tensor,
        bucket: StaticBucket,
        before: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Padded rows of text; `before` [B, P] says what is seen of the prefix."""
        more = bucket.text - embeds.shape[1]
        seen = functional.pad(mask, (0, more))
        if before is not None:
            seen = torch.cat([before, seen], dim=1)
        bias = (seen == 0).to(embeds.dtype) * self.hide
        return {
            EMBEDS_NAME: functional.pad(embeds, (0, 0, 0, more)),
            TYPES_NAME: functional.pad(type_ids, (0, more)),
            BIAS_NAME: bias[:, None, None],
        }


def read_static_graphs(
    folder: Path, variant: GraphVariant, dims: Dims, device: torch.device
) -> StaticPasses:
    """Read an encoder's graphs of fixed sizes.

    Args:
        folder: The bundle's.
        variant: Its buckets and ranges.
        dims: Sizes of the base.
        device: Where they shall run.

    Raises:
        Unsupported: A node has no counterpart in torch; the message names it.
    """
    names = [*level_names(dims), HIDDEN_NAME]
    hidden: dict[StaticBucket, Program] = {}
    levels: dict[StaticBucket, Program] = {}
    for bucket in variant.text_buckets:
        part = _Part(folder / bucket.file, device)
        hidden[bucket] = part.program([HIDDEN_NAME])
        if part.outputs.issuperset(names):
            levels[bucket] = part.program(names)
    maker = next(bucket for bucket in variant.buckets if not bucket.prefix)
    state = _Part(folder / maker.file, device).program(flat(present_names(dims)))
    hide = variant.ranges[BIAS_NAME][0]
    return StaticPasses(hidden, levels, state, maker, dims, hide)


class _Part:
    """One graph file with its ranges in torch's nodes, taking batches."""

    def __init__(self, path: Path, device: torch.device) -> None:
        graph = onnx.load(path).graph
        self.outputs = {item.name for item in graph.output}
        self._constants = {
            item.name: tensor_of(item, device) for item in graph.initializer
        }
        nodes = [node_of(item) for item in graph.node]
        nodes = with_fixed_ranges(nodes, self._constants)
        self._nodes = [_for_batches(node, self._constants) for node in nodes]

    def program(self, outputs: Sequence[str]) -> Program:
        """The part of the graph that some outputs need."""
        return program(self._nodes, self._constants, outputs, RANGES)


def _for_batches(node: Node, constants: dict[str, Tensor]) -> Node:
    """A node that keeps the number of rows that comes, if its shape says one row."""
    if node.kind != "Reshape":
        return node
    source, shape = node.inputs
    sizes = constants[shape].tolist()
    if sizes[0] != 1:
        return node
    name = f"{shape}.batch"
    constants[name] = torch.tensor([0, *sizes[1:]])
    attributes = {**node.attributes, "allowzero": 0}
    return replace(node, inputs=(source, name), attributes=attributes)


def _too_long(what: str, room: object) -> Unsupported:
    return Unsupported(
        f"{what}, the variant's graphs have room for {room}",
        "export the variant again with --calibrate and such a prompt, or take fewer",
    )
