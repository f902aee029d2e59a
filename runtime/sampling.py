"""From logits to the next token: greedy, or drawn from what the options leave.

A constraint's mask comes first: top-k and top-p count only what may be written. Then as
in transformers: repetition penalty, temperature, top-k, top-p, min-p. Sources:
repetition penalty, Keskar et al. 2019 (arXiv:1909.05858); top-p, Holtzman et al. 2020
(arXiv:1904.09751); min-p, Nguyen et al. 2024 (arXiv:2407.01082).
"""

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.constraint import Constraint
from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.pooling import softmax

Floats = NDArray[np.float32]


class Sampler:
    """Chooses the tokens of one answer."""

    def __init__(
        self,
        options: GenerationOptions,
        text: NDArray[np.int64],
        constraint: Constraint | None = None,
    ) -> None:
        """Begin.

        Args:
            options: How to choose.
            text: Token ids of the input, which the repetition penalty counts.
            constraint: What the answer may be; it is moved on with every token.
        """
        self._options = options
        self._constraint = constraint
        self._random = np.random.default_rng(options.seed)
        self._seen = set(text.tolist())

    def choose(self, logits: Floats) -> int:
        """The next token, of logits [V].

        Raises:
            UsageError: The constraint cannot go on.
        """
        options = self._options
        if self._constraint is not None:
            lowest = np.float32(-np.inf)
            logits = np.where(self._constraint.allowed(), logits, lowest)
        if options.repetition_penalty != 1.0:
            logits = penalised(logits, sorted(self._seen), options.repetition_penalty)
        if options.temperature == 0.0:
            token = int(logits.argmax())
        else:
            kept = filtered(logits / np.float32(options.temperature), options)
            shares = softmax(kept).astype(np.float64)
            token = int(self._random.choice(len(shares), p=shares / shares.sum()))
        self._seen.add(token)
        if self._constraint is not None:
            self._constraint.advance(token)
        return token


def penalised(logits: Floats, tokens: list[int], penalty: float) -> Floats:
    """Logits [V] where those of `tokens` are moved down by a factor."""
    changed = logits.copy()
    values = changed[tokens]
    factor = np.float32(penalty)
    changed[tokens] = np.where(values < 0, values * factor, values / factor)
    return changed


def filtered(logits: Floats, options: GenerationOptions) -> Floats:
    """Logits [V] with -inf for tokens that must not be drawn; the best one stays."""
    kept = logits.copy()
    if 0 < options.top_k < len(kept):
        least = np.partition(kept, -options.top_k)[-options.top_k]
        kept[kept < least] = -np.inf
    if options.top_p < 1.0:
        order = np.argsort(kept, kind="stable")
        below = np.cumsum(softmax(kept[order]), dtype=np.float64)
        dropped = order[below <= 1.0 - options.top_p]
        kept[dropped[dropped != order[-1]]] = -np.inf
    if options.min_p > 0.0:
        shares = softmax(kept)
        kept[shares < options.min_p * shares.max()] = -np.inf
    return kept
