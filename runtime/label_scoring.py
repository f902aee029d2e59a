"""Labels on a decoder: how likely each one is as the answer to a text.

A label is a few tokens and the end token; its likelihood is the product of theirs. One
pass over the text gives every label's first token, and the state that all share. What
is known of a label's tokens is a bound for the whole of it, so labels are followed best
bound first, a batch at a time, until none that is left could win. The tokens form a
trie: a path that is followed tells of every label that branches off it. The best label
is exact, and so is every other that was followed to its end; the rest could not have
won and stand with their bound.

A calibrated task's likelihoods are taken over its prior (label_prior.py). The prior of
every label is exact, so what is known of a label, less its prior, is a bound as before.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.answers import Classification
from promptdial.runtime.decoder_session import KeyValues
from promptdial.runtime.errors import NotFinite, PromptRefused
from promptdial.runtime.generating import (
    DecoderModel,
    GenerationRequest,
    prefill,
    token_rows,
)
from promptdial.runtime.label_prior import prior_of
from promptdial.runtime.pooling import softmax

Floats = NDArray[np.float32]
Path = tuple[int, ...]
"""A label's tokens, or their beginning."""

_MAX_LABEL_SETS = 256
FOLLOWED = 8
"""Labels of one pass: more could be completed for nothing, fewer cost more passes."""


@dataclass(frozen=True)
class LabelScores:
    """How likely every label is.

    Attributes:
        logs: [C] log-likelihood, less the prior if there is one; of those not
            completed, a bound.
        completed: [C] whether it is exact.
        passes: Passes after the one over the text.
    """

    logs: NDArray[np.float64]
    completed: NDArray[np.bool_]
    passes: int


def verbalised(label: str) -> str:
    """A label as it is written: `card_payment` as "card payment"."""
    return label.replace("_", " ").strip()


def label_tokens(model: DecoderModel, labels: tuple[str, ...]) -> list[list[int]]:
    """Tokens of every label, the end token behind each where the base has one.

    Raises:
        PromptRefused: Two labels have the same tokens, or one has none.
    """
    known = model.label_tokens.get(labels)
    if known is not None:
        return known
    end = [] if model.end_token is None else [model.end_token]
    texts = [model.encoder.token_ids(verbalised(label)) for label in labels]
    if not all(texts) or len({tuple(tokens) for tokens in texts}) < len(texts):
        raise PromptRefused("two labels have the same tokens, or one has none")
    if len(model.label_tokens) >= _MAX_LABEL_SETS:
        model.label_tokens.clear()
    found = [[*tokens, *end] for tokens in texts]
    model.label_tokens[labels] = found
    return found


def classify_by_likelihood(
    request: GenerationRequest, labels: tuple[str, ...], model: DecoderModel
) -> Classification:
    """The most likely label of a text.

    Raises:
        SessionFailed: onnxruntime fails.
        NotFinite: The logits are not finite.
        PromptRefused: Two labels have the same tokens.
        TextRefused: There is no room for a calibrated task's neutral text.
    """
    tokens = label_tokens(model, labels)
    prior = prior_of(request, model, lambda it: likelihoods(it, tokens, model))
    found = score_labels(request, tokens, model, prior)
    shares = softmax(found.logs.astype(np.float32)).tolist()
    # Ties and rounding in the softmax must not choose: the exact ones do.
    best = int(np.where(found.completed, found.logs, -np.inf).argmax())
    prompt = request.prompt
    return Classification(
        label=labels[best],
        score=shares[best],
        scores=dict(zip(labels, shares, strict=True)),
        prompt_version=prompt.meta.version if prompt else 0,
        truncated=request.truncated,
    )


def score_labels(
    request: GenerationRequest,
    labels: list[list[int]],
    model: DecoderModel,
    prior: NDArray[np.float64] | None = None,
) -> LabelScores:
    """Likelihoods of labels given as tokens, until the best one is certain.

    Args:
        request: The text.
        labels: Tokens of every label.
        model: The decoder.
        prior: [C] taken off every label's; None for nothing.

    Raises:
        SessionFailed: onnxruntime fails.
        NotFinite: The logits are not finite.
    """
    start = np.zeros(len(labels)) if prior is None else -prior
    return _search(request, labels, model, start, _best_is_certain)


def likelihoods(
    request: GenerationRequest, labels: list[list[int]], model: DecoderModel
) -> NDArray[np.float64]:
    """Log-likelihoods [C] of labels given as tokens, every one exact.

    Raises:
        SessionFailed, NotFinite: As `score_labels`.
    """
    start = np.zeros(len(labels))
    return _search(request, labels, model, start, lambda _, done: bool(done.all())).logs


def _best_is_certain(logs: NDArray[np.float64], completed: NDArray[np.bool_]) -> bool:
    best = logs[completed].max(initial=-np.inf)
    return bool(completed.all() or logs[~completed].max() <= best)


def _search(
    request: GenerationRequest,
    labels: list[list[int]],
    model: DecoderModel,
    logs: NDArray[np.float64],
    enough: Callable[[NDArray[np.float64], NDArray[np.bool_]], bool],
) -> LabelScores:
    """Follow labels until `enough` of (logs [C], completed [C]), from `logs` on."""
    logits, cache = prefill(request, model)
    past = cache.key_values()
    done = request.length
    paths = [tuple(tokens) for tokens in labels]
    known = np.zeros(len(paths), np.int64)
    lengths = np.array([len(path) for path in paths])
    _learn(paths, logs, known, {(): _log_shares(logits[0, -1])})
    passes = 0
    while True:
        completed = known == lengths
        if enough(logs, completed):
            return LabelScores(logs, completed, passes)
        chosen = _to_follow(paths, logs, known)
        _learn(paths, logs, known, _followed(chosen, done, past, model))
        passes += 1


def _learn(
    paths: list[Path],
    logs: NDArray[np.float64],
    known: NDArray[np.int64],
    after: dict[Path, NDArray[np.float64]],
) -> None:
    """Take what comes after some beginnings into every label's sum, in place."""
    for index, path in enumerate(paths):
        while known[index] < len(path) and path[: known[index]] in after:
            logs[index] += after[path[: known[index]]][path[known[index]]]
            known[index] += 1


def _to_follow(
    paths: list[Path], logs: NDArray[np.float64], known: NDArray[np.int64]
) -> list[Path]:
    """Labels to follow to their ends: the best that tell something new."""
    chosen: list[Path] = []
    covered: set[Path] = set()
    for index in np.argsort(-logs, kind="stable"):
        path = paths[index]
        begins = {path[:end] for end in range(int(known[index]), len(path))}
        if begins <= covered:
            continue
        chosen.append(path)
        covered |= begins
        if len(chosen) == FOLLOWED:
            break
    return chosen


def _followed(
    paths: list[Path], done: int, past: KeyValues, model: DecoderModel
) -> dict[Path, NDArray[np.float64]]:
    """Log-probabilities [V] after every beginning of some labels.

    In one pass, but for a base with convolutions: they see the rows before, whatever
    label those belong to, so each label gets a pass of its own there.
    """
    if model.manifest.dims.conv_layers:
        found: dict[Path, NDArray[np.float64]] = {}
        for path in paths:
            found |= _in_one_pass([path], done, past, model)
        return found
    return _in_one_pass(paths, done, past, model)


def _in_one_pass(
    paths: list[Path], done: int, past: KeyValues, model: DecoderModel
) -> dict[Path, NDArray[np.float64]]:
    """Log-probabilities [V] after every beginning of some labels.

    The beginnings are rows of one sequence; each sees the text and its own beginnings,
    and stands at the position that it has in its label.
    """
    beginnings = sorted({path[:end] for path in paths for end in range(1, len(path))})
    places = {beginning: row for row, beginning in enumerate(beginnings)}
    count = len(beginnings)
    visible = np.zeros((count, done + count), np.bool_)
    visible[:, :done] = True
    for row, beginning in enumerate(beginnings):
        own = [places[beginning[:end]] for end in range(1, len(beginning) + 1)]
        visible[row, [done + place for place in own]] = True
    ids = np.array([[beginning[-1] for beginning in beginnings]], np.int64)
    steps = [[done + len(beginning) - 1 for beginning in beginnings]]
    logits, _ = model.session.forward(
        token_rows(ids, model),
        np.ones((1, done + count), np.int64),
        np.array(steps, np.int64),
        past,
        keep=0,
        visible=visible[None, None],
    )
    return {beginning: _log_shares(logits[0, row]) for beginning, row in places.items()}


def _log_shares(logits: Floats) -> NDArray[np.float64]:
    """Log-probabilities [..., V]."""
    if not np.isfinite(logits.sum()):
        raise NotFinite(
            "the graph's output holds NaN or infinity",
            "check the prompt and the bundle with promptdial verify",
        )
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
    return found
