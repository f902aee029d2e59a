"""An encoder's graph with every size fixed, for compilers that take no others.

The graph of one bucket takes one text of exactly T rows over a prefix of exactly P.
What does not fill it is padding, kept out by a bias on the attention scores: compilers
want that as numbers, not as a mask that is turned into one. Attention is written out
in products and Softmax, so that each of its values can have a range of its own.

Inputs: `inputs_embeds` [1, T, H], `attention_bias` [1, 1, 1, P+T] float, added to the
scores; `token_type_ids` [1, T] int32 where the model has token types, and
`past_key_values.{i}.key|value` [1, K, P, D] where P is not 0. Positions are those of a
text that begins at the first one.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from promptdial.export.errors import Unsupported
from promptdial.export.fold import fold_constants
from promptdial.export.graph_names import HIDDEN_NAME
from promptdial.export.onnx_edit import GraphEdit, copy_model
from promptdial.runtime.graph_state import flat, level_names, past_names, present_names
from promptdial.runtime.manifest import Dims, StaticBucket
from promptdial.runtime.static_feed import BIAS_NAME, EMBEDS_NAME, TYPES_NAME

_MASK, _POSITIONS = "attention_mask", "position_ids"
_MASK_OPERATORS = {"Cast", "Unsqueeze", "Expand"}
_FLOAT, _INT32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
_ROUNDS = 8  # a shape that is known makes others known
_LITTLE = -1e4  # scores below this get nothing of Softmax's


def text_graph(
    exact: onnx.ModelProto, dims: Dims, bucket: StaticBucket
) -> onnx.ModelProto:
    """The graph that answers: `last_hidden_state` and `hidden_states.{i}` [1, T, H].

    Args:
        exact: The FP32 graph that takes every size; left as it is.
        dims: Sizes of the base.
        bucket: Sizes of the new one.

    Raises:
        Unsupported: Its attention is not of the kind that can be written out.
    """
    return _static(exact, dims, bucket, [*level_names(dims), HIDDEN_NAME])


def prompt_graph(
    exact: onnx.ModelProto, dims: Dims, bucket: StaticBucket
) -> onnx.ModelProto:
    """The graph that makes a prefix: rows in, `present.{i}.key|value` [1, K, P, D] out.

    Args:
        exact: The FP32 graph that takes every size; left as it is.
        dims: Sizes of the base.
        bucket: Its `text` is P, its `prefix` 0.

    Raises:
        Unsupported: As `text_graph`.
    """
    return _static(exact, dims, bucket, flat(present_names(dims)))


def _static(
    exact: onnx.ModelProto, dims: Dims, bucket: StaticBucket, outputs: Sequence[str]
) -> onnx.ModelProto:
    model = copy_model(exact)
    keep_outputs(model, outputs)
    _fix_inputs(model, dims, bucket)
    settle(model)
    _write_out_attention(model, dims)
    finish(model)
    return model


def settle(model: onnx.ModelProto) -> None:
    """Compute once what follows from sizes that are fixed now, in place."""
    for _ in range(_ROUNDS):
        before = len(model.graph.node)
        _shapes_known(model)
        _drop_shapes(model)
        _drop_expands(model)
        fold_constants(model)
        if len(model.graph.node) == before:
            break


def finish(model: onnx.ModelProto) -> None:
    """Drop what nothing reads any more, and write down every shape, in place."""
    GraphEdit(model).prune()
    _drop_unread_inputs(model)
    _shapes_known(model)


def keep_outputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Drop all other outputs, and what leads to them alone, in place."""
    kept = [item for item in model.graph.output if item.name in names]
    copies = [onnx.ValueInfoProto.FromString(item.SerializeToString()) for item in kept]
    del model.graph.output[:]
    model.graph.output.extend(copies)
    GraphEdit(model).prune()


def _fix_inputs(model: onnx.ModelProto, dims: Dims, bucket: StaticBucket) -> None:
    """Give every input its size; positions become a constant, an empty prefix none."""
    total = bucket.prefix + bucket.text
    past = (1, dims.kv_heads, bucket.prefix, dims.head_dim)
    sizes = {
        EMBEDS_NAME: (1, bucket.text, dims.embedding),
        _MASK: (1, total),
        TYPES_NAME: (1, bucket.text),
        **dict.fromkeys(flat(past_names(dims)), past),
    }
    edit = GraphEdit(model)
    steps = np.arange(bucket.text, dtype=np.int64)[None] + dims.position_offset
    edit.constant(_POSITIONS, steps)
    kept = []
    for item in model.graph.input:
        if item.name == _POSITIONS:
            continue
        kind = item.type.tensor_type.elem_type
        if item.name == TYPES_NAME:
            kind = _INT32
        kept.append(helper.make_tensor_value_info(item.name, kind, sizes[item.name]))
    del model.graph.input[:]
    model.graph.input.extend(kept)
    for item in model.graph.output:
        item.type.tensor_type.ClearField("shape")
    if not bucket.prefix:
        _drop_past(model, dims)


def _drop_past(model: onnx.ModelProto, dims: Dims) -> None:
    """A prefix of no rows is no input: what was put behind it stands alone."""
    edit = GraphEdit(model)
    from_past = edit.reached_by(flat(past_names(dims)), {"Expand"})

    def alone(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        if node.op_type != "Concat" or node.input[0] not in from_past:
            return None
        return [helper.make_node("Identity", node.input[1:], node.output, node.name)]

    edit.rewrite(alone)
    edit.prune()


def _shapes_known(model: onnx.ModelProto) -> None:
    """Write the shapes of all values into the graph."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    del model.graph.value_info[:]
    model.graph.value_info.extend(inferred.graph.value_info)
    for item, found in zip(model.graph.output, inferred.graph.output, strict=True):
        item.CopyFrom(found)


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of the values whose every size is known."""
    graph = model.graph
    found = {item.name: tuple(item.dims) for item in graph.initializer}
    for item in (*graph.value_info, *graph.input, *graph.output):
        kind = item.type.tensor_type
        sizes = [dim.dim_value for dim in kind.shape.dim if dim.HasField("dim_value")]
        if kind.HasField("shape") and len(sizes) == len(kind.shape.dim):
            found[item.name] = tuple(sizes)
    return found


def _drop_shapes(model: onnx.ModelProto) -> None:
    """Shape of a value whose shape is known: a constant."""
    edit, shapes = GraphEdit(model), shapes_of(model)
    for node in list(model.graph.node):
        if node.op_type == "Shape" and node.input[0] in shapes:
            whole = np.array(shapes[node.input[0]], np.int64)
            options = {item.name: item.i for item in node.attribute}
            part = slice(options.get("start", 0), options.get("end"))
            edit.constant(node.output[0], whole[part])
    edit.rewrite(lambda node: [] if _is_constant(edit, node) else None)
    edit.prune()


def _is_constant(edit: GraphEdit, node: onnx.NodeProto) -> bool:
    return node.op_type == "Shape" and node.output[0] in edit.constants


def _drop_expands(model: onnx.ModelProto) -> None:
    """Drop Identity, and Expand to the shape that a value has already."""
    shapes = shapes_of(model)
    inputs = {item.name for item in model.graph.input}
    outputs = {item.name for item in model.graph.output}
    same: dict[str, str] = {}
    dropped = set()
    for node in model.graph.node:
        source, target = (*node.input, "")[0], node.output[0]
        known = source in shapes and shapes[source] == shapes.get(target)
        if source in inputs and target in outputs:
            continue  # both names are given (T5's first level is its input)
        if node.op_type == "Identity" or (node.op_type == "Expand" and known):
            dropped.add(node.name)
            old, new = same.get(source, source), target
            if target in outputs:
                # The name of an output is given; what made the value takes it.
                _rename(model, old, new)
                same[old] = new
            else:
                same[target] = old
    edit = GraphEdit(model)
    edit.rewrite(lambda node: [] if node.name in dropped else None)
    for node in model.graph.node:
        for place, value in enumerate(node.input):
            node.input[place] = same.get(value, value)
    GraphEdit(model).prune()


def _rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for place, value in enumerate(node.output):
            node.output[place] = new if value == old else value


def _write_out_attention(model: onnx.ModelProto, dims: Dims) -> None:
    """Attention as two products and a Softmax over scores plus bias."""
    edit = GraphEdit(model)
    total = next(item for item in model.graph.input if item.name == _MASK)
    width = total.type.tensor_type.shape.dim[1].dim_value
    masks = edit.reached_by([_MASK], _MASK_OPERATORS)
    count = 0

    def written(node: onnx.NodeProto) -> list[onnx.NodeProto] | None:
        nonlocal count
        if node.op_type != "Attention":
            return None
        query, key, value, mask = node.input[:4]
        options = {
            item.name: helper.get_attribute_value(item) for item in node.attribute
        }
        scale = options.pop("scale", dims.head_dim**-0.5)
        places = _position_bias(edit, mask, masks)
        # What is 0 is not used: soft caps, causal masks.
        plain = (mask in masks or places) and not any(options.values())
        if not plain or dims.heads != dims.kv_heads:
            raise Unsupported(
                f"attention {node.name} has a mask or options of its own",
                "leave --target out; cpu graphs take every encoder",
            )
        path = f"attention.{count}"
        count += 1
        factor = edit.constant("attention.scale", np.array(scale, np.float32))
        make = helper.make_node

        def step(name: str, kind: str, *inputs: str) -> onnx.NodeProto:
            return make(kind, inputs, [f"{path}.{name}"], name=f"{path}.{name}")

        keys, weights = f"{path}.keys", f"{path}.weights"
        scores = step("scores", "MatMul", f"{path}.scaled", keys)
        placed = step("placed", "Add", f"{path}.scores", places) if places else None
        last = placed or scores
        return [
            step("scaled", "Mul", query, factor),
            make("Transpose", [key], [keys], name=keys, perm=[0, 1, 3, 2]),
            scores,
            *([placed] if placed else []),
            step("biased", "Add", last.output[0], BIAS_NAME),
            make("Softmax", [f"{path}.biased"], [weights], name=weights, axis=-1),
            make("MatMul", [weights, value], node.output, name=f"{path}.mixed"),
        ]

    edit.rewrite(written)
    if not count:
        raise Unsupported(
            "the graph has no Attention nodes",
            "leave --target out; cpu graphs take every encoder",
        )
    bias = helper.make_tensor_value_info(BIAS_NAME, _FLOAT, (1, 1, 1, width))
    model.graph.input.append(bias)


def _position_bias(edit: GraphEdit, mask: str, masks: set[str]) -> str:
    """The constant [1, N, T, P+T] that T5 adds to scores where a key may be seen.

    "" where the mask is another: Where(mask, constant, next to nothing) is T5's.
    """
    node = edit.producers.get(mask)
    if node is None or node.op_type != "Where" or node.input[0] not in masks:
        return ""
    bias, hidden = node.input[1:]
    if bias not in edit.constants or hidden not in edit.constants:
        return ""
    return bias if edit.array(hidden).max() < _LITTLE else ""


def _drop_unread_inputs(model: onnx.ModelProto) -> None:
    read = {name for node in model.graph.node for name in node.input}
    for item in [item for item in model.graph.input if item.name not in read]:
        model.graph.input.remove(item)
