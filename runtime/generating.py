"""Generation: one request on a decoder, token by token.

The prompt's state is at hand before the first pass, so the first token costs a pass
over the text alone.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.answers import Generation, Timing
from promptdial.runtime.decoder_session import DecoderSession, KeyValues
from promptdial.runtime.errors import NotFinite
from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.manifest import Manifest
from promptdial.runtime.prompt_cache import ColdPrompt, ReadyPrompt
from promptdial.runtime.sampling import Sampler
from promptdial.runtime.table import TokenTable
from promptdial.runtime.text import TextEncoder
from promptdial.runtime.text_stream import StopStrings

Floats = NDArray[np.float32]

LENGTH, STOP = "length", "stop"


@dataclass(frozen=True)
class DecoderModel:
    """An opened bundle of a decoder.

    Attributes:
        session: The graph.
        table: Token embeddings.
        manifest: Sizes.
        encoder: Text to tokens.
        stop_tokens: Token ids that end an answer.
        end_token: The one that training puts behind a target; None without any.
        label_tokens: Tokens of labels that were asked for, by the labels.
    """

    session: DecoderSession
    table: TokenTable
    manifest: Manifest
    encoder: TextEncoder
    stop_tokens: frozenset[int]
    end_token: int | None = None
    label_tokens: dict[tuple[str, ...], list[list[int]]] = field(default_factory=dict)


@dataclass(frozen=True)
class GenerationRequest:
    """One request.

    Attributes:
        prompt: The prompt that answers; None for the base alone.
        tokens: [T] token ids of the input, template and special tokens included.
        truncated: Whether the input was cut.
        options: How to generate.
        began: When the call was made, or its turn in a batch came (`perf_counter`).
        stop_tokens: Token ids that end the answer: the base's, and special tokens
            among the stop strings, which no text ever shows.
    """

    prompt: ReadyPrompt | ColdPrompt | None
    tokens: NDArray[np.int64]
    truncated: bool
    options: GenerationOptions
    began: float
    stop_tokens: frozenset[int]


class TextStream(Iterator[str]):
    """The pieces of an answer as they are written; stop reading at any time.

    After the last piece, `generation` is the whole answer. Not to be shared among
    threads.
    """

    def __init__(self, request: GenerationRequest, model: DecoderModel) -> None:
        self._request = request
        self._model = model
        self._tokens: list[int] = []
        self._times: list[float] = []
        self._text: list[str] = []
        self._reason = LENGTH
        self._pieces = self._write()

    def __next__(self) -> str:
        """The next piece, never empty.

        Raises:
            RuntimeFailure: The graph fails.
        """
        piece = next(self._pieces)
        self._text.append(piece)
        return piece

    @property
    def generation(self) -> Generation:
        """What was written until now; all of it when no piece is left."""
        prompt, times = self._request.prompt, self._times
        first = times[0] - self._request.began if times else 0.0
        rest = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
        return Generation(
            text="".join(self._text),
            tokens=tuple(self._tokens),
            finish_reason=self._reason,
            truncated=self._request.truncated,
            timing=Timing(1e3 * first, 1e3 * rest),
            prompt_version=prompt.meta.version if prompt else 0,
        )

    def _write(self) -> Iterator[str]:
        pieces = self._model.encoder.pieces()
        stops = StopStrings(self._request.options.stop)
        for token in next_tokens(self._request, self._model):
            self._tokens.append(token)
            self._times.append(time.perf_counter())
            if token in self._request.stop_tokens:
                self._reason = STOP
                break
            piece = stops.push(pieces.push(token))
            if stops.found:
                self._reason = STOP
            if piece:
                yield piece
            if stops.found:
                return
        last = stops.push(pieces.finish())
        if stops.found:
            self._reason = STOP
        last += stops.finish()
        if last:
            yield last


def written(stream: TextStream) -> Generation:
    """The answer when it is all there.

    Raises:
        RuntimeFailure: The graph fails.
    """
    for _ in stream:
        pass
    return stream.generation


def next_tokens(request: GenerationRequest, model: DecoderModel) -> Iterator[int]:
    """Token ids of an answer, the one that ends it included.

    Raises:
        SessionFailed: onnxruntime fails.
        NotFinite: The logits are not finite.
    """
    sampler = Sampler(request.options, request.tokens)
    logits, past = prefill(request, model)
    done = len(request.tokens) + (request.prompt.length if request.prompt else 0)
    for left in range(request.options.max_new_tokens - 1, -1, -1):
        if not np.isfinite(logits.sum()):
            raise NotFinite(
                "the graph's output holds NaN or infinity",
                "check the prompt and the bundle with promptdial verify",
            )
        token = sampler.choose(logits[0, -1])
        yield token
        if token in request.stop_tokens or not left:
            return
        rows = token_rows(np.array([[token]], np.int64), model)
        logits, past = _forward(rows, done, past, model)
        done += 1


def prefill(
    request: GenerationRequest, model: DecoderModel
) -> tuple[Floats, KeyValues]:
    """Logits [1, 1, V] after the text, and the state of prompt and text.

    A cold prompt's rows go through the same pass, which then gives its prefix: causal
    rows do not see the text, and no scale is shared between rows, so it is bit for bit
    what a pass of its own would give. Where the state is more than keys and values, no
    prompt comes cold: see `EnginePrompts.ready_or_cold`.

    Raises:
        SessionFailed: onnxruntime fails.
    """
    session, prompt = model.session, request.prompt
    rows = token_rows(request.tokens[None], model)
    if isinstance(prompt, ColdPrompt):
        together = np.concatenate([prompt.rows[None], rows], axis=1)
        empty = session.key_values(session.no_prompt)
        logits, past = _forward(together, 0, empty, model)
        heads = (value.numpy()[:, :, : prompt.length] for value in past)
        # Copies: a slice would keep all of the text's keys and values alive.
        prompt.keep(tuple([head.copy() for head in heads]))
        return logits, past
    state = prompt.state if prompt else session.no_prompt
    used = prompt.length if prompt else 0
    return _forward(rows, used, session.key_values(state), model)


def token_rows(ids: NDArray[np.int64], model: DecoderModel) -> Floats:
    """Embeddings [B, T, H] of token ids [B, T], as the graph takes them."""
    rows = model.table.embed(ids.reshape(-1)).reshape(*ids.shape, -1)
    if model.manifest.input_multiplier != 1.0:
        rows *= np.float32(model.manifest.input_multiplier)
    return rows


def _forward(
    rows: Floats, done: int, past: KeyValues, model: DecoderModel
) -> tuple[Floats, KeyValues]:
    """A pass of rows [1, T, H] over `done` rows before; logits of the last row."""
    total = done + rows.shape[1]
    mask = np.ones((1, total), np.int64)
    positions = np.arange(done, total, dtype=np.int64)[None]
    return model.session.forward(rows, mask, positions, past, keep=1)
