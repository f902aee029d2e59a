"""Prompts made ready to use, kept under a bound in bytes.

Key: the digests of the blob and of the graph. Two tasks with equal blobs share an
entry, a replaced blob never meets an old prefix, and neither does another graph.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.blob import PromptMeta
from promptdial.runtime import prompt_events

Key = tuple[str, str]


@dataclass(frozen=True, eq=False)
class ReadyPrompt:
    """A prompt as a request needs it.

    Attributes:
        meta: What the blob says about itself.
        digest: The blob's digest.
        state: What a session runs it from; see promptdial.runtime.session.PromptState.
        length: P.
        head: Class vectors as [H, C], or None.
        bias: [C], zeros where the blob has none.
        steps: [C+1, C] which tag may follow which (token), else empty.
        mix: [M, L+1] weights of the levels that the head reads; None for the last one.
        query: [M, H] what the rows of a text are weighed by; None for equal weights.
        prior: [C] what likelihoods of labels are compared with, NaN until the first
            request writes it (label_prior.py); None where they are not calibrated.
    """

    meta: PromptMeta
    digest: str
    state: tuple[NDArray[np.float32], ...]
    length: int
    head: NDArray[np.float32] | None
    bias: NDArray[np.float32] | None
    steps: NDArray[np.float32]
    prior: NDArray[np.float64] | None = None
    mix: NDArray[np.float32] | None = None
    query: NDArray[np.float32] | None = None

    @property
    def nbytes(self) -> int:
        """Memory that it holds."""
        arrays = [*self.state, self.head, self.bias, self.steps]
        arrays += [self.mix, self.query]
        prior = 0 if self.prior is None else self.prior.nbytes
        return prior + sum(array.nbytes for array in arrays if array is not None)


@dataclass(frozen=True, eq=False)
class ColdPrompt:
    """A soft prompt that no request has used: the first one may make its prefix.

    Attributes:
        meta: What the blob says about itself.
        digest: The blob's digest.
        rows: [P, H] as the graph takes them.
        keep: Takes the prefix when it is there.
    """

    meta: PromptMeta
    digest: str
    rows: NDArray[np.float32]
    keep: Callable[[tuple[NDArray[np.float32], ...]], object]

    @property
    def length(self) -> int:
        """P."""
        return len(self.rows)


class PromptCache:
    """Least recently used prompts leave first. Safe to share among threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._ready: OrderedDict[Key, ReadyPrompt] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key, make: Callable[[], ReadyPrompt]) -> ReadyPrompt:
        """The entry of a key, made by `make` where it is not there.

        Two threads may make the same entry at once: both get a right one, and a slow
        one never holds up the requests of other tasks.
        """
        found = self.peek(key)
        if found is not None:
            return found
        made = make()
        evicted = []
        with self._lock:
            before = self._ready.pop(key, None)
            self.nbytes += made.nbytes - (before.nbytes if before else 0)
            self._ready[key] = made
            # The newest stays even if it alone is over the bound: it is in use.
            while self.nbytes > self.max_bytes and len(self._ready) > 1:
                _, oldest = self._ready.popitem(last=False)
                self.nbytes -= oldest.nbytes
                evicted.append(oldest)
        # Not under the lock: a handler is someone else's code.
        for prompt in evicted:
            prompt_events.evicted(prompt.meta, prompt.nbytes)
        return made

    def peek(self, key: Key) -> ReadyPrompt | None:
        """The entry of a key, used now, or None."""
        with self._lock:
            found = self._ready.get(key)
            if found is not None:
                self._ready.move_to_end(key)
            return found

    def __len__(self) -> int:
        return len(self._ready)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._ready.clear()
            self.nbytes = 0
