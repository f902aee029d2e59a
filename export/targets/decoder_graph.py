"""A decoder's graph with every size fixed: T rows over a window of a key/value cache.

T is some tens of rows to read a text with, or 1 to write. The graph has no If, no Loop
and no cache of its own: the window is an input, only the new rows' keys and values come
out, and the host writes them into the window by their position. A ScatterElements in
the graph would give the whole window back with every token, some thousand times the
bytes, to change one row of it.

Rows that are fewer than T stand at the end, so that the last one is always the text's
last and the head, which is a fifth of a small model, runs on it alone. What lies before
them, what is free in the window, and what comes later is kept out by the bias.

Inputs: `inputs_embeds` [1, T, H], `position_ids` [1, T] int32, `attention_bias`
[1, 1, T, W+T] float, added to the scores, and `past_key_values.{i}.key|value`
[1, K, W, D]. Outputs: `logits` [1, 1, V], `present.{i}.key|value` [1, K, T, D].

Query heads that share keys (K of N heads) are rows of one product, [1, K, T*N/K, D]:
nothing is copied for each. Rotations are products with rows of tables that positions
pick, so that no compiler is asked for sines.
"""

import numpy as np
import onnx
from onnx import helper

from promptdial.export.errors import Unsupported
from promptdial.export.graph_names import KEEP_NAME, LOGITS_NAME, VISIBLE_NAME
from promptdial.export.onnx_edit import GraphEdit, copy_model
from promptdial.export.targets.rotations import write_out_rotations
from promptdial.export.targets.static_graph import finish, keep_outputs, settle
from promptdial.runtime.graph_state import flat, past_names, present_names
from promptdial.runtime.manifest import Dims, StaticBucket
from promptdial.runtime.static_feed import BIAS_NAME, EMBEDS_NAME, POSITIONS_NAME

_MASK = "attention_mask"
_FLOAT, _INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
_CUBE = 3.0
_HINT = "leave --target out; cpu graphs take every decoder"

TAKEN = frozenset(
    """Add Concat Div Gather Gelu LayerNormalization MatMul Mul RMSNormalization Relu
    Reshape Sigmoid Slice Softmax Split Sub Tanh Transpose Unsqueeze""".split()
)
"""Operators that may stand in a graph; what has others was not understood."""


def decoder_graph(
    exact: onnx.ModelProto, dims: Dims, bucket: StaticBucket
) -> onnx.ModelProto:
    """The graph of one bucket: its `text` is T, its `prefix` W.

    Args:
        exact: The FP32 graph that takes every size; left as it is.
        dims: Sizes of the base.
        bucket: Sizes of the new one.

    Raises:
        Unsupported: Its attention or its positions are of another kind.
    """
    model = copy_model(exact)
    keep_outputs(model, [LOGITS_NAME, *flat(present_names(dims))])
    _keep_one_row(model, bucket.text)
    _fix_inputs(model, dims, bucket)
    settle(model)
    write_out_rotations(model, exact, bucket)
    _give_new_rows(model, dims)
    _write_out_attention(model, dims, bucket)
    _write_out_cubes(model)
    finish(model)
    settle(model)
    _require_taken(model)
    return model


def _write_out_cubes(model: onnx.ModelProto) -> None:
    """Cubes as products (the Gelu of GPT-2 and Phi), in place."""
    edit = GraphEdit(model)

    def products(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        if node.op_type != "Pow" or node.input[1] not in edit.constants:
            return None
        if edit.array(node.input[1]).tolist() != _CUBE:
            return None
        value, square = node.input[0], f"{node.name}.square"
        make = helper.make_node
        return [
            make("Mul", [value, value], [square], name=square),
            make("Mul", [square, value], node.output, name=node.name),
        ]

    edit.rewrite(products)


def _require_taken(model: onnx.ModelProto) -> None:
    """Refuse what compilers are not known to take, and what was not understood."""
    others = {node.op_type for node in model.graph.node} - TAKEN
    if others:
        raise Unsupported(f"the graph has {', '.join(sorted(others))}", _HINT)
    edit = GraphEdit(model)
    for node in edit.consumers.get(POSITIONS_NAME, []):
        if node.op_type != "Gather" or node.input[0] not in edit.constants:
            raise Unsupported(f"the graph computes with positions: {node.name}", _HINT)


def _keep_one_row(model: onnx.ModelProto, rows: int) -> None:
    """The head on the last row; inputs that may be left out are none any more."""
    edit = GraphEdit(model)
    for item in list(model.graph.input):
        if item.name in (KEEP_NAME, VISIBLE_NAME):
            model.graph.input.remove(item)
    cut = f"{KEEP_NAME}.Slice"
    ends = [
        edit.constant(f"{cut}.{name}", np.array([value]))
        for name, value in (("start", rows - 1), ("end", rows), ("axis", 1))
    ]

    def last(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        if node.name != cut:
            return None
        kind, inputs = ("Slice", [node.input[0], *ends])
        if rows == 1:
            kind, inputs = "Identity", [node.input[0]]
        return [helper.make_node(kind, inputs, node.output, name=cut)]

    edit.rewrite(last)
    edit.prune()


def _fix_inputs(model: onnx.ModelProto, dims: Dims, bucket: StaticBucket) -> None:
    past = (1, dims.kv_heads, bucket.prefix, dims.head_dim)
    sizes = {
        EMBEDS_NAME: (1, bucket.text, dims.embedding),
        _MASK: (1, bucket.prefix + bucket.text),
        POSITIONS_NAME: (1, bucket.text),
        **dict.fromkeys(flat(past_names(dims)), past),
    }
    kept = []
    for item in model.graph.input:
        kind = item.type.tensor_type.elem_type
        if item.name == POSITIONS_NAME:
            kind = _INT32
        kept.append(helper.make_tensor_value_info(item.name, kind, sizes[item.name]))
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for item in model.graph.output:
        item.type.tensor_type.ClearField("shape")


def _give_new_rows(model: onnx.ModelProto, dims: Dims) -> None:
    """Let `present` be the new rows, and not those of the window before them."""
    edit = GraphEdit(model)
    outputs = flat(present_names(dims))
    names: dict[str, str] = {}
    for past, present in zip(flat(past_names(dims)), outputs, strict=True):
        node = edit.producers.get(present)
        if node is None or node.op_type != "Concat" or node.input[0] != past:
            raise Unsupported(f"{present} is not what stands behind {past}", _HINT)
        names[present] = f"{present}.all"
        names[node.input[1]] = present
    for node in model.graph.node:
        for values in (node.input, node.output):
            for place, value in enumerate(values):
                values[place] = names.get(value, value)
    for item in model.graph.output:
        item.type.tensor_type.ClearField("shape")
    del model.graph.value_info[:]


def _write_out_attention(
    model: onnx.ModelProto, dims: Dims, bucket: StaticBucket
) -> None:
    """Attention as two products and a Softmax over scores plus bias."""
    edit = GraphEdit(model)
    nodes = [node for node in model.graph.node if node.op_type == "Attention"]
    masks = {node.input[3] if len(node.input) == 4 else "" for node in nodes}
    options = {
        item.name
        for node in nodes
        for item in node.attribute
        if item.name != "scale" and helper.get_attribute_value(item)
    }
    if len(nodes) != dims.layers or len(masks) != 1 or options or "" in masks:
        raise Unsupported(
            f"{len(nodes)} of {dims.layers} layers have plain attention, with "
            f"{len(masks)} masks and {', '.join(sorted(options)) or 'no'} options",
            _HINT,
        )
    width, group = bucket.prefix + bucket.text, dims.heads // dims.kv_heads
    shapes = {
        # Heads that share keys are rows of one product.
        "shared": (1, dims.kv_heads, group * bucket.text, dims.head_dim),
        "scores": (1, dims.heads, bucket.text, width),
        "weights": (1, dims.kv_heads, group * bucket.text, width),
        "heads": (1, dims.heads, bucket.text, dims.head_dim),
    }
    for name, shape in shapes.items():
        edit.constant(f"attention.{name}", np.array(shape, np.int64))
    written = {
        node.name: _attention(edit, node, f"attention.{layer}", dims)
        for layer, node in enumerate(nodes)
    }
    edit.rewrite(lambda node: written.get(node.name))
    bias = helper.make_tensor_value_info(BIAS_NAME, _FLOAT, (1, 1, bucket.text, width))
    model.graph.input.append(bias)


def _attention(
    edit: GraphEdit, node: onnx.NodeProto, path: str, dims: Dims
) -> list[onnx.NodeProto]:
    """One layer's nodes; without reshapes where every head has its own keys."""
    query, key, value = node.input[:3]
    scales = [item.f for item in node.attribute if item.name == "scale"]
    scale = scales[0] if scales else dims.head_dim**-0.5
    factor = edit.constant(f"attention.scale.{scale}", np.array(scale, np.float32))
    grouped = dims.heads != dims.kv_heads
    nodes: list[onnx.NodeProto] = []

    def step(name: str, kind: str, *inputs: str) -> str:
        output = f"{path}.{name}"
        nodes.append(helper.make_node(kind, inputs, [output], name=output))
        return output

    def shaped(value: str, name: str) -> str:
        if not grouped:
            return value
        return step(f"{name}.Reshape", "Reshape", value, f"attention.{name}")

    rows = shaped(step("scaled", "Mul", query, factor), "shared")
    keys = step("keys", "Transpose", key)
    nodes[-1].attribute.append(helper.make_attribute("perm", [0, 1, 3, 2]))
    scores = shaped(step("products", "MatMul", rows, keys), "scores")
    weights = step("Softmax", "Softmax", step("biased", "Add", scores, BIAS_NAME))
    nodes[-1].attribute.append(helper.make_attribute("axis", -1))
    mixed = step("mixed", "MatMul", shaped(weights, "weights"), value)
    shaped(mixed, "heads")
    nodes[-1].output[0] = node.output[0]
    return nodes
