"""Metrics over predictions, all in percent.

rouge_l is the F1 of the longest common subsequence of words (Lin 2004, ROUGE), in lower
case, without stemming, against the nearest of several references.
entity_f1 follows the CoNLL-2000 evaluation (an entity counts where type, first and
last word all agree; an I- tag that continues nothing begins an entity).
"""

import re
from collections.abc import Sequence

METRIC_OF_KIND = {
    "classification": "accuracy",
    "pair": "accuracy",
    "token": "entity_f1",
    "embedding": "recall_at_1",
    "generation": "rouge_l",
}
"""The metric of a kind, where task.yaml names no other."""

METRICS_OF_KIND = {kind: (metric,) for kind, metric in METRIC_OF_KIND.items()} | {
    "generation": ("rouge_l", "exact_match")
}
_WORD = re.compile(r"\w+")


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """Share of equal labels, in percent."""
    if not gold:
        return 0.0
    return 100.0 * sum(g == p for g, p in zip(gold, predicted, strict=True)) / len(gold)


def exact_match(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> float:
    """Share of texts equal to one of their references but for blanks, in percent."""
    if not gold:
        return 0.0
    pairs = zip(gold, predicted, strict=True)
    hits = [_plain(found) in map(_plain, texts) for texts, found in pairs]
    return 100.0 * sum(hits) / len(hits)


def rouge_l(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> float:
    """Mean of each text's best F1 over its references, in percent."""
    if not gold:
        return 0.0
    pairs = zip(gold, predicted, strict=True)
    best = [max(_overlap(text, found) for text in texts) for texts, found in pairs]
    return 100.0 * sum(best) / len(best)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _overlap(text: str, found: str) -> float:
    wanted, given = _WORD.findall(text.lower()), _WORD.findall(found.lower())
    # Lengths of the common subsequence of `wanted` up to here and each part of `given`.
    row = [0] * (len(given) + 1)
    for word in wanted:
        last = 0
        for place, other in enumerate(given, 1):
            here = row[place]
            row[place] = last + 1 if word == other else max(here, row[place - 1])
            last = here
    total = len(wanted) + len(given)
    return 2.0 * row[-1] / total if total else 1.0


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
