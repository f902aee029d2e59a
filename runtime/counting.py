"""What an answer adds to its version's figures: numbers, never a text."""

from promptdial.runtime.answers import Classification, Spans
from promptdial.runtime.generating import GenerationRequest
from promptdial.runtime.reading import Answer, Request
from promptdial.runtime.source import CountingSource


def confidence_of(answer: Answer) -> float | None:
    """How sure an answer is, 0 to 1; None where its kind does not say.

    A classification's score; of spans the least, since one wrong slot spoils an answer,
    and None where there is none.
    """
    if isinstance(answer, Classification):
        return answer.score
    if isinstance(answer, Spans):
        return min((span.score for span in answer.spans), default=None)
    return None


def count_answer(
    source: CountingSource,
    request: Request | GenerationRequest,
    answer: Answer,
    milliseconds: float | None,
) -> None:
    """Count an answer of a prompt.

    Args:
        source: Where the prompt is from.
        request: Its prompt is not None.
        answer: The answer.
        milliseconds: Time that it took; None where that is not its own.
    """
    assert request.prompt is not None
    meta = request.prompt.meta
    tokens = request.encoded if isinstance(request, Request) else request.tokens
    source.count(
        meta.task,
        meta.version,
        confidence_of(answer),
        len(tokens),
        milliseconds,
        isinstance(answer, Classification) and answer.abstained,
    )
