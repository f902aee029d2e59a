"""A decoder's graphs of fixed sizes on their accelerator, beside the CPU and FP32.

    python benchmarks/static_decoder.py BUNDLE [--target qnn]

BUNDLE has the variants `fp32` and the target's. Measured is how near the logits are,
with a random prompt of 20 rows and without, how long opening takes, and again where
compiled graphs are kept; and a token's time beside int8 on the CPU, where a bundle has
it and the target runs without a simulator.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from timing import Spread, alternate

from promptdial.runtime.accelerator import CPU, PROVIDERS_OF_TARGET
from promptdial.runtime.bundle import Bundle, open_bundle
from promptdial.runtime.caches import begin
from promptdial.runtime.contexts import Contexts
from promptdial.runtime.decoder_session import DecoderSession
from promptdial.runtime.manifest import TOKEN_TABLE_NAME
from promptdial.runtime.profiles import PROFILES
from promptdial.runtime.session import Floats
from promptdial.runtime.static_decoder import StaticDecoderSession
from promptdial.runtime.table import TokenTable
from promptdial.runtime.text import TextEncoder

TEXT = "the film was not very good and the book was great"
WRITTEN = 4
THREADS = 1
ROUNDS = 100
SIMULATED = "qnn"
ROWS = 20
Session = DecoderSession | StaticDecoderSession


def opened(bundle: Bundle, provider: str, contexts: Contexts) -> StaticDecoderSession:
    """The bundle's variant on one provider, with one thread."""
    return StaticDecoderSession(
        bundle.path,
        bundle.variant,
        bundle.manifest.dims,
        PROFILES["latency"],
        THREADS,
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


def token_times(sessions: dict[str, Session], rows: Floats) -> dict[str, Spread]:
    """Milliseconds of one more token behind a text [1, T, H], by session."""
    runs = {}
    for name, session in sessions.items():
        length = rows.shape[1]
        cache = begin(session, session.no_prompt, 0, length + ROUNDS + 1)
        cache.forward(rows)
        runs[name] = lambda cache=cache: cache.forward(rows[:, -1:])
    return alternate(runs, ROUNDS)


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
    target = bundle.variant.target
    (provider,) = PROVIDERS_OF_TARGET[target]
    first = opened(bundle, provider, contexts)
    middle = time.perf_counter()
    again = opened(bundle, provider, contexts)
    ended = time.perf_counter()
    sessions: dict[str, Session] = {
        "fp32": DecoderSession(bundle.path / "model_fp32.onnx", dims, profile),
        "cpu": opened(bundle, CPU, contexts),
        target: again,
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
        for one, other in (("cpu", "fp32"), (target, "cpu"), (target, "fp32")):
            key = f"cosine_{name}_{one}_{other}"
            result[key] = least_cosine(found[one], found[other])
    result["cosine_prompted_plain"] = least_cosine(steered[target], plain[target])
    int8 = bundle.path / "model_int8.onnx"
    if target != SIMULATED and int8.exists():
        timed: dict[str, Session] = {
            target: again,
            "int8": DecoderSession(int8, dims, profile, THREADS),
        }
        spreads = token_times(timed, rows)
        result["ms_a_token"] = {name: str(x) for name, x in spreads.items()}
        share = spreads["int8"].p50 / spreads[target].p50
        result[f"int8 / {target}"] = round(share, 2)
    return result


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--target", default="qnn", choices=sorted(PROVIDERS_OF_TARGET))
    args = parser.parse_args()
    bundle = open_bundle(args.bundle, args.target)
    print(json.dumps(measure(bundle), indent=2))


if __name__ == "__main__":
    main()
