"""INT8 and int4 schemes side by side: time against dynamic INT8, nearness to FP32.

    python benchmarks/int8_schemes.py TASKS [--model MODEL] [--rounds N] [--texts N]

TASKS holds the task folders whose test texts are embedded. One thread, sessions run
in turn; cosines are of mean-pooled outputs against the FP32 graph.
"""

import argparse
import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from timing import alternate

from promptdial.export.calibration import calibration_texts
from promptdial.export.candidates import CANDIDATES
from promptdial.export.channel_calibration import calibrated_maxima
from promptdial.export.encoder_graph import export_graph
from promptdial.export.model import LoadedBase, load_base
from promptdial.export.source import resolve
from promptdial.runtime.text import TextEncoder

SOURCES = ("ag_news", "sst2", "sms_spam", "rte", "clinc150")
PLAIN = "dynamic per tensor"
TEXT_TOKENS = 32
PROMPT_TOKENS = (0, 20)

Feed = dict[str, NDArray[np.generic]]


def main() -> None:
    """Build every candidate, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--texts", type=int, default=500)
    args = parser.parse_args()
    # onnxruntime's quantiser sets logging up and onnx_ir then tells everything.
    logging.disable(logging.INFO)
    loaded = load_base(resolve(args.model))
    exact = export_graph(loaded)
    maxima = calibrated_maxima(loaded, exact, calibration_texts())
    sessions = {
        name: session(build(exact, maxima).SerializeToString())
        for name, build in CANDIDATES.items()
    }
    feeds = [feed(loaded, ids, 0) for ids in token_ids(loaded, args.tasks, args.texts)]
    print(f"{len(feeds)} texts")
    reference = embeddings(sessions["fp32"], feeds)
    for name, one in sessions.items():
        cosine = (embeddings(one, feeds) * reference).sum(1)
        print(f"{name:20} cosine mean {cosine.mean():.4f}, least {cosine.min():.4f}")
    for length in PROMPT_TOKENS:
        print(f"{TEXT_TOKENS} text tokens over a prefix of {length}:")
        ids = np.random.default_rng(0).integers(1000, 20_000, TEXT_TOKENS)
        found = alternate(runs(sessions, feed(loaded, ids, length)), args.rounds)
        for name, times in found.items():
            share = times.p50 / found[PLAIN].p50
            print(f"  {name:20} {times}  {share:.3f} x {PLAIN}")


def session(model: bytes) -> ort.InferenceSession:
    """A session of one thread that never spins while another one runs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options)


def runs(
    sessions: dict[str, ort.InferenceSession], item: Feed
) -> dict[str, Callable[[], object]]:
    """One run of each session on the same input."""
    return {
        name: partial(one.run, ["last_hidden_state"], item)
        for name, one in sessions.items()
    }


def token_ids(loaded: LoadedBase, tasks: Path, count: int) -> list[NDArray[np.int64]]:
    """Token ids of test texts, the same number from each source."""
    encoder = TextEncoder(loaded.tokenizer_json, loaded.dims.max_positions)
    each = -(-count // len(SOURCES))
    texts: list[str] = []
    for name in SOURCES:
        lines = (tasks / name / "test.jsonl").read_text("utf-8").splitlines()
        texts += [json.loads(line)["text"] for line in lines[:each]]
    return [encoder.encode(text).ids for text in texts[:count]]


def feed(loaded: LoadedBase, ids: NDArray[np.int64], length: int) -> Feed:
    """Inputs of one text over a random prefix."""
    dims, rng = loaded.dims, np.random.default_rng(1)
    shape = (1, dims.kv_heads, length, dims.head_dim)
    table = loaded.token_table.cpu().numpy()
    item: Feed = {
        "inputs_embeds": table[ids][None],
        "attention_mask": np.ones((1, length + len(ids)), np.int64),
        "position_ids": np.arange(len(ids))[None],
        "token_type_ids": np.zeros((1, len(ids)), np.int64),
    }
    for layer in range(dims.layers):
        for part in ("key", "value"):
            past = rng.standard_normal(shape).astype(np.float32) * 0.3
            item[f"past_key_values.{layer}.{part}"] = past
    return item


def embeddings(one: ort.InferenceSession, feeds: list[Feed]) -> NDArray[np.float32]:
    """Mean-pooled outputs of length 1, [N, H]."""
    pooled = np.stack(
        [one.run(["last_hidden_state"], item)[0][0].mean(0) for item in feeds]
    )
    return np.asarray(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))


if __name__ == "__main__":
    main()
