"""Several answers at once: texts are read one by one, then written a token at a time.

A step of one sequence reads every weight for a single row; a step of many reads them
once for all. Sequences keep their own lengths in a packed cache, so each answer is bit
for bit the one it would be alone. A graph without such a cache writes one after the
other.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.answers import Generation
from promptdial.runtime.caches import SharedCache, joined
from promptdial.runtime.decoder_session import DecoderSession
from promptdial.runtime.generating import (
    DecoderModel,
    GenerationRequest,
    Writing,
    next_token,
    prefill,
    token_rows,
)
from promptdial.runtime.sampling import Sampler

TOGETHER = 16
"""Sequences of one step: more gain little."""

TOGETHER_BYTES = 64 * 2**20
"""Keys and values of one group at its end: all in memory, twice for a moment."""


@dataclass
class _Row:
    """One answer in the making.

    Attributes:
        writing: Its text.
        sampler: Chooses its tokens.
        token: The newest token, which is not in the cache yet.
    """

    writing: Writing
    sampler: Sampler
    token: int = 0

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
    session = model.session
    assert isinstance(session, DecoderSession)
    rows, live, caches = [], [], []
    for request in requests:
        logits, cache = prefill(request, model)
        assert isinstance(cache, SharedCache)
        sampler = Sampler(request.options, request.tokens, request.constraint)
        row = _Row(Writing(request, model), sampler)
        row.take(logits[0, -1])
        rows.append(row)
        if not row.writing.ended:
            live.append(row)
            caches.append(cache)
    if live:
        together = joined(session, caches)
        del cache
        caches.clear()  # all that was read is in `together`
        _write(live, together, model)
    for row in rows:
        row.writing.finish()
    return [row.writing.generation for row in rows]


def _write(live: list[_Row], cache: SharedCache, model: DecoderModel) -> None:
    """Go on with all rows until each has ended."""
    for row in live:
        row.writing.go_on()
    while True:
        ids = np.array([[row.token] for row in live], np.int64)
        logits = cache.forward(token_rows(ids, model))
        for place, row in enumerate(live):
            row.take(logits[place, -1])
        going = [place for place, row in enumerate(live) if not row.writing.ended]
        if not going:
            return
        if len(going) < len(live):
            live = [live[place] for place in going]
            cache = cache.taken(going)
