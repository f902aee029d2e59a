"""From logits to a label, its score, and whether it is an answer at all."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptdial.prompts.scores import Scores
from promptdial.runtime.answers import Classification
from promptdial.runtime.pooling import softmax


@dataclass(frozen=True)
class Decision:
    """What logits say.

    Attributes:
        best: Index of the best label; never of the out-of-scope one.
        shares: Calibrated probability [C] of every label.
        abstained: Whether the answer is none: its probability is below the threshold,
            or the out-of-scope label is likelier.
    """

    best: int
    shares: NDArray[np.float32]
    abstained: bool

    @property
    def margin(self) -> float:
        """Distance of the two best scores, the out-of-scope label's included."""
        two = np.sort(self.shares)[-2:]
        return float(two[-1] - two[0]) if len(two) > 1 else 1.0

    def classification(
        self, labels: tuple[str, ...], prompt_version: int, truncated: bool
    ) -> Classification:
        """The decision as an answer."""
        values = self.shares.tolist()
        return Classification(
            label=labels[self.best],
            score=values[self.best],
            scores=dict(zip(labels, values, strict=True)),
            prompt_version=prompt_version,
            truncated=truncated,
            abstained=self.abstained,
        )


def decide(
    logits: NDArray[np.floating[Any]], labels: tuple[str, ...], scores: Scores
) -> Decision:
    """What the logits of one text say.

    Args:
        logits: [C], or log-likelihoods [C].
        labels: Names of the classes.
        scores: The prompt's temperature, threshold and out-of-scope label.
    """
    shares = calibrated(logits, labels, scores)
    if not scores.out_of_scope:
        best = int(logits.argmax())
        return Decision(best, shares, bool(shares[best] < scores.threshold))
    outside = labels.index(scores.out_of_scope)
    inside = logits.copy()
    inside[outside] = -np.inf
    best = int(inside.argmax())
    least = max(scores.threshold, float(shares[outside]))
    return Decision(best, shares, bool(shares[best] < least))


def calibrated(
    logits: NDArray[np.floating[Any]], labels: tuple[str, ...], scores: Scores
) -> NDArray[np.float32]:
    """Probabilities [..., C] of logits [..., C]: the softmax over the temperature.

    Args:
        logits: [..., C].
        labels: Names of the classes.
        scores: The prompt's.
    """
    # The largest is taken off first, so that what is too far from it to be divided
    # by a low temperature is infinitely far, which is a probability of zero.
    top = logits.max(-1, keepdims=True)
    with np.errstate(over="ignore"):
        scaled = (logits - top) / scores.temperature
        if scores.out_of_scope:
            outside = labels.index(scores.out_of_scope)
            own = scaled[..., outside] + scores.out_of_scope_bias
            if scores.background is not None:
                lifted = scores.background - top[..., 0] / scores.temperature
                own = np.logaddexp(own, lifted)
            scaled[..., outside] = own
        return softmax(scaled.astype(np.float32))
