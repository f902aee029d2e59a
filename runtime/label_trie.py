"""The tokens of a label set as a trie: where labels part, and what may follow there.

An answer that is held to the labels has a choice only where they part. The likelihood
of a label under that constraint is the product, over those places, of its next token's
share among the tokens that may follow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Path = tuple[int, ...]
"""A label's tokens, or their beginning."""


@dataclass(frozen=True)
class LabelTrie:
    """A label set's tokens.

    Attributes:
        paths: [C] tokens of every label; none is the beginning of another.
        following: By beginning, the tokens that may come next, sorted; only of those
            with more than one, the empty beginning included if it has.
    """

    paths: tuple[Path, ...]
    following: dict[Path, tuple[int, ...]]

    @property
    def longest(self) -> int:
        """Tokens of the longest label."""
        return max(map(len, self.paths))

    def chosen(self, place: Path, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of logits [V] after a beginning in `following`, what `logs` wants: a copy."""
        return logits[list(self.following[place])]

    def logs(self, after: Mapping[Path, NDArray[np.float32]]) -> "Logs":
        """Log-likelihood [C] of every label, given that the answer is one of them.

        Args:
            after: For each beginning in `following`, logits of the tokens there.
        """
        steps: dict[Path, dict[int, float]] = {}
        for beginning, tokens in self.following.items():
            values = after[beginning].astype(np.float64)
            values -= values.max()
            values -= np.log(np.exp(values).sum())
            steps[beginning] = dict(zip(tokens, values.tolist(), strict=True))
        return np.array(
            [
                sum(
                    steps[path[:end]][path[end]]
                    for end in range(len(path))
                    if path[:end] in steps
                )
                for path in self.paths
            ]
        )


Logs = NDArray[np.float64]


def make_trie(labels: Sequence[Sequence[int]]) -> LabelTrie:
    """The trie of labels given as tokens, with the end token that each is written with.

    Raises:
        ValueError: Two labels are the same tokens, or one is another's beginning.
    """
    paths = tuple(tuple(tokens) for tokens in labels)
    if any(later[: len(path)] == path for path, later in pairwise(sorted(paths))):
        raise ValueError("two are the same tokens, or one is another's beginning")
    following: dict[Path, set[int]] = {}
    for path in paths:
        for end, token in enumerate(path):
            following.setdefault(path[:end], set()).add(token)
    return LabelTrie(
        paths,
        {
            beginning: tuple(sorted(tokens))
            for beginning, tokens in sorted(following.items())
            if len(tokens) > 1
        },
    )
