"""Figures of prompts that may abstain: how often, and what that is worth."""

from collections.abc import Sequence
from dataclasses import dataclass

from promptdial.prompts.scores import Scores


@dataclass(frozen=True)
class Abstention:
    """Figures over labelled rows, in percent; None where no row counts for one.

    Attributes:
        abstained: Share of rows without an answer.
        kept_accuracy: Accuracy of the answers that were given.
        in_scope_accuracy: Share of the rows in scope that were answered rightly: an
            abstention is wrong there. None for prompts without an out-of-scope label.
        out_of_scope_recall: Share of the rows out of scope that were abstained from.
            None as above.
    """

    abstained: float
    kept_accuracy: float | None = None
    in_scope_accuracy: float | None = None
    out_of_scope_recall: float | None = None


def counted(
    labels: Sequence[str], abstained: Sequence[bool], out_of_scope: str
) -> list[str]:
    """Labels as the metric counts them: an abstention is the out-of-scope label.

    Without such a label an abstention has no right answer to be compared with, and the
    best label counts.

    Args:
        labels: Best label of each row.
        abstained: Whether the row has no answer.
        out_of_scope: The label that stands for "none of these", or "".
    """
    pairs = zip(labels, abstained, strict=True)
    return [out_of_scope if out_of_scope and not_one else it for it, not_one in pairs]


def abstention(
    gold: Sequence[str],
    labels: Sequence[str],
    abstained: Sequence[bool],
    scores: Scores,
) -> Abstention:
    """Figures of labels and abstentions.

    Args:
        gold: Right label of each row.
        labels: Best label of each row.
        abstained: Whether the row has no answer.
        scores: The prompt's.
    """
    outside = scores.out_of_scope
    given = [
        it == right
        for right, it, none in zip(gold, labels, abstained, strict=True)
        if not none
    ]
    counts = counted(labels, abstained, outside)
    inside = [g == c for g, c in zip(gold, counts, strict=True) if g != outside]
    outer = [g == c for g, c in zip(gold, counts, strict=True) if g == outside]
    return Abstention(
        abstained=_share(abstained) or 0.0,
        kept_accuracy=_share(given),
        in_scope_accuracy=_share(inside) if outside else None,
        out_of_scope_recall=_share(outer) if outside else None,
    )


def _share(values: Sequence[bool]) -> float | None:
    return round(100.0 * sum(values) / len(values), 3) if values else None
