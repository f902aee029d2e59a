"""Decomposed prompts (DePT) beside plain ones of as many trained numbers.

    python benchmarks/decomposed_prompt.py TASKS TASK [TASK ...] --out LINES.jsonl

DePT (Shi and Lipani 2024, arXiv:2309.05173) gives half of a prompt's numbers to a pair
of matrices [S, R] and [R, H] whose product is added to the embeddings of the text,
place by place, and is paid back in time: the prompt is half as long. A prompt that is
a prefix costs no time whatever its length, so what is left is whether it is better.
Sides: `plain` (P rows), `short` (P / 2 rows: what the pair has to beat), `dept` (P / 2
rows and the pair at the rate of the rows) and `dept_slow` (the pair at a tenth of it;
the paper's rates lie further apart still). TASKS holds the task folders
(classification); all sides start from the same class vectors and random rows, and see
the same batches. One JSON line a run; a run whose line is there is not done again.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from run_lines import add_line, is_there, read_lines
from torch import Tensor, nn
from training_sides import Side, fit

from promptdial.prompts.training.base import FrozenBase, open_base, pick_device
from promptdial.prompts.training.batches import TextBatch
from promptdial.prompts.training.config import TrainConfig, peak_rate
from promptdial.prompts.training.initialise import prompt_rows
from promptdial.prompts.training.task import Task, read_task

SIDES = ("plain", "short", "dept", "dept_slow")
PLACES = 64
"""S: places of the text that get a row of their own; later ones stay as they are."""
SLOW = 0.1


def main() -> None:
    """Run what is missing, then print the means."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", metavar="TASKS", type=Path)
    parser.add_argument("names", metavar="TASK", nargs="+")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--num-virtual-tokens", type=int, default=20)
    args = parser.parse_args()
    base = open_base(args.model, pick_device(args.device))
    done = read_lines(args.out)
    for name in args.names:
        task = read_task(args.tasks / name, args.limit)
        for seed in range(args.seeds):
            for side in args.sides:
                what = {
                    "task": name,
                    "limit": args.limit,
                    "epochs": args.epochs,
                    "tokens": args.num_virtual_tokens,
                    "seed": seed,
                    "side": side,
                }
                if is_there(what, done):
                    continue
                line = {**what, **run(base, task, what)}
                done.append(line)
                add_line(args.out, line)
                print(line, flush=True)
    show([line for line in done if line["task"] in args.names])


def run(base: FrozenBase, task: Task, what: dict[str, Any]) -> dict[str, Any]:
    """One run: dev and test accuracy, trained numbers, seconds."""
    started = time.monotonic()
    torch.manual_seed(what["seed"])
    config = TrainConfig(
        init="random", num_virtual_tokens=what["tokens"], seed=what["seed"]
    )
    rows = prompt_rows(base, task, config)
    if what["side"] == "plain":
        side = plain(base, rows)
    elif what["side"] == "short":
        side = plain(base, rows[: len(rows) // 2])
    else:
        share = SLOW if what["side"] == "dept_slow" else 1.0
        side = decomposed(base, rows, share)
    found = fit(base, task, side, peak_rate(config), what["epochs"], what["seed"])
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def plain(base: FrozenBase, start: Tensor) -> Side:
    """Rows [P, H] as a prefix."""
    rows = nn.Parameter(start.clone())
    return Side(lambda batch: base.hidden(batch, base.state_of(rows)), [rows])


def decomposed(base: FrozenBase, start: Tensor, share: float) -> Side:
    """Half of the rows [P, H], and a pair of matrices of the other half's numbers."""
    count, width = start.shape
    rank = (count - count // 2) * width // (PLACES + width)
    rows = nn.Parameter(start[: count // 2].clone())
    # The paper's start: one matrix random, the other zero, so that texts begin as is.
    left = nn.Parameter(torch.randn(PLACES, rank, device=start.device) / rank**0.5)
    right = nn.Parameter(torch.zeros(rank, width, device=start.device))

    def hidden(batch: TextBatch) -> Tensor:
        places = min(PLACES, batch.ids.shape[1])
        added = nn.functional.pad(
            left[:places] @ right, (0, 0, 0, batch.ids.shape[1] - places)
        )
        embeds = base.token_table[batch.ids] + added
        state = base.state_of(rows)
        return base.frozen.hidden(embeds, batch.mask, batch.type_ids, state)

    return Side(hidden, [rows, left, right], ([left, right], share))


def show(lines: list[dict[str, Any]]) -> None:
    """Dev and test accuracy of each side: mean, lowest and highest test."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["task"], line["side"]), []).append(line)
    for (task, side), runs in sorted(groups.items()):
        test = [line["test"] for line in runs]
        dev = statistics.fmean(line["dev"] for line in runs)
        print(
            f"{task:14} {side:10} {runs[0]['numbers']:6} numbers: dev {dev:5.1f} test "
            f"{statistics.fmean(test):5.1f} ({min(test):.1f}-{max(test):.1f}, "
            f"{len(test)} seeds)"
        )


if __name__ == "__main__":
    main()
