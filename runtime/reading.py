"""From hidden states to answers, one kind of prompt after the other."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.answers import Classification, Generation, Span, Spans
from promptdial.runtime.deciding import calibrated, decide
from promptdial.runtime.errors import NotFinite, WrongKind
from promptdial.runtime.metrics import bio_spans
from promptdial.runtime.pooling import (
    apart_l2,
    first_pieces,
    mean_l2,
    mixed,
    segments_l2,
)
from promptdial.runtime.prompt_cache import ReadyPrompt
from promptdial.runtime.tagging import best_tags
from promptdial.runtime.text import Encoded

Floats = NDArray[np.float32]
Answer = Classification | Spans | Floats | Generation


_KINDS = (
    (Classification, "classification"),
    (Spans, "token"),
    (Generation, "generation"),
)


@dataclass(frozen=True)
class Request:
    """One encoded request.

    Attributes:
        prompt: The prompt that answers; None for the base alone.
        encoded: The tokens.
        text: The text as the caller gave it.
        words: (start, end) in characters of each word of a token request.
    """

    prompt: ReadyPrompt | None
    encoded: Encoded
    text: str
    words: tuple[tuple[int, int], ...] = ()


def read_answer(request: Request, levels: Floats) -> Answer:
    """The answer of one request.

    Args:
        request: The request.
        levels: Its hidden states [1 or L+1, T, H]: the last level alone, unless the
            prompt mixes them.

    Raises:
        NotFinite: They hold NaN or infinity.
    """
    prompt = request.prompt
    if prompt is None or prompt.meta.kind == "embedding":
        return _finite(mean_l2(levels[-1]))
    if prompt.meta.kind == "token":
        return _spans(request, prompt, levels)
    return _decided(request, prompt, _features(request, prompt, levels))


def read_apart(request: Request, one: Floats, two: Floats) -> Answer:
    """The answer of a pair whose texts were read one after the other.

    Args:
        request: The request.
        one: Features of the first text, as `mean_of_text` gives them.
        two: Features of the second.

    Raises:
        NotFinite: They hold NaN or infinity.
    """
    assert request.prompt is not None
    return _decided(request, request.prompt, apart_l2(one, two).reshape(-1))


def wrong_kind(task: str | None, answer: Answer, instead: str) -> WrongKind:
    """The error for an answer of another kind than the call's."""
    kind = "embedding"
    for of, name in _KINDS:
        if isinstance(answer, of):
            kind = name
    return WrongKind(f"task {task!r} answers with {kind}", f"use {instead}")


def _decided(request: Request, prompt: ReadyPrompt, features: Floats) -> Classification:
    """The label that features [M * H], or [M * 2 H] of texts apart, are given."""
    meta = prompt.meta
    decision = decide(_logits(prompt, features), meta.labels, meta.scores)
    return decision.classification(meta.labels, meta.version, request.encoded.truncated)


def _features(request: Request, prompt: ReadyPrompt, levels: Floats) -> Floats:
    """Features [M * H] of a text; M is 1 where the prompt mixes no levels."""
    if prompt.meta.pooling == "segments_l2":
        types = request.encoded.type_ids
        pooled = segments_l2(_chosen(prompt, levels), types, prompt.query)
    else:
        pooled = mean_of_text(prompt, levels)
    return pooled.reshape(-1)


def mean_of_text(prompt: ReadyPrompt, levels: Floats) -> Floats:
    """Features [M, H] of all rows of a text; M is 1 where the prompt mixes no levels.

    Args:
        prompt: The prompt that reads.
        levels: As `read_answer`.
    """
    if prompt.query is not None:
        return mean_l2(_chosen(prompt, levels), prompt.query)
    # The mean of a sum of levels is the sum of their means, and those are small.
    return mean_l2(_chosen(prompt, levels.mean(-2, keepdims=True)))


def _chosen(prompt: ReadyPrompt, levels: Floats) -> Floats:
    """The sums of levels [M, T, H] that a prompt reads, or the last level alone."""
    return levels[-1:] if prompt.mix is None else mixed(levels, prompt.mix)


def _spans(request: Request, prompt: ReadyPrompt, levels: Floats) -> Spans:
    encoded = request.encoded
    pieces = first_pieces(encoded.words)
    rows = _chosen(prompt, levels[:, pieces]).transpose(1, 0, 2)
    logits = _logits(prompt, rows.reshape(len(pieces), -1))
    scores = calibrated(logits, prompt.meta.labels, prompt.meta.scores)
    found = best_tags(logits, prompt.steps)
    labels = prompt.meta.labels
    # Words beyond the window have no token to be judged by.
    tags = ["O"] * len(request.words)
    certain = [0.0] * len(request.words)
    for piece, row, best in zip(pieces, scores, found, strict=True):
        word = int(encoded.words[piece])
        tags[word], certain[word] = labels[best], float(row[best])
    spans = [
        _span(request, label, first, last, certain)
        for label, first, last in bio_spans(tags)
    ]
    return Spans(
        spans=tuple(spans),
        tags=tuple(tags),
        words=request.words,
        prompt_version=prompt.meta.version,
        truncated=encoded.truncated,
    )


def _span(
    request: Request, label: str, first: int, last: int, certain: list[float]
) -> Span:
    start, end = request.words[first][0], request.words[last - 1][1]
    score = sum(certain[first:last]) / (last - first)
    return Span(label, request.text[start:end], start, end, score)


def _logits(prompt: ReadyPrompt, pooled: Floats) -> Floats:
    """Logits [C] or [N, C] of features [H] or [N, H]."""
    assert prompt.head is not None and prompt.bias is not None
    return _finite(pooled @ prompt.head + prompt.bias)


def _finite(values: Floats) -> Floats:
    # A sum is finite only if every value is, and costs one pass.
    if not np.isfinite(values.sum()):
        raise NotFinite(
            "the graph's output holds NaN or infinity",
            "check the prompt and the bundle with promptdial verify",
        )
    return values
