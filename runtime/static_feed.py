"""The inputs of graphs of fixed sizes: what does not fill them is padded and hidden.

Padding is zeros, of which no row sees anything: a bias so low is added to its attention
scores that Softmax gives it nothing. It lies behind a text, and in front of a prefix:
there the prefix's last row is next to the text's first one, as the distances say that
T5's graph has in it.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.manifest import StaticBucket

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Feed = dict[str, NDArray[np.generic]]
_T = TypeVar("_T", bound=np.generic)
_F32 = np.float32

BIAS_NAME = "attention_bias"
EMBEDS_NAME = "inputs_embeds"
POSITIONS_NAME = "position_ids"
TYPES_NAME = "token_type_ids"


def text_feed(
    embeds: Floats,
    types: Ints,
    mask: Ints,
    past: Mapping[str, Floats],
    bucket: StaticBucket,
    hidden: float,
) -> Feed:
    """One text over a prefix, in the inputs of a bucket that has room for both.

    Args:
        embeds: [1, t, H], t at most T of the bucket.
        types: [1, t] segments.
        mask: [1, p+t], 0 where a key must not be seen; p at most P of the bucket.
        past: Keys and values [1, K, p, D] by the names of their inputs.
        bucket: Sizes of the graph.
        hidden: Bias of keys that are not seen.
    """
    length = embeds.shape[1]
    prefix = mask.shape[1] - length
    seen = np.zeros((1, 1, 1, bucket.prefix + bucket.text), bool)
    seen[..., bucket.prefix - prefix : bucket.prefix] = mask[:, :prefix] != 0
    seen[..., bucket.prefix : bucket.prefix + length] = mask[:, prefix:] != 0
    feed = _rows(embeds, types, seen, bucket.text, hidden)
    for name, values in past.items():
        feed[name] = np.zeros((*values.shape[:2], bucket.prefix, values.shape[3]), _F32)
        feed[name][:, :, bucket.prefix - values.shape[2] :] = values
    return feed


def prompt_feed(rows: Floats, bucket: StaticBucket, hidden: float) -> Feed:
    """Prompt rows [p, H] in the inputs of the graph that makes a prefix of them."""
    seen = np.zeros((1, 1, 1, bucket.text), bool)
    seen[..., : len(rows)] = True
    types = np.zeros((1, len(rows)), np.int64)
    return _rows(rows[None], types, seen, bucket.text, hidden)


def smallest(
    buckets: Sequence[StaticBucket], prefix: int, text: int
) -> StaticBucket | None:
    """The bucket with room for p rows of prefix and t of text that wastes least."""
    fitting = [
        bucket for bucket in buckets if bucket.prefix >= prefix and bucket.text >= text
    ]
    return min(fitting, key=lambda one: (one.text, one.prefix), default=None)


def _rows(
    embeds: Floats, types: Ints, seen: NDArray[np.bool_], text: int, hidden: float
) -> Feed:
    return {
        EMBEDS_NAME: _padded(embeds, 1, text),
        TYPES_NAME: _padded(types, 1, text).astype(np.int32),
        BIAS_NAME: np.where(seen, np.float32(0), np.float32(hidden)),
    }


def _padded(values: NDArray[_T], axis: int, size: int) -> NDArray[_T]:
    """Values with zeros behind them, up to a size."""
    shape = list(values.shape)
    shape[axis] = size
    found = np.zeros(shape, values.dtype)
    found[(slice(None),) * axis + (slice(0, values.shape[axis]),)] = values
    return found
