"""Metrics over predictions, all in percent.

entity_f1 follows the CoNLL-2000 evaluation (an entity counts where type, first and
last word all agree; an I- tag that continues nothing begins an entity).
"""

from collections.abc import Sequence

METRIC_OF_KIND = {
    "classification": "accuracy",
    "pair": "accuracy",
    "token": "entity_f1",
    "embedding": "recall_at_1",
}


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of equal labels, in percent."""
    if not gold:
        return 0.0
    return 100.0 * sum(g == p for g, p in zip(gold, predicted, strict=True)) / len(gold)


def bio_spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Entities of a BIO sequence as (type, first word, word after the last)."""
    spans: list[tuple[str, int, int]] = []
    name, start = "", 0
    for index, tag in enumerate((*tags, "O")):
        mark, _, kind = tag.partition("-")
        if name and (mark != "I" or kind != name):
            spans.append((name, start, index))
            name = ""
        if mark != "O" and not name:
            name, start = kind, index
    return spans


def entity_f1(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> float:
    """Micro F1 over entities of all sentences, in percent."""
    right = wanted = found = 0
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        gold_spans = set(bio_spans(gold_tags))
        predicted_spans = set(bio_spans(predicted_tags))
        right += len(gold_spans & predicted_spans)
        wanted += len(gold_spans)
        found += len(predicted_spans)
    if wanted + found == 0:
        return 100.0
    return 200.0 * right / (wanted + found)
