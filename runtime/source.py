"""Where an engine's prompts come from: a folder, a store, or anything of this shape."""

import os
from typing import Protocol

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.folder import PromptFolder


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


def as_source(
    prompts: str | os.PathLike[str] | PromptSource | None,
) -> PromptSource | None:
    """A source as it is, or the folder of that path as one.

    Raises:
        FileFailed: There is no such folder.
    """
    if prompts is None or not isinstance(prompts, str | os.PathLike):
        return prompts
    return PromptFolder(prompts)
