"""Files that are whole or not there: written beside, synced, then renamed."""

import errno
import os
import secrets
from pathlib import Path

from promptdial.prompts.errors import FileFailed, NoSpace, PromptError


def write_atomic(path: Path, data: bytes) -> None:
    """Put `data` at `path`; on any failure what was there before stays.

    Raises:
        NoSpace: The disk is full.
        FileFailed: The file cannot be written.
    """
    try:
        _write(path, data)
    except OSError as error:
        raise disk_failure(path, error, len(data)) from None


def disk_failure(path: Path, error: OSError, size: int = 0) -> PromptError:
    """The error to raise for what the disk said of a path.

    Args:
        path: What was read or written.
        error: What the disk said.
        size: Bytes that were to be written; 0 where that is not known.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = f"{size} bytes at {path}" if size else str(path)
        return NoSpace(f"no space for {what}", "free some space")
    return FileFailed(
        f"{path}: {error.strerror or error}", "check folder and permissions"
    )


def _write(path: Path, data: bytes) -> None:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    # Not tempfile: its files are private, and other users' services read prompts.
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
