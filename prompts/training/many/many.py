"""A folder of tasks: what is to train, what is there already, and the report.

A worker is the `train` command in a process of its own (workers.py). What it needs to
know is therefore what a user would type, and a task that takes its process down takes
no other with it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from promptdial.prompts.atomic import write_atomic
from promptdial.prompts.blob import SUFFIX, read_blob
from promptdial.prompts.errors import DataInvalid, PromptdialError, UsageError
from promptdial.prompts.metadata import NEUTRAL
from promptdial.prompts.training.config import (
    TrainConfig,
    check,
    recipe_of,
    with_values,
)
from promptdial.prompts.training.graphs.graph_name import trained_on
from promptdial.prompts.training.scores.calibration import rule_of
from promptdial.prompts.training.search.search_log import (
    finished_run,
    log_path,
    search_identity,
)
from promptdial.prompts.training.task import (
    CHAT,
    TASK_FILE,
    Task,
    data_digest,
    read_task,
)

REPORT = "report.json"
TRAINED, KEPT, FAILED = "trained", "kept", "failed"

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One task to train.

    Attributes:
        task: Its name.
        folder: Where its rows are.
        out: The blob to write.
        config: Options.
    """

    task: str
    folder: Path
    out: Path
    config: TrainConfig


@dataclass(frozen=True)
class Entry:
    """What became of one task.

    Attributes:
        task: Its name; the folder's where its rows cannot be read.
        status: `trained`, `kept` (the blob that is there is the one asked for) or
            `failed`.
        answer: What `train` answers; of a kept blob, its own metrics.
        error: Code and message where it failed.
    """

    task: str
    status: str
    answer: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes:
        jobs: Tasks to train, in the order of their names.
        entries: Tasks that are settled: kept, or not readable.
    """

    jobs: list[Job]
    entries: list[Entry]


def task_folders(folder: Path) -> list[Path]:
    """The task folders right under a folder, by name.

    Raises:
        DataInvalid: There is none.
    """
    if (folder / "train.jsonl").exists():
        raise DataInvalid(
            f"{folder} is one task, not a folder of tasks",
            f"run: promptdial train MODEL --task {folder}",
        )
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    found = [
        path
        for path in inside
        if (path / "train.jsonl").exists() or (path / TASK_FILE).exists()
    ]
    if not found:
        raise DataInvalid(
            f"{folder} holds no task folder",
            f"give a folder whose folders have train.jsonl or {TASK_FILE}",
        )
    return found


def read_recipes(path: Path) -> dict[str, dict[str, Any]]:
    """Options of each task from a YAML file of `task: {option: value}` lines.

    Raises:
        UsageError: The file cannot be read or has another form.
    """
    try:
        recipes = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {error}", "give a readable YAML file") from None
    if not isinstance(recipes, dict):
        raise UsageError(f"{path} is no mapping", "write `task: {option: value}` lines")
    found: dict[str, dict[str, Any]] = {}
    for name, options in recipes.items():
        if not isinstance(options, dict | None):
            raise UsageError(
                f"{path}: {name} is {options!r}", "write `task: {option: value}`"
            )
        found[str(name)] = options or {}
    return found


def make_plan(
    folders: list[Path],
    out: Path,
    recipes: Mapping[str, Options] | None,
    typed: Options,
    fingerprint: str,
) -> Plan:
    """What is to train.

    Args:
        folders: Task folders.
        out: Where the blobs go.
        recipes: Options of each task, by the name of its folder; tasks without one
            are left out. None trains all with the same options.
        typed: Options for all; they win over a recipe's.
        fingerprint: The base's.

    Raises:
        UsageError: A recipe has no folder or a wrong option, or two tasks one name.
    """
    named = {path.name for path in folders}
    lost = sorted(set(recipes or ()) - named)
    if lost:
        raise UsageError(
            f"a recipe is for {lost[0]!r}; there is {', '.join(sorted(named))}",
            "correct the name, or take the recipe out",
        )
    jobs: list[Job] = []
    entries: list[Entry] = []
    for folder in folders:
        if recipes is not None and folder.name not in recipes:
            continue
        options = dict(recipes[folder.name]) if recipes is not None else {}
        config = check(with_values(TrainConfig(), {**options, **typed}, folder.name))
        try:
            task = read_task(folder, config.limit, not config.few_shot)
        except PromptdialError as error:
            entries.append(failed(folder.name, error.code, str(error)))
            continue
        jobs.append(Job(task.name, folder, out / f"{task.name}{SUFFIX}", config))
        if is_there(jobs[-1], task, fingerprint):
            job = jobs.pop()
            entries.append(Entry(job.task, KEPT, _facts_of(job.out)))
    _refuse_twins([job.task for job in jobs] + [entry.task for entry in entries])
    return Plan(jobs, entries)


def is_there(job: Job, task: Task, fingerprint: str) -> bool:
    """Whether the blob that is there is what this job would make.

    The same base, graph, rows, labels, texts around the input, metric, licence, options
    and version. A blob that cannot be read is made again.
    """
    try:
        blob = read_blob(job.out)
        searched = finished_run(log_path(job.out))
        outside = rule_of(job.config, task).label
    except PromptdialError:
        return False
    meta = blob.meta
    if (meta.base_fingerprint, meta.version) != (fingerprint, job.config.version):
        return False
    metrics = {f"dev_{task.metric}", f"folds_{task.metric}", "dev_loss"}
    if (meta.license, meta.scores.out_of_scope) != (task.license, outside):
        return False
    if not metrics & set(meta.metrics):
        return False
    if job.config.budget or job.config.few_shot:
        # The blob tells what the search chose; its log tells what was asked.
        asked = search_identity(fingerprint, task, job.config)
        return searched == (asked, blob.digest)
    made = meta.training
    return (
        set(meta.labels) == set(task.labels)
        and made.get("recipe") == recipe_of(job.config)
        and made.get("graph") == trained_on(job.config)
        and made.get("data") == data_digest(task.train)
        and made.get("dev") == data_digest(task.dev)
        and _same_template(meta.template, task.template)
    )


def _same_template(made: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    """A template of chat is rendered in the blob: the base would be needed to compare.

    What stands for an empty input (NEUTRAL) is found in training where none is given.
    """
    if CHAT in asked:
        return True
    names = {*made, *asked} - (set() if NEUTRAL in asked else {NEUTRAL})
    return all(made.get(name) == asked.get(name) for name in names)


def failed(task: str, code: str, message: str) -> Entry:
    """The entry of a task that could not be trained."""
    return Entry(task, FAILED, {}, {"code": code, "message": message})


def arguments_of(config: TrainConfig) -> list[str]:
    """The flags that give a configuration back."""
    usual = TrainConfig()
    found: list[str] = []
    for option in fields(TrainConfig):
        value = getattr(config, option.name)
        if value == getattr(usual, option.name):
            continue
        flag = "--" + option.name.replace("_", "-")
        # One word, since a value may begin with a dash.
        found.append(flag if isinstance(value, bool) else f"{flag}={value}")
    return found


def write_report(out: Path, entries: list[Entry], seconds: float) -> dict[str, Any]:
    """Write OUT/report.json, whole or not at all; returns what it holds.

    Raises:
        PromptdialError: It cannot be written.
    """
    ordered = sorted(entries, key=lambda entry: entry.task)
    report = {
        "out": str(out),
        **{
            status: sum(entry.status == status for entry in entries)
            for status in (TRAINED, KEPT, FAILED)
        },
        "seconds": round(seconds, 1),
        "tasks": [asdict(entry) for entry in ordered],
    }
    text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    write_atomic(out / REPORT, text.encode())
    return report


def table(entries: list[Entry]) -> str:
    """The entries as lines for people."""
    width = max((len(entry.task) for entry in entries), default=4)
    lines = [f"{'task':{width}}  status    dev  probe   bytes  seconds"]
    for entry in sorted(entries, key=lambda entry: entry.task):
        start = f"{entry.task:{width}}  {entry.status:7}"
        if entry.error:
            lines.append(f"{start} {entry.error['message']}")
            continue
        cells = [
            _cell(entry.answer.get(key), size, digits)
            for key, size, digits in (
                ("dev_metric", 6, 2),
                ("probe", 6, 2),
                ("bytes", 7, 0),
                ("seconds", 8, 0),
            )
        ]
        lines.append(" ".join([start, *cells]))
    return "\n".join(lines)


def _cell(value: float | None, size: int, digits: int) -> str:
    return f"{'-':>{size}}" if value is None else f"{value:{size}.{digits}f}"


def _facts_of(path: Path) -> dict[str, Any]:
    """What a blob that is there says of itself, in the words of `train`."""
    blob = read_blob(path)
    found = dict(blob.meta.metrics)
    dev = [value for key, value in found.items() if key.startswith("dev_")]
    return {
        "blob": str(path),
        "bytes": blob.size,
        "dev_metric": dev[0] if dev else None,
        "probe": found.get("probe"),
    }


def _refuse_twins(names: list[str]) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise UsageError(
            f"two tasks are named {twins[0]!r} and would write one blob",
            "give one of them another name in its task.yaml",
        )
