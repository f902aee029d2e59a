"""Arrangements of a decoder's INT8 graph that were weighed, side by side.

    python benchmarks/decoder_schemes.py MODEL [--rounds N] [--threads N]

MODEL is a decoder's folder, such as the one that decoder_peers.py makes. Of each
arrangement: time of 32 text tokens over a kept prefix of 20, time of one later token,
bytes, cosine of its logits with the FP32 graph's, and whether a text's logits in
company are bit for bit those it has alone: a kept prefix must not depend on who asked
first. The prefix runs through the same graph.
"""

import argparse
import logging
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from timing import alternate

from promptdial.export.build import calibrated_maxima
from promptdial.export.calibration import calibration_texts
from promptdial.export.candidates import (
    dynamic_per_tensor,
    fp32,
    per_row_smooth,
    weight_only,
)
from promptdial.export.decoder_sides import GraphDecoder
from promptdial.export.families import family_of
from promptdial.export.graph_files import write_graph
from promptdial.export.model import LoadedBase, load_base, resolve
from promptdial.export.onnx_edit import copy_model
from promptdial.export.session import cpu_session
from promptdial.export.sides import State
from promptdial.export.smooth import Floats

PROMPT, TEXT, ROUNDS, THREADS = 20, 32, 30, 2
FP32 = "fp32"

Graph = onnx.ModelProto
Build = Callable[[Graph, Mapping[str, Floats]], Graph]


def arrangements(loaded: LoadedBase) -> dict[str, Build]:
    """What is compared, by name; the first is the reference, the second ships."""

    def arranged(build: Build, graph: Graph, maxima: Mapping[str, Floats]) -> Graph:
        graph = copy_model(graph)
        family_of(loaded).arrange(loaded, graph)
        return build(graph, maxima)

    return {
        FP32: fp32,
        "per row, fused attention (ships)": partial(arranged, per_row_smooth),
        "per row, attention as traced": per_row_smooth,
        "MatMulNBits 8 bit, blocks of 32": partial(
            arranged, partial(weight_only, 8, 32)
        ),
        "MatMulNBits 8 bit, blocks of 128": partial(
            arranged, partial(weight_only, 8, 128)
        ),
        "MatMulNBits 4 bit, blocks of 32": partial(
            arranged, partial(weight_only, 4, 32)
        ),
        "dynamic per tensor": dynamic_per_tensor,
    }


def main() -> None:
    """Build every arrangement, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=THREADS)
    options = parser.parse_args()
    logging.disable(logging.INFO)  # onnxruntime's quantiser sets logging up
    loaded = load_base(resolve(options.model))
    exact = family_of(loaded).trace(loaded)
    maxima = calibrated_maxima(loaded, exact, calibration_texts()[:32])
    table = loaded.token_table.numpy()
    wanted: NDArray[np.float32] | None = None
    for name, build in arrangements(loaded).items():
        with tempfile.TemporaryDirectory() as folder:
            files = write_graph(build(exact, maxima), Path(folder), "graph.onnx")
            size = sum((Path(folder) / file).stat().st_size for file in files)
            session = cpu_session(Path(folder) / files[0], threads=options.threads)
            graph = GraphDecoder(session, loaded.dims, table)
            logits, company = answers(graph)
            wanted = logits if wanted is None else wanted
            times = alternate(passes(graph), options.rounds)
            print(
                f"{name:34} warm {times['warm']}  token {times['token']}  "
                f"{size / 1e6:.0f} MB  cosine {cosine(logits, wanted):.4f}  "
                f"{'alone as in company' if company else 'differs in company'}",
                flush=True,
            )


def answers(graph: GraphDecoder) -> tuple[NDArray[np.float32], bool]:
    """Logits [T, V] of a text, and whether they are the same beside a loud one."""
    rng = np.random.default_rng(0)
    text = graph.table[rng.integers(3, len(graph.table), (2, TEXT))]
    text[1] *= 20
    ones = np.ones((2, TEXT), np.int64)
    alone, _ = graph.run(graph.feed(text[:1], ones[:1], []))
    both, _ = graph.run(graph.feed(text, ones, []))
    return alone[0], bool(np.array_equal(alone[0], both[0]))


def passes(graph: GraphDecoder) -> dict[str, Callable[[], object]]:
    """A text over a kept prefix, and one token over both; logits of the last row."""
    rng = np.random.default_rng(1)
    rows = graph.table[rng.integers(3, len(graph.table), (1, PROMPT + TEXT + 1))]

    def feed(start: int, end: int, state: State) -> dict[str, NDArray[np.generic]]:
        ones = np.ones((1, end - start), np.int64)
        found = graph.feed(rows[:, start:end], ones, state)
        return found | {"logits_to_keep": np.array([1])}

    _, prefix = graph.run(feed(0, PROMPT, []))
    warm = feed(PROMPT, PROMPT + TEXT, prefix)
    _, state = graph.run(warm)
    token = feed(PROMPT + TEXT, PROMPT + TEXT + 1, state)
    names = [value.name for value in graph.session.get_outputs()]
    return {
        "warm": lambda: graph.session.run(names, warm),
        "token": lambda: graph.session.run(names, token),
    }


def cosine(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Mean over the rows, about each row's mean."""
    a = found - found.mean(-1, keepdims=True)
    b = wanted - wanted.mean(-1, keepdims=True)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / norms).mean())


if __name__ == "__main__":
    main()
