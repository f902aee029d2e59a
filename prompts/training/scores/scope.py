"""What is out of scope: how strongly a text must fit a label, fitted on dev.

The out-of-scope label is trained on a few texts of what there is outside, so its own
logit is low for all others, and its share of the rows is not its share in use. Two
numbers mend that: a bias on its logit, and a constant logit beside it, the background,
that is the likeliest where no label's is large. With the background alone the
out-of-scope probability is a function of the energy of the other logits (Liu et al.
2020, arXiv:2010.03759).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_STEPS = 100
PULL = 2.0
"""Of (log T)^2, in nats over all of dev: a handful of rows that are all right would
else prove any certainty. Equal to a Gaussian prior on log T, standard deviation 0.5."""
_PULL_BIAS = 0.1
"""Of the bias squared: rows that are told apart perfectly would ask for any bias."""
_FURTHEST = 900.0


@dataclass(frozen=True)
class Scope:
    """What tells texts in scope from others, after the temperature.

    Attributes:
        temperature: Logits are divided by it.
        bias: Added to the out-of-scope label's logit.
        background: The constant logit beside it.
    """

    temperature: float
    bias: float
    background: float


def row_weights(outside: NDArray[np.bool_], share: float) -> NDArray[np.float64]:
    """Weight [N] of rows, sum 1, so that those out of scope weigh a given share.

    Args:
        outside: [N] whether a row is out of scope.
        share: Theirs; 0 for the rows' own.
    """
    share = share or float(outside.mean())
    inside = max(1, int((~outside).sum()))
    return np.where(outside, share / max(1, int(outside.sum())), (1 - share) / inside)


def fit_scope(
    logits: NDArray[np.float64],
    targets: NDArray[np.int64],
    weights: NDArray[np.float64],
    outside: int,
) -> Scope:
    """Temperature, bias and background of the least weighted likelihood loss.

    Where probabilities are right, the label that is likeliest, out of scope included,
    is right most often: no threshold is wanted. A likelihood is smooth, so a few rows
    out of scope say more by it than by where accuracy jumps.

    Args:
        logits: [N, C].
        targets: [N] right classes.
        weights: [N], sum 1.
        outside: Index of the out-of-scope label.
    """
    rows, right = torch.from_numpy(logits), torch.from_numpy(targets)
    weight = torch.from_numpy(weights) * len(targets)
    strongest = float(rows.max(1).values.median())
    # log T, bias, background: a background below most texts' best logit.
    found = torch.tensor([0.0, 0.0, 0.6 * strongest], dtype=torch.float64)
    found.requires_grad_()
    optimiser = torch.optim.LBFGS(
        [found], max_iter=_STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        scaled = rows / found[0].exp()
        own = scaled[:, outside] + found[1]
        own = torch.logaddexp(own, found[2].expand_as(own))
        parts = [scaled[:, :outside], own[:, None], scaled[:, outside + 1 :]]
        losses = torch.nn.functional.cross_entropy(
            torch.cat(parts, 1), right, reduction="none"
        )
        loss = (losses * weight).sum() + PULL * found[0] ** 2
        loss = loss + _PULL_BIAS * found[1] ** 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    log, bias, background = found.detach().clamp(-_FURTHEST, _FURTHEST).tolist()
    temperature = float(np.clip(np.exp(log), 0.05, 20.0))
    return Scope(round(temperature, 4), round(bias, 4), round(background, 4))
