"""PyTorch encoder to FP32 ONNX graph: embeddings and a key/value prefix go in.

Inputs, in order: `inputs_embeds` [B, T, H], `attention_mask` [B, P+T] int64,
`position_ids` [B, T] int64, `token_type_ids` [B, T] int64 where the model has token
types, `past_key_values.{i}.key|value` [1 or B, K, P, D]. Outputs:
`last_hidden_state` [B, T, H], `present.{i}.key|value` [B, K, P+T, D], and
`hidden_states.{i}` [B, T, H], what enters layer i. P may be 0.

Where the architecture takes no prefix, prompt rows are part of `inputs_embeds`
[B, P+T, H], `position_ids` and `token_type_ids` [B, P+T], and the outputs are
`last_hidden_state` and `hidden_states.{i}` [B, P+T, H].
"""

import onnx
import torch
from torch import Tensor, nn

from promptdial.export.forward import ONE_WAY, levels_of
from promptdial.export.graph_names import HIDDEN_NAME
from promptdial.export.masks import encoder_mask
from promptdial.export.model import LoadedBase
from promptdial.export.prefix_attention import Prefix
from promptdial.export.trace import trace
from promptdial.runtime.graph_state import (
    flat,
    level_names,
    past_names,
    present_names,
)
from promptdial.runtime.manifest import Dims


def export_graph(loaded: LoadedBase) -> onnx.ModelProto:
    """Export the encoder with dynamic B, T and P.

    Raises:
        Unsupported: The exporter cannot trace this architecture.
    """
    dims = loaded.dims
    example, shapes = _text_example(dims), _text_shapes(dims)
    inputs, outputs = _text_names(dims), [HIDDEN_NAME]
    graph: nn.Module = _FullGraph(loaded.model, dims)
    if loaded.attention == ONE_WAY:
        graph = _PrefixGraph(loaded.model, dims)
        example, shapes = _prefix_example(dims), _prefix_shapes(dims)
        inputs = inputs + flat(past_names(dims))
        outputs = outputs + flat(present_names(dims))
    outputs = outputs + level_names(dims)
    model = trace(graph, example, shapes, inputs, outputs, loaded.base.architecture)
    _free_past_batch(model)
    return model


class _PrefixGraph(nn.Module):
    """An encoder over a key/value prefix, with the graph's own signature."""

    def __init__(self, model: nn.Module, dims: Dims) -> None:
        super().__init__()
        self.model = model
        self.has_types = dims.token_types > 0

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        token_type_ids: Tensor | None,
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Hidden rows [B, T, H], every layer's keys and values, and what enters it."""
        prefix = Prefix(past=list(zip(past[0::2], past[1::2], strict=True)))
        types = {"token_type_ids": token_type_ids} if self.has_types else {}
        output = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=encoder_mask(
                self.model, attention_mask, inputs_embeds.shape[1]
            ),
            position_ids=position_ids,
            prefix=prefix,
            output_hidden_states=True,
            **types,
        )
        present = [tensor for pair in prefix.present for tensor in pair]
        *before, last = levels_of(output, every=True)
        return (last, *present, *before)


class _FullGraph(nn.Module):
    """An encoder that sees prompt rows and text alike, with the graph's signature."""

    def __init__(self, model: nn.Module, dims: Dims) -> None:
        super().__init__()
        self.model = model
        self.has_types = dims.token_types > 0

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        token_type_ids: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Hidden rows [B, P+T, H] after the last layer, and before every one."""
        types = {"token_type_ids": token_type_ids} if self.has_types else {}
        output = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            output_hidden_states=True,
            **types,
        )
        *before, last = levels_of(output, every=True)
        return (last, *before)


def _text_names(dims: Dims) -> list[str]:
    types = ["token_type_ids"] if dims.token_types else []
    return ["inputs_embeds", "attention_mask", "position_ids", *types]


def _text_example(dims: Dims, prompt: int = 0) -> tuple[object, ...]:
    """Inputs to trace with: B, T and P all different so that none is merged."""
    batch, text = 2, 7
    ids = torch.arange(text)[None].expand(batch, text).contiguous()
    return (
        torch.zeros(batch, text, dims.embedding),
        torch.ones(batch, prompt + text, dtype=torch.int64),
        ids + dims.position_offset,
        torch.zeros_like(ids) if dims.token_types else None,
    )


def _prefix_example(dims: Dims) -> tuple[object, ...]:
    prompt = 3
    # A traced prefix batch of 1 makes the graph take B from the text alone.
    past_shape = (1, dims.kv_heads, prompt, dims.head_dim)
    past = [torch.zeros(past_shape) for _ in range(2 * dims.layers)]
    return (*_text_example(dims, prompt), past)


def _text_shapes(dims: Dims, width: str = "text") -> tuple[object, ...]:
    text = {0: "batch", 1: "text"}
    return (text, {0: "batch", 1: width}, text, text if dims.token_types else None)


def _prefix_shapes(dims: Dims) -> tuple[object, ...]:
    return (*_text_shapes(dims, "total"), [{2: "prefix"}] * (2 * dims.layers))


def _free_past_batch(model: onnx.ModelProto) -> None:
    """Let the prefix have a batch of B as well: Expand takes both."""
    for value in model.graph.input:
        if value.name.startswith("past_key_values."):
            value.type.tensor_type.shape.dim[0].dim_param = "past_batch"
