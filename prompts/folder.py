"""A folder of prompts as a source: one blob a task opened by name, and packs."""

import os
from pathlib import Path

from promptdial.prompts.blob import MAX_BLOB_BYTES, SUFFIX, PromptBlob, decode
from promptdial.prompts.errors import FileFailed, TaskNotFound
from promptdial.prompts.folder_packs import FolderPacks
from promptdial.prompts.kept_files import KeptFiles
from promptdial.prompts.metadata import is_task_name

_KEPT = 256
"""Blobs kept between calls: a request for one costs a stat and no read."""


class PromptFolder:
    """Serves `<task>.safetensors` files, and the tasks of `<name>.pack.safetensors`.

    A replaced file is seen by the next call. A blob of its own goes before a pack's of
    the same task. Nothing is read before it is asked for and a name is opened directly,
    so a folder of 10,000 blobs costs what one of 12 costs; packs are looked for where
    there is no such file. Safe to share among threads.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Take a folder.

        Raises:
            FileFailed: There is no such folder.
        """
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileFailed(f"{self.path} is no folder", "give a folder of prompts")
        self._prefix = os.path.join(self.path, "")  # noqa: PTH118 (a request's path)
        self._blobs: KeptFiles[PromptBlob] = KeptFiles(_KEPT, MAX_BLOB_BYTES)
        self._packs = FolderPacks(self.path)

    def get(self, task: str) -> PromptBlob:
        """The blob of a task.

        Raises:
            TaskNotFound: No file and no pack has it, or a name that no task can have.
            PromptError: The file breaks the format; or a pack does, and no other file
                has the task.
        """
        # A kept name was checked when it was first read.
        if task not in self._blobs and not is_task_name(task):
            raise TaskNotFound(f"no task {task[:64]!r}")
        try:
            return self._blobs.get(task, f"{self._prefix}{task}{SUFFIX}", decode)
        except OSError:
            pass  # no such file
        blob = self._packs.get(task)
        if blob is None:
            raise TaskNotFound(f"no task {task!r} in {self.path}")
        return blob

    def list(self) -> list[str]:
        """Names of the tasks, sorted; those of a broken pack are not known.

        Raises:
            FileFailed: The folder cannot be read.
        """
        try:
            with os.scandir(self.path) as entries:
                names = {
                    entry.name.removesuffix(SUFFIX)
                    for entry in entries
                    if entry.name.endswith(SUFFIX)
                }
        except OSError as error:
            raise FileFailed(f"{self.path}: {error.strerror}", "check it") from None
        alone = {name for name in names if is_task_name(name)}
        return sorted(alone | self._packs.tasks())

    def report(self, task: str, digest: str, event: str) -> None:
        """A folder keeps no history."""

    def close(self) -> None:
        """Nothing is held open."""
