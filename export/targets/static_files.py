"""Static graphs on disk: one .onnx file a bucket, and the weights of all in one file.

Buckets have the same weights; where their numbers are equal they lie there once.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

from promptdial.export.graph_files import MIN_EXTERNAL_BYTES
from promptdial.export.onnx_edit import copy_model

_ALIGNMENT = 64


def write_graphs(
    graphs: Mapping[str, onnx.ModelProto], folder: Path, data: str
) -> tuple[str, ...]:
    """Write graphs; equal graphs give equal files.

    Args:
        graphs: By the name of their .onnx file; they are not changed.
        folder: Where to.
        data: Name of the file of their weights.

    Returns:
        Names of the files: the graphs in their order, and the weights.
    """
    places: dict[bytes, int] = {}
    with (folder / data).open("wb") as file:
        for name, graph in graphs.items():
            own = copy_model(graph)
            for tensor in own.graph.initializer:
                values = tensor.raw_data
                if len(values) < MIN_EXTERNAL_BYTES:
                    continue
                digest = hashlib.sha256(values).digest()
                if digest not in places:
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    places[digest] = file.tell()
                    file.write(values)
                set_external_data(
                    tensor, data, offset=places[digest], length=len(values)
                )
                tensor.ClearField("raw_data")
            (folder / name).write_bytes(own.SerializeToString(deterministic=True))
    return (*graphs, data)
