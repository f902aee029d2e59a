"""PyTorch decoder to FP32 ONNX graph: embeddings go in over the state of rows before.

Inputs, in order: `inputs_embeds` [B, T, H], `attention_mask` [B, P+T] int64,
`position_ids` [B, T] int64, of each layer its state, and two that may be left out:
`logits_to_keep` [1] int64, how many rows at the end of the text the head runs on, 0 for
all; and `visible_keys` [1, 1, T, P+T] bool, false where a row must not see a key that
stands before it, for several continuations of one text in one pass (convolutions know
nothing of it). The state of attention is `past_key_values.{i}.key|value` [B, K, P, D],
that of a short convolution (LFM2) `past_conv.{i}` [B, H, conv_kernel]. Outputs:
`logits` [B, T or that many, V], and of each layer `present.{i}.key|value`
[B, K, P+T, D] or `present_conv.{i}` [B, H, conv_kernel]. P may be 0; a convolution's
state is then zeros. Padding counts as rows of zeros in a convolution, and nothing masks
what stands in `past_conv`: texts of a batch that go on are padded on the left.

The head is a fifth of a small model: on every row of a long prompt it would cost more
than the model's own layers, and only the last row's logits are read.
"""

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from promptdial.export.decoder_forward import decoder_pass
from promptdial.export.errors import Unsupported
from promptdial.export.graph_names import KEEP_NAME, LOGITS_NAME, VISIBLE_NAME
from promptdial.export.model import LoadedBase
from promptdial.export.onnx_edit import NORMS, GraphEdit
from promptdial.export.trace import trace
from promptdial.runtime.graph_state import (
    by_layer,
    flat,
    past_names,
    past_shapes,
    present_names,
)
from promptdial.runtime.manifest import Dims


def export_decoder(loaded: LoadedBase) -> onnx.ModelProto:
    """Export the decoder with dynamic B, T and P.

    Raises:
        Unsupported: The exporter cannot trace this architecture.
    """
    dims = loaded.dims
    model = trace(
        _DecoderGraph(loaded.model, dims),
        _example(dims),
        _shapes(dims),
        [
            "inputs_embeds",
            "attention_mask",
            "position_ids",
            *flat(past_names(dims)),
            VISIBLE_NAME,
        ],
        [LOGITS_NAME, *flat(present_names(dims))],
        loaded.base.architecture,
    )
    _keep_last_rows(model, loaded)
    _see_every_key(model)
    return model


class _DecoderGraph(nn.Module):
    """A decoder over the state of rows before, with the graph's own signature."""

    def __init__(self, model: nn.Module, dims: Dims) -> None:
        super().__init__()
        self.model = model
        self.dims = dims

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[Tensor],
        visible: Tensor,
    ) -> tuple[Tensor, ...]:
        """Logits [B, T, V] and every layer's state."""
        logits, present = decoder_pass(
            self.model,
            inputs_embeds,
            attention_mask,
            position_ids,
            by_layer(past, self.dims),
            visible=visible,
        )
        return (logits, *(tensor for layer in present for tensor in layer))


def _example(dims: Dims) -> tuple[object, ...]:
    """Inputs to trace with: B, T and P all different so that none is merged."""
    batch, text, prompt = 2, 7, 3
    sizes = {0: batch, 2: prompt}
    past = [
        [sizes[place] if size is None else size for place, size in enumerate(shape)]
        for shape in past_shapes(dims).values()
    ]
    positions = torch.arange(prompt, prompt + text)[None].repeat(batch, 1)
    return (
        torch.zeros(batch, text, dims.embedding),
        torch.ones(batch, prompt + text, dtype=torch.int64),
        positions,
        [torch.zeros(shape) for shape in past],
        torch.ones(1, 1, text, prompt + text, dtype=torch.bool),
    )


def _shapes(dims: Dims) -> tuple[object, ...]:
    text = {0: "batch", 1: "text"}
    names = {0: "batch", 2: "prefix"}
    past = [
        {place: names[place] for place, size in enumerate(shape) if size is None}
        for shape in past_shapes(dims).values()
    ]
    visible = {2: "text", 3: "total"}
    return (text, {0: "batch", 1: "total"}, text, past, visible)


def _keep_last_rows(model: onnx.ModelProto, loaded: LoadedBase) -> None:
    """Let the head, and the norm in front of it, run on the last rows alone.

    A slice from `-logits_to_keep` on: -0 is 0, so that the default takes every row.
    """
    edit = GraphEdit(model)
    head = edit.weight_matmuls()[-1]
    if edit.constants[head.input[1]].dims[1] != loaded.dims.vocab:
        raise Unsupported(
            f"{loaded.base.architecture} has no head [H, V] at its end",
            "give a model of another architecture",
        )
    norm = edit.producers[head.input[0]]
    alone = len(edit.consumers[head.input[0]]) == 1
    first = norm if alone and norm.op_type in NORMS else head
    start, kept = f"{KEEP_NAME}.Neg", f"{KEEP_NAME}.Slice"
    names = [
        edit.constant(f"{KEEP_NAME}.end", np.array([2**62])),
        edit.constant(f"{KEEP_NAME}.axis", np.array([1])),
    ]
    make = onnx.helper.make_node
    before = [
        make("Neg", [KEEP_NAME], [start], name=start),
        make("Slice", [first.input[0], start, *names], [kept], name=kept),
    ]
    first.input[0] = kept
    edit.rewrite(lambda node: [*before, node] if node.name == first.name else None)
    keep = onnx.helper.make_tensor_value_info(KEEP_NAME, onnx.TensorProto.INT64, [1])
    model.graph.input.append(keep)
    edit.constant(KEEP_NAME, np.array([0]))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "rows"


def _see_every_key(model: onnx.ModelProto) -> None:
    """Let `visible_keys` be left out: one true for all.

    The exporter may have taken its shape for T and P+T, which the default has not.
    """
    edit = GraphEdit(model)
    [given] = [value for value in model.graph.input if value.name == VISIBLE_NAME]
    for place, name in enumerate(("one", "one", "rows", "keys")):
        given.type.tensor_type.shape.dim[place].dim_param = name
    sources = {2: "inputs_embeds", 3: "attention_mask"}
    for node in edit.consumers[VISIBLE_NAME]:
        if node.op_type == "Shape":
            [start] = [item for item in node.attribute if item.name == "start"]
            [end] = [item for item in node.attribute if item.name == "end"]
            node.input[0] = sources[start.i]
            start.i, end.i = 1, 2
    edit.constant(VISIBLE_NAME, np.ones((1, 1, 1, 1), np.bool_))
