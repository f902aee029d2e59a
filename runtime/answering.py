"""Requests on a decoder to answers, by the kind of their prompts."""

from collections.abc import Callable, Sequence

from promptdial.runtime.generating import (
    DecoderModel,
    GenerationRequest,
    TextStream,
    written,
)
from promptdial.runtime.label_scoring import classify_by_likelihood
from promptdial.runtime.reading import Answer
from promptdial.runtime.writing_together import TOGETHER, written_together


def answers_of(
    requests: Sequence[GenerationRequest],
    model: DecoderModel,
    at_its_turn: Callable[[GenerationRequest], GenerationRequest],
) -> list[Answer]:
    """Answers of many requests, in their order.

    Args:
        requests: Of any prompts.
        model: The opened bundle.
        at_its_turn: Gives a request anew when it begins, all but the first; the one
            before may have made its prefix.

    Raises:
        RuntimeFailure: The graph fails on one of them.
    """

    def turn(number: int) -> GenerationRequest:
        return at_its_turn(requests[number]) if number else requests[number]

    answers: dict[int, Answer] = {}
    writers: list[int] = []
    for number, request in enumerate(requests):
        meta = request.prompt.meta if request.prompt else None
        if meta is not None and meta.kind == "classification":
            answers[number] = classify_by_likelihood(turn(number), meta.labels, model)
        else:
            writers.append(number)
    for start in range(0, len(writers), TOGETHER):
        group = writers[start : start + TOGETHER]
        turns = map(turn, group)
        if len(group) > 1 and model.session.packed_cache:
            answers.update(zip(group, written_together(turns, model), strict=True))
        else:
            found = [written(TextStream(request, model)) for request in turns]
            answers.update(zip(group, found, strict=True))
    return [answers[number] for number in range(len(requests))]
