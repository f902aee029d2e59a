"""What gradient checkpointing saves and costs: a decoder's training step (Linux).

    python benchmarks/training_memory.py MODEL [--batch B] [--tokens T] [--steps N]

Each method with and without it runs in a process of its own: some steps over random
tokens, the last eighth of each row being the target. Memory is the peak of RSS over
what the process held before its first step; time is the median step, with quartiles.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from promptdial.export.model import load_base, resolve
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.decoders.decoder_base import decoder_base
from promptdial.prompts.training.decoders.generation_rows import GenerationBatch
from promptdial.prompts.training.initialise import prompt_rows
from promptdial.prompts.training.parameters import make_prompt
from promptdial.prompts.training.step import make_optimiser, take_step
from promptdial.prompts.training.task import Task

METHODS = ("prompt", "prefix")


def status_mb(key: str) -> float:
    """A line of this process's status, in MB."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    found = next(line for line in lines if line.startswith(f"{key}:"))
    return int(found.split()[1]) / 1024


def measure(model: str, method: str, less: bool, shape: list[int]) -> dict[str, float]:
    """Figures of one kind of step, in this process.

    Args:
        model: MODEL.
        method: `prompt` or `prefix`.
        less: With gradient checkpointing.
        shape: Rows [B], tokens [T], and steps.
    """
    count, tokens, steps = shape
    cpu = torch.device("cpu")
    base = decoder_base(load_base(resolve(model)), cpu, gradient_checkpointing=less)
    config = TrainConfig(method=method, init="vocab")
    rows = prompt_rows(base, Task("t", "generation", (), [], []), config)
    prompt = make_prompt(method, base, rows)
    optimiser, _ = make_optimiser(prompt, None, config, count)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(base.dims.vocab, (count, tokens), generator=generator)
    wanted = torch.zeros(count, tokens, dtype=torch.bool)
    wanted[:, -max(1, tokens // 8) :] = True
    batch = GenerationBatch(ids, torch.ones_like(ids), wanted)
    before = status_mb("VmRSS")
    # The peak of loading does not count.
    Path("/proc/self/clear_refs").write_text("5", "utf-8")
    times = []
    for _ in range(steps):
        started = time.perf_counter()
        loss = base.losses(batch, prompt.state(base)).mean()
        take_step(loss, base, prompt, None, optimiser, config)
        times.append(1e3 * (time.perf_counter() - started))
    low, middle, high = (float(np.percentile(times, at)) for at in (25, 50, 75))
    return {
        "peak_mb": round(status_mb("VmHWM") - before, 1),
        "ms": round(middle, 1),
        "ms_low": round(low, 1),
        "ms_high": round(high, 1),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "LESS"))
    args = parser.parse_args()
    shape = [args.batch, args.tokens, args.steps]
    if args.one:
        method, less = args.one
        print(json.dumps(measure(args.model, method, less == "True", shape)))
        return
    sizes = ["--batch", str(args.batch), "--tokens", str(args.tokens)]
    sizes += ["--steps", str(args.steps)]
    for method in METHODS:
        for less in (False, True):
            one = [sys.executable, __file__, args.model, *sizes, "--one"]
            run = subprocess.run(
                [*one, method, str(less)], capture_output=True, text=True, check=True
            )
            print(method, "checkpointed" if less else "kept", run.stdout.strip())


if __name__ == "__main__":
    main()
