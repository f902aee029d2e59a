"""The prompts of an engine: those given to it, those of its source, those ready."""

import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.errors import PromptdialError, PromptError, TaskNotFound
from promptdial.prompts.metadata import NEUTRAL
from promptdial.runtime import prompt_events
from promptdial.runtime.counting import count_answer
from promptdial.runtime.errors import UnknownTask
from promptdial.runtime.fitting import fits, input_rows, make_ready
from promptdial.runtime.generating import GenerationRequest
from promptdial.runtime.opening import Model
from promptdial.runtime.prompt_cache import ColdPrompt, PromptCache, ReadyPrompt
from promptdial.runtime.reading import Answer, Request
from promptdial.runtime.session import PromptState
from promptdial.runtime.source import CountingSource, PromptSource, TrialSource
from promptdial.runtime.trials import Test, Trials

_SHOWN_TASKS = 20


class EnginePrompts:
    """From a task's name to a prompt that is ready. Safe to share among threads.

    A blob given by `take` goes before the source's of the same task.
    """

    def __init__(
        self,
        source: PromptSource | None,
        cache: PromptCache,
        graph_digest: str,
        test: Test | None = None,
    ) -> None:
        """Start with what a source has.

        Args:
            source: None for blobs given to `take` alone.
            cache: Where ready prompts are kept.
            graph_digest: Of the graph that they are for.
            test: Tries a new version of a source that wants it; None for no trials.
        """
        self.source = source
        self.cache = cache
        self._graph_digest = graph_digest
        self._trials: Trials | None = None
        if test is not None and isinstance(source, TrialSource):
            self._trials = Trials(source, test)
        self._counting = source if isinstance(source, CountingSource) else None
        self._taken: dict[str, PromptBlob] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Names of all tasks there are, sorted."""
        with self._lock:
            found = set(self._taken)
        if self.source is not None:
            found.update(self.source.list())
        return sorted(found)

    def ready(
        self, task: str | None, model: Model, unit: str | None = None
    ) -> ReadyPrompt | None:
        """The prompt of a task as it is now; None for the base alone.

        Args:
            task: The task.
            model: The opened bundle.
            unit: Whoever has it gets the same one of two versions that share the task.

        Raises:
            UnknownTask: No such task; the message lists what there is.
            PromptError: The source's blob cannot be read.
            RuntimeFailure: It cannot be used on this model.
        """
        return None if task is None else self._made(self._blob(task, unit), model)

    def ready_or_cold(
        self, task: str | None, model: Model, unit: str | None = None
    ) -> ReadyPrompt | ColdPrompt | None:
        """As `ready`, but a soft prompt that is not in the cache comes as its rows.

        A calibrated one comes ready: its prior has a place beside the prefix. Nor does
        a prompt come cold on a base with convolutions: from their state after prompt
        and text, that after the prompt cannot be told, so it gets a pass of its own.
        On graphs of fixed ranges it does too: its keys and values are checked first.

        Raises:
            RuntimeFailure, PromptError: As `ready`.
        """
        if task is None:
            return None
        blob = self._blob(task, unit)
        found = self.cache.peek(self._key(blob))
        if found is not None:
            return found
        rows = input_rows(blob, model.manifest)
        calibrated = NEUTRAL in blob.meta.template
        own_pass = calibrated or bool(model.manifest.dims.conv_layers)
        own_pass = own_pass or model.session.limits is not None
        if rows is None or own_pass or not fits(blob, model.manifest):
            # What does not fit is refused here, and the source hears of it.
            return self._made(blob, model)
        return ColdPrompt(
            blob.meta, blob.digest, rows, lambda state: self._made(blob, model, state)
        )

    def warmed(self, request: GenerationRequest) -> GenerationRequest:
        """A request that begins now, over the prefix if there is one by now."""
        prompt, now = request.prompt, time.perf_counter()
        if isinstance(prompt, ColdPrompt):
            prompt = self.cache.peek((prompt.digest, self._graph_digest)) or prompt
        return replace(request, prompt=prompt, began=now)

    def count(
        self,
        requests: Sequence[Request | GenerationRequest],
        answers: Sequence[Answer],
        milliseconds: float,
    ) -> None:
        """Let the source count answers of its prompts; not of those that were taken.

        Args:
            requests: What was asked together.
            answers: One each.
            milliseconds: How long all took. In company none has a time of its own, nor
                has one whose prompt was cold: its pass made the prefix.
        """
        if self._counting is None:
            return
        for request, answer in zip(requests, answers, strict=True):
            prompt = request.prompt
            if prompt is None or prompt.meta.task in self._taken:
                continue
            alone = len(requests) == 1 and isinstance(prompt, ReadyPrompt)
            own = milliseconds if alone else None
            count_answer(self._counting, request, answer, own)

    def take(self, blob: PromptBlob, model: Model) -> None:
        """Use a blob for its task from now on; what was there stays if it is refused.

        Raises:
            RuntimeFailure: It cannot be used on this model.
        """
        self._made(blob, model)
        with self._lock:
            self._taken[blob.meta.task] = blob

    def alone(self, blob: PromptBlob, model: Model) -> "EnginePrompts":
        """One blob without the source, over the same cache: for its trial.

        Raises:
            RuntimeFailure: It cannot be used on this model.
        """
        found = EnginePrompts(None, self.cache, self._graph_digest)
        found.take(blob, model)
        return found

    def clear(self) -> None:
        """Forget what was taken and what is ready."""
        self.cache.clear()
        with self._lock:
            self._taken.clear()

    def _blob(self, task: str, unit: str | None) -> PromptBlob:
        blob = self._taken.get(task)
        if blob is not None:
            return blob
        if self.source is None:
            raise self._unknown(task)
        try:
            if self._trials is not None:
                return self._trials.current(task, unit)
            return self.source.get(task)
        except TaskNotFound:
            raise self._unknown(task) from None
        except PromptError as error:
            prompt_events.refused(f"prompt {task}", error)
            raise

    def _key(self, blob: PromptBlob) -> tuple[str, str]:
        return blob.digest, self._graph_digest

    def _made(
        self, blob: PromptBlob, model: Model, state: PromptState | None = None
    ) -> ReadyPrompt:
        key = self._key(blob)
        return self.cache.get(key, lambda: self._make(blob, model, state))

    def _make(
        self, blob: PromptBlob, model: Model, state: PromptState | None
    ) -> ReadyPrompt:
        meta, event = blob.meta, "refused"
        try:
            ready = make_ready(blob, model.manifest, model.session, state)
            event = "loaded"
        except PromptdialError as error:
            prompt_events.refused(f"prompt {meta.task} version {meta.version}", error)
            raise
        finally:
            if self.source is not None:
                self.source.report(meta.task, blob.digest, event)
        prompt_events.ready(meta, blob.digest, ready.length, ready.nbytes)
        return ready

    def _unknown(self, task: str) -> UnknownTask:
        names = self.names()
        shown = ", ".join(names[:_SHOWN_TASKS]) or "none"
        more = f" and {len(names) - _SHOWN_TASKS} more" if names[_SHOWN_TASKS:] else ""
        return UnknownTask(f"no task {task!r}; there is {shown}{more}", "choose one")
