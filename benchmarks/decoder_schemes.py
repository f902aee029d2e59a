"""Arrangements of a decoder's INT8 graph that were weighed, side by side.

    python benchmarks/decoder_schemes.py MODEL [--rounds N] [--threads N]

MODEL is a decoder's folder, such as the one that decoder_peers.py makes. Of each
arrangement: time of 32 text tokens over a kept prefix of 20, time of a later token in a
row of eight, bytes, cosine of its logits with the FP32 graph's, and whether a text's
logits in company are bit for bit those it has alone: a kept prefix must not depend on
who asked first. The prefix runs through the same graph; all take turns.
"""

import argparse
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from promptdial.export.calibration import calibration_texts
from promptdial.export.candidates import (
    dynamic_per_tensor,
    fp32,
    per_row_smooth,
    weight_only,
)
from promptdial.export.channel_calibration import calibrated_maxima
from promptdial.export.decoder_sides import GraphDecoder
from promptdial.export.families import family_of
from promptdial.export.graph_files import write_graph
from promptdial.export.model import LoadedBase, load_base, resolve
from promptdial.export.onnx_edit import copy_model
from promptdial.export.quantise_blocks import quantise_int4
from promptdial.export.session import cpu_session
from promptdial.export.sides import State
from promptdial.export.smooth import Floats

PROMPT, TEXT, TOKENS, ROUNDS, THREADS = 20, 32, 8, 30, 2
PAUSE_S = 0.05
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
        "int4, blocks of 32 (ships)": partial(arranged, quantise_int4),
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
    with tempfile.TemporaryDirectory() as folder:
        graphs, sizes = {}, {}
        for number, (name, build) in enumerate(arrangements(loaded).items()):
            place = Path(folder, str(number))
            place.mkdir()
            files = write_graph(build(exact, maxima), place, "graph.onnx")
            sizes[name] = sum((place / file).stat().st_size for file in files)
            session = cpu_session(place / files[0], threads=options.threads)
            graphs[name] = GraphDecoder(session, loaded.dims, table)
    found = {name: answers(graph) for name, graph in graphs.items()}
    times = measured(graphs, options.rounds)
    for name, (logits, company) in found.items():
        print(
            f"{name:34} warm {times[name, 'warm']}  token {times[name, 'token']}  "
            f"{sizes[name] / 1e6:.0f} MB  cosine {cosine(logits, found[FP32][0]):.4f}  "
            f"{'alone as in company' if company else 'differs in company'}"
        )


def measured(
    graphs: Mapping[str, GraphDecoder], rounds: int
) -> dict[tuple[str, str], str]:
    """Medians and quartiles in ms; all graphs take turns in every round.

    Each turn begins with a pause, in which the last one's idle threads stop spinning,
    and with a pass that does not count.
    """
    runs = {name: passes(graph) for name, graph in graphs.items()}
    seconds: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        for name, kinds in runs.items():
            time.sleep(PAUSE_S)
            for kind, (run, repeats) in kinds.items():
                run()
                begun = time.perf_counter()
                for _ in range(repeats):
                    run()
                taken = (time.perf_counter() - begun) / repeats
                seconds.setdefault((name, kind), []).append(taken)
    quartiles = {
        key: 1e3 * np.percentile(v, [25, 50, 75]) for key, v in seconds.items()
    }
    return {
        key: f"{middle:.2f} ms ({low:.2f}-{high:.2f})"
        for key, (low, middle, high) in quartiles.items()
    }


def answers(graph: GraphDecoder) -> tuple[NDArray[np.float32], bool]:
    """Logits [T, V] of a text, and whether they are the same beside a loud one."""
    rng = np.random.default_rng(0)
    text = graph.table[rng.integers(3, len(graph.table), (2, TEXT))]
    text[1] *= 20
    ones = np.ones((2, TEXT), np.int64)
    alone, _ = graph.run(graph.feed(text[:1], ones[:1], []))
    both, _ = graph.run(graph.feed(text, ones, []))
    return alone[0], bool(np.array_equal(alone[0], both[0]))


def passes(graph: GraphDecoder) -> dict[str, tuple[Callable[[], object], int]]:
    """A text over a kept prefix, and tokens over both, with how many in a row."""
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

    def run(inputs: dict[str, NDArray[np.generic]]) -> Callable[[], object]:
        # Keys and values are not copied to numpy and back, as in the runtime.
        values = {
            name: ort.OrtValue.ortvalue_from_numpy(value)
            for name, value in inputs.items()
        }
        return lambda: graph.session.run_with_ort_values(names, values)

    return {"warm": (run(warm), 2), "token": (run(token), TOKENS)}


def cosine(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Mean over the rows, about each row's mean."""
    a = found - found.mean(-1, keepdims=True)
    b = wanted - wanted.mean(-1, keepdims=True)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / norms).mean())


if __name__ == "__main__":
    main()
