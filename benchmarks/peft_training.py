"""PEFT's prompt and prefix tuning beside ours: task, rows, steps, order, seed the same.

    python benchmarks/peft_training.py TASKS TASK [TASK ...] --out LINES.jsonl

TASKS holds the task folders (classification). One JSON line a run; a run whose line is
in LINES.jsonl is not run again. Two settings:

`same`: PEFT's recipe on both sides (its example for sequence classification: 10 virtual
tokens, rows of a normal distribution, AdamW at 1e-3 with a linear fall, no clipping),
from the very same rows and class vectors. What is left is how the prompt enters. PEFT
puts its rows in front of the text: they see it, and push its positions up by P. Ours
are a prefix: they see each other alone, and the text keeps its positions (`ours`).
`full` is ours with rows that see the text: all of PEFT's way but the positions.

`defaults`: each at its own. PEFT: the recipe above, and for prefix tuning 20 virtual
tokens at 1e-2, random. Ours: TrainConfig() with methods prompt and prefix. PEFT has no
head for mean-pooled features; it gets ours, from the same class vectors, and the epoch
that is best on dev, as ours does.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from run_lines import add_line, is_there, read_lines
from torch import Tensor, nn
from training_sides import Side, fit
from transformers import AutoModel

from promptdial.export.forward import FULL
from promptdial.export.model import quiet_transformers, resolve
from promptdial.prompts.training.base import FrozenBase, open_base, pick_device
from promptdial.prompts.training.batches import (
    TextBatch,
    encode_rows,
)
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.scoring import score
from promptdial.prompts.training.task import Task, read_task
from promptdial.prompts.training.trainer import train

SIDES = {
    "same": ("peft_prompt", "ours_prompt", "full_prompt"),
    "defaults": ("peft_prompt", "peft_prefix", "ours_prompt", "ours_prefix"),
}
PEFT_RECIPES = {"prompt": (10, 1e-3), "prefix": (20, 1e-2)}
"""Virtual tokens and rate of PEFT's examples/sequence_classification notebooks."""


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tasks", metavar="TASKS", type=Path)
    parser.add_argument("names", metavar="TASK", nargs="+")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--settings", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    base = open_base(args.model, pick_device(args.device))
    done = read_lines(args.out)
    for name in args.names:
        task = read_task(args.tasks / name, args.limit)
        if task.kind != "classification":
            parser.error(f"task {name} is {task.kind}; PEFT drops segments and tags")
        for setting in args.settings:
            for seed in range(args.seeds):
                for side in SIDES[setting]:
                    what = {
                        "task": name,
                        "limit": args.limit,
                        "epochs": args.epochs,
                        "setting": setting,
                        "seed": seed,
                        "side": side,
                    }
                    if is_there(what, done):
                        continue
                    line = {**what, **run(base, args.model, task, what)}
                    done.append(line)
                    add_line(args.out, line)
    _show([line for line in done if line["task"] in args.names])


def run(
    base: FrozenBase, model: str, task: Task, what: dict[str, Any]
) -> dict[str, Any]:
    """One run: dev and test accuracy, trained numbers, seconds."""
    started = time.monotonic()
    who, method = what["side"].split("_")
    if (what["setting"], who) == ("defaults", "ours"):
        config = TrainConfig(method=method, epochs=what["epochs"], seed=what["seed"])
        result = train(base, task, config)
        test = encode_rows(task.test, base.encoder, task.labels, task.template)
        found = {
            "dev": result.dev_metric,
            "test": score(result.reader, task.test, test),
            "numbers": sum(item.numel() for item in result.prompt.parameters()),
        }
    else:
        torch.manual_seed(what["seed"])
        count, rate = PEFT_RECIPES[method]
        # Made for every side, so that all start from PEFT's own random numbers.
        peft = _peft(base, model, method, count)
        side = peft if who == "peft" else _ours(base, peft, full=who == "full")
        found = fit(base, task, side, rate, what["epochs"], what["seed"])
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def _peft(base: FrozenBase, model: str, method: str, count: int) -> Side:
    """PEFT's model for features: a fresh one, with the library's own attention."""
    with quiet_transformers():
        plain = AutoModel.from_pretrained(
            resolve(model).folder, add_pooling_layer=False, dtype=torch.float32
        )
        config = (PromptTuningConfig if method == "prompt" else PrefixTuningConfig)(
            task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=count
        )
        tuned = get_peft_model(plain, config).to(base.device).eval()
    trained = [item for item in tuned.parameters() if item.requires_grad]
    # A prompt's own rows come out in front of the text's; a prefix has none.
    skipped = count if method == "prompt" else 0

    def hidden(batch: TextBatch) -> Tensor:
        out = tuned(input_ids=batch.ids, attention_mask=batch.mask)
        rows: Tensor = out.last_hidden_state[:, skipped:]
        return rows

    return Side(hidden, trained)


def _ours(base: FrozenBase, peft: Side, full: bool) -> Side:
    """Our plain prompt, from the rows that PEFT drew."""
    rows = nn.Parameter(peft.parameters[0].detach().clone())
    used = replace(base, attention=FULL) if full else base
    return Side(lambda batch: used.hidden(batch, used.state_of(rows)), [rows])


def _show(lines: list[dict[str, Any]]) -> None:
    """Test accuracy of each side: mean over the seeds, lowest to highest."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for line in lines:
        key = (line["task"], line["setting"], line["side"])
        groups.setdefault(key, []).append(line["test"])
    for key, values in groups.items():
        print(
            f"{' '.join(key):40} {statistics.fmean(values):5.1f} "
            f"({min(values):.1f}-{max(values):.1f}, {len(values)} seeds)"
        )


if __name__ == "__main__":
    main()
