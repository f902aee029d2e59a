"""The Engine: one frozen model, many tasks, one request after another."""

import copy
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from promptdial.prompts.blob import PromptBlob, decode, read_blob
from promptdial.prompts.errors import PromptError
from promptdial.runtime import prompt_events
from promptdial.runtime.answering import answers_of
from promptdial.runtime.answers import Classification, Compatibility, Generation, Spans
from promptdial.runtime.batching import EncoderModel, run_groups
from promptdial.runtime.engine_prompts import EnginePrompts
from promptdial.runtime.errors import (
    EngineClosed,
    EngineForked,
    RuntimeFailure,
    WrongKind,
)
from promptdial.runtime.fitting import check_fit
from promptdial.runtime.generating import (
    DecoderModel,
    GenerationRequest,
    TextStream,
    written,
)
from promptdial.runtime.label_scoring import trie_of
from promptdial.runtime.manifest import Manifest
from promptdial.runtime.opening import Model, placement_of
from promptdial.runtime.policy import DEFAULT_POLICY, open_chosen
from promptdial.runtime.profiles import profile_named
from promptdial.runtime.prompt_cache import PromptCache
from promptdial.runtime.prompt_limits import check_prompt
from promptdial.runtime.reading import Answer, Floats, Request, wrong_kind
from promptdial.runtime.requests import (
    NO_CHANGES,
    make_generation_request,
    make_request,
    make_token_request,
    with_units,
)
from promptdial.runtime.source import (
    OpenedSource,
    PromptSource,
    for_tenant,
    open_source,
)
from promptdial.runtime.trial import failure_of

DEFAULT_CACHE_BYTES = 32 * 1024 * 1024

Item = tuple[str | None, str] | tuple[str | None, str, str | None]
"""(task, text) or (task, text, text_pair)."""

Blob = str | os.PathLike[str] | bytes | bytearray | memoryview | PromptBlob
"""A blob's path, its bytes, or what was read from them."""


class Engine:
    """Answers requests for many tasks on one bundle.

    Thread-safe: one Engine serves any number of threads. A prompt that is replaced in
    its source is used from the next request on; a running request ends on the one it
    began with and says which version that was.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        prompts: str | os.PathLike[str] | PromptSource | None = None,
        *,
        profile: str = "latency",
        variant: str | None = None,
        providers: Sequence[str] | None = None,
        policy: str = DEFAULT_POLICY,
        threads: int | None = None,
        prompt_cache_bytes: int = DEFAULT_CACHE_BYTES,
        tenant: str | None = None,
    ) -> None:
        """Open a bundle.

        Args:
            bundle: The bundle's folder.
            prompts: A folder of blobs, a store, or any PromptSource; None for those
                given to `load` alone.
            profile: `latency`, `memory` or `battery`.
            variant: Graph variant; None for int8, or the first there is.
            providers: onnxruntime's execution providers; None for the CPU's, or for
                graphs of fixed sizes that of their target alone. They run on the CPU
                only where it is named here. `OpenVINOExecutionProvider:NPU` asks it
                for a device.
            policy: Where neither is given: `cpu` for the CPU's variant, `accelerator`
                for one whose provider is at hand (qnn before openvino) or an error,
                `accelerator_or_cpu` for the CPU's in its place, with a warning in the
                log. `variant` of the engine and `placement` tell what runs.
            threads: Threads of one request; None for the profile's.
            prompt_cache_bytes: Bound on the memory of prompts that are ready.
            tenant: Whose tasks of a store to answer; another's are as unknown as those
                that nobody has. None for the store as it was given.

        Raises:
            BundleInvalid: A file of the bundle is wrong.
            BundleTooNew: The bundle is of a newer format, or its graph wants a newer
                onnxruntime.
            SessionFailed: onnxruntime refuses the graph, or lacks a provider.
            MissingExtra: What brings a variant's provider is not installed.
            FileFailed: There is no such folder of prompts.
            StoreError: The store cannot be opened.
            UsageError: An unknown profile or policy, a policy beside a variant or
                providers, `threads` out of range, or a tenant of prompts that know
                none.
        """
        wanted = profile_named(profile)
        opened, model = open_chosen(bundle, wanted, threads, variant, providers, policy)
        self.manifest: Manifest = opened.manifest
        self.variant = opened.variant_name
        self._model: Model | None = model
        self._pid = os.getpid()
        self._opened_source: OpenedSource | None = None
        if isinstance(prompts, str | os.PathLike):
            prompts = self._opened_source = open_source(prompts)
        self._prompts = EnginePrompts(
            for_tenant(prompts, tenant),
            PromptCache(prompt_cache_bytes),
            opened.graph_digest,
            self._trial,
        )

    def classify(
        self,
        task: str,
        text: str,
        text_pair: str | None = None,
        *,
        unit: str | None = None,
    ) -> Classification:
        """The label of a text, or of a pair of texts; arguments as of `run`.

        Raises:
            WrongKind: The prompt is no classifier, or wants a pair or none.
            RuntimeFailure: As `run`.
        """
        self._require_kind(task, "classification", "pair")
        answer = self.run(task, text, text_pair, unit=unit)
        if not isinstance(answer, Classification):
            raise wrong_kind(task, answer, "run, tag or embed")
        return answer

    def tag(
        self, task: str, text: str | Sequence[str], *, unit: str | None = None
    ) -> Spans:
        """The spans of a text, or of words that are already split.

        Offsets count characters of the text; of split words, joined by blanks. `unit`
        is as of `run`.

        Raises:
            WrongKind: The prompt is no tagger.
            RuntimeFailure: As `run`.
        """
        model = self._encoder_model("tag")
        prompt = self._prompts.ready(task, model, unit)
        if prompt is None or prompt.meta.kind != "token":
            kind = "the base" if prompt is None else prompt.meta.kind
            raise WrongKind(f"task {task!r} is {kind}, not token", "use run")
        request = make_token_request(model.encoder, prompt, text)
        answer = self._grouped([request], model)[0]
        assert isinstance(answer, Spans)
        return answer

    def embed(self, task: str | None, text: str) -> Floats:
        """The embedding [H] of a text, length 1; task None for the base's own.

        Raises:
            WrongKind: The prompt is no embedder.
            RuntimeFailure: As `run`.
        """
        self._encoder_model("embed")
        answer = self.run(task, text)
        if not isinstance(answer, np.ndarray):
            raise wrong_kind(task, answer, "run, classify or tag")
        return answer

    def run(
        self,
        task: str | None,
        text: str,
        text_pair: str | None = None,
        *,
        unit: str | None = None,
    ) -> Answer:
        """The answer of a task, whatever its kind.

        Args:
            task: Name; None for the base without a prompt (an embedding, or a text).
            text: The input.
            text_pair: The second text of a pair.
            unit: Who asks, such as a user or a device: of two versions that share the
                task, the same unit gets the same one each time. None for either by
                chance.

        Returns:
            Classification, Spans, an embedding [H], or Generation.

        Raises:
            UnknownTask: No such task; the message lists what there is.
            TextRefused: The text cannot be encoded.
            WrongKind: A second text where none belongs, or none where one does.
            PromptError, WrongBase, PromptRefused: The blob cannot be used.
            NotFinite: The graph's output is not finite.
            EngineClosed, EngineForked: The engine cannot be used any more.
        """
        return self.run_batch([(task, text, text_pair)], units=[unit])[0]

    def run_batch(
        self, items: Iterable[Item], *, units: Iterable[str | None] | None = None
    ) -> list[Answer]:
        """Answers of many requests, of different tasks and lengths, in their order.

        Each answer is bit for bit the one that `run` gives: only requests of equal
        text and prompt length share a forward pass, so nothing is padded. A decoder
        reads its texts one by one and writes the answers together, each at its own
        length.

        Args:
            items: (task, text) or (task, text, text_pair) each.
            units: The unit of each, as of `run`; None for no units.

        Raises:
            RuntimeFailure: As `run`, for one that fails; none is answered.
            UsageError: Another number of units than of items.
        """
        model = self._open_model()
        pairs = with_units(items, units)
        if not isinstance(model, DecoderModel):
            requests = [self._request(model, *item, unit=unit) for item, unit in pairs]
            return self._grouped(requests, model)
        chosen = [self._generation(model, *item, unit=unit) for item, unit in pairs]
        began = time.perf_counter()
        answers = answers_of(chosen, model, self._prompts.warmed)
        self._prompts.count(chosen, answers, 1e3 * (time.perf_counter() - began))
        return answers

    def generate(
        self,
        task: str | None,
        text: str,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        choices: Sequence[str] | None = None,
        schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        unit: str | None = None,
    ) -> Generation:
        """Continue a text.

        What is None is the prompt's own option, or the default; see
        `promptdial.runtime.generation_options.GenerationOptions`. An answer that is
        constrained by `choices`, `schema` or `regex` is whole where it ends with
        `stop`; with `length`, it was cut. `unit` is as of `run`.

        Raises:
            UsageError: An option is out of range, or a constraint cannot be met.
            CannotConstrain: The bundle's tokenizer takes no schema or regex.
            MissingExtra: A schema or regex without the extra `constrained`.
            WrongKind: The bundle is of an encoder.
            TextRefused: The text cannot be encoded, or prompt and answer leave no room
                for it.
            RuntimeFailure: As `run`.
        """
        stream = self.stream(
            task,
            text,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            choices=choices,
            schema=schema,
            regex=regex,
            unit=unit,
        )
        return written(stream)

    def stream(
        self,
        task: str | None,
        text: str,
        *,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        choices: Sequence[str] | None = None,
        schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        unit: str | None = None,
    ) -> TextStream:
        """As `generate`, piece by piece: an iterator of texts.

        The caller may stop reading at any time; a store counts what was read to its
        end. After the last piece, the iterator's `generation` is the whole answer.

        Raises:
            RuntimeFailure: As `generate`; from the iterator too where the graph fails.
        """
        changes = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "min_p": min_p,
            "repetition_penalty": repetition_penalty,
            "seed": seed,
            "stop": stop,
            "choices": choices,
            "schema": schema,
            "regex": regex,
        }
        model = self._decoder_model()
        request = self._generation(model, task, text, None, changes, unit=unit)
        if request.prompt is not None and request.prompt.meta.kind != "generation":
            raise WrongKind(
                f"task {task!r} is {request.prompt.meta.kind}, not generation",
                "use run or classify",
            )

        def ended(answer: Generation, milliseconds: float) -> None:
            self._prompts.count([request], [answer], milliseconds)

        return TextStream(request, model, ended)

    def placement(self) -> dict[str, dict[str, int]]:
        """Where graphs of fixed sizes run: nodes by provider, by the graph's file.

        {} for a graph that takes every size, which runs on the CPU.
        """
        return placement_of(self._open_model())

    def tasks(self) -> list[str]:
        """Names of all tasks there are, sorted."""
        self._open_model()
        return self._prompts.names()

    def load(self, blob: Blob) -> str:
        """Take a blob from a file, from bytes or as it is; it goes before the source's.

        Returns:
            The task's name.

        Raises:
            PromptError: The blob breaks the format.
            WrongBase, NoPrefix, PromptRefused: It does not fit the bundle. What was
                loaded before stays.
        """
        model = self._open_model()
        try:
            if isinstance(blob, bytes | bytearray | memoryview):
                blob = decode(bytes(blob))
            elif not isinstance(blob, PromptBlob):
                blob = read_blob(Path(blob))
        except PromptError as error:
            prompt_events.refused("a given prompt", error)
            raise
        self._prompts.take(blob, model)
        return blob.meta.task

    def compatible(self, blob: PromptBlob) -> Compatibility:
        """Whether a blob fits this bundle, and if not why."""
        limits = None if self._model is None else self._model.session.limits
        try:
            check_fit(blob, self.manifest)
            if limits is not None:
                check_prompt(blob, self.manifest, limits)
        except RuntimeFailure as error:
            return Compatibility(False, error.message)
        return Compatibility(True)

    def close(self) -> None:
        """Let go of the graph and the prompts; a second call does nothing.

        Requests of other threads that have begun end as they would have. In a forked
        child nothing is done: graph and locks are the parent's.
        """
        if self._pid != os.getpid():
            return
        self._model = None
        self._prompts.clear()
        if self._opened_source is not None:
            self._opened_source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_model(self) -> Model:
        """What a request works on; it holds it to its end, whoever closes meanwhile."""
        model = self._model
        if model is None:
            raise EngineClosed("the engine is closed", "open another one")
        if self._pid != os.getpid():
            raise EngineForked(
                f"opened in process {self._pid}, used in its fork {os.getpid()}",
                "open an engine in each process",
            )
        return model

    def _trial(self, blob: PromptBlob) -> str:
        """What is wrong with a new version on this device, in a line; "" for nothing.

        Raises:
            RuntimeFailure: It cannot be used at all.
        """
        # The same model, so that no weight is loaded twice; prompts of its own, so that
        # no request meets the blob before it passed.
        alone = copy.copy(self)
        alone._prompts = self._prompts.alone(blob, self._open_model())
        return failure_of(alone, blob)

    def _decoder_model(self) -> DecoderModel:
        model = self._open_model()
        if not isinstance(model, DecoderModel):
            raise WrongKind("the bundle is of an encoder", "use run, classify or embed")
        return model

    def _require_kind(self, task: str | None, *kinds: str) -> None:
        """Refuse a decoder's other kinds before they write at length."""
        model = self._open_model()
        if isinstance(model, DecoderModel):
            prompt = self._prompts.ready_or_cold(task, model)
            kind = "generation" if prompt is None else prompt.meta.kind
            if kind not in kinds:
                raise WrongKind(f"task {task!r} answers with {kind}", "use generate")

    def _encoder_model(self, call: str) -> EncoderModel:
        model = self._open_model()
        if isinstance(model, DecoderModel):
            raise WrongKind(f"{call}: the bundle is of a decoder", "use generate")
        return model

    def _request(
        self,
        model: EncoderModel,
        task: str | None,
        text: str,
        text_pair: str | None = None,
        *,
        unit: str | None = None,
    ) -> Request:
        prompt = self._prompts.ready(task, model, unit)
        return make_request(model.encoder, prompt, text, text_pair)

    def _grouped(self, requests: list[Request], model: EncoderModel) -> list[Answer]:
        began = time.perf_counter()
        answers = run_groups(requests, model)
        self._prompts.count(requests, answers, 1e3 * (time.perf_counter() - began))
        return answers

    def _generation(
        self,
        model: DecoderModel,
        task: str | None,
        text: str,
        text_pair: str | None = None,
        changes: Mapping[str, Any] = NO_CHANGES,
        *,
        unit: str | None = None,
    ) -> GenerationRequest:
        began = time.perf_counter()
        prompt = self._prompts.ready_or_cold(task, model, unit)
        if text_pair is not None:
            raise WrongKind("a decoder takes one text, it was given two", "join them")
        if prompt is not None and prompt.meta.kind == "classification":
            longest = trie_of(model, prompt.meta.labels).longest
            changes = {"max_new_tokens": longest}
        return make_generation_request(model, prompt, text, changes, began)
