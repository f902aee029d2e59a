"""Labels on a decoder: how likely each one is as the answer to a text.

The answer is held to the labels, so only the places where they part count (see
label_trie.py). The beginnings that lead to them are rows behind the text's, in the same
pass: reading a text and comparing its labels reads every weight once. Every label's
likelihood is exact, and they sum to one.

A calibrated task's likelihoods are taken over its prior (label_prior.py). Graphs of
fixed sizes write the beginnings one by one (static_labels.py).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.scores import PLAIN
from promptdial.runtime.answers import Classification
from promptdial.runtime.deciding import decide
from promptdial.runtime.decoder_session import DecoderSession, KeyValues
from promptdial.runtime.errors import NotFinite, PromptRefused
from promptdial.runtime.generating import (
    DecoderModel,
    GenerationRequest,
    token_rows,
)
from promptdial.runtime.label_prior import prior_of
from promptdial.runtime.label_trie import LabelTrie, Logs, Path, make_trie
from promptdial.runtime.prompt_cache import ColdPrompt
from promptdial.runtime.static_decoder import StaticDecoderSession
from promptdial.runtime.static_labels import score_by_writing
from promptdial.runtime.text import TextEncoder

Floats = NDArray[np.float32]

_MAX_LABEL_SETS = 256
MAX_ROWS = 128
"""Beginnings of one pass, unless a label has more: their logits are [rows, V]."""


def verbalised(label: str) -> str:
    """A label as it is written: `card_payment` as "card payment"."""
    return label.replace("_", " ").strip()


def label_trie(
    encoder: TextEncoder, end_token: int | None, labels: Sequence[str]
) -> LabelTrie:
    """Tokens of labels, the end token behind each where the base has one.

    Raises:
        PromptRefused: Two labels have the same tokens, one has none, or one is the
            beginning of another and the base has no end token.
    """
    end = [] if end_token is None else [end_token]
    texts = [encoder.token_ids(verbalised(label)) for label in labels]
    try:
        if not all(texts):
            raise ValueError("one has no tokens")
        return make_trie([[*tokens, *end] for tokens in texts])
    except ValueError as error:
        raise PromptRefused(f"labels cannot be told apart: {error}") from None


def trie_of(model: DecoderModel, labels: tuple[str, ...]) -> LabelTrie:
    """As `label_trie`, kept with the model.

    Raises:
        PromptRefused: As `label_trie`.
    """
    known = model.label_tries.get(labels)
    if known is None:
        if len(model.label_tries) >= _MAX_LABEL_SETS:
            model.label_tries.clear()
        known = label_trie(model.encoder, model.end_token, labels)
        model.label_tries[labels] = known
    return known


def classify_by_likelihood(
    request: GenerationRequest, labels: tuple[str, ...], model: DecoderModel
) -> Classification:
    """The most likely label of a text, with the prompt's calibrated scores.

    Raises:
        SessionFailed: onnxruntime fails.
        NotFinite: The logits are not finite.
        PromptRefused: Labels cannot be told apart.
        TextRefused: There is no room for a calibrated task's neutral text.
    """
    trie = trie_of(model, labels)
    prior = prior_of(request, model, lambda it: score_labels(it, trie, model))
    logs = score_labels(request, trie, model)
    if prior is not None:
        logs = logs - prior
    prompt = request.prompt
    scores = prompt.meta.scores if prompt else PLAIN
    version = prompt.meta.version if prompt else 0
    decision = decide(logs, labels, scores)
    return decision.classification(labels, version, request.truncated)


def score_labels(
    request: GenerationRequest, trie: LabelTrie, model: DecoderModel
) -> Logs:
    """Log-likelihood [C] of every label, given that the answer is one of them.

    Raises:
        SessionFailed: onnxruntime fails.
        NotFinite: The logits are not finite.
        TextRefused: As `score_by_writing`.
    """
    if isinstance(model.session, StaticDecoderSession):
        return score_by_writing(request, trie, model)
    convolutions = bool(model.manifest.dims.conv_layers)
    first, *others = _passes(trie, alone=convolutions)
    logits, present = _read_with(first, request, model)
    after = _wanted(trie, logits)
    if others:
        past = _cut(present, request.length, model) if first else present
        for beginnings in others:
            nothing = np.empty((1, 0, model.manifest.dims.embedding), np.float32)
            logits, _ = _run(nothing, beginnings, request.length, past, model)
            after |= _wanted(trie, logits)
    return trie.logs(after)


def _wanted(trie: LabelTrie, logits: dict[Path, Floats]) -> dict[Path, Floats]:
    """What the trie wants of a pass's logits [V]: the rest is let go with the pass.

    Raises:
        NotFinite: A logit that counts is not finite.
    """
    places = logits.keys() & trie.following.keys()
    found = {place: trie.chosen(place, logits[place]) for place in places}
    if not all(np.isfinite(values).all() for values in found.values()):
        raise NotFinite(
            "the graph's output holds NaN or infinity",
            "check the prompt and the bundle with promptdial verify",
        )
    return found


def _cut(present: KeyValues, rows: int, model: DecoderModel) -> KeyValues:
    """Keys and values of the first rows alone."""
    ends = [value.numpy()[:, :, :rows] for value in present]
    return _session(model).key_values(
        tuple([np.ascontiguousarray(end) for end in ends])
    )


def _session(model: DecoderModel) -> DecoderSession:
    assert isinstance(model.session, DecoderSession)
    return model.session


def _passes(trie: LabelTrie, *, alone: bool) -> list[set[Path]]:
    """The beginnings to run, by pass: those where labels part, and all before them.

    The first pass has the text's rows too.

    Args:
        trie: The labels.
        alone: Whether each gets a pass of its own, and the text too: convolutions see
            the rows before, whatever label those belong to.
    """
    passes: list[set[Path]] = [set()]
    for place in trie.following:
        own = {place[:end] for end in range(1, len(place) + 1)}
        if not own or (not alone and len(passes[-1] | own) <= MAX_ROWS):
            passes[-1] |= own
        else:
            passes.append(own)
    return passes


def _read_with(
    beginnings: set[Path], request: GenerationRequest, model: DecoderModel
) -> tuple[dict[Path, Floats], KeyValues]:
    """Logits [V] after the text and after beginnings of labels, in one pass.

    Returns:
        Logits by beginning, and the state after all rows.
    """
    session, prompt = _session(model), request.prompt
    rows = token_rows(request.tokens[None], model)
    state, used = session.no_prompt, 0
    if isinstance(prompt, ColdPrompt):
        rows = np.concatenate([prompt.rows[None], rows], axis=1)
    elif prompt is not None:
        state, used = prompt.state, prompt.length
    past = session.key_values(state)
    after, present = _run(rows, beginnings, used, past, model)
    if isinstance(prompt, ColdPrompt):
        heads = [value.numpy()[:, :, : prompt.length] for value in present]
        # Copies: a slice would keep all of the text's keys and values alive.
        prompt.keep(tuple([head.copy() for head in heads]))
    return after, present


def _run(
    rows: Floats,
    beginnings: set[Path],
    used: int,
    past: KeyValues,
    model: DecoderModel,
) -> tuple[dict[Path, Floats], KeyValues]:
    """Logits [V] after the last of some rows and after beginnings behind them.

    All are rows of one sequence; a beginning sees those rows and its own beginnings,
    and stands at the position that it has in its label.

    Args:
        rows: [1, T, H]; T is 0 for beginnings alone.
        beginnings: With every beginning of their own.
        used: Rows in `past`.
        past: The state before.
        model: The decoder.

    Returns:
        Logits by beginning, the empty one for the rows, and the state after all.
    """
    ordered = sorted(beginnings)
    places = {beginning: row for row, beginning in enumerate(ordered)}
    length, count = rows.shape[1], len(ordered)
    done = used + length
    visible = np.ones((length + count, done + count), np.bool_)
    visible[:, done:] = False
    for row, beginning in enumerate(ordered):
        own = [places[beginning[:end]] for end in range(1, len(beginning) + 1)]
        visible[length + row, [done + place for place in own]] = True
    ids = np.array([[beginning[-1] for beginning in ordered]], np.int64)
    steps = [done + len(beginning) - 1 for beginning in ordered]
    logits, present = _session(model).forward(
        np.concatenate([rows, token_rows(ids, model)], axis=1) if count else rows,
        np.ones((1, done + count), np.int64),
        np.array([[*range(used, done), *steps]], np.int64),
        past,
        keep=count + bool(length),
        visible=visible[None, None],
    )
    found = {path: logits[0, row - count] for path, row in places.items()}
    if length:
        found[()] = logits[0, 0]
    return found, present
