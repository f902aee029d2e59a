"""Files of a folder, read once and again when another one stands in their place."""

import os
import stat
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from promptdial.prompts.errors import BlobInvalid, FileFailed

SETTLED_NS = 50_000_000
"""Age from which a file's times tell it from the next one in its place. Kernels before
6.13 count them in ticks of up to 10 ms, and a number of an inode is used again."""

Stamp = tuple[int, int, int, int]
T = TypeVar("T")


def stamp_of(found: os.stat_result) -> Stamp:
    """What differs between a file (or folder) and the next one in its place."""
    # The time of modification can be set, and often is, by what unpacks archives.
    return (found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino)


def settled(found: os.stat_result) -> bool:
    """Whether a change from now on would show in the stamp."""
    # Either way: a clock may have been set back since.
    return abs(time.time_ns() - found.st_ctime_ns) > SETTLED_NS


class KeptFiles(Generic[T]):
    """What was read of files, for as long as they stay. Safe to share among threads."""

    def __init__(self, limit: int, max_bytes: int) -> None:
        """Keep at most `limit` of them, and read `max_bytes` of a file."""
        self._limit = limit
        self._max_bytes = max_bytes
        self._kept: dict[str, tuple[Stamp, T]] = {}
        self._lock = threading.Lock()

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str, path: str, decode: Callable[[bytes, str], T]) -> T:
        """What a file holds now; a stat and no read where it is the one before.

        Args:
            key: Its name here, and the second argument of `decode`.
            path: Where it is.
            decode: Takes the bytes, one more than allowed of a file that is too big.

        Raises:
            OSError: There is none.
            BlobInvalid: A link, a folder or a device.
            FileFailed: It cannot be read.
        """
        found = os.lstat(path)
        stamp, kept = stamp_of(found), self._kept.get(key)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        if not stat.S_ISREG(found.st_mode):
            raise _irregular(path)
        fixed = settled(found)
        value = decode(read_regular(path, self._max_bytes + 1), key)
        if not fixed:
            return value
        with self._lock:
            if len(self._kept) >= self._limit:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = (stamp, value)
        return value


def read_regular(path: str | os.PathLike[str], most: int) -> bytes:
    """The first bytes of a file, at most `most` of them; nothing else is waited for.

    Raises:
        FileNotFoundError: There is none.
        BlobInvalid: A folder or a device, or a pipe that nobody may ever write to.
        FileFailed: It cannot be read, or is a link.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise _irregular(path)
            with os.fdopen(handle, "rb", closefd=False) as file:
                return file.read(most)
        finally:
            os.close(handle)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileFailed(f"{path}: {error.strerror}", "check it") from None


def _irregular(path: str | os.PathLike[str]) -> BlobInvalid:
    return BlobInvalid(f"{path} is no regular file", "put the file itself there")
