"""What is read from the hidden states: pooled features and class vectors.

The torch side of runtime/pooling.py, formula by formula; a test compares the two.
"""

import math

import torch
from torch import Tensor, nn

from promptdial.prompts.training.batches import TextBatch

POOLING_OF_KIND = {
    "classification": "mean_l2",
    "pair": "segments_l2",
    "token": "first_token",
    "embedding": "mean_l2",
}
_EPS = 1e-12


def features(hidden: Tensor, batch: TextBatch, pooling: str) -> Tensor:
    """Features of a batch.

    Args:
        hidden: [B, T, H].
        batch: The texts; padding never counts.
        pooling: `mean_l2` gives the normalised mean of the text rows [B, H];
            `segments_l2` the product of the two segments' normalised means, times
            sqrt(H) [B, H]; `first_token` the rows of first wordpieces [N, H].
    """
    if pooling == "first_token":
        return hidden[batch.first]
    if pooling == "segments_l2":
        second = batch.mask * batch.type_ids
        one = _mean_l2(hidden, batch.mask - second)
        two = _mean_l2(hidden, second)
        return one * two * math.sqrt(hidden.shape[-1])
    return _mean_l2(hidden, batch.mask)


def _mean_l2(hidden: Tensor, mask: Tensor) -> Tensor:
    weights = mask.to(hidden.dtype)[..., None]
    mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    length: Tensor = mean.norm(dim=-1, keepdim=True).clamp(min=_EPS)
    return mean / length


class Head(nn.Module):
    """Class vectors [C, H] and biases [C]."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().float())
        start = torch.zeros(weight.shape[0]) if bias is None else bias
        self.bias = nn.Parameter(start.detach().clone().to(self.weight))

    def forward(self, pooled: Tensor) -> Tensor:
        """Logits [N, C] of features [N, H]."""
        return nn.functional.linear(pooled, self.weight, self.bias)
