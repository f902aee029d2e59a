"""What graphs of fixed sizes answer on labelled rows, beside FP32.

    python benchmarks/static_accuracy.py BUNDLE BLOBS TASKS OUT TASK ...
        [--variant qnn] [--provider QNNExecutionProvider] [--rows N]

BUNDLE has the variant and fp32, BLOBS the <task>.safetensors, TASKS the task folders
(shipped_tasks.py makes those of the shipped prompts). The whole test set runs on the
CPU, N rows spread over it on the provider as well, where nothing is left to the CPU; a
simulator takes seconds a row. Each task adds a line to OUT, and one that is there is
not done again. Metrics are percent; labels agree (tags: word by word) with FP32's.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from run_lines import add_line, is_there, read_lines

from promptdial.prompts.blob import read_blob
from promptdial.runtime import Engine
from promptdial.runtime.accelerator import CPU
from promptdial.runtime.evaluate import Prediction, metric_value, predict
from promptdial.runtime.qnn import QNN
from promptdial.runtime.rows import Row, read_rows

EXACT = "fp32"


@dataclass(frozen=True)
class Line:
    """One task on one provider.

    Attributes:
        task: Its name.
        provider: Where the variant ran.
        rows: Test rows.
        exact: FP32's metric on them.
        fixed: The variant's.
        agree: Share of labels that are FP32's, percent.
    """

    task: str
    provider: str
    rows: int
    exact: float
    fixed: float
    agree: float


def main() -> None:
    """Do what is missing, then print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("blobs", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="+", metavar="TASK")
    parser.add_argument("--variant", default="qnn")
    parser.add_argument("--provider", default=QNN)
    parser.add_argument("--rows", type=int, default=200, help="0 for the CPU alone")
    args = parser.parse_args()
    done = read_lines(args.out)
    for provider, most in ((CPU, None), (args.provider, args.rows)):
        names = [
            name
            for name in args.names
            if not is_there({"task": name, "provider": provider}, done)
        ]
        if most == 0 or not names:
            continue
        engines = (
            Engine(args.bundle, variant=EXACT),
            Engine(args.bundle, variant=args.variant, providers=[provider]),
        )
        for name in names:
            rows = spread(read_rows(args.tasks / name / "test.jsonl"), most)
            line = compare(engines, args.blobs / f"{name}.safetensors", provider, rows)
            add_line(args.out, asdict(line))
    for line in (Line(**line) for line in read_lines(args.out)):
        print(
            f"{line.task:16} {line.provider:24} {line.rows:5} rows  fp32 "
            f"{line.exact:5.1f}  {args.variant} {line.fixed:5.1f} "
            f"({line.fixed - line.exact:+.1f})  agree {line.agree:5.1f}"
        )


def spread(rows: Sequence[Row], most: int | None) -> list[Row]:
    """At most so many rows, evenly over all of them."""
    count = len(rows) if most is None else min(most, len(rows))
    return [rows[place * len(rows) // count] for place in range(count)]


def compare(
    engines: tuple[Engine, Engine], path: Path, provider: str, rows: Sequence[Row]
) -> Line:
    """The same rows on both."""
    blob = read_blob(path)
    task, values = blob.meta.task, []
    found: list[list[Prediction]] = []
    for engine in engines:
        engine.load(blob)
        answers, _ = predict(engine, task, rows, blob.meta.scores)
        found.append(answers)
        values.append(metric_value(blob.meta.kind, rows, answers))
    agree = 100 * float(np.mean(equal(*found)))
    exact, fixed = values
    return Line(path.stem, provider, len(rows), exact, fixed, agree)


def equal(one: Sequence[Prediction], other: Sequence[Prediction]) -> list[bool]:
    """Which labels are the same: of each row, or of each word."""
    if not isinstance(one[0], list):
        return [a == b for a, b in zip(one, other, strict=True)]
    pairs = zip(one, other, strict=True)
    return [a == b for row in pairs for a, b in zip(*row, strict=True)]


if __name__ == "__main__":
    main()
