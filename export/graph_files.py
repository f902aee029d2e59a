"""A graph on disk: structure in model_X.onnx, weights beside it in model_X.onnx.data.

onnxruntime maps the weights of a separate file into memory instead of parsing and
copying them: loading takes a third of the memory at its peak, the pages can be given
back by the system at any time, and several processes share them.
"""

from pathlib import Path

import onnx
from onnx.external_data_helper import (
    convert_model_to_external_data,
    write_external_data_tensors,
)

MIN_EXTERNAL_BYTES = 1024
"""Smaller tensors stay in the graph: they are shapes and scales that it reads."""


def write_graph(graph: onnx.ModelProto, folder: Path, name: str) -> tuple[str, ...]:
    """Write a graph; equal graphs give equal files.

    Args:
        graph: The graph; it is not changed.
        folder: Where to.
        name: Of the .onnx file.

    Returns:
        Names of the files, the .onnx first.
    """
    own = onnx.ModelProto()
    own.CopyFrom(graph)
    data = f"{name}.data"
    convert_model_to_external_data(
        own,
        all_tensors_to_one_file=True,
        location=data,
        size_threshold=MIN_EXTERNAL_BYTES,
    )
    write_external_data_tensors(own, str(folder))
    (folder / name).write_bytes(own.SerializeToString(deterministic=True))
    if not (folder / data).exists():
        return (name,)
    # onnx makes it private; other users' services read bundles.
    (folder / data).chmod((folder / name).stat().st_mode)
    return name, data
