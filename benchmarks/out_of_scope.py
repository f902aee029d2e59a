"""What a threshold on the score trades: rows in scope against rows out of scope.

    python benchmarks/out_of_scope.py BUNDLE BLOB ROWS.jsonl [--step 0.05]

BLOB has an out-of-scope label, ROWS labelled rows. One line a threshold, in percent, in
the INT8 runtime; `*` marks the blob's own. An abstention is right on a row out of scope
and wrong on one in scope. Where the out-of-scope label is the likeliest one, the blob
abstains at every threshold.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from promptdial.prompts.blob import PromptBlob, encode, read_blob
from promptdial.prompts.scores import Scores
from promptdial.runtime import Classification, Engine
from promptdial.runtime.abstention import abstention, counted
from promptdial.runtime.evaluate import ask, check_rows
from promptdial.runtime.metrics import accuracy
from promptdial.runtime.rows import Row, read_rows


@dataclass(frozen=True)
class Point:
    """Figures at one threshold, in percent.

    Attributes:
        threshold: On the score.
        in_scope: Accuracy of the rows in scope.
        recall: Share of the rows out of scope that were abstained from.
        overall: Accuracy of all rows.
        abstained: Share of rows without an answer.
    """

    threshold: float
    in_scope: float
    recall: float
    overall: float
    abstained: float


def main() -> None:
    """Ask every row once, judge the answers at every threshold, print the curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("blob", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--step", type=float, default=0.05)
    args = parser.parse_args()
    blob, rows = read_blob(args.blob), read_rows(args.rows)
    scores = blob.meta.scores
    if not scores.out_of_scope:
        parser.error(f"{args.blob} has no out-of-scope label")
    if not 0 < args.step <= 1:
        parser.error(f"--step {args.step}, allowed: above 0, up to 1")
    check_rows(blob.meta.kind, rows)
    answers = answers_of(args.bundle, blob, rows)
    steps = [args.step * i for i in range(int(1 / args.step) + 1)]
    chosen = scores.threshold
    print("  threshold  in scope  recall  overall  abstained")
    for threshold in sorted({*steps, chosen}):
        mark = "*" if threshold == chosen else " "
        print(f"{mark} {shown(point(rows, answers, scores, threshold))}")


def answers_of(
    bundle: Path, blob: PromptBlob, rows: Sequence[Row]
) -> list[Classification]:
    """Answers of the INT8 runtime, with no threshold."""
    open_scores = replace(blob.meta.scores, threshold=0.0)
    meta = replace(blob.meta, scores=open_scores)
    with Engine(bundle) as engine:
        engine.load(encode(meta, blob.tensors))
        answers, _ = ask(engine, meta.task, rows)
    return [answer for answer in answers if isinstance(answer, Classification)]


def point(
    rows: Sequence[Row],
    answers: Sequence[Classification],
    scores: Scores,
    threshold: float,
) -> Point:
    """The figures at one threshold."""
    gold = [row.label or "" for row in rows]
    labels = [answer.label for answer in answers]
    without = [it.abstained or it.score < threshold for it in answers]
    figures = abstention(gold, labels, without, scores)
    return Point(
        threshold=threshold,
        in_scope=figures.in_scope_accuracy or 0.0,
        recall=figures.out_of_scope_recall or 0.0,
        overall=accuracy(gold, counted(labels, without, scores.out_of_scope)),
        abstained=figures.abstained,
    )


def shown(found: Point) -> str:
    """A line of the curve."""
    return (
        f"{found.threshold:9.4f} {found.in_scope:9.1f} {found.recall:7.1f} "
        f"{found.overall:8.1f} {found.abstained:10.1f}"
    )


if __name__ == "__main__":
    main()
