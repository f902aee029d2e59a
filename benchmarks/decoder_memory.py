"""Peak memory of a decoder over a bare import, and what ten more prompts add (Linux).

    python benchmarks/decoder_memory.py BUNDLE [--profile NAME ...] [--json]

Each profile runs in a process of its own: it opens the bundle, answers a short text
with 16 new tokens over one random prompt of 20 virtual tokens, then over ten more.
PSS is sampled every 2 ms; figures are differences to the same process before opening.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

PROFILES = ("latency", "battery", "memory")
CHILD = """
import sys, threading, time
from dataclasses import replace
from pathlib import Path
import numpy as np
import onnxruntime, tokenizers
from promptdial.prompts import PromptMeta, make_blob
from promptdial.runtime.engine import Engine

def pss():
    found = {}
    for line in Path("/proc/self/smaps_rollup").read_text("utf-8").splitlines()[1:]:
        name, value, *_ = line.split()
        found[name] = int(value)
    return found["Pss:"], found["Pss_Anon:"]

bundle, profile = sys.argv[1:3]
start, peak, done = pss(), [0, 0], threading.Event()

def watch():
    while not done.wait(0.002):
        peak[:] = [max(old, new) for old, new in zip(peak, pss())]

def over():
    return [round((value - base) / 1024, 2) for value, base in zip(peak, start)]

threading.Thread(target=watch, daemon=True).start()
engine = Engine(bundle, profile=profile, threads=2)
base, dims = engine.manifest.base, engine.manifest.dims
meta = PromptMeta(task="p0", version=1, kind="generation",
    attention=engine.manifest.attention, base_model=base.model,
    base_fingerprint=base.fingerprint,
    tokenizer_fingerprint=base.tokenizer_fingerprint, labels=(), pooling="")
rng = np.random.default_rng(0)
text = "wake me at seven, then play the news"

def use(number):
    rows = (0.04 * rng.standard_normal((20, dims.embedding))).astype(np.float32)
    engine.load(make_blob(replace(meta, task=f"p{number}"), embeddings=rows))
    engine.generate(f"p{number}", text, max_new_tokens=16)

use(0)
time.sleep(0.1)
one = over()
for number in range(1, 11):
    use(number)
time.sleep(0.1)
eleven = over()
done.set()
prefix = engine._prompts.cache.nbytes / 2**20 / 11
print(one[0], one[1], eleven[0], eleven[1], round(prefix, 3))
"""


def measure(bundle: Path, profile: str) -> dict[str, float]:
    """Figures of one profile, in MB and as multiples of the INT8 weights."""
    run = subprocess.run(
        [sys.executable, "-c", CHILD, str(bundle), profile],
        capture_output=True,
        text=True,
        check=True,
    )
    one, own, eleven, own_eleven, prefix = map(float, run.stdout.split())
    weights = sum(path.stat().st_size for path in bundle.glob("model_int8*")) / 2**20
    return {
        "weights_mb": round(weights, 1),
        "peak_mb": one,
        "peak_over_weights": round(one / weights, 2),
        "private_mb": own,
        "ten_more_add_mb": round(eleven - one, 2),
        "ten_more_add_private_mb": round(own_eleven - own, 2),
        "ten_prefixes_mb": round(10 * prefix, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--profile", nargs="*", choices=PROFILES, default=PROFILES)
    parser.add_argument("--json", action="store_true", help="one object on stdout")
    args = parser.parse_args()
    rows = {name: measure(args.bundle, name) for name in args.profile}
    if args.json:
        print(json.dumps(rows))
        return
    for name, row in rows.items():
        print(name, ", ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
