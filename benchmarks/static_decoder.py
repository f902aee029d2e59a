"""A decoder's graphs of fixed sizes on their accelerator, beside the CPU and FP32.

    python benchmarks/static_decoder.py BUNDLE

BUNDLE has the variants `fp32` and `qnn`. Without such a processor its simulator runs,
whose times say nothing; what is measured is how near the logits are, with a random
prompt of 20 rows and without, and that what was compiled is opened again.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from promptdial.runtime.accelerator import CPU
from promptdial.runtime.bundle import Bundle, open_bundle
from promptdial.runtime.caches import begin
from promptdial.runtime.contexts import Contexts
from promptdial.runtime.decoder_session import DecoderSession
from promptdial.runtime.manifest import TOKEN_TABLE_NAME
from promptdial.runtime.profiles import PROFILES
from promptdial.runtime.qnn import QNN
from promptdial.runtime.session import Floats
from promptdial.runtime.static_decoder import StaticDecoderSession
from promptdial.runtime.table import TokenTable
from promptdial.runtime.text import TextEncoder

TEXT = "the film was not very good and the book was great"
WRITTEN = 4
ROWS = 20
Session = DecoderSession | StaticDecoderSession


def opened(bundle: Bundle, provider: str, contexts: Contexts) -> StaticDecoderSession:
    """The variant qnn on one provider."""
    variant = bundle.manifest.graphs["qnn"]
    return StaticDecoderSession(
        bundle.path,
        variant,
        bundle.manifest.dims,
        PROFILES["latency"],
        None,
        [provider],
        contexts,
    )


def logits(session: Session, rows: Floats, prompt: Floats | None) -> Floats:
    """Logits [R, V] behind the last tokens of a text [1, T, H], one by one."""
    used = 0 if prompt is None else len(prompt)
    state = session.no_prompt if prompt is None else session.state_of(prompt)
    cache = begin(session, state, used, used + rows.shape[1])
    end = rows.shape[1] - WRITTEN
    found = [cache.forward(rows[:, :end])[0].copy()]
    for place in range(end, rows.shape[1]):
        found.append(cache.forward(rows[:, place : place + 1])[0].copy())
    return np.concatenate(found)


def least_cosine(one: Floats, other: Floats) -> float:
    """Of rows [R, V]."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(((one * other).sum(1) / norms).min())


def measure(bundle: Bundle) -> dict[str, object]:
    """Figures of one bundle."""
    dims, profile = bundle.manifest.dims, PROFILES["latency"]
    # The real path: what is kept for it beside the bundle, an Engine opens too.
    beside = bundle.path.absolute()
    kept = beside.with_name(f"{beside.name}.contexts")
    contexts = Contexts(kept, bundle.graph_digest)
    began = time.perf_counter()
    first = opened(bundle, QNN, contexts)
    middle = time.perf_counter()
    again = opened(bundle, QNN, contexts)
    ended = time.perf_counter()
    sessions: dict[str, Session] = {
        "fp32": DecoderSession(bundle.path / "model_fp32.onnx", dims, profile),
        "cpu": opened(bundle, CPU, contexts),
        "qnn": again,
    }
    ids = TextEncoder(bundle.tokenizer_json(), dims.max_positions).encode(TEXT).ids
    table = TokenTable(
        bundle.path / TOKEN_TABLE_NAME, dims.vocab, dims.embedding, mapped=True
    )
    rows = table.embed(ids)[None]
    spread = float(rows.std())
    rng = np.random.default_rng(1)
    prompt = rng.normal(0, spread, (ROWS, dims.embedding)).astype(np.float32)
    result: dict[str, object] = {
        "placement": first.placement,
        "seconds_to_compile": round(middle - began, 1),
        "seconds_to_open_again": round(ended - middle, 1),
    }
    plain = {name: logits(each, rows, None) for name, each in sessions.items()}
    steered = {name: logits(each, rows, prompt) for name, each in sessions.items()}
    for name, found in (("plain", plain), ("prompted", steered)):
        for one, other in (("cpu", "fp32"), ("qnn", "cpu"), ("qnn", "fp32")):
            key = f"cosine_{name}_{one}_{other}"
            result[key] = least_cosine(found[one], found[other])
    result["cosine_prompted_plain"] = least_cosine(steered["qnn"], plain["qnn"])
    return result


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    bundle = open_bundle(parser.parse_args().bundle, "qnn")
    print(json.dumps(measure(bundle), indent=2))


if __name__ == "__main__":
    main()
