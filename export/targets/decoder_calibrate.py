"""Ranges of a static decoder: over texts alone, and over each prompt.

Graphs that read and the one that writes have the same values, so one set of ranges is
for all. Every prompt runs by itself, which leaves its keys and values at the beginning
of the window, and then under texts; the last tokens of a text go one by one, as an
answer's do. What one pass gives as keys and values the next one takes: both are in one
range, and so are the rows behind one another.
"""

from collections.abc import Mapping, Sequence

import onnx

from promptdial.export.model import LoadedBase
from promptdial.export.onnx_edit import GraphEdit
from promptdial.export.targets.calibrate import (
    CERTAIN,
    TEXTS_A_PROMPT,
    UNSEEN,
    Calibrated,
    Floats,
    Ranges,
    State,
    Watch,
    source_of,
    union,
    widened,
)
from promptdial.export.targets.qdq import MOVES
from promptdial.export.verify import Prompt
from promptdial.runtime.graph_state import empty_state, flat, past_names, present_names
from promptdial.runtime.manifest import Dims, StaticBucket
from promptdial.runtime.rows import Row
from promptdial.runtime.static_cache import StaticCache, StaticPasses
from promptdial.runtime.static_feed import BIAS_NAME, EMBEDS_NAME, Feed
from promptdial.runtime.text import TextEncoder

WRITTEN = 4
"""Tokens at the end of a text that go one by one."""

Graphs = Mapping[StaticBucket, onnx.ModelProto]


def calibrate_decoder(
    loaded: LoadedBase,
    graphs: Graphs,
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
) -> Calibrated:
    """Run texts and prompts through the FP32 graphs.

    Args:
        loaded: For tokenizer, sizes and token table.
        graphs: All of one window.
        rows: Texts; each runs without a prompt.
        prompts: Each runs under some of the texts; at least one of rows.
    """
    seen: Ranges = {}
    passes = _watched(loaded.dims, graphs, seen)
    nothing = empty_state(loaded.dims)
    states: list[State] = [nothing]
    for prompt in prompts:
        if prompt.rows is None:
            states.append(tuple(part[None] for pair in prompt.past for part in pair))
            continue
        cache = StaticCache(passes, nothing, 0)
        cache.forward(prompt.rows[None])
        states.append(cache.head(prompt.length))
    given = seen[EMBEDS_NAME]
    texts = _texts(loaded, rows, passes.window - max(s[0].shape[2] for s in states))
    share = max(1, len(rows) // TEXTS_A_PROMPT)
    for number, state in enumerate(states):
        for text in texts[number % share :: share] if number else texts:
            cache = StaticCache(passes, state, state[0].shape[2])
            end = max(1, text.shape[1] - WRITTEN)
            cache.forward(text[:, :end])
            for place in range(end, text.shape[1]):
                cache.forward(text[:, place : place + 1])
    return _finished(loaded, graphs, seen, given)


def _watched(dims: Dims, graphs: Graphs, seen: Ranges) -> StaticPasses:
    watches = {bucket: Watch(graph, seen) for bucket, graph in graphs.items()}
    wanted = ["logits", *flat(present_names(dims))]

    def run(bucket: StaticBucket, feed: Feed) -> list[Floats]:
        return watches[bucket].run(feed, wanted)

    return StaticPasses(list(graphs), dims, UNSEEN, run)


def _texts(loaded: LoadedBase, rows: Sequence[Row], room: int) -> list[Floats]:
    """Embedding rows [1, T, H] of each text, cut to what the window leaves."""
    encoder = TextEncoder(loaded.tokenizer_json, max(1, room))
    table = loaded.token_table.cpu().numpy()
    return [table[encoder.encode(row.text, row.text_pair).ids][None] for row in rows]


def _finished(
    loaded: LoadedBase, graphs: Graphs, seen: Ranges, given: tuple[float, float]
) -> Calibrated:
    """Headroom everywhere, and the ranges that are known without running anything.

    Args:
        loaded: For the token table.
        graphs: Of any one, the operators are those of all.
        seen: By value, without headroom.
        given: Of prompt rows, which may go on growing; token rows do not.
    """
    ranges = widened(seen)
    table = loaded.token_table
    low, high = widened({EMBEDS_NAME: given})[EMBEDS_NAME]
    whole = (min(low, float(table.min())), max(high, float(table.max())))
    ranges[EMBEDS_NAME] = whole
    limits = {EMBEDS_NAME: whole}
    graph = next(iter(graphs.values()))
    dims = loaded.dims
    names = zip(flat(past_names(dims)), flat(present_names(dims)), strict=True)
    for past, present in names:
        source = source_of(graph, present)
        span = union(ranges[past], ranges[source])
        ranges[source] = ranges[past] = ranges[present] = limits[past] = span
    for each in graphs.values():
        _carry(each, ranges)
    scores = [node for node in graph.graph.node if BIAS_NAME in node.input]
    spans = [ranges[node.input[0]] for node in scores]
    bias = -max(high - low for low, high in spans) - CERTAIN
    limits[BIAS_NAME] = ranges[BIAS_NAME] = (bias, 0.0)
    for node, (low, high) in zip(scores, spans, strict=True):
        ranges[node.output[0]] = (low + bias, high)
    for node in graph.graph.node:
        if node.op_type == "Softmax":
            ranges[node.output[0]] = (0.0, 1.0)
    for each in graphs.values():
        _carry(each, ranges)
    return Calibrated(ranges, ranges, limits)


def _carry(graph: onnx.ModelProto, ranges: Ranges) -> None:
    """Give what is moved, cut, picked or joined the range of what it comes from."""
    edit = GraphEdit(graph)
    for node in graph.graph.node:
        source, target = node.input[0], node.output[0]
        if node.op_type in (*MOVES, "Slice", "Unsqueeze"):
            ranges[target] = ranges[source]
        elif node.op_type == "Gather" and source in edit.constants:
            values = edit.array(source)
            ranges[target] = (float(values.min()), float(values.max()))
        elif node.op_type == "Concat":
            joined = ranges[source]
            for name in node.input:
                joined = union(joined, ranges[name])
            ranges[target] = joined
