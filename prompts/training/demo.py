"""The whole road on one model, offline: export, parity, many tasks, a new one live."""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from promptdial.export.build import export_bundle
from promptdial.prompts.blob import write_blob
from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.folder import PromptFolder
from promptdial.prompts.training.base import open_base, pick_device
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.demo_inputs import DEMO_INPUTS
from promptdial.prompts.training.packing import pack
from promptdial.prompts.training.task import Task, read_task
from promptdial.prompts.training.trainer import train
from promptdial.runtime import Engine
from promptdial.runtime.answers import Classification, Generation, Spans

LIVE_TASK = "support_desk"
LIVE_CONFIG = TrainConfig(
    method="prefix",
    num_virtual_tokens=8,
    learning_rate=0.02,
    epochs=20,
    batch_size=16,
    patience=20,
)
"""Ninety examples: some ten seconds on two cores. A dev set of thirty jumps about, so
nothing stops early."""

_ROUNDS = 12
_LEAST_TASKS = 12

Say = Callable[[str], None]


@dataclass(frozen=True)
class TaskLine:
    """One row of the demo's table.

    Attributes:
        task: Name.
        kilobytes: Size of the blob.
        answer: Answer to the first input.
        ms: Median time of a request, the same task again and again.
        first_ms: First request: file read, validated, prefix computed, answered.
        switch_ms: Median time of a request right after another task's, less `ms`.
    """

    task: str
    kilobytes: float
    answer: str
    ms: float
    first_ms: float
    switch_ms: float


@dataclass(frozen=True)
class LiveTraining:
    """The prompt trained live.

    Attributes:
        blob: Its file.
        seconds: Training time.
        dev_before: Dev accuracy of the label names alone, percent.
        dev_after: Dev accuracy of the blob, percent.
        test_right: Right answers of the engine on the test rows.
        test_rows: Number of test rows.
    """

    blob: str
    seconds: float
    dev_before: float
    dev_after: float
    test_right: int
    test_rows: int


@dataclass(frozen=True)
class DemoReport:
    """Everything the demo shows.

    Attributes:
        bundle: Where the bundle was written.
        bundle_bytes: Its size.
        export_seconds: Time of the export.
        cosine: Mean cosine of INT8 and PyTorch.
        max_abs_diff: Largest difference of INT8 and PyTorch.
        tasks: The table.
        prompt_bytes: Size of all blobs together.
        live: The prompt trained live.
    """

    bundle: str
    bundle_bytes: int
    export_seconds: float
    cosine: float
    max_abs_diff: float
    tasks: list[TaskLine]
    prompt_bytes: int
    live: LiveTraining


def run_demo(model: str, work: Path, say: Say) -> DemoReport:
    """Run every step in `work`, telling `say` about each.

    Raises:
        PromptdialError: A step fails.
    """
    bundle = work / "minilm.bundle"
    say(f"exporting {model} to INT8 ...")
    started = time.monotonic()
    exported = export_bundle(model, bundle)
    seconds = time.monotonic() - started
    parity = exported.parity.to_dict()
    say(
        f"  {exported.bytes / 1e6:.1f} MB in {seconds:.0f} s; INT8 against PyTorch: "
        f"mean cosine {parity['cosine']:.4f}, agreement {parity['agreement']:.1%}"
    )
    with as_file(files("promptdial.prompts") / "shipped") as shipped:
        source = PromptFolder(shipped)
        with Engine(bundle, prompts=source) as engine:
            lines = time_tasks(engine, source)
            live = train_live(model, work, engine, say)
    return DemoReport(
        bundle=str(bundle),
        bundle_bytes=exported.bytes,
        export_seconds=round(seconds, 1),
        cosine=parity["cosine"],
        max_abs_diff=parity["max_abs_diff"],
        tasks=lines,
        prompt_bytes=sum(source.get(task).size for task in source.list()),
        live=live,
    )


def time_tasks(engine: Engine, source: PromptFolder) -> list[TaskLine]:
    """Ask every task, then switch among all at random.

    Raises:
        DataInvalid: Fewer than twelve shipped tasks have inputs.
    """
    tasks = [task for task in source.list() if task in DEMO_INPUTS]
    if len(tasks) < _LEAST_TASKS:
        raise DataInvalid(
            f"{len(tasks)} shipped prompts, at least {_LEAST_TASKS} wanted",
            "reinstall promptdial",
        )
    first: dict[str, float] = {}
    answers: dict[str, str] = {}
    for task in tasks:
        first[task] = _timed(engine, task)
        shown = [describe(engine, task, *item) for item in DEMO_INPUTS[task]]
        answers[task] = " | ".join(shown)
    again = {
        task: statistics.median(_timed(engine, task) for _ in range(_ROUNDS + 1))
        for task in tasks
    }
    mixed: dict[str, list[float]] = {task: [] for task in tasks}
    order = tasks * _ROUNDS
    random.Random(0).shuffle(order)
    for task in order:
        mixed[task].append(_timed(engine, task))
    return [
        TaskLine(
            task=task,
            kilobytes=source.get(task).size / 1000,
            answer=answers[task],
            ms=again[task],
            first_ms=first[task],
            switch_ms=max(0.0, statistics.median(mixed[task]) - again[task]),
        )
        for task in tasks
    ]


def describe(engine: Engine, task: str, text: str, text_pair: str | None) -> str:
    """One answer in a few words."""
    answer = engine.run(task, text, text_pair)
    if isinstance(answer, Classification):
        return f"{answer.label} {answer.score:.2f}"
    if isinstance(answer, Spans):
        return ", ".join(f"{span.label}={span.text}" for span in answer.spans)
    return answer.text if isinstance(answer, Generation) else f"vector of {len(answer)}"


def train_live(model: str, work: Path, engine: Engine, say: Say) -> LiveTraining:
    """Train one new prompt from the written examples, load it, use it."""
    with as_file(files("promptdial.prompts.training") / "examples") as examples:
        task = read_task(examples / LIVE_TASK)
    say(f"training {LIVE_TASK} from {len(task.train)} written examples ...")
    base = open_base(model, pick_device("auto"))
    result = train(base, task, LIVE_CONFIG)
    blob = pack(task, LIVE_CONFIG, result)
    path = work / f"{LIVE_TASK}.safetensors"
    write_blob(path, blob)
    engine.load(path)
    right = count_right(engine, task)
    say(
        f"  {result.seconds:.0f} s: dev {result.zero_shot:.1f} -> "
        f"{blob.meta.metrics['dev_accuracy']:.1f}, in the INT8 engine "
        f"{right} of {len(task.test)} test rows right"
    )
    return LiveTraining(
        blob=str(path),
        seconds=round(result.seconds, 1),
        dev_before=result.zero_shot,
        dev_after=float(blob.meta.metrics["dev_accuracy"]),
        test_right=right,
        test_rows=len(task.test),
    )


def count_right(engine: Engine, task: Task) -> int:
    """Test rows that the engine answers rightly."""
    return sum(
        engine.classify(task.name, row.text).label == row.label for row in task.test
    )


def _timed(engine: Engine, task: str) -> float:
    """Milliseconds of one request of a task."""
    text, text_pair = DEMO_INPUTS[task][0]
    started = time.perf_counter()
    engine.run(task, text, text_pair)
    return 1e3 * (time.perf_counter() - started)
