"""Time of a training step on a bundle's graphs, beside PyTorch's own model.

    OMP_NUM_THREADS=1 python benchmarks/quantised_cost.py BUNDLE [--model MODEL]
        [--rounds N] [--method prompt|prefix]

A step is the features of 32 texts of 16 tokens over 20 virtual ones, and the gradients
of the latter. All take turns in every round. Times are of the processor, not of the
wall, so that other programs matter less.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from promptdial.prompts.training.base import FrozenBase, open_base
from promptdial.prompts.training.batches import TextBatch
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.graphs.graph_base import on_graph
from promptdial.prompts.training.heads import features
from promptdial.prompts.training.parameters import Prompt, make_prompt
from promptdial.runtime.bundle import open_bundle

BATCH, TOKENS, PROMPT = 32, 16, TrainConfig().num_virtual_tokens
PLAIN = "torch-fp32"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--method", default="prompt")
    args = parser.parse_args()
    plain = open_base(args.model, torch.device("cpu"))
    bases = {PLAIN: plain}
    for name in sorted(open_bundle(args.bundle).manifest.graphs):
        bases[name] = on_graph(plain, args.bundle, name)
    steps = {}
    for name, base in bases.items():
        prompt = make_prompt(args.method, base, base.token_table[2000 : 2000 + PROMPT])
        steps[name] = partial(step, base, prompt)
        steps[name]()
    times: dict[str, list[float]] = {name: [] for name in bases}
    for _ in range(args.rounds):
        for name, run in steps.items():
            started = time.process_time()
            run()
            times[name].append(1e3 * (time.process_time() - started))
    for name, taken in times.items():
        low, middle, high = np.percentile(taken, [25, 50, 75])
        share = middle / np.median(times[PLAIN])
        print(f"{name:10} {middle:6.1f} ms ({low:.1f}-{high:.1f})  {share:.2f} x")


def step(base: FrozenBase, prompt: Prompt) -> None:
    """Loss and gradients of one batch of random tokens."""
    ids = np.random.default_rng(0).integers(1000, 20_000, (BATCH, TOKENS))
    zeros = torch.zeros(BATCH, TOKENS, dtype=torch.long)
    batch = TextBatch(torch.from_numpy(ids), zeros, zeros + 1, zeros.bool())
    pooled = features(base.hidden(batch, prompt.state(base)), batch, "mean_l2")
    prompt.zero_grad()
    pooled[:, :64].sum().backward()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
