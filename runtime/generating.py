"""Generation: one request on a decoder, token by token.

The prompt's state is at hand before the first pass, so the first token costs a pass
over the text alone.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.answers import Generation, Timing
from promptdial.runtime.caches import ROOM, Cache, begin
from promptdial.runtime.constraint import Constraint, Constraints
from promptdial.runtime.decoder_session import DecoderSession
from promptdial.runtime.errors import NotFinite
from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.label_trie import LabelTrie
from promptdial.runtime.manifest import Manifest
from promptdial.runtime.prompt_cache import ColdPrompt, ReadyPrompt
from promptdial.runtime.sampling import Sampler
from promptdial.runtime.static_decoder import StaticDecoderSession
from promptdial.runtime.table import TokenTable
from promptdial.runtime.text import TextEncoder
from promptdial.runtime.text_stream import StopStrings

Floats = NDArray[np.float32]

LENGTH, STOP = "length", "stop"

Ended = Callable[[Generation, float], None]
"""Hears of an answer that is all there, and of the milliseconds that it took."""


@dataclass(frozen=True)
class DecoderModel:
    """An opened bundle of a decoder.

    Attributes:
        session: The graph, or the graphs of fixed sizes.
        table: Token embeddings.
        manifest: Sizes.
        encoder: Text to tokens.
        stop_tokens: Token ids that end an answer.
        end_token: The one that training puts behind a target; None without any.
        label_tries: Tokens of label sets that were asked for, by the labels.
        constraints: What answers were asked to be.
    """

    session: DecoderSession | StaticDecoderSession
    table: TokenTable
    manifest: Manifest
    encoder: TextEncoder
    stop_tokens: frozenset[int]
    end_token: int | None = None
    label_tries: dict[tuple[str, ...], LabelTrie] = field(default_factory=dict)
    constraints: Constraints = field(default_factory=Constraints)


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
        constraint: What the answer may be, moved on while it is written: a request
            that has one is answered once.
    """

    prompt: ReadyPrompt | ColdPrompt | None
    tokens: NDArray[np.int64]
    truncated: bool
    options: GenerationOptions
    began: float
    stop_tokens: frozenset[int]
    constraint: Constraint | None = None

    def ended_by(self, token: int) -> bool:
        """Whether the answer is whole with this token, the last one written."""
        whole = self.constraint is not None and self.constraint.finished
        return whole or token in self.stop_tokens

    @property
    def length(self) -> int:
        """Rows that the answer stands behind: the prompt's and the text's."""
        return len(self.tokens) + (self.prompt.length if self.prompt else 0)


class Writing:
    """An answer as it grows, token by token; of one request, in one thread."""

    def __init__(self, request: GenerationRequest, model: DecoderModel) -> None:
        self._request = request
        self._pieces = model.encoder.pieces()
        self._stops = StopStrings(request.options.stop)
        self._tokens: list[int] = []
        self._times: list[float] = []
        self._text: list[str] = []
        self._reason = LENGTH
        self._steps_from = 0.0

    def push(self, token: int) -> str:
        """Take the next token; gives the text that is certain now, which may be empty.

        The answer has ended when `ended` says so; then `finish` is to be called.
        """
        self._tokens.append(token)
        self._times.append(time.perf_counter())
        if self._request.ended_by(token):
            self._reason = STOP
        if token in self._request.stop_tokens:
            return ""
        return self._said(self._stops.push(self._pieces.push(token)))

    def go_on(self) -> None:
        """The next tokens begin now: since the first one it was others' turn."""
        self._steps_from = time.perf_counter()

    @property
    def ended(self) -> bool:
        """Whether an end token, a stop string or the last token allowed was written."""
        full = len(self._tokens) >= self._request.options.max_new_tokens
        return self._reason == STOP or full

    def finish(self) -> str:
        """The rest of the text; none where a stop string ended it."""
        if self._stops.found:
            return ""
        last = self._stops.push(self._pieces.finish())
        return self._said(last + self._stops.finish())

    @property
    def generation(self) -> Generation:
        """What was written until now."""
        prompt, times = self._request.prompt, self._times
        first = times[0] - self._request.began if times else 0.0
        rest = 0.0
        if len(times) > 1:
            rest = (times[-1] - (self._steps_from or times[0])) / (len(times) - 1)
        return Generation(
            text="".join(self._text),
            tokens=tuple(self._tokens),
            finish_reason=self._reason,
            truncated=self._request.truncated,
            timing=Timing(1e3 * first, 1e3 * rest),
            prompt_version=prompt.meta.version if prompt else 0,
        )

    def _said(self, piece: str) -> str:
        if self._stops.found:
            self._reason = STOP
        self._text.append(piece)
        return piece


class TextStream(Iterator[str]):
    """The pieces of an answer as they are written; stop reading at any time.

    After the last piece, `generation` is the whole answer. Not to be shared among
    threads.
    """

    def __init__(
        self,
        request: GenerationRequest,
        model: DecoderModel,
        ended: Ended | None = None,
    ) -> None:
        """Begin with a request.

        Args:
            request: The request.
            model: The opened bundle.
            ended: Hears of the whole answer, after the last piece.
        """
        self._writing = Writing(request, model)
        self._pieces = self._write(next_tokens(request, model))
        self._ended = ended
        self._seconds = 0.0

    def __next__(self) -> str:
        """The next piece, never empty.

        Raises:
            RuntimeFailure: The graph fails.
        """
        began = time.perf_counter()
        piece = next(self._pieces, "")
        self._seconds += time.perf_counter() - began
        if piece:
            return piece
        ended, self._ended = self._ended, None
        if ended is not None:
            # Without the time that its reader took between the pieces.
            ended(self.generation, 1e3 * self._seconds)
        raise StopIteration

    @property
    def generation(self) -> Generation:
        """What was written until now; all of it when no piece is left."""
        return self._writing.generation

    def _write(self, tokens: Iterator[int]) -> Iterator[str]:
        for token in tokens:
            if piece := self._writing.push(token):
                yield piece
            if self._writing.ended:
                break
        if piece := self._writing.finish():
            yield piece


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
        UsageError: The constraint cannot go on.
    """
    sampler = Sampler(request.options, request.tokens, request.constraint)
    logits, cache = prefill(request, model, request.options.max_new_tokens)
    for left in range(request.options.max_new_tokens - 1, -1, -1):
        token = next_token(sampler, logits[0, -1])
        yield token
        if request.ended_by(token) or not left:
            return
        logits = cache.forward(token_rows(np.array([[token]], np.int64), model))


def next_token(sampler: Sampler, logits: Floats) -> int:
    """The token that an answer goes on with, of logits [V].

    Raises:
        NotFinite: The logits are not finite.
    """
    return sampler.choose(require_finite(logits))


def require_finite(logits: Floats) -> Floats:
    """The logits themselves.

    Raises:
        NotFinite: They are not finite.
    """
    if not np.isfinite(logits.sum()):
        raise NotFinite(
            "the graph's output holds NaN or infinity",
            "check the prompt and the bundle with promptdial verify",
        )
    return logits


def prefill(
    request: GenerationRequest, model: DecoderModel, room: int = 0
) -> tuple[Floats, Cache]:
    """Logits [1, 1, V] after the text, and the state of prompt and text.

    A cold prompt's rows go through the same pass, which then gives its prefix: causal
    rows do not see the text, and no scale is shared between rows, so it is bit for bit
    what a pass of its own would give. Where the state is more than keys and values, no
    prompt comes cold: see `EnginePrompts.ready_or_cold`.

    Args:
        request: What to read.
        model: The opened bundle.
        room: Rows that are to follow.

    Raises:
        SessionFailed: onnxruntime fails.
    """
    session, prompt = model.session, request.prompt
    rows = token_rows(request.tokens[None], model)
    capacity = request.length + min(room, ROOM)
    if isinstance(prompt, ColdPrompt):
        together = np.concatenate([prompt.rows[None], rows], axis=1)
        cache = begin(session, session.no_prompt, 0, capacity)
        logits = cache.forward(together)
        prompt.keep(cache.head(prompt.length))
        return logits, cache
    state = prompt.state if prompt else session.no_prompt
    cache = begin(session, state, prompt.length if prompt else 0, capacity)
    return cache.forward(rows), cache


def token_rows(ids: NDArray[np.int64], model: DecoderModel) -> Floats:
    """Embeddings [B, T, H] of token ids [B, T], as the graph takes them."""
    rows = model.table.embed(ids.reshape(-1)).reshape(*ids.shape, -1)
    if model.manifest.input_multiplier != 1.0:
        rows *= np.float32(model.manifest.input_multiplier)
    return rows
