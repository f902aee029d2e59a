"""Requests to forward passes: those of equal lengths share one, nothing is padded.

Padding would move sums around inside a row by a unit in the last place, and dynamic
INT8 turns that into whole steps now and then. Without it an answer in company is bit
for bit the answer alone, and no time goes into padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.encoder_session import EncoderSession
from promptdial.runtime.manifest import Manifest
from promptdial.runtime.prompt_cache import ReadyPrompt
from promptdial.runtime.reading import (
    Answer,
    Request,
    mean_of_text,
    read_answer,
    read_apart,
)
from promptdial.runtime.session import PromptState
from promptdial.runtime.static_session import StaticEncoderSession
from promptdial.runtime.table import TokenTable
from promptdial.runtime.text import Encoded, TextEncoder

Floats = NDArray[np.float32]

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


@dataclass(frozen=True)
class _Pass:
    """One text of a request: all of it, or one of two that are read apart.

    Attributes:
        place: Number of the request.
        part: 0, or 1 for the second text.
        request: The request.
        encoded: The text.
    """

    place: int
    part: int
    request: Request
    encoded: Encoded


def run_groups(requests: Sequence[Request], model: EncoderModel) -> list[Answer]:
    """Answers of requests, in their order.

    Raises:
        RuntimeFailure: The graph fails on one of them.
    """
    groups: dict[tuple[int, int], list[_Pass]] = {}
    for place, request in enumerate(requests):
        length = request.prompt.length if request.prompt else 0
        for part, encoded in enumerate(request.encoded.passes):
            one = _Pass(place, part, request, encoded)
            groups.setdefault((len(encoded), length), []).append(one)
    answers: dict[int, Answer] = {}
    halves: dict[tuple[int, int], Floats] = {}
    for (tokens, _), members in groups.items():
        rows = max(1, min(MAX_ROWS, MAX_TOKENS // tokens))
        for start in range(0, len(members), rows):
            _run(members[start : start + rows], answers, halves, model)
    return [answers[place] for place in range(len(requests))]


def _run(
    passes: list[_Pass],
    answers: dict[int, Answer],
    halves: dict[tuple[int, int], Floats],
    model: EncoderModel,
) -> None:
    """One forward pass; `halves` keeps features of texts until their pair is whole."""
    first = passes[0]
    rows, length = len(passes), len(first.encoded)
    if rows == 1:
        ids = first.encoded.ids[None]
        types = first.encoded.type_ids[None]
    else:
        ids = np.stack([one.encoded.ids for one in passes])
        types = np.stack([one.encoded.type_ids for one in passes])
    embeds = model.table.embed(ids.reshape(-1)).reshape(rows, length, -1)
    if model.manifest.input_multiplier != 1.0:
        embeds *= np.float32(model.manifest.input_multiplier)
    prompts = [one.request.prompt for one in passes]
    prefix = prompts[0].length if prompts[0] else 0
    mask = np.ones((rows, prefix + length), np.int64)
    offset = model.manifest.dims.position_offset
    positions = np.arange(offset, offset + length)[None]
    if rows > 1:
        positions = np.repeat(positions, rows, 0)
    state = _state(prompts, model.session.no_prompt)
    feed = (embeds, mask, positions, types, state)
    if any(prompt and prompt.mix is not None for prompt in prompts):
        levels = np.stack(model.session.levels(*feed), 1)
    else:
        levels = model.session.hidden(*feed)[:, None]
    for one, rows in zip(passes, levels, strict=True):
        if one.request.encoded.apart:
            assert one.request.prompt is not None
            halves[one.place, one.part] = mean_of_text(one.request.prompt, rows)
            if (one.place, 1 - one.part) in halves:
                two = halves.pop((one.place, 0)), halves.pop((one.place, 1))
                answers[one.place] = read_apart(one.request, *two)
        else:
            answers[one.place] = read_answer(one.request, rows)


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
