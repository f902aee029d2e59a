"""Small edits on ONNX graphs: find, replace, name and drop nodes and constants.

Naming grammar of what is added: a node is called `<location>.<Op>` and its output
like the node; the location is the path of the weight that the node serves.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

MICROSOFT = "com.microsoft"
NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_EMBEDS = "inputs_embeds"

Array = NDArray[np.generic]


@dataclass
class GraphEdit:
    """An index over one graph, valid while only its own methods change the graph."""

    model: onnx.ModelProto
    constants: dict[str, onnx.TensorProto] = field(init=False)
    producers: dict[str, onnx.NodeProto] = field(init=False)
    consumers: dict[str, list[onnx.NodeProto]] = field(init=False)

    def __post_init__(self) -> None:
        self.constants = {init.name: init for init in self.model.graph.initializer}
        self._index()

    def array(self, name: str) -> Array:
        """A constant's values."""
        return numpy_helper.to_array(self.constants[name])

    def constant(self, name: str, values: Array) -> str:
        """Add a constant; one of the same name is taken as it is."""
        if name not in self.constants:
            tensor = numpy_helper.from_array(np.ascontiguousarray(values), name)
            self.model.graph.initializer.append(tensor)
            self.constants[name] = self.model.graph.initializer[-1]
        return name

    def weight_matmuls(self) -> list[onnx.NodeProto]:
        """MatMul nodes of text rows and a constant matrix, in graph order.

        Rows that no text reaches, such as DeBERTa's relative positions, are another
        number of rows: whatever counts on B*T of them leaves those alone.
        """
        text = self.reached(_EMBEDS)
        return [
            node
            for node in self.model.graph.node
            if node.op_type == "MatMul"
            and node.input[0] in text
            and node.input[1] in self.constants
            and len(self.constants[node.input[1]].dims) == 2
        ]

    def by_input(self) -> dict[str, list[onnx.NodeProto]]:
        """Weight MatMuls grouped by the activation they read."""
        groups: dict[str, list[onnx.NodeProto]] = {}
        for node in self.weight_matmuls():
            groups.setdefault(node.input[0], []).append(node)
        return groups

    def rewrite(
        self, change: Callable[[onnx.NodeProto], list[onnx.NodeProto] | None]
    ) -> None:
        """Replace every node for which `change` gives a list (empty: drop it)."""
        nodes: list[onnx.NodeProto] = []
        for node in self.model.graph.node:
            new = change(node)
            nodes.extend([node] if new is None else new)
        self.replace(nodes)

    def replace(self, nodes: Sequence[onnx.NodeProto]) -> None:
        """Put other nodes in the place of all."""
        # Copies: clearing the field below frees the messages it owns.
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self.model.graph.node[:]
        self.model.graph.node.extend(copies)
        self._index()

    def prune(self) -> None:
        """Drop nodes that lead to no output, then constants that no node reads."""
        graph = self.model.graph
        needed = {output.name for output in graph.output}
        keep = set()
        for node in reversed(graph.node):
            if needed.intersection(node.output):
                keep.add(node.name)
                needed.update(node.input)
        self.rewrite(lambda node: None if node.name in keep else [])
        unused = [name for name in self.constants if name not in needed]
        for name in unused:
            graph.initializer.remove(self.constants.pop(name))

    def require_domain(self, domain: str, version: int) -> None:
        """Import an operator domain once."""
        if all(entry.domain != domain for entry in self.model.opset_import):
            self.model.opset_import.append(onnx.helper.make_opsetid(domain, version))

    def reached(self, name: str) -> set[str]:
        """Values that depend on a value itself, not on its shape alone."""
        found = {name}
        for node in self.model.graph.node:
            if node.op_type != "Shape" and found.intersection(node.input):
                found.update(node.output)
        return found

    def reached_by(self, names: Iterable[str], kinds: Collection[str]) -> set[str]:
        """Values and what operators of some kinds alone make of them."""
        found = set(names)
        for node in self.model.graph.node:
            if node.op_type in kinds and node.input[0] in found:
                found.update(node.output)
        return found

    def _index(self) -> None:
        self.producers = {}
        self.consumers = {}
        for node in self.model.graph.node:
            for name in node.output:
                self.producers[name] = node
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)


def copy_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that can be edited."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Number of dimensions of every value that shape inference knows."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


def location(weight: str) -> str:
    """Path of a weight without its own name: `a.b.query.weight_t` -> `a.b.query`."""
    return weight.removesuffix(".smooth").removesuffix(".weight_t")


def fuse_shared_inputs(model: onnx.ModelProto) -> None:
    """Make one MatMul of those that read the same rows (query, key and value).

    Rows are then quantised and multiplied once. Exact: columns are independent.
    """
    edit = GraphEdit(model)
    before: dict[str, list[onnx.NodeProto]] = {}
    dropped: set[str] = set()
    for source, matmuls in edit.by_input().items():
        pairs = [(node, _bias_add(edit, node)) for node in matmuls]
        biased = [add for _, add in pairs if add is not None]
        if len(pairs) < 2 or len(biased) not in (0, len(pairs)):
            continue
        before[matmuls[0].name] = _fused(edit, source, matmuls, biased)
        dropped.update(node.name for node in (*matmuls, *biased))
    edit.rewrite(
        lambda node: before.get(node.name, [] if node.name in dropped else None)
    )
    edit.prune()


def _bias_add(edit: GraphEdit, matmul: onnx.NodeProto) -> onnx.NodeProto | None:
    readers = edit.consumers.get(matmul.output[0], [])
    if len(readers) != 1 or readers[0].op_type != "Add":
        return None
    return readers[0] if _bias_name(edit, readers[0]) else None


def _bias_name(edit: GraphEdit, add: onnx.NodeProto) -> str:
    names = [name for name in add.input if name in edit.constants]
    return names[0] if names and len(edit.constants[names[0]].dims) == 1 else ""


def _fused(
    edit: GraphEdit,
    source: str,
    matmuls: list[onnx.NodeProto],
    adds: list[onnx.NodeProto],
) -> list[onnx.NodeProto]:
    """MatMul, Add where there are biases, and Split, in place of several of each."""
    weights = [edit.array(node.input[1]) for node in matmuls]
    path = _common_location([node.input[1] for node in matmuls])
    weight = edit.constant(f"{path}.weight_t", np.concatenate(weights, axis=1))
    widths = np.array([matrix.shape[1] for matrix in weights], np.int64)
    split = edit.constant(f"{path}.widths", widths)
    total = f"{path}.MatMul"
    outputs = [node.output[0] for node in adds or matmuls]
    make = onnx.helper.make_node
    nodes = [make("MatMul", [source, weight], [total], name=total)]
    if adds:
        biases = [edit.array(_bias_name(edit, add)) for add in adds]
        bias = edit.constant(f"{path}.bias", np.concatenate(biases))
        product, total = total, f"{path}.Add"
        nodes.append(make("Add", [product, bias], [total], name=total))
    return [
        *nodes,
        make("Split", [total, split], outputs, name=f"{path}.Split", axis=-1),
    ]


def _common_location(weights: list[str]) -> str:
    """`a.query`, `a.key`, `a.value` -> `a.query_key_value`."""
    paths = [location(weight).rsplit(".", 1) for weight in weights]
    return f"{paths[0][0]}." + "_".join(path[-1] for path in paths)
