"""PyTorch encoder to FP32 ONNX graph: embeddings and a key/value prefix go in.

Inputs, in order: `inputs_embeds` [B, T, H], `attention_mask` [B, P+T] int64,
`position_ids` [B, T] int64, `token_type_ids` [B, T] int64 where the model has token
types, `past_key_values.{i}.key|value` [1 or B, K, P, D]. Outputs:
`last_hidden_state` [B, T, H], `present.{i}.key|value` [B, K, P+T, D]. P may be 0.

Where the architecture takes no prefix, prompt rows are part of `inputs_embeds`
[B, P+T, H], `position_ids` and `token_type_ids` [B, P+T], and the one output is
`last_hidden_state` [B, P+T, H].
"""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import onnx
import torch
from torch import Tensor, nn

from promptdial.export.errors import Unsupported
from promptdial.export.fold import fold_constants
from promptdial.export.forward import ONE_WAY
from promptdial.export.masks import encoder_mask
from promptdial.export.model import LoadedBase, quiet_transformers
from promptdial.export.prefix_attention import Prefix
from promptdial.runtime.manifest import Dims

OPSET = 23  # the first with Attention, Gelu and LayerNormalization as single nodes
HIDDEN_NAME = "last_hidden_state"


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
        inputs = inputs + [name for pair in past_names(dims) for name in pair]
        outputs = outputs + [name for pair in present_names(dims) for name in pair]
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                graph,
                example,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=inputs,
                output_names=outputs,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise Unsupported(
            f"{loaded.base.architecture} cannot be traced: {reason}",
            "give a model of another architecture",
        ) from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _free_past_batch(model)
    _drop_traces(model)
    fold_constants(model)
    _name_weights(model)
    return model


def past_names(dims: Dims) -> list[tuple[str, str]]:
    """(key, value) input names of every layer."""
    return _pairs("past_key_values", dims)


def present_names(dims: Dims) -> list[tuple[str, str]]:
    """(key, value) output names of every layer."""
    return _pairs("present", dims)


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
        """Hidden rows [B, T, H] and every layer's keys and values."""
        prefix = Prefix(past=list(zip(past[0::2], past[1::2], strict=True)))
        types = {"token_type_ids": token_type_ids} if self.has_types else {}
        output = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=encoder_mask(
                self.model, attention_mask, inputs_embeds.shape[1]
            ),
            position_ids=position_ids,
            prefix=prefix,
            **types,
        )
        present = [tensor for pair in prefix.present for tensor in pair]
        return (output.last_hidden_state, *present)


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
    ) -> Tensor:
        """Hidden rows [B, P+T, H]."""
        types = {"token_type_ids": token_type_ids} if self.has_types else {}
        output = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **types,
        )
        hidden = output.last_hidden_state
        assert isinstance(hidden, Tensor)
        return hidden


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


def _pairs(stem: str, dims: Dims) -> list[tuple[str, str]]:
    return [(f"{stem}.{i}.key", f"{stem}.{i}.value") for i in range(dims.layers)]


def _free_past_batch(model: onnx.ModelProto) -> None:
    """Let the prefix have a batch of B as well: Expand takes both."""
    for value in model.graph.input:
        if value.name.startswith("past_key_values."):
            value.type.tensor_type.shape.dim[0].dim_param = "past_batch"


def _drop_traces(model: onnx.ModelProto) -> None:
    """Remove source paths and shapes of inner values: size, and no machine's paths."""
    del model.graph.value_info[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


def _name_weights(model: onnx.ModelProto) -> None:
    """Name transposed weights after their bias: `x.bias` -> `x.weight_t`."""
    stored = {init.name: init for init in model.graph.initializer}
    readers = {
        node.input[0]: node for node in model.graph.node if node.op_type == "Add"
    }
    for node in model.graph.node:
        add = readers.get(node.output[0]) if node.op_type == "MatMul" else None
        if add is None or node.input[1] not in stored:
            continue
        bias = add.input[1]
        name = bias.removesuffix(".bias") + ".weight_t"
        if bias in stored and bias.endswith(".bias") and name not in stored:
            stored[name] = stored[node.input[1]]
            stored[name].name = node.input[1] = name


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Filter the exporter's harmless warnings (deprecations inside torch, advice)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with quiet_transformers(), redirect_stdout(io.StringIO()):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
