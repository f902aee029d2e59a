"""From scores of tags to the best sequence that BIO allows.

A word's best tag alone may be `I-x` after `O`, which no annotation has; Viterbi over
the allowed steps (Forney 1973) costs microseconds and is worth points of F1.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_FORBIDDEN = np.float32(-1e9)


def allowed_steps(labels: tuple[str, ...]) -> Floats:
    """[C+1, C] zero where a tag may follow another, else a large negative number.

    The last row is the start of the sentence: as after `O`, no `I-` may follow.
    """
    steps = np.zeros((len(labels) + 1, len(labels)), np.float32)
    for column, label in enumerate(labels):
        if label.startswith("I-"):
            before = {f"B-{label[2:]}", label}
            for row, other in enumerate((*labels, "O")):
                if other not in before:
                    steps[row, column] = _FORBIDDEN
    return steps


def best_tags(logits: Floats, steps: Floats) -> list[int]:
    """The allowed sequence of the largest total log-probability.

    Args:
        logits: [W, C], one row a word.
        steps: Of `allowed_steps`.

    Returns:
        Index of a tag for each word.
    """
    if not len(logits):
        return []
    top = logits.max(-1, keepdims=True)
    scores = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    best = scores[0] + steps[-1]
    came_from = np.zeros(scores.shape, np.int64)
    for word in range(1, len(scores)):
        paths = best[:, None] + steps[:-1]
        came_from[word] = paths.argmax(0)
        best = paths.max(0) + scores[word]
    tags = [int(best.argmax())]
    for word in range(len(scores) - 1, 0, -1):
        tags.append(int(came_from[word, tags[-1]]))
    return tags[::-1]
