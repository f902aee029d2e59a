"""The eval command: the metric of one blob on labelled rows."""

import argparse
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from promptdial.prompts.blob import PromptBlob, read_blob
from promptdial.prompts.errors import MissingExtra, UsageError
from promptdial.prompts.scores import may_abstain
from promptdial.runtime.abstention import counted
from promptdial.runtime.command import Command
from promptdial.runtime.engine import Engine
from promptdial.runtime.evaluate import (
    Evaluation,
    Prediction,
    check_rows,
    summary,
    to_object,
    with_abstention,
)
from promptdial.runtime.evaluate import evaluate as evaluate_engine
from promptdial.runtime.metrics import METRICS_OF_KIND
from promptdial.runtime.rows import Row, read_rows
from promptdial.runtime.source import for_tenant, open_source

Reference = Callable[[str, PromptBlob, list[Row], str], list[Prediction]]
Choices = Callable[[str, PromptBlob, list[Row], str], tuple[list[str], list[bool]]]
_REFERENCE = "promptdial.prompts.training.reference"


def _configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument(
        "blob", metavar="BLOB", type=Path, help="or a folder or store, with --task"
    )
    parser.add_argument("data", metavar="DATA.jsonl", type=Path)
    parser.add_argument("--backend", choices=("onnx", "torch"), default="onnx")
    parser.add_argument("--model", help="MODEL for torch (default: the bundle's)")
    parser.add_argument("--device", default="auto", help="for torch: auto, cpu, cuda")
    parser.add_argument("--variant", help="graph variant (default: int8)")
    parser.add_argument(
        "--metric", choices=METRICS_OF_KIND["generation"], help="of generation"
    )
    parser.add_argument("--task", help="which blob of a folder or store")
    parser.add_argument("--tenant", help="whose tasks of a store")
    parser.add_argument("--limit", type=int, help="use the first rows only")


def _run(args: argparse.Namespace) -> dict[str, Any]:
    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit}", "give at least 1")
    blob = _blob(args)
    if args.metric and blob.meta.kind != "generation":
        raise UsageError(f"--metric with a {blob.meta.kind} prompt", "leave it out")
    rows = read_rows(args.data, args.limit)
    with Engine(args.bundle, variant=args.variant) as engine:
        engine.load(blob)
        check_rows(blob.meta.kind, rows)
        if args.backend == "onnx":
            meta, metric = blob.meta, args.metric or ""
            found = evaluate_engine(
                engine, meta.task, meta.kind, rows, metric, meta.scores
            )
            return to_object(found)
        model = args.model or engine.manifest.base.model
    return to_object(_torch(model, blob, rows, args.device, args.metric or ""))


def _blob(args: argparse.Namespace) -> PromptBlob:
    """The blob of a file, or of a task in a folder or store."""
    if not args.blob.is_dir():
        if args.task is not None or args.tenant is not None:
            raise UsageError(
                f"--task or --tenant with the file {args.blob}", "give a folder"
            )
        return read_blob(args.blob)
    if args.task is None:
        raise UsageError(f"{args.blob} is a folder", "give --task TASK")
    opened = open_source(args.blob)
    try:
        source = for_tenant(opened, args.tenant)
        assert source is not None
        return source.get(args.task)
    finally:
        opened.close()


def _torch(
    model: str, blob: PromptBlob, rows: list[Row], device: str, metric: str
) -> Evaluation:
    try:
        module = importlib.import_module(_REFERENCE)
    except ModuleNotFoundError:
        raise MissingExtra("eval --backend torch", "train") from None
    reference: Reference = module.evaluate_torch
    choices: Choices = module.choices_torch
    meta = blob.meta
    labels: list[str] = []
    abstained: list[bool] = []
    positives: list[Prediction] = []
    started = time.perf_counter()
    if may_abstain(meta.scores):
        labels, abstained = choices(model, blob, rows, device)
        predictions: list[Prediction] = [
            *counted(labels, abstained, meta.scores.out_of_scope)
        ]
    else:
        predictions = reference(model, blob, rows, device)
    # PyTorch runs in batches; its time of a row is the mean.
    each = 1e3 * (time.perf_counter() - started) / len(rows)
    if meta.kind == "embedding":
        wanted = [Row(text=row.positive or "") for row in rows]
        positives = reference(model, blob, wanted, device)
    found = summary(
        meta.task, meta.kind, rows, predictions, [each], "torch", positives, metric
    )
    return with_abstention(found, rows, labels, abstained, meta.scores)


evaluate = Command(
    summary="the metric of a blob on labelled rows",
    configure=_configure,
    run=_run,
)
