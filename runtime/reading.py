"""From hidden states to answers, one kind of prompt after the other."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.answers import Classification, Generation, Span, Spans
from promptdial.runtime.deciding import calibrated, decide
from promptdial.runtime.errors import NotFinite, WrongKind
from promptdial.runtime.metrics import bio_spans
from promptdial.runtime.pooling import first_pieces, mean_l2, segments_l2
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


def read_answer(request: Request, hidden: Floats) -> Answer:
    """The answer of one request.

    Args:
        request: The request.
        hidden: Its hidden states [T, H].

    Raises:
        NotFinite: They hold NaN or infinity.
    """
    prompt = request.prompt
    if prompt is None or prompt.meta.kind == "embedding":
        return _finite(mean_l2(hidden))
    if prompt.meta.kind == "token":
        return _spans(request, prompt, hidden)
    return _classification(request, prompt, hidden)


def wrong_kind(task: str | None, answer: Answer, instead: str) -> WrongKind:
    """The error for an answer of another kind than the call's."""
    kind = "embedding"
    for of, name in _KINDS:
        if isinstance(answer, of):
            kind = name
    return WrongKind(f"task {task!r} answers with {kind}", f"use {instead}")


def _classification(
    request: Request, prompt: ReadyPrompt, hidden: Floats
) -> Classification:
    if prompt.meta.pooling == "segments_l2":
        pooled = segments_l2(hidden, request.encoded.type_ids)
    else:
        pooled = mean_l2(hidden)
    meta = prompt.meta
    decision = decide(_logits(prompt, pooled), meta.labels, meta.scores)
    return decision.classification(meta.labels, meta.version, request.encoded.truncated)


def _spans(request: Request, prompt: ReadyPrompt, hidden: Floats) -> Spans:
    encoded = request.encoded
    pieces = first_pieces(encoded.words)
    logits = _logits(prompt, hidden[pieces])
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
