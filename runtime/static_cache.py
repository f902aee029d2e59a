"""A decoder's cache on graphs of fixed sizes: a window that the host writes.

A pass takes the whole window and gives the keys and values of its own rows, which are
written behind those that are there. A text longer than a graph goes in several passes;
a pass with room to spare has its rows at the end, since the head runs on the last one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from promptdial.runtime.errors import TextRefused
from promptdial.runtime.graph_state import flat, past_names
from promptdial.runtime.manifest import Dims, StaticBucket
from promptdial.runtime.session import Floats, PromptState
from promptdial.runtime.static_feed import (
    BIAS_NAME,
    EMBEDS_NAME,
    POSITIONS_NAME,
    Feed,
    smallest,
)


@dataclass(frozen=True)
class StaticPasses:
    """How rows go through the graphs of a variant.

    Attributes:
        buckets: All of one `prefix`, which is the window W.
        dims: Sizes of the base.
        hidden: Bias of keys that are not seen.
        run: Gives logits [1, 1, V] and the new rows' keys and values [1, K, T, D], in
            a PromptState's order.
    """

    buckets: Sequence[StaticBucket]
    dims: Dims
    hidden: float
    run: Callable[[StaticBucket, Feed], list[Floats]]

    @property
    def window(self) -> int:
        """Rows that a sequence has room for [W]."""
        return self.buckets[0].prefix

    @property
    def longest(self) -> int:
        """Rows of the largest pass."""
        return max(bucket.text for bucket in self.buckets)


class StaticCache:
    """Keys and values of one sequence in a window."""

    def __init__(self, passes: StaticPasses, state: PromptState, rows: int) -> None:
        """Begin with the first rows of a state, which is copied."""
        self._passes = passes
        dims = passes.dims
        shape = (len(state), 1, dims.kv_heads, passes.window, dims.head_dim)
        self._buffers = list(np.zeros(shape, np.float32))
        for buffer, part in zip(self._buffers, state, strict=True):
            buffer[:, :, :rows] = part[:, :, :rows]
        self.length = rows

    def forward(self, rows: Floats) -> Floats:
        """Logits [1, 1, V] after the last of new rows [1, T, H]; T is not 0.

        Raises:
            SessionFailed: onnxruntime fails.
            TextRefused: The window has no room for them.
        """
        passes, count = self._passes, rows.shape[1]
        if self.length + count > passes.window:
            raise TextRefused(
                f"{self.length + count} rows, the variant's graphs have room for "
                f"{passes.window}",
                "cut the text, ask for fewer new tokens, or use another variant",
            )
        logits = np.empty((1, 0, passes.dims.vocab), np.float32)
        for start in range(0, count, passes.longest):
            logits = self._pass(rows[:, start : start + passes.longest])
        return logits

    def cut(self, rows: int) -> None:
        """Forget all behind the first rows."""
        self.length = min(self.length, rows)

    def head(self, rows: int) -> PromptState:
        """Keys and values [1, K, rows, D] of the first rows."""
        # Copies: a slice would keep the whole window alive.
        return tuple([buffer[:, :, :rows].copy() for buffer in self._buffers])

    def _pass(self, rows: Floats) -> Floats:
        passes, count = self._passes, rows.shape[1]
        bucket = smallest(passes.buckets, passes.window, count)
        assert bucket is not None  # `longest` is the text of one of them
        feed = pass_feed(rows, self.length, bucket, passes.hidden)
        names = flat(past_names(passes.dims))
        feed.update(zip(names, self._buffers, strict=True))
        logits, *new = passes.run(bucket, feed)
        end = self.length + count
        for buffer, part in zip(self._buffers, new, strict=True):
            # What was free had zeros, and hidden rows have finite keys: no pass reads
            # what stands behind the end.
            buffer[:, :, self.length : end] = part[:, :, bucket.text - count :]
        self.length = end
        return logits


def pass_feed(rows: Floats, used: int, bucket: StaticBucket, hidden: float) -> Feed:
    """Rows [1, t, H] behind `used` ones, in a graph's inputs but for the window."""
    count, text, window = rows.shape[1], bucket.text, bucket.prefix
    first = text - count
    embeds = np.zeros((1, text, rows.shape[2]), np.float32)
    embeds[:, first:] = rows
    positions = np.zeros((1, text), np.int32)
    positions[:, first:] = np.arange(used, used + count)
    bias = np.full((1, 1, text, window + text), hidden, np.float32)
    bias[..., :used] = 0.0
    own = np.tri(count, dtype=bool)
    bias[0, 0, first:, window + first :][own] = 0.0
    return {EMBEDS_NAME: embeds, POSITIONS_NAME: positions, BIAS_NAME: bias}
