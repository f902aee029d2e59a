"""A folder of blobs as a source of prompts: one file a task, opened by name."""

import os
import stat
import threading
import time
from pathlib import Path

from promptdial.prompts.blob import MAX_BLOB_BYTES, SUFFIX, PromptBlob, decode
from promptdial.prompts.errors import BlobInvalid, FileFailed, TaskNotFound
from promptdial.prompts.metadata import is_task_name

_KEPT = 256
"""Blobs kept between calls: a request for one costs a stat and no read."""

_SETTLED_NS = 50_000_000
"""Age from which a file's times tell it from the next one in its place. Kernels before
6.13 count them in ticks of up to 10 ms, and a number of an inode is used again."""

Stamp = tuple[int, int, int, int]


class PromptFolder:
    """Serves `<task>.safetensors` files; a replaced file is seen by the next call.

    Nothing is read before it is asked for and a name is opened directly, so a folder
    of 10,000 blobs costs what one of 12 costs. Safe to share among threads.
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
        self._kept: dict[str, tuple[Stamp, PromptBlob]] = {}
        self._lock = threading.Lock()

    def get(self, task: str) -> PromptBlob:
        """The blob of a task.

        Raises:
            TaskNotFound: No such file, or a name that no task can have.
            PromptError: The file breaks the format.
        """
        # A kept name was checked when it was first read.
        kept = self._kept.get(task)
        if kept is None and not is_task_name(task):
            raise TaskNotFound(f"no task {task[:64]!r}")
        name = f"{self._prefix}{task}{SUFFIX}"
        try:
            found = os.lstat(name)
        except OSError:
            raise TaskNotFound(f"no task {task!r} in {self.path}") from None
        # The time of modification can be set, and often is, by what unpacks archives.
        stamp = (found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        if not stat.S_ISREG(found.st_mode):
            raise BlobInvalid(f"{name} is no regular file", "put the file itself there")
        # Either way: a clock may have been set back since.
        settled = abs(time.time_ns() - found.st_ctime_ns) > _SETTLED_NS
        blob = self._read(name, task)
        if not settled:
            return blob
        with self._lock:
            if len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[task] = (stamp, blob)
        return blob

    def list(self) -> list[str]:
        """Names of the tasks, sorted.

        Raises:
            FileFailed: The folder cannot be read.
        """
        try:
            with os.scandir(self.path) as entries:
                names = [
                    entry.name.removesuffix(SUFFIX)
                    for entry in entries
                    if entry.name.endswith(SUFFIX)
                ]
        except OSError as error:
            raise FileFailed(f"{self.path}: {error.strerror}", "check it") from None
        return sorted(name for name in names if is_task_name(name))

    def report(self, task: str, digest: str, event: str) -> None:
        """A folder keeps no history."""

    def _read(self, name: str, task: str) -> PromptBlob:
        try:
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(handle, "rb") as file:
                data = file.read(MAX_BLOB_BYTES + 1)
        except FileNotFoundError:  # taken away since it was looked at
            raise TaskNotFound(f"no task {task!r} in {self.path}") from None
        except OSError as error:
            raise FileFailed(f"{name}: {error.strerror}", "check it") from None
        return decode(data, task)
