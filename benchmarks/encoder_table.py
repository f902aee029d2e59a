"""Zero-shot, probe, prompts, LoRA and full fine-tuning of an encoder on every task.

    python benchmarks/encoder_table.py BUNDLE TASKS OUT [TASK ...] [--minutes N]
        [--seeds N]

TASKS holds the task folders. At most 4,000 training rows of each are used, and three
seeds where a task has no more than that. Everything is chosen on dev; each run adds a
line to OUT/results.jsonl and its blob to OUT/blobs, and a run that is there is not done
again, so that the command may be stopped and called again. Prompts answer in the INT8
runtime; LoRA and full fine-tuning, which no runtime of one frozen model could carry,
in PyTorch. At the end comes the table (encoder_table_summary.py).
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from encoder_table_summary import (
    PAIRS,
    ROWS,
    WORDS,
    Result,
    counts_of,
    print_table,
    read_results,
)
from run_lines import add_line, read_lines

from promptdial.prompts.blob import PromptBlob, read_blob, write_blob
from promptdial.prompts.training.base import FrozenBase, open_base, pick_device
from promptdial.prompts.training.batches import encode_rows
from promptdial.prompts.training.comparison.weight_tuning import (
    every_weight,
    lora,
    tune,
)
from promptdial.prompts.training.config import (
    ATTENTION,
    FULL_TUNING,
    LORA_TUNING,
    MEAN,
    PAIRS_APART,
    TrainConfig,
)
from promptdial.prompts.training.fitting import fitting
from promptdial.prompts.training.heads import POOLED_KINDS
from promptdial.prompts.training.packing import pack
from promptdial.prompts.training.scoring import Reader, labels_of, tags_of
from promptdial.prompts.training.search.outcome import train_choice
from promptdial.prompts.training.search.search import search
from promptdial.prompts.training.start import Start, prepare
from promptdial.prompts.training.task import Task, read_task
from promptdial.prompts.training.trainer import train
from promptdial.runtime import Engine
from promptdial.runtime.evaluate import predict

SEEDS = 3
"""For tasks with at most ROWS training rows: few rows make a run a matter of luck."""

RECIPES = {
    "zero_shot": TrainConfig(method="probe", limit=ROWS),
    "probe": TrainConfig(method="probe", limit=ROWS),
    "weighed": TrainConfig(
        method="probe", head_levels=4, head_pooling=ATTENTION, limit=ROWS
    ),
    "soft": TrainConfig(method="prompt", epochs=5, limit=ROWS),
    "deep": TrainConfig(
        method="prefix",
        num_virtual_tokens=16,
        epochs=5,
        batch_size=8,
        learning_rate=2e-2,
        head_levels=4,
        head_pooling=ATTENTION,
        limit=ROWS,
    ),
    "last": TrainConfig(
        method="prefix",
        num_virtual_tokens=16,
        epochs=4,
        batch_size=16,
        learning_rate=2.8e-2,
        limit=ROWS,
    ),
    "apart": TrainConfig(
        method="prefix",
        num_virtual_tokens=16,
        epochs=5,
        batch_size=16,
        learning_rate=1e-2,
        pairs=PAIRS_APART,
        limit=ROWS,
    ),
    "apart_head": TrainConfig(
        method="probe", head_levels=4, pairs=PAIRS_APART, limit=ROWS
    ),
    "budget": TrainConfig(budget="10m", limit=ROWS),
    "lora": TrainConfig(limit=ROWS, patience=2),
    "full": TrainConfig(limit=ROWS, patience=2),
    "full_apart": TrainConfig(limit=ROWS, patience=2, pairs=PAIRS_APART),
}
METHODS = tuple(RECIPES)
FITTED = ("zero_shot", "probe", "weighed", "apart_head")
"""Methods without virtual tokens: seeds would change little or nothing."""
_FULL = replace(FULL_TUNING, learning_rates=(1e-4,), epochs=4)
WEIGHTS = {
    "lora": (replace(LORA_TUNING, learning_rates=(1e-3,), epochs=4), lora),
    "full": (_FULL, every_weight),
    "full_apart": (_FULL, every_weight),
}
"""One rate and four epochs, instead of the command's own rates and eight epochs.

Full fine-tuning was tried at 1e-4 and 2e-4 on cola and trec6: dev 73.9 and 72.7, 92.2
and 92.4.
"""


@dataclass(frozen=True)
class Job:
    """One line of the results."""

    folder: Path
    method: str
    seed: int

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What tells it from the others; another recipe is another run."""
        return self.folder.name, self.method, self.seed, recipe_digest(self.method)


def main() -> None:
    """Do what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("only", nargs="*", metavar="TASK")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=SEEDS, help="runs of few rows")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run later")
    args = parser.parse_args()
    until = time.monotonic() + 60 * args.minutes
    file = args.out / "results.jsonl"
    (args.out / "blobs").mkdir(parents=True, exist_ok=True)
    done = {(x.task, x.method, x.seed, x.recipe) for x in read_results(file)}
    base = open_base(args.model, pick_device(args.device))
    starts = Starts(base)
    with Engine(args.bundle) as engine:
        for job in jobs(args.tasks, args.only, args.methods.split(","), args.seeds):
            if job.key in done or time.monotonic() > until:
                continue
            result = measured(job, base, starts, engine, args.out / "blobs")
            add_line(file, asdict(result))
            name = f"{result.task:16} {result.method:9} {result.seed}"
            figures = f"dev {result.dev:5.1f} test {result.test:5.1f}"
            print(f"{name} {figures} {result.seconds:5.0f} s", flush=True)
    words = [x for x in read_lines(args.out / WORDS) if x["limit"] == ROWS]
    print_table(current_results(file), args.tasks, words)


def current_results(path: Path) -> list[Result]:
    """The runs of a file that were made by the recipes as they are now."""
    now = {method: recipe_digest(method) for method in METHODS}
    return [run for run in read_results(path) if run.recipe == now[run.method]]


def jobs(tasks: Path, only: list[str], methods: list[str], seeds: int) -> Iterator[Job]:
    """All runs: task by task with the first seed, then the other seeds."""
    for seed in range(seeds):
        for folder in sorted(tasks.iterdir()):
            meta = folder / "meta.json"
            if not meta.exists() or (only and folder.name not in only):
                continue
            about = json.loads(meta.read_text("utf-8"))
            if about["kind"] == "generation":
                continue
            few = about["rows"]["train"] <= ROWS
            for method in methods:
                if method in PAIRS and about["kind"] != "pair":
                    continue
                chance = method not in FITTED
                if not seed or (few and chance):
                    yield Job(folder, method, seed)


@dataclass
class Starts:
    """Encoded rows and the probe of the task at hand: its runs have them in common."""

    base: FrozenBase
    key: tuple[str, str] = ("", "")
    start: Start | None = None

    def of(self, task: Task, config: TrainConfig) -> Start:
        """What `prepare` makes of a task's first ROWS rows, made once."""
        key = task.name, config.pairs
        if self.start is None or self.key != key:
            self.key, self.start = key, prepare(self.base, task, config)
        return self.start


def measured(
    job: Job, base: FrozenBase, starts: Starts, engine: Engine, blobs: Path
) -> Result:
    """Train, and answer the test rows."""
    config = replace(RECIPES[job.method], seed=job.seed)
    task = read_task(job.folder, config.limit)
    began = time.monotonic()
    if job.method in WEIGHTS:
        recipe, adapt = WEIGHTS[job.method]
        tuned = tune(base, task, config, recipe, adapt)
        seconds = time.monotonic() - began
        return _result(job, task, tuned.dev, answers(tuned.reader, task), seconds, 0)
    folder = blobs / f"{job.method}-{job.seed}-{recipe_digest(job.method)}"
    path = folder / f"{task.name}.safetensors"
    if path.exists():
        blob = read_blob(path)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        blob = made(job.method, base, starts, task, config, path)
        write_blob(path, blob)
    seconds = time.monotonic() - began
    engine.load(blob)
    found, _ = predict(engine, task.name, task.test)
    dev = float(blob.meta.metrics[f"dev_{task.metric}"])
    return _result(job, task, dev, found, seconds, blob.size)


def made(
    method: str,
    base: FrozenBase,
    starts: Starts,
    task: Task,
    config: TrainConfig,
    path: Path,
) -> PromptBlob:
    """The blob of a method."""
    if method == "budget":
        # The search hands on fewer rows where there is no time for all of them.
        choice = search(base, task, config, path)
        runs = train_choice(base, choice, config).runs
        return pack(choice.task, runs.config, runs.result)
    start = starts.of(task, config)
    if task.kind not in POOLED_KINDS:
        # Tags are read word by word.
        config = replace(config, head_pooling=MEAN)
    config = fitting(base, task, config)
    result = train(base, task, config, start=start)
    if method == "zero_shot":
        # The class vectors as the label names start them, without a prompt.
        result = replace(result, reader=start.reader)
    return pack(task, config, result)


def recipe_digest(method: str) -> str:
    """Short digest of a method's options: a changed recipe is run anew.

    Over those that differ from their defaults: a new option changes no old run.
    """
    usual = asdict(TrainConfig())
    chosen = asdict(RECIPES[method])
    options = {name: x for name, x in chosen.items() if x != usual[name]}
    if method in WEIGHTS:
        options["weights"] = asdict(WEIGHTS[method][0])
    text = json.dumps(options, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def answers(reader: Reader, task: Task) -> list[str] | list[list[str]]:
    """Answers of the PyTorch side on the test rows."""
    encoder, pooling = reader.base.encoder, reader.pooling
    rows = encode_rows(task.test, encoder, task.labels, task.template, pooling)
    return tags_of(reader, rows) if task.kind == "token" else labels_of(reader, rows)


def _result(
    job: Job,
    task: Task,
    dev: float,
    found: Sequence[object],
    seconds: float,
    size: int,
) -> Result:
    counts = counts_of(task.kind, task.test, found)
    return Result(
        task=task.name,
        method=job.method,
        seed=job.seed,
        recipe=recipe_digest(job.method),
        rows=len(task.train),
        dev=round(dev, 3),
        test=round(counts.metric(), 3),
        bytes=size,
        seconds=round(seconds, 1),
        counts=counts.packed(),
    )


if __name__ == "__main__":
    main()
