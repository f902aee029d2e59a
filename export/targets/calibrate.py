"""Ranges of every value of static graphs: over texts alone, and over each prompt.

A prompt's rows, keys and values lie far outside what texts reach, and a range that
texts alone have set clips them. So every prompt that is given runs by itself, and then
under texts. What comes later than calibration has HEADROOM times the range, one bit of
the sixteen, or what a target's scheme says.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from promptdial.export.errors import WrongBase
from promptdial.export.model import LoadedBase
from promptdial.export.onnx_edit import GraphEdit
from promptdial.export.session import cpu_session
from promptdial.export.targets.qdq import MOVES, Range
from promptdial.export.verify import Prompt
from promptdial.prompts.blob import read_blob
from promptdial.runtime.graph_state import flat, past_names, present_names
from promptdial.runtime.manifest import StaticBucket
from promptdial.runtime.rows import Row
from promptdial.runtime.static_feed import (
    BIAS_NAME,
    EMBEDS_NAME,
    Feed,
    prompt_feed,
    smallest,
    text_feed,
)
from promptdial.runtime.text import TextEncoder

HEADROOM = 2.0
TEXTS_A_PROMPT = 16
CERTAIN = 20.0  # exp(-20) of a weight is nothing, even to float32
UNSEEN = -10_000.0  # while scores have no range yet

Floats = NDArray[np.float32]
Ranges = dict[str, Range]
State = tuple[Floats, ...]


@dataclass(frozen=True)
class StaticGraphs:
    """The FP32 graphs of a base's buckets.

    Attributes:
        maker: Makes a prefix of prompt rows, and its bucket.
        texts: Take texts, by bucket.
    """

    maker: tuple[StaticBucket, onnx.ModelProto]
    texts: Mapping[StaticBucket, onnx.ModelProto]


@dataclass(frozen=True)
class Calibrated:
    """What calibration found.

    Attributes:
        maker: Ranges of the graph that makes a prefix, by value.
        texts: Those of all the others.
        limits: Of the inputs that a prompt reaches, and `attention_bias`: as the
            manifest keeps them.
    """

    maker: Ranges
    texts: Ranges
    limits: Ranges


def read_prompts(files: Sequence[Path], loaded: LoadedBase) -> list[Prompt]:
    """The prompts of blobs; those that are class vectors alone are left out.

    Raises:
        PromptError: A blob breaks the format.
        WrongBase: It is of another base.
    """
    found = []
    for file in files:
        blob = read_blob(file)
        if blob.meta.base_fingerprint != loaded.base.fingerprint:
            raise WrongBase(
                f"{file} was trained on {blob.meta.base_fingerprint}, and "
                f"{loaded.base.model} has {loaded.base.fingerprint}",
                "give prompts of this base",
            )
        if blob.num_virtual_tokens:
            found.append(Prompt(blob.prompt_embeddings, blob.past_key_values))
    return found


def calibrate(
    loaded: LoadedBase,
    graphs: StaticGraphs,
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
    headroom: float = HEADROOM,
) -> Calibrated:
    """Run texts and prompts through the FP32 graphs.

    Args:
        loaded: For tokenizer, sizes and token table.
        graphs: The graphs.
        rows: Texts; each runs without a prompt.
        prompts: Each runs under some of the texts; at least one of rows.
        headroom: How many times what was seen each range is.
    """
    bucket, maker = graphs.maker
    watch = Watch(maker)
    states: list[State] = []
    for prompt in prompts:
        if prompt.rows is not None:
            feed = prompt_feed(prompt.rows, bucket, UNSEEN)
            found = watch.run(feed, flat(present_names(loaded.dims)))
            states.append(tuple(part[:, :, : prompt.length] for part in found))
        else:
            states.append(tuple(part[None] for pair in prompt.past for part in pair))
    made = watch.ranges
    texts: Ranges = {}
    watches = {bucket: Watch(graph, texts) for bucket, graph in graphs.texts.items()}
    for bucket, feed in _feeds(loaded, list(graphs.texts), rows, states):
        watches[bucket].run(feed, [])
    return _finished(loaded, graphs, widened(made, headroom), widened(texts, headroom))


def _feeds(
    loaded: LoadedBase,
    buckets: Sequence[StaticBucket],
    rows: Sequence[Row],
    states: Sequence[State],
) -> Iterator[tuple[StaticBucket, Feed]]:
    """Every text alone, and each prompt under some of them, in their buckets."""
    dims = loaded.dims
    window = max(bucket.text for bucket in buckets)
    encoder = TextEncoder(loaded.tokenizer_json, min(window, dims.max_positions))
    table = loaded.token_table.cpu().numpy()
    empty = np.zeros((1, dims.kv_heads, 0, dims.head_dim), np.float32)
    nothing: State = (empty,) * (2 * dims.layers)
    share = max(1, len(rows) // TEXTS_A_PROMPT)
    names = flat(past_names(dims))
    for number, state in enumerate((nothing, *states)):
        chosen = rows[number % share :: share] if number else rows
        for row in chosen:
            text = encoder.encode(row.text, row.text_pair)
            prefix = state[0].shape[2]
            bucket = smallest(buckets, prefix, len(text))
            assert bucket is not None  # the window and the longest prompt made them
            mask = np.ones((1, prefix + len(text)), np.int64)
            past = dict(zip(names, state, strict=True))
            embeds = table[text.ids][None]
            types = text.type_ids[None]
            yield bucket, text_feed(embeds, types, mask, past, bucket, UNSEEN)


class Watch:
    """A graph that runs, and the least and largest of each of its values."""

    def __init__(self, graph: onnx.ModelProto, ranges: Ranges | None = None) -> None:
        """Open a graph; what its values reach goes into `ranges` where given."""
        probe = onnx.ModelProto()
        probe.CopyFrom(graph)
        self.ranges: Ranges = {} if ranges is None else ranges
        self._names = [node.output[0] for node in graph.graph.node]
        there = {item.name for item in graph.graph.output}
        for name in self._names:
            if name not in there:
                kind = onnx.TensorProto.FLOAT
                value = onnx.helper.make_tensor_value_info(name, kind, None)
                probe.graph.output.append(value)
        self._session: onnxruntime.InferenceSession = cpu_session(
            probe.SerializeToString()
        )
        self._inputs = {item.name for item in self._session.get_inputs()}

    def run(self, feed: Feed, wanted: Sequence[str]) -> list[Floats]:
        """Run once; the values of some outputs."""
        used = {name: value for name, value in feed.items() if name in self._inputs}
        values = self._session.run(self._names, used)
        found = dict(zip(self._names, values, strict=True))
        for name, value in (*used.items(), *found.items()):
            low, high = self.ranges.get(name, (0.0, 0.0))
            least, most = float(value.min()), float(value.max())
            self.ranges[name] = (min(low, least), max(high, most))
        return [found[name] for name in wanted]


def _finished(
    loaded: LoadedBase, graphs: StaticGraphs, made: Ranges, texts: Ranges
) -> Calibrated:
    """Add the ranges that are known without running anything."""
    table = loaded.token_table
    texts[EMBEDS_NAME] = (float(table.min()), float(table.max()))
    text_graph = next(iter(graphs.texts.values()))
    limits = {EMBEDS_NAME: made[EMBEDS_NAME]}
    names = zip(
        flat(past_names(loaded.dims)), flat(present_names(loaded.dims)), strict=True
    )
    for past, present in names:
        # What the one graph gives is what the others take: at the end of its range
        # it was clipped, and a reader can tell.
        source = source_of(graphs.maker[1], present)
        span = union(texts[past], made[source])
        made[source] = texts[past] = limits[past] = span
        texts[present] = union(texts[present], span)
    bias = min(_hide(graphs.maker[1], made), _hide(text_graph, texts))
    limits[BIAS_NAME] = (bias, 0.0)
    for graph, ranges in ((graphs.maker[1], made), (text_graph, texts)):
        ranges[BIAS_NAME] = (bias, 0.0)
        for node in graph.graph.node:
            if BIAS_NAME in node.input:
                low, high = ranges[node.input[0]]
                ranges[node.output[0]] = (low + bias, high)
            elif node.op_type == "Softmax":
                ranges[node.output[0]] = (0.0, 1.0)
    return Calibrated(made, texts, limits)


def widened(ranges: Ranges, headroom: float = HEADROOM) -> Ranges:
    """Ranges with room for what comes later."""
    return {
        name: (low * headroom, high * headroom) for name, (low, high) in ranges.items()
    }


def union(one: Range, other: Range) -> Range:
    """The range that holds both."""
    return min(one[0], other[0]), max(one[1], other[1])


def source_of(graph: onnx.ModelProto, name: str) -> str:
    """The value that a name has, behind the operators that move it about."""
    producers = GraphEdit(graph).producers
    while name in producers and producers[name].op_type in MOVES:
        name = producers[name].input[0]
    return name


def _hide(graph: onnx.ModelProto, ranges: Ranges) -> float:
    """A bias that leaves nothing of a key, however its score and the others' are."""
    spans = [
        ranges[node.input[0]][1] - ranges[node.input[0]][0]
        for node in graph.graph.node
        if BIAS_NAME in node.input
    ]
    return -max(spans) - CERTAIN
