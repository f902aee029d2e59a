"""What answers to dev rows look like, for the blob: devices watch for others.

The same numbers that a device counts (promptdial.runtime.counting), on the dev rows:
how sure an answer is, and how long its input.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from promptdial.prompts.distribution import reference
from promptdial.prompts.scores import Scores
from promptdial.prompts.training.batches import Example
from promptdial.prompts.training.scoring import Reader
from promptdial.runtime.deciding import calibrated, decide
from promptdial.runtime.metrics import bio_spans
from promptdial.runtime.tagging import allowed_steps, best_tags

Floats = NDArray[np.float64]


def dev_reference(
    reader: Reader, examples: Sequence[Example], logits: Sequence[Tensor]
) -> dict[str, list[int]]:
    """Histograms of dev rows.

    Args:
        reader: What answers, with the scores that go into the blob.
        examples: The dev rows.
        logits: What `logits_of` gave of them.
    """
    rows = [row.double().numpy() for row in logits]
    lengths = [len(example.text) for example in examples]
    if reader.kind == "embedding":
        return reference([], lengths)
    if reader.kind == "token":
        least = [_least_span(row, reader.labels, reader.scores) for row in rows]
        return reference([it for it in least if it is not None], lengths)
    return reference(confidences(rows, reader.labels, reader.scores), lengths)


def confidences(
    logits: Sequence[Floats] | Floats, labels: tuple[str, ...], scores: Scores
) -> list[float]:
    """Score of the best label of each row [C]."""
    found = [decide(row, labels, scores) for row in logits]
    return [float(item.shares[item.best]) for item in found]


def _least_span(
    logits: Floats, labels: tuple[str, ...], scores: Scores
) -> float | None:
    """Score of the least sure span of a text's words [W, C]; None without spans."""
    shares = calibrated(logits, labels, scores)
    best = best_tags(logits.astype(np.float32), allowed_steps(labels))
    certain = shares[np.arange(len(best)), best]
    spans = bio_spans([labels[index] for index in best])
    return min(
        (float(certain[first:last].mean()) for _, first, last in spans), default=None
    )
