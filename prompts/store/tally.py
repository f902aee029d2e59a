"""What is counted of a version's answers: sums and histograms, never a text."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from promptdial.prompts.distribution import CONFIDENCE, EDGES, TOKENS, bin_of

WINDOW = 2000
"""Answers in a histogram: with more, every bin is halved. So what is old fades, and a
shift of today shows within a thousand answers or two, however long the device runs."""


@dataclass(slots=True)
class Tally:
    """Answers of one version. Sums are of all, histograms of the newest.

    Attributes:
        answers: Number of answers.
        abstained: How many of them were abstentions.
        scored: How many had a confidence.
        confidence: Sum of those, and
        confidence_squares: of their squares.
        timed: How many were asked alone, so that their time is theirs.
        latency: Sum of their milliseconds, and
        latency_squares: of the squares of those.
        bins: Histograms by name (promptdial.prompts.distribution).
    """

    answers: int = 0
    abstained: int = 0
    scored: int = 0
    confidence: float = 0.0
    confidence_squares: float = 0.0
    timed: int = 0
    latency: float = 0.0
    latency_squares: float = 0.0
    bins: dict[str, list[float]] = field(
        default_factory=lambda: {name: [0.0] * (len(EDGES[name]) + 1) for name in EDGES}
    )

    def count(
        self,
        confidence: float | None,
        tokens: int,
        milliseconds: float | None,
        abstained: bool,
    ) -> None:
        """Add one answer."""
        self.answers += 1
        self.abstained += abstained
        if confidence is not None:
            self.scored += 1
            self.confidence += confidence
            self.confidence_squares += confidence * confidence
            self.bins[CONFIDENCE][bin_of(CONFIDENCE, confidence)] += 1
        if milliseconds is not None:
            self.timed += 1
            self.latency += milliseconds
            self.latency_squares += milliseconds * milliseconds
        self.bins[TOKENS][bin_of(TOKENS, tokens)] += 1

    def add(self, other: "Tally") -> None:
        """Add the answers of another one."""
        self.add_sums(other)
        self.add_bins(other)

    def add_sums(self, other: "Tally") -> None:
        """Add the sums of another one, its histograms left out."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def add_bins(self, other: "Tally") -> None:
        """Add the histograms of another one alone."""
        for name, bins in other.bins.items():
            self.bins[name] = faded(
                [a + b for a, b in zip(self.bins[name], bins, strict=True)]
            )


SUMS = (
    "answers",
    "abstained",
    "scored",
    "confidence",
    "confidence_squares",
    "timed",
    "latency",
    "latency_squares",
)
"""Attributes of a tally that are added up."""


def faded(bins: Sequence[float]) -> list[float]:
    """A histogram of at most WINDOW answers."""
    found = list(bins)
    while sum(found) > WINDOW:
        found = [count / 2 for count in found]
    return found
