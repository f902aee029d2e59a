"""A lock between processes: one update of a store, one change of a repository."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptdial.prompts.atomic import disk_failure
from promptdial.prompts.errors import UpdateBusy

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock; the system lets go of it when the process ends, however it ends.

    Where the system has no such locks, nothing is locked.

    Args:
        path: The file to lock; made where it is missing.
        what: What is going on, for the message of the one who comes second.

    Raises:
        UpdateBusy: Another process holds it.
        FileFailed: The file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise disk_failure(path, error) from None
    try:
        if fcntl is not None:
            _lock(handle, path, what)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, path: Path, what: str) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise disk_failure(path, error) from None
        raise UpdateBusy(f"{what} is already running ({path} is locked)") from None
