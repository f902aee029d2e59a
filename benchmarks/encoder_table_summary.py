"""The table of encoder_table.py: means over seeds, and what the best blobs give up.

The best blob of a task is chosen on dev: `deep`, unless another one (weighed, soft,
last, apart, apart_head or budget; `weighed` is a head that weighs the rows of four
levels, without virtual tokens, `last` a deep prompt whose class vectors read the mean
of the last level, `apart` one that reads the texts of pairs one after the other,
`apart_head` class vectors that read four levels of such texts, without virtual tokens)
is better there by more than a standard error of dev's metric. On most tasks deep
prompts are a point or more ahead on test, and a few hundred dev rows cannot tell points
from chance; the rule was made when sst2 showed that. Full fine-tuning of pairs may read
them apart as well, and is taken as it is better on dev. The difference of the best blob
to full fine-tuning has a paired 95 % interval over the test rows: 2,000 resamples of
the rows (Efron & Tibshirani 1993, chapter 13), each with the answers of all seeds to
it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from run_lines import Line, read_lines

from promptdial.runtime.metrics import bio_spans
from promptdial.runtime.rows import Row

PROMPTS = ("weighed", "soft", "deep", "last", "apart", "apart_head", "budget")
USUAL = "deep"
FULL = ("full", "full_apart")
PAIRS = ("apart", "apart_head", "full_apart")
"""Methods that are of pairs alone."""
COLUMNS = ("zero_shot", "probe", *PROMPTS, "lora", *FULL)
LENIENT = {"lang_id": 0.5, "sms_spam": 0.5}
"""Tasks that words alone decide: points below the baseline that are let pass."""

ROWS = 4000
"""Training rows of a task at most, in the table and in what stands beside it."""

WORDS = "words.jsonl"
"""What word_baseline.py leaves beside the results."""

_RESAMPLES = 2000
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes:
        task: Its name.
        method: One of COLUMNS.
        seed: Of the run.
        recipe: Digest of its options.
        rows: Training rows.
        dev: Dev metric, percent.
        test: Test metric, percent.
        bytes: Size of the blob; 0 where weights were trained.
        seconds: Of training.
        counts: Test rows as `Counts.packed` has them.
    """

    task: str
    method: str
    seed: int
    recipe: str
    rows: int
    dev: float
    test: float
    bytes: int
    seconds: float
    counts: str


@dataclass(frozen=True)
class Counts:
    """What was right in each test row: [N, 3], units found, too many, and missed.

    A wrong label is one too many and one missed: F1 over rows is accuracy then.
    """

    rows: Ints

    def metric(self) -> float:
        """F1 over all rows, percent."""
        return float(_f1(self.rows.sum(0)))

    def packed(self) -> str:
        """Rows as text, three numbers each; runs of equal rows are counted."""
        parts: list[str] = []
        last, times = "", 0
        for row in [*(",".join(map(str, row)) for row in self.rows.tolist()), ""]:
            if row != last and times:
                parts.append(last if times == 1 else f"{last}x{times}")
                times = 0
            last, times = row, times + 1
        return " ".join(parts)


def unpacked(text: str) -> Counts:
    """Counts of a text that `Counts.packed` wrote."""
    rows: list[list[int]] = []
    for part in text.split():
        row, _, times = part.partition("x")
        rows += [[int(number) for number in row.split(",")]] * int(times or 1)
    return Counts(np.array(rows, np.int64))


def counts_of(kind: str, rows: Sequence[Row], found: Sequence[object]) -> Counts:
    """Compare answers with what the rows say."""
    counted = []
    for row, answer in zip(rows, found, strict=True):
        if kind == "token":
            assert isinstance(answer, list)
            gold, got = set(bio_spans(row.tags)), set(bio_spans(answer))
        else:
            gold, got = {(str(row.label), 0, 1)}, {(str(answer), 0, 1)}
        counted.append([len(gold & got), len(got - gold), len(gold - got)])
    return Counts(np.array(counted, np.int64))


def read_results(path: Path) -> list[Result]:
    """The runs of a file; none where there is no file."""
    names = [item.name for item in fields(Result)]
    return [Result(*[line[name] for name in names]) for line in read_lines(path)]


def print_table(
    results: Sequence[Result], tasks: Path, words: Sequence[Line] = ()
) -> None:
    """One line a task, then what the table as a whole says.

    Args:
        results: The runs.
        tasks: Folder of the task folders.
        words: Lines of word_baseline.py: what words tell on the same training rows.
    """
    same = {line["task"]: max(line["words"], line["majority"]) for line in words}
    print("task             " + " ".join(f"{name:>10}" for name in COLUMNS), end="")
    print("  baseline same rows  best-full (95 %)")
    gaps: dict[str, float] = {}
    beyond: list[str] = []
    below: list[str] = []
    below_same: list[str] = []
    for name, runs in sorted(by_task(results).items()):
        cells = [f"{mean(runs[m]):10.1f}" if m in runs else " " * 10 for m in COLUMNS]
        base, line = _baseline(tasks / name), f"{name:16} {' '.join(cells)}"
        line += f" {base:9.1f}"
        line += f" {same[name]:9.1f}" if name in same else " " * 10
        best = best_blob(runs, _dev_rows(tasks / name))
        if best:
            if mean(runs[best]) < base - LENIENT.get(name, 0.0):
                below.append(name)
            if name in same and mean(runs[best]) < same[name] - LENIENT.get(name, 0.0):
                below_same.append(name)
            full = best_full(runs)
            if full:
                gap = mean(runs[best]) - mean(runs[full])
                low, high = interval(runs[best], runs[full])
                gaps[name] = gap
                # Worse by more than 2.5 points, and by more than chance explains.
                if gap < -2.5 and high < 0:
                    beyond.append(name)
                line += f"  {best} {gap:+.1f} ({low:+.1f} to {high:+.1f})"
        print(line)
    if gaps:
        print(
            f"best blobs against full fine-tuning: {np.mean(list(gaps.values())):+.2f} "
            f"points on average over {len(gaps)} tasks"
        )
    print(f"more than 2.5 below, beyond the interval: {', '.join(beyond) or 'none'}")
    print(f"below the better of majority and TF-IDF: {', '.join(below) or 'none'}")
    print(
        f"and on the same training rows ({len(same)} tasks measured): "
        f"{', '.join(below_same) or 'none'}"
    )


def by_task(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """The runs of each task, by method."""
    found: dict[str, dict[str, list[Result]]] = {}
    for item in results:
        found.setdefault(item.task, {}).setdefault(item.method, []).append(item)
    return found


def best_runs(results: Sequence[Result], tasks: Path) -> dict[str, list[Result]]:
    """The runs of each task's best blob; tasks without blobs are left out."""
    found = {}
    for name, runs in by_task(results).items():
        best = best_blob(runs, _dev_rows(tasks / name))
        if best:
            found[name] = runs[best]
    return found


def best_blob(runs: Mapping[str, Sequence[Result]], rows: int) -> str:
    """The method in PROMPTS that is chosen on dev; "" where none was run.

    Args:
        runs: By method.
        rows: Dev rows.
    """
    dev = {
        method: float(np.mean([run.dev for run in runs[method]]))
        for method in PROMPTS
        if method in runs
    }
    if not dev:
        return ""
    best = max(dev, key=lambda method: dev[method])
    usual = dev.get(USUAL)
    if usual is None:
        return best
    share = usual / 100
    error = 100 * float(np.sqrt(share * (1 - share) / rows))
    return best if dev[best] > usual + error else USUAL


def best_full(runs: Mapping[str, Sequence[Result]]) -> str:
    """The way of full fine-tuning that is better on dev; "" where none was run."""
    there = [method for method in FULL if method in runs]
    dev = [float(np.mean([run.dev for run in runs[method]])) for method in there]
    return there[int(np.argmax(dev))] if there else ""


def _dev_rows(folder: Path) -> int:
    meta = json.loads((folder / "meta.json").read_text("utf-8"))
    return int(meta["rows"]["dev"])


def interval(one: Sequence[Result], two: Sequence[Result]) -> tuple[float, float]:
    """Paired 95 % interval of the difference of two methods' runs, in points.

    What other test rows would change; what other seeds would is not in it.
    """
    left, right = _answers(one), _answers(two)
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(_RESAMPLES):
        rows = rng.integers(0, len(left), len(left))
        differences.append(_f1(left[rows].sum(0)) - _f1(right[rows].sum(0)))
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def _answers(runs: Sequence[Result]) -> Ints:
    """Counts of all seeds, row by row."""
    first, *others = [unpacked(run.counts).rows for run in runs]
    for rows in others:
        first = first + rows
    return first


def _f1(totals: Ints) -> float:
    right, extra, missed = (int(number) for number in totals)
    return 100.0 * 2 * right / max(1, 2 * right + extra + missed)


def mean(runs: Sequence[Result]) -> float:
    """Test metric over seeds, percent."""
    return float(np.mean([run.test for run in runs]))


def _baseline(folder: Path) -> float:
    """The better of majority and TF-IDF on all training rows, percent."""
    meta = json.loads((folder / "meta.json").read_text("utf-8"))["baseline"]
    known = [meta[key] for key in ("accuracy", "majority", "entity_f1") if key in meta]
    return 100.0 * float(max(known))
