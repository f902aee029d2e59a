"""Labels on a decoder: how likely each one is as the answer to a text.

A label is a few tokens and the end token; its likelihood is the product of theirs. One
pass over the text gives every label's first token, and the state that all share. What
is known of a label's tokens is a bound for the whole of it, so labels are followed best
bound first, a batch at a time, until none that is left could win. The tokens form a
trie: a path that is followed tells of every label that branches off it. The best label
is exact, and so is every other that was followed to its end; the rest could not have
won and stand with their bound.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.answers import Classification
from promptdial.runtime.decoder_session import KeyValues
from promptdial.runtime.errors import NotFinite, PromptRefused
from promptdial.runtime.generating import (
    DecoderModel,
    GenerationRequest,
    TextStream,
    prefill,
    token_rows,
    written,
)
from promptdial.runtime.pooling import softmax
from promptdial.runtime.reading import Answer
from promptdial.runtime.session import ort_value

Floats = NDArray[np.float32]
Path = tuple[int, ...]
"""A label's tokens, or their beginning."""

_MAX_LABEL_SETS = 256
BATCH = 8
"""Labels of one pass: more could be completed for nothing, fewer cost more passes."""


@dataclass(frozen=True)
class LabelScores:
    """How likely every label is.

    Attributes:
        logs: [C] log-likelihood; of those not completed, a bound.
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
    """
    found = score_labels(request, label_tokens(model, labels), model)
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


def answer_of(request: GenerationRequest, model: DecoderModel) -> Answer:
    """A decoder's answer, by the prompt's kind.

    Raises:
        RuntimeFailure: The graph fails.
    """
    if request.prompt is not None and request.prompt.meta.kind == "classification":
        return classify_by_likelihood(request, request.prompt.meta.labels, model)
    return written(TextStream(request, model))


def score_labels(
    request: GenerationRequest, labels: list[list[int]], model: DecoderModel
) -> LabelScores:
    """Likelihoods of labels given as tokens.

    Raises:
        SessionFailed: onnxruntime fails.
        NotFinite: The logits are not finite.
    """
    logits, past = prefill(request, model)
    done = len(request.tokens) + (request.prompt.length if request.prompt else 0)
    paths = [tuple(tokens) for tokens in labels]
    logs, known = np.zeros(len(paths)), np.zeros(len(paths), np.int64)
    lengths = np.array([len(path) for path in paths])
    _learn(paths, logs, known, {(): _log_shares(logits[0, -1])})
    passes = 0
    while True:
        completed = known == lengths
        best = logs[completed].max(initial=-np.inf)
        if completed.all() or logs[~completed].max() <= best:
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
        if len(chosen) == BATCH:
            break
    return chosen


def _followed(
    paths: list[Path], done: int, past: KeyValues, model: DecoderModel
) -> dict[Path, NDArray[np.float64]]:
    """Log-probabilities [V] after every beginning of some labels, in one pass.

    Shorter labels are padded on the right, where nothing that counts looks.
    """
    length = max(len(path) for path in paths) - 1
    ids = np.zeros((len(paths), length), np.int64)
    for row, path in enumerate(paths):
        ids[row, : len(path) - 1] = path[:-1]
    rows = token_rows(ids, model)
    shared = tuple(
        [ort_value(np.repeat(value.numpy(), len(paths), axis=0)) for value in past]
    )
    mask = np.ones((len(paths), done + length), np.int64)
    positions = np.tile(np.arange(done, done + length), (len(paths), 1))
    logits, _ = model.session.forward(rows, mask, positions, shared, keep=0)
    return {
        path[: end + 1]: _log_shares(logits[row, end])
        for row, path in enumerate(paths)
        for end in range(len(path) - 1)
    }


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
