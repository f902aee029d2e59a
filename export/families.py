"""What differs between encoders and decoders on the way from model to bundle."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from promptdial.export import decoder_verify, verify
from promptdial.export.decoder_graph import export_decoder
from promptdial.export.decoder_sides import GraphDecoder
from promptdial.export.decoder_verify import compare_decoder
from promptdial.export.encoder_graph import export_graph
from promptdial.export.group_query import fuse_group_query
from promptdial.export.masks import sliding_window
from promptdial.export.model import DECODER, ENCODER, LoadedBase
from promptdial.export.session import cpu_session
from promptdial.export.sides import Floats, GraphSide, batch_of
from promptdial.export.verify import Parity, Prompt, compare
from promptdial.runtime.rows import Row
from promptdial.runtime.text import TextEncoder

Feed = Mapping[str, NDArray[np.generic]]
Graphs = Mapping[str, Path]
"""Graph files by variant."""


@dataclass(frozen=True)
class Family:
    """The steps of one family.

    Attributes:
        trace: The FP32 graph of a base.
        arrange: Fuses nodes of a graph that is to be quantised, in place.
        feeds: A graph's inputs for calibration texts, one text each.
        compare: Parity of graph files with PyTorch, over a token table [V, H].
        min_cosine: Least mean cosine that parity asks for, by precision.
    """

    trace: Callable[[LoadedBase], onnx.ModelProto]
    arrange: Callable[[LoadedBase, onnx.ModelProto], None]
    feeds: Callable[
        [LoadedBase, onnxruntime.InferenceSession, Sequence[Row]], Iterator[Feed]
    ]
    compare: Callable[
        [LoadedBase, Graphs, Floats, Sequence[Row], Sequence[Prompt]], Parity
    ]
    min_cosine: Mapping[str, float]


def family_of(loaded: LoadedBase) -> Family:
    """The steps for a base."""
    return _FAMILIES[loaded.family]


def _encoder_feeds(
    loaded: LoadedBase, session: onnxruntime.InferenceSession, rows: Sequence[Row]
) -> Iterator[Feed]:
    encoder = TextEncoder(loaded.tokenizer_json, loaded.dims.max_positions)
    table = loaded.token_table.cpu().numpy()
    side = GraphSide(session, loaded.dims, loaded.attention, table)
    for row in rows:
        batch = batch_of([encoder.encode(row.text, row.text_pair)])
        yield side.feed(batch, [], table[batch.ids])


def _encoder_compare(
    loaded: LoadedBase,
    graphs: Graphs,
    table: Floats,
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
) -> Parity:
    sides = {
        name: GraphSide(cpu_session(path), loaded.dims, loaded.attention, table)
        for name, path in graphs.items()
    }
    return compare(loaded, sides, rows, prompts)


def _decoder_arrange(loaded: LoadedBase, graph: onnx.ModelProto) -> None:
    fuse_group_query(graph, loaded.dims, sliding_window(loaded.model.config))


def _decoder_feeds(
    loaded: LoadedBase, session: onnxruntime.InferenceSession, rows: Sequence[Row]
) -> Iterator[Feed]:
    encoder = TextEncoder(loaded.tokenizer_json, loaded.dims.max_positions)
    table = loaded.token_table.cpu().numpy()
    side = GraphDecoder(session, loaded.dims, table)
    for row in rows:
        batch = batch_of([encoder.encode(row.text, row.text_pair)])
        yield side.feed(table[batch.ids], batch.mask, [])


def _decoder_compare(
    loaded: LoadedBase,
    graphs: Graphs,
    table: Floats,
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
) -> Parity:
    sides = {
        name: GraphDecoder(cpu_session(path), loaded.dims, table)
        for name, path in graphs.items()
    }
    return compare_decoder(loaded, sides, rows, prompts)


_FAMILIES = {
    ENCODER: Family(
        export_graph,
        lambda loaded, graph: None,
        _encoder_feeds,
        _encoder_compare,
        verify.MIN_COSINE,
    ),
    DECODER: Family(
        export_decoder,
        _decoder_arrange,
        _decoder_feeds,
        _decoder_compare,
        decoder_verify.MIN_COSINE,
    ),
}
