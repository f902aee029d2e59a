"""The linear probe: logistic regression on the frozen features, no virtual token.

What a prompt is measured against. The strength of the regularisation is chosen on
dev.
"""

import torch
from torch import Tensor, nn

from promptdial.export.forward import PromptState
from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import (
    Example,
    batches_of,
    collate,
    target_tensor,
)
from promptdial.prompts.training.heads import Head, read

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Few rows over wide features (RTE, four levels apart) want the strongest of them."""
STEPS = 60
"""Of the fit, at most."""
_MAX_FEATURES = 60_000
"""Token tasks have many rows; a linear map of this width needs no more."""


def extract(
    base: FrozenBase,
    examples: list[Example],
    pooling: str,
    state: PromptState,
    reading: Head | None = None,
    batch_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Features [N, M * H] and targets [N] of examples, without gradients.

    Args:
        base: The frozen model.
        examples: Encoded rows.
        pooling: As promptdial.prompts.training.heads.features.
        state: The prompt, ready to run.
        reading: A head whose mix and queries are read with; None for neither.
        batch_size: Texts at a time.
    """
    found, wanted = [], []
    with torch.no_grad():
        for indices in batches_of(examples, batch_size, None):
            chosen = [examples[index] for index in indices]
            batch = collate([example.text for example in chosen], base.device)
            found.append(read(base, batch, state, pooling, reading))
            wanted.append(target_tensor(chosen, base.device))
    return torch.cat(found), torch.cat(wanted)


def fit_probe(
    train: tuple[Tensor, Tensor], dev: tuple[Tensor, Tensor], classes: int
) -> tuple[Head, float]:
    """The best probe by dev accuracy.

    Args:
        train: Features [N, H] and targets [N].
        dev: The same for dev.
        classes: C.

    Returns:
        The head, and its dev accuracy over targets in percent.
    """
    inputs, targets = train[0][:_MAX_FEATURES], train[1][:_MAX_FEATURES]
    best, best_score = None, -1.0
    for penalty in PENALTIES:
        head = fit_head(inputs, targets, classes, penalty, best)
        with torch.no_grad():
            right = (head(dev[0]).argmax(-1) == dev[1]).float().mean()
        score = 100.0 * float(right)
        if score > best_score:
            best, best_score = head, score
    assert best is not None
    return best, best_score


def fit_head(
    inputs: Tensor, targets: Tensor, classes: int, penalty: float, start: Head | None
) -> Head:
    """Logistic regression.

    Args:
        inputs: Features [N, H].
        targets: Class indices [N].
        classes: C.
        penalty: Of the squared weights.
        start: Class vectors to start from; None for zeros.
    """
    mean = inputs.mean(0, keepdim=True)
    spread = float((inputs - mean).pow(2).mean().sqrt())
    centred = (inputs - mean) / spread
    zeros = torch.zeros(classes, inputs.shape[1], device=inputs.device)
    head = Head(zeros)
    if start is not None:
        with torch.no_grad():
            head.weight.copy_(start.weight * spread)
            head.bias.copy_(start(mean)[0])
    optimiser = torch.optim.LBFGS(
        head.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(head(centred), targets)
        loss = loss + penalty * head.weight.pow(2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        weight = head.weight / spread
        bias = head.bias - (weight @ mean[0])
    return Head(weight, bias)
