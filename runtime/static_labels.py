"""Likelihoods of labels on a decoder whose passes give logits after one row alone.

The beginnings behind which labels part are written behind the text, one by one, and
what each left in the window is written over by the next.
"""

import numpy as np

from promptdial.runtime.generating import (
    DecoderModel,
    Floats,
    GenerationRequest,
    prefill,
    require_finite,
    token_rows,
)
from promptdial.runtime.label_trie import LabelTrie, Logs, Path
from promptdial.runtime.static_cache import StaticCache


def score_by_writing(
    request: GenerationRequest, trie: LabelTrie, model: DecoderModel
) -> Logs:
    """As `label_scoring.score_labels`, one beginning after another.

    Raises:
        SessionFailed: onnxruntime fails.
        NotFinite: The logits are not finite.
        TextRefused: The window has no room for the text and its labels.
    """
    logits, cache = prefill(request, model)
    assert isinstance(cache, StaticCache)
    after = {}
    beginnings = {place[:end] for place in trie.following for end in range(len(place))}
    beginnings.update(trie.following)
    # In the order of their tokens each comes behind its own beginnings.
    for place in sorted(beginnings):
        if place:
            logits = _written(place, cache, request.length, model)
        if place in trie.following:
            after[place] = require_finite(trie.chosen(place, logits[0, -1]))
    return trie.logs(after)


def _written(place: Path, cache: StaticCache, text: int, model: DecoderModel) -> Floats:
    """Logits [1, 1, V] after a beginning, whose own beginning is in the window."""
    cache.cut(text + len(place) - 1)
    return cache.forward(token_rows(np.array([[place[-1]]], np.int64), model))
