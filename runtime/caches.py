"""Keys and values of what a request has read and written so far.

Kinds by what the graph can do. With a packed cache the graph writes new keys into
the room behind the old ones: a request's buffer is made once, the prompt's prefix is
copied into it, and no step copies it again. Other graphs give longer keys and values
with every pass; those of fixed sizes have a window (static_cache.py).
"""

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np

from promptdial.runtime.decoder_session import DecoderSession
from promptdial.runtime.session import Floats, PromptState
from promptdial.runtime.static_cache import StaticCache
from promptdial.runtime.static_decoder import StaticDecoderSession

ROOM = 128
"""Rows that a buffer has room for behind what is sure to come: most answers are shorter
than they may be."""


class SharedCache:
    """One buffer that a graph with a packed cache reads and writes; B sequences.

    Attributes:
        lengths: [B] rows that are in it, of each sequence.
    """

    def __init__(
        self,
        session: DecoderSession,
        states: Sequence[PromptState],
        lengths: Sequence[int],
        capacity: int,
    ) -> None:
        """Copy what each sequence begins with into a new buffer.

        Args:
            session: A graph with a packed cache.
            states: Of each sequence, keys and values [1, K, n or more, D].
            lengths: Of each sequence, how many of those rows count: n.
            capacity: Rows that the buffer has room for; it is doubled when it is full.
        """
        self.lengths = np.array(lengths, np.int64)
        self._session = session
        self._make(states, capacity)

    def _make(self, states: Sequence[PromptState], capacity: int) -> None:
        """New buffers with what the sequences have until now."""
        _, heads, _, width = states[0][0].shape
        # In one piece: the system gives its pages when they are first written to.
        shape = (len(states[0]), len(states), heads, capacity, width)
        self._buffers = list(np.zeros(shape, np.float32))
        for row, (state, length) in enumerate(zip(states, self.lengths, strict=True)):
            for buffer, part in zip(self._buffers, state, strict=True):
                buffer[row, :, :length] = part[0, :, :length]
        self._capacity = capacity
        self._binding = self._session.bind(self._buffers)

    def forward(self, rows: Floats) -> Floats:
        """Logits [B, 1, V] after the last of new rows [B, T, H]; T is 1 where B is not.

        The array is written over by the next call.

        Raises:
            SessionFailed: onnxruntime fails.
        """
        count = rows.shape[1]
        ends = self.lengths[:, None] + count
        if ends.max() > self._capacity:
            everyone = range(len(self.lengths))
            self._make(self._states(everyone), max(2 * self._capacity, int(ends.max())))
        mask = (np.arange(ends.max()) < ends).astype(np.int64)
        positions = self.lengths[:, None] + np.arange(count)
        logits = self._session.forward_bound(self._binding, rows, mask, positions)
        self.lengths += count
        return logits

    def head(self, rows: int) -> PromptState:
        """Keys and values [1, K, rows, D] of the first rows of the first sequence."""
        # Copies: a slice would keep the whole buffer alive.
        return tuple([buffer[:1, :, :rows].copy() for buffer in self._buffers])

    def state(self) -> PromptState:
        """The buffers themselves, for another cache to copy from."""
        return tuple(self._buffers)

    def taken(self, places: Sequence[int]) -> Self:
        """A cache of some of the sequences alone."""
        lengths = self.lengths[list(places)].tolist()
        capacity = max(lengths) + ROOM
        return type(self)(self._session, self._states(places), lengths, capacity)

    def _states(self, places: Iterable[int]) -> list[PromptState]:
        return [
            tuple([buffer[place, None] for buffer in self._buffers]) for place in places
        ]


class GrowingCache:
    """Keys and values of one sequence, new ones after every pass."""

    def __init__(self, session: DecoderSession, state: PromptState, rows: int) -> None:
        """Begin over keys and values of `rows` rows."""
        self._session = session
        self._past = session.key_values(state)
        self._length = rows

    def forward(self, rows: Floats) -> Floats:
        """Logits [1, 1, V] after the last of new rows [1, T, H].

        Raises:
            SessionFailed: onnxruntime fails.
        """
        total = self._length + rows.shape[1]
        mask = np.ones((1, total), np.int64)
        positions = np.arange(self._length, total, dtype=np.int64)[None]
        logits, self._past = self._session.forward(
            rows, mask, positions, self._past, keep=1
        )
        self._length = total
        return logits

    def head(self, rows: int) -> PromptState:
        """As `SharedCache.head`."""
        # Copies: a slice would keep all of the text's keys and values alive.
        heads = [value.numpy()[:, :, :rows] for value in self._past]
        return tuple([head.copy() for head in heads])


Cache = SharedCache | GrowingCache | StaticCache


def begin(
    session: DecoderSession | StaticDecoderSession,
    state: PromptState,
    rows: int,
    capacity: int,
) -> Cache:
    """The cache of a request over `rows` rows of a state, with room for `capacity`."""
    if isinstance(session, StaticDecoderSession):
        return session.begin(state, rows)
    if session.packed_cache:
        return SharedCache(session, [state], [rows], capacity)
    return GrowingCache(session, state, rows)


def joined(session: DecoderSession, caches: Sequence[SharedCache]) -> SharedCache:
    """Caches of one sequence each as one of all, with its own room."""
    states = [cache.state() for cache in caches]
    lengths = [int(cache.lengths[0]) for cache in caches]
    return SharedCache(session, states, lengths, max(lengths) + ROOM)
