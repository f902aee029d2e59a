"""From an FP32 graph to a variant of static graphs in a bundle's folder."""

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from promptdial.export.errors import Unsupported
from promptdial.export.forward import ONE_WAY
from promptdial.export.model import ENCODER, LoadedBase
from promptdial.export.targets.calibrate import StaticGraphs, calibrate
from promptdial.export.targets.schemes import SCHEMES
from promptdial.export.targets.static_files import write_graphs
from promptdial.export.targets.static_graph import prompt_graph, text_graph
from promptdial.export.verify import Prompt
from promptdial.prompts.errors import UsageError
from promptdial.runtime.manifest import GraphVariant, StaticBucket
from promptdial.runtime.rows import Row

TEXT_LENGTHS = (32, 64, 128)
"""Tokens of the buckets where none are asked for: most requests, and the rest."""

_PREFIX_STEP = 32
_LEAST_TEXT = 4  # special tokens included
_CPU_HINT = "leave --target out; cpu graphs take it"


def require_static(loaded: LoadedBase, target: str) -> None:
    """Refuse bases that no static graph is built for.

    Raises:
        Unsupported: Naming the base.
    """
    name = loaded.base.architecture
    if loaded.family != ENCODER:
        raise Unsupported(
            f"target {target!r}: {name} is a {loaded.family}, only encoders are built",
            _CPU_HINT,
        )
    if loaded.attention != ONE_WAY:
        raise Unsupported(
            f"target {target!r}: {name} takes no key/value prefix", _CPU_HINT
        )


def encoder_buckets(
    loaded: LoadedBase,
    target: str,
    prompts: Sequence[Prompt],
    lengths: Sequence[int] = (),
) -> tuple[StaticBucket, ...]:
    """The sizes: of the graph that makes a prefix first, then of those for texts.

    Args:
        loaded: The base.
        target: One of SCHEMES; names the files.
        prompts: The longest one is what there must be room for.
        lengths: Tokens of the texts; () for TEXT_LENGTHS.

    Raises:
        UsageError: A length leaves no room for a text.
    """
    most = loaded.dims.max_positions
    if min(lengths, default=_LEAST_TEXT) < _LEAST_TEXT:
        raise UsageError(
            f"a text of {min(lengths)} tokens, at least {_LEAST_TEXT}",
            "give --seq-len another length",
        )
    longest = max(prompt.length for prompt in prompts)
    prefix = min(-(-longest // _PREFIX_STEP) * _PREFIX_STEP, most)
    texts = sorted({min(text, most) for text in lengths or TEXT_LENGTHS})
    return (
        StaticBucket(f"model_{target}_prompt_{prefix}.onnx", 0, prefix),
        *(
            StaticBucket(f"model_{target}_{prefix}_{text}.onnx", prefix, text)
            for text in texts
        ),
    )


def build_static(
    loaded: LoadedBase,
    exact: onnx.ModelProto,
    folder: Path,
    target: str,
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
    buckets: Sequence[StaticBucket],
    report: Callable[[str], None] = lambda line: None,
) -> GraphVariant:
    """Build the graphs of all buckets, and write them.

    Args:
        loaded: The base.
        exact: Its FP32 graph that takes every size.
        folder: Where the files go.
        target: One of SCHEMES; also the variant's name.
        rows: Texts to calibrate on.
        prompts: Prompts to calibrate on, at least one of rows.
        buckets: As `encoder_buckets` gave them.
        report: Called with a line at the beginning of each step.

    Raises:
        Unsupported: The base's attention cannot be written out.
    """
    report(f"fixing sizes for {target}")
    scheme, dims = SCHEMES[target], loaded.dims
    arranged = scheme.arrange(loaded, exact, rows)
    first, *texts = buckets
    graphs = StaticGraphs(
        (first, prompt_graph(exact, dims, first)),
        {bucket: text_graph(arranged, dims, bucket) for bucket in texts},
    )
    report(f"calibrating on {len(rows)} texts and {len(prompts)} prompts")
    found = calibrate(loaded, graphs, rows, prompts, scheme.headroom)
    bucket, maker = graphs.maker
    quantised = {bucket.file: scheme.quantise_maker(maker, found.maker)}
    for bucket, graph in graphs.texts.items():
        quantised[bucket.file] = scheme.quantise(graph, found.texts)
    files = write_graphs(quantised, folder, f"model_{target}.onnx.data")
    return GraphVariant(
        files=files,
        target=target,
        precision="int8",
        scheme=scheme.name,
        ranges=dict(sorted(found.limits.items())),
        buckets=tuple(buckets),
    )
