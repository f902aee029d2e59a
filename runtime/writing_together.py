"""Several answers at once: texts are read one by one, then written a token at a time.

A step of one sequence reads every weight for a single row; a step of many reads them
once for all. Sequences keep their own lengths in a packed cache, so each answer is bit
for bit the one it would be alone. A graph without such a cache writes one after the
other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.answers import Generation
from promptdial.runtime.decoder_session import KeyValues
from promptdial.runtime.generating import (
    DecoderModel,
    GenerationRequest,
    Writing,
    next_token,
    prefill,
    token_rows,
)
from promptdial.runtime.sampling import Sampler
from promptdial.runtime.session import ort_value

TOGETHER = 16
"""Sequences of one step: their caches are all in memory, and more gain little."""


@dataclass
class _Row:
    """One answer in the making.

    Attributes:
        writing: Its text.
        sampler: Chooses its tokens.
        length: Rows that the cache holds of it.
        token: The newest token, which is not in the cache yet.
    """

    writing: Writing
    sampler: Sampler
    length: int
    token: int

    def take(self, logits: NDArray[np.float32]) -> None:
        """Go on by the token that logits [V] give."""
        self.token = next_token(self.sampler, logits)
        self.writing.push(self.token)


def written_together(
    requests: Iterable[GenerationRequest], model: DecoderModel
) -> list[Generation]:
    """Answers of at most TOGETHER requests, in their order.

    Args:
        requests: Taken one by one, each when its text is about to be read.
        model: A bundle whose graph has a packed cache.

    Raises:
        SessionFailed: onnxruntime fails.
        NotFinite: The logits of one are not finite.
    """
    rows, caches = [], []
    for request in requests:
        sampler = Sampler(request.options, request.tokens)
        logits, past = prefill(request, model)
        row = _Row(Writing(request, model), sampler, request.length, 0)
        row.take(logits[0, -1])
        rows.append(row)
        caches.append(past)
    live = [number for number, row in enumerate(rows) if not row.writing.ended]
    past = _packed([caches[number] for number in live])
    while live:
        logits, past = _step([rows[number] for number in live], past, model)
        for place, number in enumerate(live):
            rows[number].take(logits[place, -1])
        going = [p for p, number in enumerate(live) if not rows[number].writing.ended]
        if len(going) < len(live):
            live = [live[place] for place in going]
            longest = max([rows[number].length for number in live], default=0)
            past = _taken(past, going, longest)
    for row in rows:
        row.writing.finish()
    return [row.writing.generation for row in rows]


def _packed(caches: Sequence[KeyValues]) -> KeyValues:
    """Keys and values [B, K, N, D] of sequences [1, K, n, D]; N is the longest n."""
    if not caches:
        return ()
    joined = []
    for parts in zip(*caches, strict=True):
        arrays = [part.numpy() for part in parts]
        longest = max(array.shape[2] for array in arrays)
        _, heads, _, width = arrays[0].shape
        room = np.zeros((len(arrays), heads, longest, width), arrays[0].dtype)
        for place, array in enumerate(arrays):
            room[place, :, : array.shape[2]] = array[0]
        joined.append(ort_value(room))
    return tuple(joined)


def _taken(past: KeyValues, places: list[int], longest: int) -> KeyValues:
    """The cache of some sequences alone, with room for the longest."""
    kept = [value.numpy()[places, :, :longest] for value in past]
    return tuple([ort_value(np.ascontiguousarray(array)) for array in kept])


def _step(
    rows: Sequence[_Row], past: KeyValues, model: DecoderModel
) -> tuple[NDArray[np.float32], KeyValues]:
    """Logits [B, 1, V] after every sequence's newest token, and the cache with it."""
    lengths = np.array([row.length for row in rows], np.int64)[:, None]
    ids = np.array([[row.token] for row in rows], np.int64)
    width = past[0].shape()[2] + 1
    mask = (np.arange(width)[None] <= lengths).astype(np.int64)
    found = model.session.forward(token_rows(ids, model), mask, lengths, past, keep=1)
    for row in rows:
        row.length += 1
    return found
