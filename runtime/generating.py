"""Generation: one request on a decoder, token by token.

The prompt's keys and values are at hand before the first pass, so the first token costs
a pass over the text alone.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from promptdial.runtime.answers import Generation, Timing
from promptdial.runtime.decoder_session import DecoderSession
from promptdial.runtime.errors import NotFinite
from promptdial.runtime.generation_options import GenerationOptions
from promptdial.runtime.manifest import Manifest
from promptdial.runtime.prompt_cache import ReadyPrompt
from promptdial.runtime.sampling import Sampler
from promptdial.runtime.table import TokenTable
from promptdial.runtime.text import TextEncoder
from promptdial.runtime.text_stream import StopStrings

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
    """

    session: DecoderSession
    table: TokenTable
    manifest: Manifest
    encoder: TextEncoder
    stop_tokens: frozenset[int]


@dataclass(frozen=True)
class GenerationRequest:
    """One request.

    Attributes:
        prompt: The prompt that answers; None for the base alone.
        tokens: [T] token ids of the input, template and special tokens included.
        truncated: Whether the input was cut.
        options: How to generate.
        began: When the call was made (`time.perf_counter`).
    """

    prompt: ReadyPrompt | None
    tokens: NDArray[np.int64]
    truncated: bool
    options: GenerationOptions
    began: float


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
            if token in self._model.stop_tokens:
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
    session, prompt = model.session, request.prompt
    sampler = Sampler(request.options, request.tokens)
    past = session.key_values(prompt.state if prompt else session.no_prompt)
    done, tokens = (prompt.length if prompt else 0), request.tokens
    for _ in range(request.options.max_new_tokens):
        rows = model.table.embed(tokens)[None]
        if model.manifest.input_multiplier != 1.0:
            rows *= np.float32(model.manifest.input_multiplier)
        total = done + len(tokens)
        logits, past = session.forward(
            rows,
            np.ones((1, total), np.int64),
            np.arange(done, total, dtype=np.int64)[None],
            past,
            keep=1,
        )
        if not np.isfinite(logits.sum()):
            raise NotFinite(
                "the graph's output holds NaN or infinity",
                "check the prompt and the bundle with promptdial verify",
            )
        token = sampler.choose(logits[0, -1])
        yield token
        if token in model.stop_tokens:
            return
        done, tokens = total, np.array([token], np.int64)
