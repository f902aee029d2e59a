"""Channel maxima of an FP32 graph over texts, and the graph as bytes to run it from."""

from collections.abc import Mapping, Sequence

import onnx

from promptdial.export.errors import Unsupported
from promptdial.export.families import family_of
from promptdial.export.model import LoadedBase
from promptdial.export.session import cpu_session
from promptdial.export.smooth import Floats, channel_maxima
from promptdial.runtime.rows import Row

MAX_GRAPH_BYTES = 2_000_000_000  # protobuf's limit for a graph in one file


def calibrated_maxima(
    loaded: LoadedBase,
    graph: onnx.ModelProto,
    rows: Sequence[Row],
    names: Sequence[str] | None = None,
) -> Mapping[str, Floats]:
    """Channel maxima [H] over texts, by activation name.

    Args:
        loaded: The base.
        graph: Its FP32 graph.
        rows: The texts.
        names: Activations; None for those that are smoothed.

    Raises:
        Unsupported: The graph is too large for one file.
    """
    session = cpu_session(serialised(graph))
    return channel_maxima(graph, family_of(loaded).feeds(loaded, session, rows), names)


def serialised(graph: onnx.ModelProto) -> bytes:
    """The graph's bytes, equal for equal graphs.

    Raises:
        Unsupported: It is too large for one file.
    """
    require_one_file(graph)
    return bytes(graph.SerializeToString(deterministic=True))


def require_one_file(graph: onnx.ModelProto) -> None:
    """Refuse a graph that protobuf cannot write.

    Raises:
        Unsupported: It is too large for one file.
    """
    size = graph.ByteSize()
    if size > MAX_GRAPH_BYTES:
        raise Unsupported(
            f"the graph has {size} bytes, at most {MAX_GRAPH_BYTES}",
            "use --precision int8, or a smaller model",
        )
