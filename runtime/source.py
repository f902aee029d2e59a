"""Where an engine's prompts come from: a folder, a store, or anything of this shape."""

import os
from typing import Protocol, runtime_checkable

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.errors import UsageError
from promptdial.prompts.folder import PromptFolder
from promptdial.prompts.store.layout import is_store


class PromptSource(Protocol):
    """Serves prompt blobs by task name. Must be safe to share among threads."""

    def get(self, task: str) -> PromptBlob:
        """The blob that is active for a task now.

        Asked at every request, so it must be quick where nothing changed.

        Raises:
            TaskNotFound: There is none.
            PromptError: It cannot be read.
        """
        ...

    def list(self) -> list[str]:
        """Names of all tasks, sorted."""
        ...

    def report(self, task: str, digest: str, event: str) -> None:
        """Hear what became of a blob: `loaded` or `refused`."""
        ...


@runtime_checkable
class TrialSource(Protocol):
    """What a source has besides, whose new blobs are tried before they are used.

    An engine then asks `serving` instead of `get`. See promptdial.runtime.trials.
    """

    def serving(
        self, task: str, unit: str | None = None
    ) -> tuple[PromptBlob | None, str | None]:
        """The blob that answers a request, and the digest of one to be tried before.

        One of the two may be None. Asked at every request, as `get`.

        Args:
            task: The task.
            unit: Where two versions share the task, whoever has this unit gets the same
                one each time; None for either by chance.

        Raises:
            TaskNotFound, PromptError: As `get`.
        """
        ...

    def begin_trial(self, task: str, digest: str, wait: bool) -> bool:
        """Count a trial before it begins; False where another has it, or it is over.

        With `wait`, one that another thread or process has is waited for.

        Raises:
            PromptError: It cannot be counted, so it must not begin.
        """
        ...

    def trial_blob(self, digest: str) -> PromptBlob:
        """The blob to be tried.

        Raises:
            PromptError: It cannot be read.
        """
        ...

    def end_trial(self, task: str, digest: str, failure: str) -> None:
        """Hear what a trial showed; "" where it passed.

        Raises:
            PromptError: It cannot be noted.
        """
        ...

    def drop_trial(self, task: str, digest: str) -> None:
        """Hear that a trial was stopped, and says nothing about the blob.

        Raises:
            PromptError: It cannot be noted.
        """
        ...


@runtime_checkable
class CountingSource(Protocol):
    """What a source has besides, that counts the answers of its prompts."""

    def count(
        self,
        task: str,
        version: int,
        confidence: float | None,
        tokens: int,
        milliseconds: float | None,
        abstained: bool,
    ) -> None:
        """Hear of an answer. Called at every request: microseconds, and no error.

        Args:
            task: The task.
            version: The version that answered.
            confidence: How sure it was, 0 to 1; None where the kind does not say.
            tokens: Length of the input.
            milliseconds: How long it took; None where that is not its own.
            abstained: Whether the answer was none.
        """
        ...


@runtime_checkable
class TenantSource(Protocol):
    """What a source has besides, that keeps the tasks of several tenants apart."""

    def for_tenant(self, tenant: str) -> PromptSource:
        """The source as a tenant sees it.

        Raises:
            UsageError: No tenant can have that name.
        """
        ...


class OpenedSource(PromptSource, Protocol):
    """A source that was opened from a path, and is closed by who opened it."""

    def close(self) -> None:
        """Let go of what it holds."""
        ...


def open_source(path: str | os.PathLike[str]) -> OpenedSource:
    """The source at a path: a store where one is, else a folder of blobs.

    Raises:
        FileFailed: There is no such folder.
        StoreError: The store cannot be opened.
    """
    if is_store(path):
        # Only now: SQLite is not loaded for a folder.
        from promptdial.prompts.store.prompt_store import PromptStore

        return PromptStore(path)
    return PromptFolder(path)


def for_tenant(source: PromptSource | None, tenant: str | None) -> PromptSource | None:
    """A source as a tenant sees it; as it is for None.

    Raises:
        UsageError: The source knows no tenants, or none can have that name.
    """
    if tenant is None:
        return source
    if not isinstance(source, TenantSource):
        raise UsageError(
            f"tenant {tenant[:64]!r}, but the prompts know no tenants", "give a store"
        )
    return source.for_tenant(tenant)
