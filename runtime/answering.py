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
from promptdial.runtime.writing_together import (
    TOGETHER,
    TOGETHER_BYTES,
    written_together,
)


def answers_of(
    requests: Sequence[GenerationRequest],
    model: DecoderModel,
    at_its_turn: Callable[[GenerationRequest], GenerationRequest],
) -> list[Answer]:
    """Answers of many requests, in their order.

    Args:
        requests: Of any prompts.
        model: The opened bundle.
        at_its_turn: Gives a request anew when it begins, unless it is the only one;
            the one before may have made its prefix.

    Raises:
        RuntimeFailure: The graph fails on one of them.
    """

    def turn(number: int) -> GenerationRequest:
        alone = len(requests) == 1
        return requests[number] if alone else at_its_turn(requests[number])

    answers: dict[int, Answer] = {}
    writers: list[int] = []
    for number, request in enumerate(requests):
        meta = request.prompt.meta if request.prompt else None
        if meta is not None and meta.kind == "classification":
            answers[number] = classify_by_likelihood(turn(number), meta.labels, model)
        else:
            writers.append(number)
    for group in _groups(writers, requests, model):
        turns = map(turn, group)
        if len(group) > 1 and model.session.packed_cache:
            answers.update(zip(group, written_together(turns, model), strict=True))
        else:
            found = [written(TextStream(request, model)) for request in turns]
            answers.update(zip(group, found, strict=True))
    return [answers[number] for number in range(len(requests))]


def _groups(
    writers: Sequence[int],
    requests: Sequence[GenerationRequest],
    model: DecoderModel,
) -> list[list[int]]:
    """Numbers of the requests that are written together; one alone may be larger."""
    dims = model.manifest.dims
    row_bytes = 4 * 2 * dims.layers * dims.kv_heads * dims.head_dim
    groups: list[list[int]] = []
    held = 0
    for number in writers:
        request = requests[number]
        own = row_bytes * (request.length + request.options.max_new_tokens)
        if not groups or len(groups[-1]) == TOGETHER or held + own > TOGETHER_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(number)
        held += own
    return groups
