"""Evaluating a task on labelled rows, through the Engine or any other predictor."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from promptdial.prompts.errors import DataInvalid
from promptdial.prompts.scores import PLAIN, Scores, may_abstain
from promptdial.runtime.abstention import Abstention, abstention, counted
from promptdial.runtime.answers import Classification, Generation, Spans
from promptdial.runtime.engine import Engine
from promptdial.runtime.metrics import (
    METRIC_OF_KIND,
    accuracy,
    entity_f1,
    exact_match,
    rouge_l,
)
from promptdial.runtime.reading import Answer
from promptdial.runtime.rows import Row

Prediction = str | list[str] | list[float]
"""A label, tags, or an embedding."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of one task on one set of rows.

    Attributes:
        task: Name.
        metric: Name of the metric.
        value: The metric, in percent.
        n: Rows.
        ms_p50: Median time of a row, milliseconds.
        ms_p99: 99th percentile of the same.
        backend: `onnx` or `torch`.
        abstention: Of a prompt that may abstain; None for others.
    """

    task: str
    metric: str
    value: float
    n: int
    ms_p50: float
    ms_p99: float
    backend: str
    abstention: Abstention | None = None


def predict(
    engine: Engine, task: str, rows: Sequence[Row], scores: Scores = PLAIN
) -> tuple[list[Prediction], list[float]]:
    """Predictions of rows, and the milliseconds of each.

    Args:
        engine: One that has the prompt.
        task: Its name.
        rows: Inputs.
        scores: The prompt's; an abstention counts as its out-of-scope label.
    """
    answers, times = ask(engine, task, rows)
    return [_prediction(answer, scores) for answer in answers], times


def ask(
    engine: Engine, task: str, rows: Sequence[Row]
) -> tuple[list[Answer], list[float]]:
    """Answers to rows, one request after another, and the milliseconds of each."""
    found: list[Answer] = []
    times: list[float] = []
    for row in rows:
        started = time.perf_counter()
        answer: Answer
        if row.tokens:
            answer = engine.tag(task, row.tokens)
        else:
            answer = engine.run(task, row.text, row.text_pair)
        times.append(1e3 * (time.perf_counter() - started))
        found.append(answer)
    return found, times


def metric_value(
    kind: str,
    rows: Sequence[Row],
    predictions: Sequence[Prediction],
    positives: Sequence[Prediction] = (),
    metric: str = "",
) -> float:
    """The metric of a kind, in percent.

    Args:
        kind: Kind of the task.
        rows: The rows, labelled.
        predictions: One a row.
        positives: Embeddings of the rows' positives (embedding only).
        metric: Its name where a kind has several; "" for the usual one.

    Raises:
        DataInvalid: A row has no label.
    """
    if kind == "generation":
        texts = [(row.target or "", *row.references) for row in rows]
        written = [str(prediction) for prediction in predictions]
        return (exact_match if metric == "exact_match" else rouge_l)(texts, written)
    if kind == "embedding":
        return _recall_at_1(rows, predictions, positives)
    if kind == "token":
        if not all(row.tags for row in rows):
            raise DataInvalid("a row has no tags", "give labelled rows")
        tags = [p for p in predictions if isinstance(p, list)]
        return entity_f1(
            [row.tags for row in rows], [[str(t) for t in p] for p in tags]
        )
    gold = [row.label for row in rows if row.label is not None]
    if len(gold) != len(rows):
        raise DataInvalid("a row has no label", "give labelled rows")
    return accuracy(gold, [str(prediction) for prediction in predictions])


def check_rows(kind: str, rows: Sequence[Row]) -> None:
    """Check that rows are of the prompt's kind.

    Raises:
        DataInvalid: They are of another.
    """
    if rows[0].kind != kind:
        raise DataInvalid(
            f"the prompt is {kind}, the rows are {rows[0].kind}",
            "give rows of the prompt's kind",
        )


def evaluate(
    engine: Engine,
    task: str,
    kind: str,
    rows: Sequence[Row],
    metric: str = "",
    scores: Scores = PLAIN,
) -> Evaluation:
    """Evaluate a task through the Engine, one request after another.

    Args:
        engine: One that has the prompt.
        task: Its name.
        kind: Its kind.
        rows: Labelled rows.
        metric: Where a kind has several; "" for the usual one.
        scores: The prompt's temperature, threshold and out-of-scope label.

    Raises:
        DataInvalid: Rows of another kind, or without labels.
        RuntimeFailure: A request fails.
    """
    check_rows(kind, rows)
    answers, times = ask(engine, task, rows)
    predictions = [_prediction(answer, scores) for answer in answers]
    positives: list[Prediction] = []
    if kind == "embedding":
        # Several rows may share a positive; it is embedded once a row all the same.
        wanted = [Row(text=row.positive or "") for row in rows]
        positives, _ = predict(engine, task, wanted)
    found = summary(task, kind, rows, predictions, times, "onnx", positives, metric)
    chosen = [answer for answer in answers if isinstance(answer, Classification)]
    labels = [answer.label for answer in chosen]
    without = [answer.abstained for answer in chosen]
    return with_abstention(found, rows, labels, without, scores)


def with_abstention(
    found: Evaluation,
    rows: Sequence[Row],
    labels: Sequence[str],
    abstained: Sequence[bool],
    scores: Scores,
) -> Evaluation:
    """An evaluation with the figures of its abstentions, if the prompt may abstain."""
    if not may_abstain(scores):
        return found
    gold = [row.label or "" for row in rows]
    return replace(found, abstention=abstention(gold, labels, abstained, scores))


def to_object(found: Evaluation) -> dict[str, Any]:
    """The answer of the eval command: figures of abstentions where there are any."""
    plain = asdict(found)
    figures = plain.pop("abstention") or {}
    return plain | {key: value for key, value in figures.items() if value is not None}


def summary(
    task: str,
    kind: str,
    rows: Sequence[Row],
    predictions: Sequence[Prediction],
    times: Sequence[float],
    backend: str,
    positives: Sequence[Prediction] = (),
    metric: str = "",
) -> Evaluation:
    """Metric and times in one answer."""
    return Evaluation(
        task=task,
        metric=metric or METRIC_OF_KIND[kind],
        value=round(metric_value(kind, rows, predictions, positives, metric), 3),
        n=len(rows),
        ms_p50=round(float(np.percentile(times, 50)), 3),
        ms_p99=round(float(np.percentile(times, 99)), 3),
        backend=backend,
    )


def _prediction(answer: Answer, scores: Scores) -> Prediction:
    if isinstance(answer, Classification):
        return counted([answer.label], [answer.abstained], scores.out_of_scope)[0]
    if isinstance(answer, Spans):
        return list(answer.tags)
    if isinstance(answer, Generation):
        return answer.text
    return [float(value) for value in answer]


def _recall_at_1(
    rows: Sequence[Row],
    predictions: Sequence[Prediction],
    positives: Sequence[Prediction],
) -> float:
    """Share of rows whose nearest positive is their own; equal texts count as one."""
    texts = [row.positive for row in rows]
    nearest = (np.array(predictions) @ np.array(positives).T).argmax(1)
    hits = [texts[found] == own for found, own in zip(nearest, texts, strict=True)]
    return 100.0 * hits.count(True) / len(hits)
