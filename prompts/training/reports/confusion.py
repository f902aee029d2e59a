"""Which labels are taken for which on dev, and how well entities are found."""

from collections import Counter
from dataclasses import dataclass

from promptdial.prompts.training.units import Units, count_names


@dataclass(frozen=True)
class Confusion:
    """Rows of one label that were given another.

    Attributes:
        gold: The row's label.
        found: The answer.
        count: Rows.
        example: Index of the first such row.
    """

    gold: str
    found: str
    count: int
    example: int


@dataclass(frozen=True)
class EntityScore:
    """How one kind of entity was found.

    Attributes:
        name: The kind.
        gold: Entities in the rows.
        found: Entities in the answers.
        right: Those in both, words and kind.
        precision: right / found, percent.
        recall: right / gold, percent.
        f1: Their harmonic mean, percent.
    """

    name: str
    gold: int
    found: int
    right: int
    precision: float
    recall: float
    f1: float


def confusion_matrix(
    gold: Units, found: Units, labels: tuple[str, ...]
) -> list[list[int]]:
    """Counts [C, C] of rows: a line for the row's label, a column for the answer."""
    counts = Counter(_pairs(gold, found))
    return [[counts[(one, two)] for two in labels] for one in labels]


def confusions(gold: Units, found: Units) -> list[Confusion]:
    """Wrong answers by their pair of labels, most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], int] = {}
    for index, pair in enumerate(_pairs(gold, found)):
        if pair[0] != pair[1]:
            counts[pair] += 1
            first.setdefault(pair, index)
    return [
        Confusion(*pair, count=count, example=first[pair])
        for pair, count in counts.most_common()
    ]


def entity_scores(gold: Units, found: Units) -> list[EntityScore]:
    """Each kind of entity, most frequent in the rows first."""
    wanted, given = count_names(gold), count_names(found)
    right = count_names([a & b for a, b in zip(gold, found, strict=True)])
    scores = []
    for name in [*wanted, *(name for name in given if name not in wanted)]:
        one, two = wanted.get(name, 0), given.get(name, 0)
        both = right.get(name, 0)
        scores.append(
            EntityScore(
                name=name,
                gold=one,
                found=two,
                right=both,
                precision=100.0 * both / max(1, two),
                recall=100.0 * both / max(1, one),
                f1=200.0 * both / (one + two),
            )
        )
    return scores


def _pairs(gold: Units, found: Units) -> list[tuple[str, str]]:
    """(label, answer) of each row."""
    return [
        (next(iter(one))[0], next(iter(two))[0])
        for one, two in zip(gold, found, strict=True)
    ]
