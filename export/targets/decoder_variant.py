"""From a decoder's FP32 graph to a variant of static graphs in a bundle's folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from promptdial.export.errors import Unsupported
from promptdial.export.masks import sliding_window
from promptdial.export.model import LoadedBase
from promptdial.export.targets.decoder_calibrate import calibrate_decoder
from promptdial.export.targets.decoder_graph import decoder_graph
from promptdial.export.targets.schemes import DECODER_SCHEMES
from promptdial.export.targets.static_files import write_graphs
from promptdial.export.verify import Prompt
from promptdial.prompts.errors import UsageError
from promptdial.runtime.manifest import GraphVariant, StaticBucket
from promptdial.runtime.rows import Row

READ_LENGTHS = (64,)
"""Rows of the graphs that read, where none are asked for."""

WINDOW = 512
"""Rows of the cache where none are asked for: prompt, text and answer."""

_LEAST_TEXT = 4
_CPU_HINT = "leave --target out; cpu graphs take it"


def require_static_decoder(loaded: LoadedBase, target: str) -> None:
    """Refuse decoders that no static graph is built for.

    Raises:
        Unsupported: Naming the base, and what it has.
    """
    name, dims = loaded.base.architecture, loaded.dims
    if target not in DECODER_SCHEMES:
        raise Unsupported(
            f"target {target!r}: {name} is a decoder, which are built for "
            f"{', '.join(DECODER_SCHEMES)}",
            _CPU_HINT,
        )
    if dims.conv_layers:
        raise Unsupported(
            f"target {target!r}: {len(dims.conv_layers)} of {dims.layers} layers of "
            f"{name} are convolutions",
            _CPU_HINT,
        )
    window = sliding_window(loaded.model.config)
    if window is not None:
        raise Unsupported(
            f"target {target!r}: layers of {name} see {window} rows alone", _CPU_HINT
        )


def build_static_decoder(
    loaded: LoadedBase,
    exact: onnx.ModelProto,
    folder: Path,
    target: str,
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
    buckets: Sequence[StaticBucket],
    report: Callable[[str], None] = lambda line: None,
) -> GraphVariant:
    """Build the graphs that read and the one that writes, and write them to files.

    Args:
        loaded: The base.
        exact: Its FP32 graph that takes every size.
        folder: Where the files go.
        target: One of DECODER_SCHEMES; also the variant's name.
        rows: Texts to calibrate on.
        prompts: Prompts to calibrate on, at least one of rows.
        buckets: As `decoder_buckets` gave them.
        report: Called with a line at the beginning of each step.

    Raises:
        Unsupported: The base's attention or positions cannot be written out.
    """
    report(f"fixing sizes for {target}")
    graphs = {bucket: decoder_graph(exact, loaded.dims, bucket) for bucket in buckets}
    report(f"calibrating on {len(rows)} texts and {len(prompts)} prompts")
    found = calibrate_decoder(loaded, graphs, rows, prompts)
    scheme = DECODER_SCHEMES[target]
    quantised = {
        bucket.file: scheme.quantise(graph, found.texts)
        for bucket, graph in graphs.items()
    }
    files = write_graphs(quantised, folder, f"model_{target}.onnx.data")
    return GraphVariant(
        files=files,
        target=target,
        precision="int8",
        scheme=scheme.name,
        ranges=dict(sorted(found.limits.items())),
        buckets=tuple(buckets),
    )


def decoder_buckets(
    loaded: LoadedBase,
    target: str,
    prompts: Sequence[Prompt],
    lengths: Sequence[int] = (),
    window: int | None = None,
) -> tuple[StaticBucket, ...]:
    """The sizes: of the graph that writes, and of those that read, the shortest first.

    Args:
        loaded: The base.
        target: One of DECODER_SCHEMES; names the files.
        prompts: The longest one is what there must be room for.
        lengths: Rows of each graph that reads; () for READ_LENGTHS.
        window: Rows of the cache; None for WINDOW.

    Raises:
        UsageError: A length, or the window, leaves no room.
    """
    if min(lengths, default=_LEAST_TEXT) < _LEAST_TEXT:
        raise UsageError(
            f"a graph that reads {min(lengths)} rows, at least {_LEAST_TEXT}",
            "give --seq-len another length",
        )
    longest = max(prompt.length for prompt in prompts)
    size = min(WINDOW if window is None else window, loaded.dims.max_positions)
    if size < longest + _LEAST_TEXT:
        raise UsageError(
            f"a window of {size} rows, at least {longest + _LEAST_TEXT} for a prompt "
            f"of {longest}",
            "give --window more, or shorter prompts to --calibrate",
        )
    reads = sorted({min(length, size) for length in lengths or READ_LENGTHS})
    return tuple(
        StaticBucket(f"model_{target}_{size}_{rows}.onnx", size, rows)
        for rows in (1, *reads)
    )
