"""Twelve tasks in one pack beside their single blobs, INT8 runtime, test rows.

    python benchmarks/shared_pack.py BUNDLE SINGLE TASKS OUT [--limit N] ...

SINGLE is a folder of <task>.safetensors as `promptdial train-all` leaves them, or the
results.jsonl of encoder_table.py, whose best blob of a task is chosen on dev; TASKS
holds the task folders. The pack is trained with `promptdial train-pack`'s defaults and
options given here, or taken where OUT/shared.pack.safetensors is there; a stopped
training goes on from its checkpoint. Figures of blobs are kept in OUT/results.jsonl
under their digests, and not computed again. A task without a single blob is shown
without a difference, and does not count in the mean.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from encoder_table import current_results
from encoder_table_summary import best_runs, mean

from promptdial.prompts.blob import PromptBlob, read_blob
from promptdial.prompts.pack import PACK_SUFFIX, Pack, read_pack
from promptdial.prompts.training.config import PACK_DEFAULTS, check, with_values
from promptdial.prompts.training.option_flags import add_options, typed_options
from promptdial.prompts.training.packs.shared_file import make_pack_file
from promptdial.runtime import Engine
from promptdial.runtime.evaluate import metric_value, predict
from promptdial.runtime.rows import read_rows

TWELVE = (
    "ag_news cola emotion6 hate_offensive lang_id mrpc rte sms_spam snips_intent sst2 "
    "subj trec6"
).split()


@dataclass(frozen=True)
class Line:
    """One row of the table.

    Attributes:
        task: Name.
        pack: Metric of the blob from the pack, percent.
        single: Metric of the task's own blob, percent; None where there is none.
    """

    task: str
    pack: float
    single: float | None


class Results:
    """Figures of blobs on test rows, kept in a file as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[tuple[str, str], float] = {}
        if path.exists():
            for text in path.read_text("utf-8").splitlines():
                line = json.loads(text)
                self._known[line["digest"], line["graph"]] = line["value"]

    def value(self, engine: Engine, blob: PromptBlob, rows: Path) -> float:
        """The metric of a blob, percent; computed where it is not known yet."""
        files = engine.manifest.files
        key = (blob.digest, files["model_int8.onnx"].sha256)
        if key not in self._known:
            examples = read_rows(rows)
            engine.load(blob)
            found, _ = predict(engine, blob.meta.task, examples)
            self._known[key] = metric_value(blob.meta.kind, examples, found)
            line = {
                "task": blob.meta.task,
                "digest": key[0],
                "graph": key[1],
                "value": self._known[key],
                "rows": len(examples),
            }
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return self._known[key]


def main() -> None:
    """Train or take the pack, evaluate, print the table and the mean difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("single", type=Path)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--names", nargs="+", default=TWELVE, help="tasks of the pack")
    add_options(parser, PACK_DEFAULTS, without=("resume",))
    parser.add_argument(
        "--teachers", type=Path, help="blobs to learn from, as train-pack"
    )
    args = parser.parse_args()
    given = {**typed_options(args), "resume": True}
    config = check(with_values(PACK_DEFAULTS, given, "options"))
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"shared{PACK_SUFFIX}"
    if path.exists():
        print(f"taking {path}", file=sys.stderr)
        pack = read_pack(path)
    else:
        folders = [args.tasks / name for name in args.names]
        made = make_pack_file(args.model, folders, path, config, args.teachers)
        pack = made.pack
    results, lines = Results(args.out / "results.jsonl"), []
    table = table_values(args.single, args.tasks) if args.single.is_file() else {}
    print(f"{'task':16} {'pack':>6} {'single':>6} {'difference':>10}")
    with Engine(args.bundle) as engine:
        for blob in pack.blobs:
            name = blob.meta.task
            rows = args.tasks / name / "test.jsonl"
            alone = args.single / f"{name}.safetensors"
            single = table.get(name)
            if alone.exists():
                single = results.value(engine, read_blob(alone), rows)
            line = Line(name, results.value(engine, blob, rows), single)
            lines.append(line)
            print(shown(line), flush=True)
    print(verdict(pack, lines))


def table_values(path: Path, tasks: Path) -> dict[str, float]:
    """Test metrics of the best blobs in encoder_table.py's results, percent."""
    best = best_runs(current_results(path), tasks)
    return {name: mean(runs) for name, runs in best.items()}


def shown(line: Line) -> str:
    """A line of the table."""
    if line.single is None:
        return f"{line.task:16} {line.pack:6.2f} {'-':>6} {'-':>10}"
    difference = line.pack - line.single
    return f"{line.task:16} {line.pack:6.2f} {line.single:6.2f} {difference:+10.2f}"


def verdict(pack: Pack, lines: list[Line]) -> str:
    """Size of the pack and the mean difference."""
    both = [line.pack - line.single for line in lines if line.single is not None]
    head = f"{len(pack.blobs)} tasks in {pack.size} bytes"
    if not both:
        return f"{head}; no single blobs to compare with"
    mean = sum(both) / len(both)
    return f"{head}; {mean:+.2f} points against single blobs, mean of {len(both)} tasks"


if __name__ == "__main__":
    main()
