"""The training report: one HTML file that holds all it shows and asks no network.

Everything that comes from data (labels, texts, names) is escaped: a row may hold HTML.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from promptdial.prompts.atomic import write_atomic
from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.training.batches import encode_rows
from promptdial.prompts.training.comparison.baselines import Baseline
from promptdial.prompts.training.config import TrainConfig
from promptdial.prompts.training.reference import blob_reader
from promptdial.prompts.training.reports.confusion import (
    confusion_matrix,
    confusions,
    entity_scores,
)
from promptdial.prompts.training.reports.line_chart import Chart, draw
from promptdial.prompts.training.reports.nearest_words import nearest_words
from promptdial.prompts.training.result import TrainResult
from promptdial.prompts.training.task import Task
from promptdial.prompts.training.units import Units, found_units, gold_units

_MATRIX_LABELS = 20
"""With more classes the matrix fits no screen; the list of confusions says it then."""
_CONFUSIONS = 20
_EXAMPLE_CHARS = 160

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; }
th, td { padding: .2rem .6rem; border-bottom: 1px solid #ddd; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { font-size: 11px; margin-right: 1rem; }
svg .grid { stroke: #e4e4e4; } svg .level { stroke: #b0521c; stroke-dasharray: 5 4; }
svg .curve { fill: none; stroke: #1f5fa8; stroke-width: 2; }
svg circle { fill: #1f5fa8; }
code { word-break: break-all; }
"""


@dataclass(frozen=True)
class Trained:
    """What a report is about.

    Attributes:
        task: Rows and labels.
        config: Options of the run.
        result: The finished run.
        blob: What was written of it; the figures on dev are its own.
        baselines: Those that were run.
    """

    task: Task
    config: TrainConfig
    result: TrainResult
    blob: PromptBlob
    baselines: tuple[Baseline, ...] = ()


def write_report(path: Path, run: Trained) -> None:
    """Write the report; the file is whole or the one before.

    Raises:
        PromptdialError: The file cannot be written.
    """
    write_atomic(path, report_html(run).encode("utf-8"))


def report_html(run: Trained) -> str:
    """The report as one HTML document."""
    title = f"Prompt {run.task.name}, version {run.blob.meta.version}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _blob(run),
        "<h2>Figures on dev</h2>",
        _figures(run),
        "<h2>Findings</h2>",
        _findings(run),
        "<h2>Epochs</h2>",
        _curves(run),
        *_answers(run),
        "<h2>Nearest words of each virtual token</h2>",
        _nearest(run),
        "<h2>Recipe</h2>",
        _table(("option", "value"), asdict(run.config).items()),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _blob(run: Trained) -> str:
    blob, meta = run.blob, run.blob.meta
    rows = [
        ("kind", meta.kind),
        ("size", f"{blob.size} bytes"),
        ("digest", blob.digest),
        ("base", f"{meta.base_model}, {meta.base_fingerprint}"),
        ("virtual tokens", blob.num_virtual_tokens),
        ("rows", f"{len(run.task.train)} train, {len(run.task.dev)} dev"),
        ("training data", meta.training["data"]),
        ("seconds", round(run.result.seconds, 1)),
    ]
    return _table(("blob", ""), rows)


def _figures(run: Trained) -> str:
    metric = run.task.metric
    rows: list[tuple[object, ...]] = [
        ("zero-shot: label names, no prompt", run.result.zero_shot, "", "")
    ]
    if run.result.facts.probe is not None:
        rows.append(("linear probe", run.result.probe, "", ""))
    stored = float(run.blob.meta.metrics[f"dev_{metric}"])
    count = sum(item.numel() for item in run.result.prompt.parameters())
    if run.result.reader.head is not None:
        count += sum(item.numel() for item in run.result.reader.head.parameters())
    rows.append((f"this blob ({run.config.method})", stored, count, run.result.seconds))
    rows += [
        (item.name, item.dev, item.parameters, item.seconds) for item in run.baselines
    ]
    return _table(("", metric, "trained numbers", "seconds"), rows)


def _findings(run: Trained) -> str:
    if not run.result.warnings:
        return "<p>None.</p>"
    items = [
        f"<li><b>{escape(item.code)}</b> {escape(item.message)}</li>"
        for item in run.result.warnings
    ]
    return f"<ul>{''.join(items)}</ul>"


def _curves(run: Trained) -> str:
    losses, metrics = run.result.losses, run.result.dev_metrics
    levels = [("zero-shot", run.result.zero_shot)]
    if run.result.facts.probe is not None:
        levels.append(("linear probe", run.result.probe))
    best = 0
    # A run that was begun by an older version has no metrics of its first epochs.
    first = len(losses) - len(metrics) + 1
    if metrics:
        best = first + metrics.index(max(metrics))
    dev = f"dev {run.task.metric}, percent; the kept epoch is marked"
    return draw(Chart("training loss", tuple(losses), marked=best)) + draw(
        Chart(dev, tuple(metrics), first, tuple(levels), best)
    )


def _answers(run: Trained) -> list[str]:
    """Confusions or entities on dev, of the stored numbers; nothing for embedding."""
    task, base = run.task, run.result.reader.base
    if task.kind == "embedding":
        return []
    pooling = run.blob.meta.pooling
    dev = encode_rows(task.dev, base.encoder, task.labels, task.template, pooling)
    gold, found = gold_units(task.dev), found_units(blob_reader(base, run.blob), dev)
    if task.kind == "token":
        rows = [tuple(asdict(item).values()) for item in entity_scores(gold, found)]
        head = ("entity", "in dev", "found", "right", "precision", "recall", "F1")
        return ["<h2>Entities on dev</h2>", _table(head, rows)]
    return ["<h2>Confusions on dev</h2>", *_confusions(task, gold, found)]


def _confusions(task: Task, gold: Units, found: Units) -> list[str]:
    parts = []
    if len(task.labels) <= _MATRIX_LABELS:
        counts = confusion_matrix(gold, found, task.labels)
        rows = [(name, *row) for name, row in zip(task.labels, counts, strict=True)]
        parts.append(_table(("label \\ answer", *task.labels), rows))
    worst = confusions(gold, found)
    listed = [
        (item.gold, item.found, item.count, _shown(task, item.example))
        for item in worst[:_CONFUSIONS]
    ]
    parts.append(_table(("label", "answer", "rows", "the first of them"), listed))
    if len(worst) > _CONFUSIONS:
        parts.append(f"<p>The largest {_CONFUSIONS} of {len(worst)} pairs.</p>")
    return parts


def _shown(task: Task, index: int) -> str:
    row = task.dev[index]
    text = row.text if row.text_pair is None else f"{row.text} / {row.text_pair}"
    return text if len(text) <= _EXAMPLE_CHARS else text[:_EXAMPLE_CHARS] + " ..."


def _nearest(run: Trained) -> str:
    found = nearest_words(run.result.reader.base, run.blob)
    if not found:
        return "<p>No virtual token.</p>"
    rows = [
        (number, ", ".join(f"{item.word} {item.cosine:.2f}" for item in words))
        for number, words in enumerate(found)
    ]
    what = "the token table's rows"
    if run.blob.past_key_values:
        what = "the keys of words in the first layer, their common part taken off"
    return f"<p>Cosine with {what}.</p>" + _table(("token", "words"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; numbers to the right, every cell escaped."""
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for row in rows:
        cells = [
            f'<td class="n">{_number(cell)}</td>'
            if isinstance(cell, int | float) and not isinstance(cell, bool)
            else f"<td>{escape(str(cell))}</td>"
            for cell in row
        ]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.4g}"
