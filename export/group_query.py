"""Attention over a kept cache as one node: onnxruntime's GroupQueryAttention.

The traced graph puts new keys behind the old ones, transposes, and attends: eleven
nodes a layer, and one token on a small model is a matter of nodes. GroupQueryAttention
does it in one, on rows as they come out of the projections. It wants every sequence's
keys packed: a sequence of a batch has its own length, the mask's sum, and unused room
behind it. So sequences of different lengths are decoded together, each exactly as
alone.

What it cannot do here stays as it was: layers of local attention, bent scores
(Gemma 2), heads whose width is no multiple of eight.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from promptdial.export.graph_names import VISIBLE_NAME
from promptdial.export.onnx_edit import MICROSOFT, GraphEdit, ranks
from promptdial.runtime.manifest import Dims

_HIDDEN = -1e30
_HEAD_STEP = 8
_PATH = "group_query"
_SWAP = [0, 2, 1, 3]


def fuse_group_query(model: onnx.ModelProto, dims: Dims, window: int | None) -> None:
    """Make GroupQueryAttention of every layer's attention, in place.

    A graph with one layer that cannot be fused is left alone; see `has_packed_cache`.

    Args:
        model: A decoder's graph.
        dims: Its sizes.
        window: Rows that its layers of local attention see; None without any. The
            masks of the layers are not looked at: without a window they hide nothing
            but padding, what comes later, and what `visible_keys` hides.
    """
    if window is not None:
        return
    edit = GraphEdit(model)
    found = [
        _layer(edit, node) for node in model.graph.node if node.op_type == "Attention"
    ]
    layers = [layer for layer in found if layer is not None]
    masks = {layer.mask for layer in layers}
    if len(layers) != dims.layers or len(masks) != 1 or dims.head_dim % _HEAD_STEP:
        return
    fused = _Fused(edit, dims, ranks(model))
    new = {layers[0].attention.name: fused.lengths()}
    for layer in layers:
        new.setdefault(layer.attention.name, []).extend(fused.layer(layer))
    dropped = {node.name for layer in layers for node in layer.nodes}
    edit.rewrite(lambda node: new.get(node.name, [] if node.name in dropped else None))
    edit.require_domain(MICROSOFT, 1)
    edit.prune()


def has_packed_cache(model: onnx.ModelProto) -> bool:
    """Whether a graph attends by GroupQueryAttention."""
    return any(node.op_type == "GroupQueryAttention" for node in model.graph.node)


@dataclass(frozen=True)
class _Layer:
    """A layer's attention as it was traced.

    Attributes:
        attention: The node.
        key: Concat of past and new keys.
        value: Concat of past and new values.
        merged: The node whose output is the rows [B, T, N*D].
        nodes: All that go.
        mask: Name of the mask.
    """

    attention: onnx.NodeProto
    key: onnx.NodeProto
    value: onnx.NodeProto
    merged: onnx.NodeProto
    nodes: tuple[onnx.NodeProto, ...]
    mask: str


def _layer(edit: GraphEdit, attention: onnx.NodeProto) -> _Layer | None:
    """The layer around an Attention node; None where it is not as expected."""
    if len(attention.input) != 4:
        return None
    options = {
        item.name: helper.get_attribute_value(item) for item in attention.attribute
    }
    if any(value for name, value in options.items() if name != "scale"):
        return None
    key, value = (edit.producers.get(name) for name in attention.input[1:3])
    if key is None or value is None or {key.op_type, value.op_type} != {"Concat"}:
        return None
    if not key.input[0].startswith("past_") or len(edit.consumers[key.output[0]]) != 1:
        return None
    swap = _only_reader(edit, attention.output[0])
    merged = _only_reader(edit, swap.output[0]) if swap is not None else None
    if swap is None or merged is None or merged.op_type != "Reshape":
        return None
    if swap.op_type != "Transpose":
        return None
    nodes = (key, value, swap, merged)
    return _Layer(attention, key, value, merged, nodes, attention.input[3])


def _only_reader(edit: GraphEdit, name: str) -> onnx.NodeProto | None:
    readers = edit.consumers.get(name, [])
    return readers[0] if len(readers) == 1 else None


@dataclass
class _Fused:
    """Emits the nodes."""

    edit: GraphEdit
    dims: Dims
    ranks: dict[str, int]
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def lengths(self) -> list[onnx.NodeProto]:
        """What all layers share: sequences' lengths, and which keys are hidden."""
        self.nodes = []
        constant = self.edit.constant
        ints = np.array
        one, axis = (
            constant(f"{_PATH}.1", ints(1)),
            constant(f"{_PATH}.axis", ints([1])),
        )
        ones = constant(f"{_PATH}.ones", ints([1, 1]))
        seen = self._emit("sum", "ReduceSum", ["attention_mask", axis], keepdims=0)
        last = self._emit("last", "Sub", [seen, one])
        self._emit("lengths", "Cast", [last], to=TensorProto.INT32)
        width = self._emit("width", "Shape", ["attention_mask"], start=1, end=2)
        total = self._emit("scalar", "Squeeze", [width])
        self._emit("total", "Cast", [total], to=TensorProto.INT32)
        text = self._emit("text", "Shape", ["inputs_embeds"], start=1, end=2)
        shape = self._emit("shape", "Concat", [ones, text, width], axis=0)
        visible = self._emit("visible", "Expand", [VISIBLE_NAME, shape])
        nothing = constant(f"{_PATH}.0", np.array(0, np.float32))
        hidden = constant(f"{_PATH}.hidden", np.array(_HIDDEN, np.float32))
        self._emit("bias", "Where", [visible, nothing, hidden])
        return self.nodes

    def layer(self, layer: _Layer) -> list[onnx.NodeProto]:
        """One layer's nodes."""
        self.nodes = []
        dims, attention = self.dims, layer.attention
        query = self._rows(attention.input[0], dims.heads)
        key = self._rows(layer.key.input[1], dims.kv_heads)
        value = self._rows(layer.value.input[1], dims.kv_heads)
        shared = [f"{_PATH}.lengths", f"{_PATH}.total", "", "", "", f"{_PATH}.bias"]
        past = [layer.key.input[0], layer.value.input[0]]
        scales = [item.f for item in attention.attribute if item.name == "scale"]
        node = helper.make_node(
            "GroupQueryAttention",
            [query, key, value, *past, *shared],
            [layer.merged.output[0], layer.key.output[0], layer.value.output[0]],
            name=f"{attention.name}.GroupQueryAttention",
            domain=MICROSOFT,
            num_heads=dims.heads,
            kv_num_heads=dims.kv_heads,
        )
        if scales:
            node.attribute.append(helper.make_attribute("scale", scales[0]))
        return [*self.nodes, node]

    def _rows(self, name: str, heads: int) -> str:
        """Rows [B, T, heads*D] of a value [B, heads, T, D], by no detour."""
        producer = self.edit.producers[name]
        if producer.op_type == "RotaryEmbedding" and self._swapped(producer.input[0]):
            flat = self._rows(producer.input[0], heads)
            rotated = helper.make_node(
                "RotaryEmbedding",
                [flat, *producer.input[1:]],
                [f"{producer.name}.rows"],
                name=f"{producer.name}.rows",
            )
            for item in producer.attribute:
                if item.name != "num_heads":
                    rotated.attribute.append(item)
            rotated.attribute.append(helper.make_attribute("num_heads", heads))
            self.nodes.append(rotated)
            return str(rotated.output[0])
        if self._swapped(name):
            before = producer.input[0]
        else:
            before = self._emit(f"{name}.swap", "Transpose", [name], perm=_SWAP)
        reshape = self.edit.producers.get(before)
        if reshape is not None and self._splits_heads(reshape):
            return str(reshape.input[0])
        flat_shape = self.edit.constant(f"{_PATH}.flat", np.array([0, 0, -1]))
        return self._emit(f"{name}.flat", "Reshape", [before, flat_shape])

    def _swapped(self, name: str) -> bool:
        node = self.edit.producers.get(name)
        if node is None or node.op_type != "Transpose":
            return False
        return list(helper.get_attribute_value(node.attribute[0])) == _SWAP

    def _splits_heads(self, node: onnx.NodeProto) -> bool:
        """Whether a Reshape makes heads of rows [B, T, width], and nothing else."""
        return node.op_type == "Reshape" and self.ranks.get(node.input[0]) == 3

    def _emit(self, name: str, kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{_PATH}.{name}"
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=output, **attributes)
        )
        return output
