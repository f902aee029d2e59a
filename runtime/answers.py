"""What an engine answers: plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Classification:
    """The answer of a classification or pair prompt.

    Attributes:
        label: The best label. A prompt's out-of-scope label is never it: where that
            one is likelier, this is the best of the others, and `abstained` is True.
        score: Its probability, calibrated where the prompt is.
        scores: Probability of every label, the out-of-scope one included.
        prompt_version: Version of the prompt that answered.
        truncated: Whether the text was cut to the base's window.
        abstained: Whether the prompt has no answer: the score is below its own
            threshold, or the text is likelier out of its scope. An application asks
            again or hands over; `label` is then a guess.
    """

    label: str
    score: float
    scores: dict[str, float]
    prompt_version: int
    truncated: bool
    abstained: bool = False


@dataclass(frozen=True)
class Span:
    """A stretch of the text.

    Attributes:
        label: Its type.
        text: The characters.
        start: First character.
        end: Character after the last.
        score: Mean probability of its tags.
    """

    label: str
    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Spans:
    """The answer of a token prompt.

    Attributes:
        spans: The stretches found, in order.
        tags: One BIO tag a word.
        words: (start, end) in characters of each word.
        prompt_version: Version of the prompt that answered.
        truncated: Whether the text was cut to the base's window; words beyond it
            have the tag `O`.
    """

    spans: tuple[Span, ...]
    tags: tuple[str, ...]
    words: tuple[tuple[int, int], ...]
    prompt_version: int
    truncated: bool


@dataclass(frozen=True)
class Timing:
    """How long an answer took, in milliseconds.

    Attributes:
        first_token_ms: From the call to the first token (TTFT).
        per_token_ms: Mean of every later one (TPOT); 0 where there is none.
    """

    first_token_ms: float
    per_token_ms: float


@dataclass(frozen=True)
class Generation:
    """The answer of a generation prompt.

    Attributes:
        text: What was written; a stop string and what follows it is left out.
        tokens: Token ids as they were chosen, the one that ended it included.
        finish_reason: `stop` (end of text, or a stop string) or `length`.
        truncated: Whether the input was cut so that prompt, input and answer fit the
            base's window.
        timing: How long it took.
        prompt_version: Version of the prompt that answered; 0 without one.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    truncated: bool
    timing: Timing
    prompt_version: int


@dataclass(frozen=True)
class Compatibility:
    """Whether a blob fits a bundle.

    Attributes:
        ok: It does.
        reason: Why not, in one line; "" where it does.
    """

    ok: bool
    reason: str = ""
