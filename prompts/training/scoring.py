"""Predictions of the PyTorch side and their metric."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from promptdial.export.forward import PromptState
from promptdial.prompts.scores import PLAIN, Scores
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import (
    Example,
    batches_of,
    collate,
    first_pieces,
)
from promptdial.prompts.training.heads import Head, read
from promptdial.runtime.abstention import counted
from promptdial.runtime.deciding import decide
from promptdial.runtime.metrics import accuracy, entity_f1
from promptdial.runtime.rows import Row
from promptdial.runtime.tagging import allowed_steps, best_tags

_BATCH = 64


@dataclass(frozen=True)
class Reader:
    """What turns texts into answers.

    Attributes:
        base: The frozen model.
        state: The prompt ready to run; empty for none.
        head: Class vectors; None for embedding.
        kind: Kind of the task.
        pooling: How features are read.
        labels: Names of the classes.
        scores: How logits become scores, and which answers are abstentions.
    """

    base: FrozenBase
    state: PromptState
    head: Head | None
    kind: str
    pooling: str
    labels: tuple[str, ...]
    scores: Scores = PLAIN


def logits_of(reader: Reader, examples: list[Example]) -> list[Tensor]:
    """Logits of each example: [C], or one row a word [W, C], or features [H]."""
    found: list[Tensor] = [torch.empty(0)] * len(examples)
    for indices in batches_of(examples, _BATCH, None):
        # Features are many times as large: no more than a batch of them is kept.
        features = _batch_features(reader, [examples[index] for index in indices])
        parts = logits_over(reader.head, features)
        for index, part in zip(indices, parts, strict=True):
            found[index] = part
    return found


def features_of(reader: Reader, examples: list[Example]) -> list[Tensor]:
    """What a head reads of each example: [M * H], or one row a word [W, M * H]."""
    found: list[Tensor] = [torch.empty(0)] * len(examples)
    for indices in batches_of(examples, _BATCH, None):
        features = _batch_features(reader, [examples[index] for index in indices])
        for index, part in zip(indices, features, strict=True):
            found[index] = part
    return found


def _batch_features(reader: Reader, examples: list[Example]) -> list[Tensor]:
    texts = [example.text for example in examples]
    with torch.no_grad():
        batch = collate(texts, reader.base.device)
        out = read(reader.base, batch, reader.state, reader.pooling, reader.head)
    if reader.pooling != "first_token":
        return list(out)
    counts = [int(first_pieces(text).sum()) for text in texts]
    return list(out.split_with_sizes(counts))


def logits_over(head: Head | None, features: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each example from its features, which several heads may share.

    Args:
        head: Class vectors; None gives the features back.
        features: What `features_of` gave.
    """
    if head is None or not features:
        return [item.cpu() for item in features]
    with torch.no_grad():
        out = head(joined(features)).cpu()
    counts = [len(item) if item.dim() == 2 else 1 for item in features]
    parts = out.split_with_sizes(counts)
    return [
        part if item.dim() == 2 else part[0]
        for part, item in zip(parts, features, strict=True)
    ]


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Logits or features of several examples as one [N, ...]: a row each, or a word."""
    return torch.cat([item if item.dim() == 2 else item[None] for item in parts])


def labels_of(reader: Reader, examples: list[Example]) -> list[str]:
    """Predicted label of each example, as the metric counts it (classification, pair).

    An abstention is the out-of-scope label of a prompt that has one.
    """
    return labels_of_logits(reader, logits_of(reader, examples))


def choices_of(reader: Reader, examples: list[Example]) -> tuple[list[str], list[bool]]:
    """Best label of each example, and whether the prompt abstains from it."""
    return _choices(reader, logits_of(reader, examples))


def tags_of(reader: Reader, examples: list[Example]) -> list[list[str]]:
    """Predicted tags of each example, one a word; `O` for words cut off."""
    return tags_of_logits(reader, examples, logits_of(reader, examples))


def score(reader: Reader, rows: list[Row], examples: list[Example]) -> float:
    """The task's metric on rows, in percent."""
    return score_of_logits(reader, rows, examples, logits_of(reader, examples))


def score_of_logits(
    reader: Reader, rows: list[Row], examples: list[Example], logits: Sequence[Tensor]
) -> float:
    """As `score`, from the logits (or features) that `logits_of` gave."""
    if reader.kind == "embedding":
        return _recall_at_1(reader, examples, logits)
    if reader.kind == "token":
        tags = tags_of_logits(reader, examples, logits)
        return entity_f1([row.tags for row in rows], tags)
    gold = [row.label or "" for row in rows]
    return accuracy(gold, labels_of_logits(reader, logits))


def labels_of_logits(reader: Reader, logits: Sequence[Tensor]) -> list[str]:
    """As `labels_of`, from the logits that `logits_of` gave."""
    return counted(*_choices(reader, logits), reader.scores.out_of_scope)


def _choices(reader: Reader, logits: Sequence[Tensor]) -> tuple[list[str], list[bool]]:
    labels, scores = reader.labels, reader.scores
    found = [decide(row.numpy(), labels, scores) for row in logits]
    return [labels[it.best] for it in found], [it.abstained for it in found]


def tags_of_logits(
    reader: Reader, examples: list[Example], logits: Sequence[Tensor]
) -> list[list[str]]:
    """As `tags_of`, from the logits that `logits_of` gave."""
    answers = []
    steps = allowed_steps(reader.labels)
    for example, rows in zip(examples, logits, strict=True):
        assert isinstance(example.target, tuple)
        tags = ["O"] * len(example.target)
        words = example.text.words[first_pieces(example.text)]
        found = best_tags(rows.numpy(), steps)
        for word, index in zip(words, found, strict=True):
            tags[int(word)] = reader.labels[index]
        answers.append(tags)
    return answers


def _recall_at_1(
    reader: Reader, examples: list[Example], pooled: Sequence[Tensor]
) -> float:
    """Share of texts whose nearest positive is their own, in percent.

    Rows may share a positive (several questions, one answer); each counts once.
    """
    positives = {
        item.positive.ids.tobytes(): item.positive for item in examples if item.positive
    }
    keys = list(positives)
    answers = [Example(text, -1) for text in positives.values()]
    right = torch.stack(logits_of(reader, answers))
    nearest = (torch.stack(list(pooled)) @ right.T).argmax(1).tolist()
    hits = [
        item.positive is not None and keys[found] == item.positive.ids.tobytes()
        for item, found in zip(examples, nearest, strict=True)
    ]
    return 100.0 * hits.count(True) / len(hits)
