"""Class vectors of few rows: the mean of each class, with a share of its name.

Nearest class means need no training and few rows (prototypical networks, Snell et al.
2017, arXiv:1703.05175); a label's name, as the base embeds it, is one more example.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from promptdial.prompts.training.base import FrozenBase
from promptdial.prompts.training.batches import Example
from promptdial.prompts.training.initialise import label_words
from promptdial.prompts.training.probe import extract
from promptdial.prompts.training.search.few_shot_rows import FOLDS

NAME_SHARES = (0.0, 0.2, 0.4)
"""Of a label's name in its class vector."""


def class_means(features: Tensor, targets: Tensor, classes: int) -> Tensor:
    """Means [C, H] of features [N, H] by class, of length 1."""
    sums = torch.zeros(classes, features.shape[1], device=features.device)
    sums.index_add_(0, targets, features)
    return normalize(sums, dim=1)


def name_features(base: FrozenBase, labels: tuple[str, ...]) -> Tensor:
    """Features [C, H] of the labels' names."""
    texts = [base.encoder.encode(label_words(label)) for label in labels]
    # One at a time, since `extract` sorts by length.
    found = [extract(base, [Example(text, -1)], "mean_l2", [])[0] for text in texts]
    return torch.cat(found)


def mixed(means: Tensor, names: Tensor, share: float) -> Tensor:
    """Class vectors [C, H] of length 1: means with a share of the names."""
    return normalize((1 - share) * means + share * names, dim=1)


def name_share(features: Tensor, targets: Tensor, fold: Tensor, names: Tensor) -> float:
    """The share whose nearest class is right most often over the folds.

    Args:
        features: [N, H].
        targets: Class indices [N].
        fold: Fold of each row [N].
        names: Features of the labels' names [C, H].
    """
    scores = []
    for share in NAME_SHARES:
        right = 0
        for held in range(FOLDS):
            inside = fold != held
            means = class_means(features[inside], targets[inside], len(names))
            answers = (features[~inside] @ mixed(means, names, share).T).argmax(-1)
            right += int((answers == targets[~inside]).sum())
        scores.append(right)
    return NAME_SHARES[scores.index(max(scores))]
