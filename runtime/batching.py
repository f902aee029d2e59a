"""Requests to forward passes: those of equal lengths share one, nothing is padded.

Padding would move sums around inside a row by a unit in the last place, and dynamic
INT8 turns that into whole steps now and then. Without it an answer in company is bit
for bit the answer alone, and no time goes into padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from promptdial.runtime.encoder_session import EncoderSession
from promptdial.runtime.manifest import Manifest
from promptdial.runtime.prompt_cache import ReadyPrompt
from promptdial.runtime.reading import Answer, Request, read_answer
from promptdial.runtime.session import PromptState
from promptdial.runtime.static_session import StaticEncoderSession
from promptdial.runtime.table import TokenTable
from promptdial.runtime.text import TextEncoder

MAX_ROWS = 32
"""Rows of one forward pass: more gain no speed on a CPU and cost memory."""

MAX_TOKENS = 1024
"""Tokens of one forward pass, unless one row has more. Attention's scores grow with
the square of the length: 32 rows of 512 tokens would take more than a gigabyte."""


@dataclass(frozen=True)
class EncoderModel:
    """An opened bundle of an encoder.

    Attributes:
        session: The graph.
        table: Token embeddings.
        manifest: Sizes and offsets.
        encoder: Text to tokens.
    """

    session: EncoderSession | StaticEncoderSession
    table: TokenTable
    manifest: Manifest
    encoder: TextEncoder


def run_groups(requests: Sequence[Request], model: EncoderModel) -> list[Answer]:
    """Answers of requests, in their order.

    Raises:
        RuntimeFailure: The graph fails on one of them.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, request in enumerate(requests):
        length = request.prompt.length if request.prompt else 0
        groups.setdefault((len(request.encoded), length), []).append(index)
    answers: list[Answer | None] = [None] * len(requests)
    for (tokens, _), members in groups.items():
        rows = max(1, min(MAX_ROWS, MAX_TOKENS // tokens))
        for start in range(0, len(members), rows):
            chosen = members[start : start + rows]
            _run([requests[i] for i in chosen], chosen, answers, model)
    return [answer for answer in answers if answer is not None]


def _run(
    requests: list[Request],
    places: list[int],
    answers: list[Answer | None],
    model: EncoderModel,
) -> None:
    first = requests[0]
    rows, length = len(requests), len(first.encoded)
    if rows == 1:
        ids = first.encoded.ids[None]
        types = first.encoded.type_ids[None]
    else:
        ids = np.stack([request.encoded.ids for request in requests])
        types = np.stack([request.encoded.type_ids for request in requests])
    embeds = model.table.embed(ids.reshape(-1)).reshape(rows, length, -1)
    if model.manifest.input_multiplier != 1.0:
        embeds *= np.float32(model.manifest.input_multiplier)
    prefix = first.prompt.length if first.prompt else 0
    mask = np.ones((rows, prefix + length), np.int64)
    offset = model.manifest.dims.position_offset
    positions = np.arange(offset, offset + length)[None]
    if rows > 1:
        positions = np.repeat(positions, rows, 0)
    state = _state([request.prompt for request in requests], model.session.no_prompt)
    feed = (embeds, mask, positions, types, state)
    if any(request.prompt and request.prompt.mix is not None for request in requests):
        levels = np.stack(model.session.levels(*feed), 1)
    else:
        levels = model.session.hidden(*feed)[:, None]
    for place, request, rows in zip(places, requests, levels, strict=True):
        answers[place] = read_answer(request, rows)


def _state(prompts: list[ReadyPrompt | None], no_prompt: PromptState) -> PromptState:
    """The prompts of a batch: [1, ...] where all rows share one, else [B, ...]."""
    first = prompts[0]
    if first is None or first.length == 0:
        return no_prompt
    if all(prompt is first for prompt in prompts):
        return first.state
    columns = zip(*(prompt.state for prompt in prompts if prompt), strict=True)
    joined = [np.concatenate(column) for column in columns]
    return tuple(joined)
