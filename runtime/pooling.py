"""From hidden states to features and scores: the formulas of every encoder task.

promptdial.prompts.training.heads says the same in torch; a test compares the two.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_EPS = np.float32(1e-12)


def mean_l2(hidden: Floats, query: Floats | None = None) -> Floats:
    """Mean of the text rows [..., T, H], specials included, made length 1: [..., H].

    Args:
        hidden: [..., T, H].
        query: [..., H] what rows are weighed by: the softmax over T of their products
            with it; None for equal weights.
    """
    if query is None:
        mean = hidden.sum(-2)
    else:
        weights = softmax((hidden @ query[..., None])[..., 0])
        mean = (weights[..., None, :] @ hidden)[..., 0, :]
    length = np.sqrt((mean * mean).sum(-1, keepdims=True))
    return np.asarray(mean / np.maximum(length, _EPS), np.float32)


def segments_l2(
    hidden: Floats, type_ids: NDArray[np.int64], query: Floats | None = None
) -> Floats:
    """Product of the two segments' means of length 1, times sqrt(H).

    Args:
        hidden: [..., T, H].
        type_ids: [T], 0 for the first text and 1 for the second.
        query: [..., H] as `mean_l2`, within each of the two.

    Returns:
        [..., H]; its sum over sqrt(H) is the cosine of the two texts.
    """
    one, two = (
        mean_l2(hidden[..., type_ids == 0, :], query),
        mean_l2(hidden[..., type_ids == 1, :], query),
    )
    return np.asarray(one * two * np.float32(math.sqrt(hidden.shape[-1])), np.float32)


def apart_l2(one: Floats, two: Floats) -> Floats:
    """Product and distance of two texts' features in every dimension, times sqrt(H).

    Those of InferSent's features that compare (Conneau et al. 2017, arXiv:1705.02364).

    Args:
        one: [..., H] of length 1, as `mean_l2` gives it of the first text.
        two: [..., H] of the second.

    Returns:
        [..., 2 H]: products first.
    """
    both = np.concatenate([one * two, abs(one - two)], axis=-1)
    return np.asarray(both * np.float32(math.sqrt(one.shape[-1])), np.float32)


def mixed(levels: Floats, mix: Floats) -> Floats:
    """Sums of levels with weights [M, L+1]: [L+1, ...] gives [M, ...]."""
    return np.asarray(np.tensordot(mix, levels, 1), np.float32)


def first_pieces(words: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of tokens that begin a word, from word numbers [T] (-1 for none)."""
    before = np.concatenate([[-1], words[:-1]])
    return np.flatnonzero((words >= 0) & (words != before))


def softmax(logits: Floats) -> Floats:
    """Scores that sum to one over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True), np.float32)
