"""Whether the texts of a device are others than those that a version was made for."""

from collections.abc import Iterator
from dataclasses import dataclass

from promptdial.prompts.distribution import CONFIDENCE, TOKENS, distance, reference_of
from promptdial.prompts.metadata import PromptMeta
from promptdial.prompts.store.tally import Tally

_WORDS = {
    CONFIDENCE: ("confidence is lower", "confidence is higher"),
    TOKENS: ("texts are shorter", "texts are longer"),
}


@dataclass(frozen=True)
class Shift:
    """A histogram of answers that is not the one of the version's dev rows.

    Attributes:
        task: The task.
        version: The version.
        measure: `confidence`, or `tokens` (the length of inputs).
        psi: Population stability index of the two; above 0.25 is large.
        answers: Answers it is of: the newest thousand or two at most.
        says: The same in words.
    """

    task: str
    version: int
    measure: str
    psi: float
    answers: int
    says: str


def shifts_of(meta: PromptMeta, tally: Tally) -> Iterator[Shift]:
    """What shifted since a prompt was made; nothing for one without a reference."""
    for measure, rows in reference_of(meta.metrics).items():
        bins = tally.bins[measure]
        found = distance(rows, bins)
        if found is not None and found.is_shift:
            answers = round(sum(bins))
            said = (
                f"{_WORDS[measure][found.higher]} than on its dev rows (PSI "
                f"{found.psi:.2f} over {answers} answers), whose figures may not hold "
                "here"
            )
            yield Shift(meta.task, meta.version, measure, found.psi, answers, said)
