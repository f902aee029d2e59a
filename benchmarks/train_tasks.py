"""Trains a blob, and its linear probe, for every task of a recipe file; resumable.

    python benchmarks/train_tasks.py RECIPES.yaml TASKS OUT [TASK ...]

TASKS holds the task folders; OUT gets <task>.safetensors and probe/<task>.safetensors.
A task whose blob is there is skipped. bfloat16 is used where the processor has it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from promptdial.prompts.blob import write_blob
from promptdial.prompts.training.base import open_base, pick_device
from promptdial.prompts.training.config import TrainConfig, check, with_values
from promptdial.prompts.training.packing import pack, pack_probe, require_fit
from promptdial.prompts.training.task import read_task
from promptdial.prompts.training.trainer import train


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("only", nargs="*")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    recipes = yaml.safe_load(args.recipes.read_text("utf-8"))
    for name, options in recipes.items():
        out = args.out / f"{name}.safetensors"
        folder = args.tasks / name
        if out.exists() or (args.only and name not in args.only):
            continue
        if not folder.is_dir():
            print(f"{name}: no folder {folder}, skipped", file=sys.stderr)
            continue
        print(
            json.dumps(run(args.model, args.device, folder, out, options)), flush=True
        )


def run(
    model: str, device: str, folder: Path, out: Path, options: dict[str, Any]
) -> dict[str, Any]:
    """Train one task and write both blobs."""
    config = check(with_values(TrainConfig(bf16=True), options, folder.name))
    task = read_task(folder, config.limit)
    base = open_base(model, pick_device(device), config.bf16, config.max_tokens)
    (out.parent / "probe").mkdir(parents=True, exist_ok=True)
    require_fit(base, task, config)
    result = train(base, task, config)
    if task.labels:
        probe = pack_probe(task, config, result)
        write_blob(out.parent / "probe" / out.name, probe)
    blob = pack(task, config, result)
    write_blob(out, blob)
    return {
        "task": task.name,
        "bytes": blob.size,
        **blob.meta.metrics,
        "changed": round(result.facts.answers_changed, 3),
        "distance": round(result.facts.distance, 3),
        "warnings": [item.code for item in result.warnings],
        "seconds": round(result.seconds),
    }


if __name__ == "__main__":
    main()
