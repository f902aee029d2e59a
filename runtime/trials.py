"""A new version of a prompt is tried before its first use, and never again once bad.

Who asks what: `EnginePrompts` asks `Trials` for the blob of a task; `Trials` asks the
source what serves and what is to be tried, has the trial counted, tries it
(promptdial.runtime.trial) and tells the source. The request that comes first waits for
its trial and is answered by the new version; those that come meanwhile, and all where
it fails, are answered by the good version before.
"""

from collections.abc import Callable
from contextlib import suppress

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.errors import PromptdialError, PromptError
from promptdial.runtime import prompt_events
from promptdial.runtime.errors import (
    EngineClosed,
    EngineForked,
    TrialFailed,
    WrongBase,
)
from promptdial.runtime.source import TrialSource

Test = Callable[[PromptBlob], str]
"""What is wrong with a blob on this device, in a line; "" for nothing."""

_NOT_OURS = (WrongBase, EngineClosed, EngineForked)
"""Errors that say nothing about a prompt: it is for another base, the engine ends."""

_REMEMBERED = 256


class Trials:
    """The blobs of a source that wants trials. Safe to share among threads."""

    def __init__(self, source: TrialSource, test: Test) -> None:
        """Take a source, and what tries a blob on this engine."""
        self._source = source
        self._test = test
        # Prompts for another base: they stay on trial for an engine that has it.
        self._wrong_base: dict[str, WrongBase] = {}

    def current(self, task: str, unit: str | None = None) -> PromptBlob:
        """The blob that answers a request which begins now.

        Args:
            task: The task.
            unit: Whoever has it gets the same one of two versions that share the task;
                None for either by chance.

        Raises:
            TaskNotFound: There is none.
            TrialFailed: The first version of a task failed, and none was good before.
            WrongBase: It is for another base, and none was good before.
            PromptError: It cannot be read, or its trial not be counted.
        """
        good, digest = self._source.serving(task, unit)
        while digest is not None:
            failure = self._try(task, digest, good)
            tried = digest
            good, digest = self._source.serving(task, unit)
            if good is not None:
                break
            if tried in self._wrong_base:
                raise self._wrong_base[tried]
            # Another digest: while one was tried, the next was activated.
            if failure or digest == tried:
                said = failure or "another request is trying it for very long"
                raise TrialFailed(
                    f"task {task!r} has no good version, and {tried} failed its "
                    f"self-test: {said}"
                )
        assert good is not None
        return good

    def _try(self, task: str, digest: str, good: PromptBlob | None) -> str:
        """Try a blob unless another does; what is wrong with it, or ""."""
        if digest in self._wrong_base:
            return ""
        try:
            if not self._source.begin_trial(task, digest, wait=good is None):
                return ""
            return self._tried(task, digest)
        except (PromptError, *_NOT_OURS) as error:
            prompt_events.refused(f"prompt {task}, on trial,", error)
            if isinstance(error, WrongBase):
                self._remember(digest, error)
            elif good is None:
                raise
            return str(error)

    def _tried(self, task: str, digest: str) -> str:
        try:
            failure = self._failure(digest)
        except BaseException:
            # Ctrl-C among them: the version is not to blame.
            with suppress(PromptError):
                self._source.drop_trial(task, digest)
            raise
        prompt_events.tried(task, digest, failure)
        self._source.end_trial(task, digest, failure)
        return failure

    def _failure(self, digest: str) -> str:
        try:
            return self._test(self._source.trial_blob(digest))
        except _NOT_OURS:
            raise
        except PromptdialError as error:
            return str(error)
        except Exception as error:
            # Whatever a prompt does to numpy or onnxruntime, users get an answer.
            return f"{type(error).__name__}: {error}"

    def _remember(self, digest: str, error: WrongBase) -> None:
        if len(self._wrong_base) >= _REMEMBERED:
            self._wrong_base = {}
        self._wrong_base[digest] = error
