"""INT8 runtime beside the float32 PyTorch reference, on every task's test rows.

    python benchmarks/evaluate_tasks.py BUNDLE BLOBS TASKS [--json OUT.json]

BLOBS holds <task>.safetensors and probe/<task>.safetensors as `promptdial train-all`
leaves them (--out BLOBS, then --method probe --out BLOBS/probe); TASKS the folders,
each with the baseline in its meta.json. Columns: INT8 and PyTorch metric with the same
blob, share of rows with equal answers, our linear probe (INT8), the better of majority
and TF-IDF.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from promptdial.prompts.blob import PromptBlob, read_blob
from promptdial.prompts.training.reference import evaluate_torch
from promptdial.runtime import Engine
from promptdial.runtime.evaluate import Prediction, metric_value, predict
from promptdial.runtime.metrics import accuracy
from promptdial.runtime.rows import Row, read_rows

OUT_OF_SCOPE = "out of scope"


@dataclass(frozen=True)
class Line:
    """One row of the table; figures in percent.

    Attributes:
        task: Name, or `clinc150 in scope`.
        int8: Metric of the INT8 runtime.
        torch: Metric of the PyTorch reference.
        agreement: Share of rows with equal answers.
        probe: Metric of the linear probe in the INT8 runtime.
        baseline: The better of majority and TF-IDF.
        kilobytes: Size of the blob.
        rows: Number of test rows.
    """

    task: str
    int8: float
    torch: float
    agreement: float
    probe: float
    baseline: float
    kilobytes: float
    rows: int


def main() -> None:
    """Evaluate, print the table, and the verdicts under it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("blobs", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    lines: list[Line] = []
    print(f"{'task':18} INT8  torch agree probe  base    KB  rows")
    with Engine(args.bundle) as engine:
        for path in sorted(args.blobs.glob("*.safetensors")):
            folder = args.tasks / path.name.removesuffix(".safetensors")
            if not (folder / "test.jsonl").exists():
                print(f"{path.name}: no test rows, skipped", file=sys.stderr)
                continue
            for line in evaluate(engine, path, folder, args.model):
                lines.append(line)
                print(shown(line), flush=True)
    for verdict in verdicts(lines):
        print(verdict)
    if args.json:
        args.json.write_text(json.dumps([asdict(line) for line in lines], indent=1))


def evaluate(engine: Engine, path: Path, folder: Path, model: str) -> list[Line]:
    """The lines of one task."""
    blob = read_blob(path)
    rows = read_rows(folder / "test.jsonl")
    ours = answers(engine, blob, rows)
    reference = evaluate_torch(model, blob, rows, "cpu")
    probe = answers(engine, read_blob(path.parent / "probe" / path.name), rows)
    name, size = blob.meta.task, blob.size / 1000
    kind = blob.meta.kind
    equal = [one == two for one, two in zip(ours, reference, strict=True)]
    line = Line(
        task=name,
        int8=metric_value(kind, rows, ours),
        torch=metric_value(kind, rows, reference),
        agreement=100.0 * equal.count(True) / len(rows),
        probe=metric_value(kind, rows, probe),
        baseline=baseline(folder),
        kilobytes=size,
        rows=len(rows),
    )
    inside = [i for i, row in enumerate(rows) if row.label != OUT_OF_SCOPE]
    if kind == "token" or len(inside) == len(rows):
        return [line]
    return [line, in_scope(line, rows, inside, ours, reference, probe)]


def in_scope(
    line: Line,
    rows: Sequence[Row],
    inside: list[int],
    ours: Sequence[object],
    reference: Sequence[object],
    probe: Sequence[object],
) -> Line:
    """The same line over the rows that have an intent."""
    gold = [str(rows[i].label) for i in inside]

    def over(answers: Sequence[object]) -> float:
        return accuracy(gold, [str(answers[i]) for i in inside])

    equal = [ours[i] == reference[i] for i in inside]
    return Line(
        task=f"{line.task} in scope",
        int8=over(ours),
        torch=over(reference),
        agreement=100.0 * equal.count(True) / len(inside),
        probe=over(probe),
        baseline=line.baseline,
        kilobytes=line.kilobytes,
        rows=len(inside),
    )


def answers(engine: Engine, blob: PromptBlob, rows: list[Row]) -> list[Prediction]:
    """Predictions of the INT8 runtime."""
    engine.load(blob)
    found, _ = predict(engine, blob.meta.task, rows, blob.meta.scores)
    return found


def baseline(folder: Path) -> float:
    """The better of majority and TF-IDF, percent; entity F1 for token tasks."""
    meta = json.loads((folder / "meta.json").read_text("utf-8"))["baseline"]
    known = [meta[key] for key in ("accuracy", "majority", "entity_f1") if key in meta]
    return 100.0 * float(max(known))


def shown(line: Line) -> str:
    """A line of the table."""
    return (
        f"{line.task:18} {line.int8:5.1f} {line.torch:5.1f} {line.agreement:5.1f} "
        f"{line.probe:5.1f} {line.baseline:5.1f} {line.kilobytes:5.1f} {line.rows:5}"
    )


def verdicts(lines: list[Line]) -> list[str]:
    """What the table as a whole says."""
    tasks = [line for line in lines if not line.task.endswith("in scope")]
    if not tasks:
        return ["nothing to evaluate"]
    beaten = [line for line in tasks if line.int8 > line.baseline]
    gain = sum(line.int8 - line.probe for line in tasks) / len(tasks)
    gap = sum(abs(line.int8 - line.torch) for line in tasks) / len(tasks)
    lowest = min(tasks, key=lambda line: line.agreement)
    lost = ", ".join(line.task for line in tasks if line not in beaten) or "none"
    return [
        f"above the baseline on {len(beaten)} of {len(tasks)} (not: {lost})",
        f"above the linear probe by {gain:.2f} points on average",
        f"INT8 and PyTorch differ by {gap:.2f} points on average; lowest agreement "
        f"{lowest.agreement:.1f} % ({lowest.task})",
    ]


if __name__ == "__main__":
    main()
