"""Trials of versions: counted before they begin, ended by what they showed."""

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.errors import FileFailed, one_line
from promptdial.prompts.store.edits import Edits
from promptdial.prompts.store.index import Index
from promptdial.prompts.store.layout import Layout
from promptdial.prompts.store.serving import Serving
from promptdial.prompts.store.trial_changes import begin_trial, drop_trial, end_trial
from promptdial.prompts.store.trial_locks import TrialLocks

_FAILURE_CHARS = 500


class StoreTrials:
    """What an engine does with a tenant's versions on trial."""

    def __init__(
        self, layout: Layout, index: Index, serving: Serving, tenant: str
    ) -> None:
        """Take a store's parts; nothing is read yet."""
        self.tenant = tenant
        self._index, self._serving = index, serving
        self._trials = TrialLocks(layout)

    def begin_trial(self, task: str, digest: str, wait: bool) -> bool:
        """Count a trial, durably, before it begins.

        Args:
            task: The task.
            digest: What `serving` gave.
            wait: Where another thread or process is trying it, wait for its end.

        Returns:
            True: try it now, then call `end_trial` or `drop_trial`. False: another
            does, or it is on trial no more.

        Raises:
            StoreError, NoSpace, FileFailed: It cannot be counted, and so not tried.
        """
        if not self._trials.take(digest, wait):
            return False
        begun = False
        try:
            with self._index.writing() as connection:
                begun = begin_trial(Edits(connection, self.tenant), task, digest)
        finally:
            if not begun:
                self._trials.release(digest)
        return begun

    def trial_blob(self, digest: str) -> PromptBlob:
        """The blob of a digest that `serving` gave.

        Raises:
            PromptError: It cannot be read, or breaks the format.
        """
        try:
            return self._serving.blob(digest)
        except FileNotFoundError:
            raise blob_gone(digest) from None

    def end_trial(self, task: str, digest: str, failure: str) -> None:
        """Say what a trial showed: "" makes the version good and raises the floor.

        After the last failure the version is bad, and the good one before it active.

        Raises:
            StoreError, NoSpace, FileFailed: It cannot be written; the trial counts.
        """
        said = one_line(failure)[:_FAILURE_CHARS]
        try:
            with self._index.writing() as connection:
                end_trial(Edits(connection, self.tenant), task, digest, said)
        finally:
            self._trials.release(digest)

    def drop_trial(self, task: str, digest: str) -> None:
        """End a trial that was stopped and says nothing about the prompt.

        Raises:
            StoreError, NoSpace, FileFailed: It cannot be written; the trial counts.
        """
        try:
            with self._index.writing() as connection:
                drop_trial(Edits(connection, self.tenant), task, digest)
        finally:
            self._trials.release(digest)


def blob_gone(digest: str) -> FileFailed:
    """The error for a blob that a version names and that is not there."""
    return FileFailed(f"the store has no blob {digest}", "install the prompt again")
