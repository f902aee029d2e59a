"""A PyTorch module to an ONNX graph: folded, weights named, no machine's paths."""

import ast
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout

import onnx
import torch
from torch import nn

from promptdial.export.errors import Unsupported
from promptdial.export.fold import fold_constants
from promptdial.export.graph_names import OPSET
from promptdial.export.model import quiet_transformers
from promptdial.export.onnx_edit import GraphEdit

_SCOPES = "pkg.torch.onnx.name_scopes"


def trace(
    module: nn.Module,
    example: tuple[object, ...],
    shapes: tuple[object, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    architecture: str,
) -> onnx.ModelProto:
    """Trace a module.

    Args:
        module: What computes.
        example: Its arguments; sizes that must not be taken for equal differ.
        shapes: Names of the free dimensions, shaped as `example`.
        inputs: Names of the graph's inputs.
        outputs: Names of its outputs.
        architecture: The model's class, for messages.

    Raises:
        Unsupported: The exporter cannot trace it.
    """
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=list(inputs),
                output_names=list(outputs),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise Unsupported(
            f"{architecture} cannot be traced: {reason}",
            "give a model of another architecture",
        ) from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    paths = _module_paths(model)
    _drop_traces(model)
    fold_constants(model)
    _split_gemms(model, paths)
    _name_weights(model, paths)
    return model


def _module_paths(model: onnx.ModelProto) -> dict[str, str]:
    """Path of the module that made a node, by the node's name."""
    paths = {}
    for node in model.graph.node:
        for item in node.metadata_props:
            if item.key == _SCOPES:
                scopes = ast.literal_eval(item.value)
                paths[node.name] = scopes[-2] if len(scopes) > 1 else ""
    return paths


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


def _split_gemms(model: onnx.ModelProto, paths: dict[str, str]) -> None:
    """Make MatMul and Add of Gemms with a constant matrix (GPT-2, OPT), in place."""
    edit = GraphEdit(model)

    def split(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        if node.op_type != "Gemm" or node.input[1] not in edit.constants:
            return None
        value = onnx.helper.get_attribute_value
        options = {item.name: value(item) for item in node.attribute}
        transposed = options.pop("transB", 0)
        if any(options.get(key, 1) != 1 for key in ("alpha", "beta")):
            return None
        if options.get("transA", 0):
            return None
        weight, product = node.input[1], f"{node.name}.MatMul"
        if transposed:
            weight = edit.constant(f"{weight}.transposed", edit.array(weight).T)
        paths[product] = paths.get(node.name, "")
        make = onnx.helper.make_node
        if len(node.input) == 2:
            return [make("MatMul", [node.input[0], weight], node.output, name=product)]
        return [
            make("MatMul", [node.input[0], weight], [product], name=product),
            make("Add", [product, node.input[2]], node.output, name=node.name),
        ]

    edit.rewrite(split)
    edit.prune()


def _name_weights(model: onnx.ModelProto, paths: Mapping[str, str]) -> None:
    """Name transposed weights `x.weight_t`: after their bias, else their module."""
    stored = {init.name: init for init in model.graph.initializer}
    readers = {
        node.input[0]: node for node in model.graph.node if node.op_type == "Add"
    }
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in stored:
            continue
        weight = node.input[1]
        add = readers.get(node.output[0])
        bias = add.input[1] if add is not None else ""
        if bias in stored and bias.endswith(".bias"):
            name = bias.removesuffix(".bias") + ".weight_t"
        else:
            name = paths.get(node.name, "") + ".weight_t"
        if weight not in renamed.values() and name not in stored and name[0] != ".":
            renamed[weight] = name
            stored[name] = stored.pop(weight)
            stored[name].name = name
    for node in model.graph.node:
        for place, value in enumerate(node.input):
            node.input[place] = renamed.get(value, value)


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
