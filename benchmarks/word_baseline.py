"""TF-IDF with logistic regression on the rows that a prompt is trained on, test rows.

    python benchmarks/word_baseline.py TASKS OUT [TASK ...] [--limit N]

Needs scikit-learn. The task folders' own baseline saw all training rows, and the table
of encoder_table.py at most ROWS of them: here both see the same. Words and their pairs,
or characters up to four where words tell little (CHARACTERS); C as the folders say. A
pair is its two texts behind one another. It is not the program that made the folders'
figures: `--limit 0` (all rows) shows how far it is from them. Figures are kept in
OUT/words.jsonl, where encoder_table.py finds them if OUT is its own.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from encoder_table_summary import ROWS, WORDS
from run_lines import add_line, read_lines
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from promptdial.runtime.metrics import accuracy
from promptdial.runtime.rows import Row, read_rows

CHARACTERS = ("lang_id",)
KINDS = ("classification", "pair")


@dataclass(frozen=True)
class Line:
    """One row of the results.

    Attributes:
        task: Its name.
        limit: Training rows at most; 0 for all.
        words: Accuracy of TF-IDF on test, percent.
        majority: That of the commonest label in those rows, percent.
    """

    task: str
    limit: int
    words: float
    majority: float


def main() -> None:
    """Fit what is missing, and print a line a task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("only", nargs="*", metavar="TASK")
    parser.add_argument("--limit", type=int, default=ROWS, help="0 for all rows")
    args = parser.parse_args()
    file = args.out / WORDS
    done = {(line["task"], line["limit"]) for line in read_lines(file)}
    for meta in sorted(args.tasks.glob("*/meta.json")):
        name = meta.parent.name
        if (name, args.limit) in done or (args.only and name not in args.only):
            continue
        if json.loads(meta.read_text("utf-8"))["kind"] not in KINDS:
            continue
        line = measured(meta.parent, args.limit)
        add_line(file, asdict(line))
        print(f"{name:16} {line.words:6.2f} majority {line.majority:6.2f}", flush=True)


def measured(folder: Path, limit: int) -> Line:
    """Fit on the first training rows, answer the test rows."""
    train = read_rows(folder / "train.jsonl", limit or None)
    test = read_rows(folder / "test.jsonl")
    if folder.name in CHARACTERS:
        vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 4))
    else:
        vectors = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    model = LogisticRegression(C=10, max_iter=2000)
    labels = [str(row.label) for row in train]
    model.fit(vectors.fit_transform([text_of(row) for row in train]), labels)
    found = list(model.predict(vectors.transform([text_of(row) for row in test])))
    commonest = max(sorted(set(labels)), key=labels.count)
    wanted = [str(row.label) for row in test]
    return Line(
        task=folder.name,
        limit=limit,
        words=round(accuracy(wanted, found), 3),
        majority=round(accuracy(wanted, [commonest] * len(test)), 3),
    )


def text_of(row: Row) -> str:
    """What the words are taken of."""
    return f"{row.text} {row.text_pair or ''}"


if __name__ == "__main__":
    main()
