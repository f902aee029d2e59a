"""The folder of a store: where things lie, how one is made, what a crash leaves there.

    DIR/index.sqlite          which version of which task is what; see schema.py
    DIR/counters.sqlite       counts of answers, which may be lost; see counters.py
    DIR/blobs/sha256/<hex>    prompt blobs, never changed, named by their digest
    DIR/staging/              files that are being written

and of a store that was set up for updates over the air:

    DIR/root.json             the root of trust, read-only
    DIR/bases/<hex>/          base bundles that came, named by their manifest's digest
    DIR/update/               what may be lost and comes back: metadata, half downloads

A file is written in staging, synced, renamed to its place, and its folder synced,
before the index names it. So after a crash there may be a file too many, never one too
few.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from promptdial.prompts.atomic import disk_failure, sync_folder
from promptdial.prompts.errors import PromptdialError, StoreInvalid, StoreReadOnly

INDEX = "index.sqlite"


@dataclass(frozen=True)
class Layout:
    """The paths of a store.

    Attributes:
        root: Its folder.
    """

    root: Path

    @property
    def index(self) -> Path:
        """The SQLite file."""
        return self.root / INDEX

    @property
    def counters(self) -> Path:
        """The SQLite file of counts."""
        return self.root / "counters.sqlite"

    @property
    def blobs(self) -> Path:
        """Blobs by the hexadecimal digits of their digest."""
        return self.root / "blobs" / "sha256"

    @property
    def staging(self) -> Path:
        """Files that are being written."""
        return self.root / "staging"

    @property
    def root_of_trust(self) -> Path:
        """The repository's root.json, as the device was set up with it."""
        return self.root / "root.json"

    @property
    def bases(self) -> Path:
        """Base bundles by the hexadecimal digits of their manifest's digest."""
        return self.root / "bases"

    @property
    def update(self) -> Path:
        """What updates keep for themselves."""
        return self.root / "update"

    def base(self, digest: str) -> Path:
        """The bundle whose manifest has a digest `sha256:<hex>`."""
        return self.bases / digest.removeprefix("sha256:")

    def blob(self, digest: str) -> Path:
        """The file of a digest `sha256:<hex>`."""
        return self.blobs / digest.removeprefix("sha256:")


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a store."""
    return (Path(path) / INDEX).is_file()


def require_store(path: Path) -> Layout:
    """The layout of a store that is there.

    Raises:
        StoreInvalid: There is none.
    """
    if not is_store(path):
        raise StoreInvalid(
            f"{path} is no store: it has no {INDEX}",
            f"make one: promptdial store init {path}",
        )
    return Layout(path)


def make_folders(layout: Layout) -> None:
    """Make the folders of a store, durably; what is there stays.

    Raises:
        NoSpace, StoreReadOnly, FileFailed: They cannot be made.
    """
    with mapped_errors(layout.root):
        layout.blobs.mkdir(parents=True, exist_ok=True)
        layout.staging.mkdir(exist_ok=True)
        for folder in (layout.blobs, layout.blobs.parent, layout.root):
            sync_folder(folder)
        sync_folder(layout.root.resolve().parent)


@contextmanager
def staging_held(layout: Layout) -> Iterator[None]:
    """While files are being written: no other process sweeps the folder.

    The lock is the folder's own, shared among writers, and ends with its process.
    """
    handle = os.open(layout.staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def sweep(layout: Layout) -> int:
    """Take away what a crash left in staging; nothing while someone writes there.

    Returns:
        Number of files that were removed.
    """
    removed = 0
    # A store that cannot be swept can be used all the same.
    with suppress(OSError):
        handle = os.open(layout.staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for path in layout.staging.iterdir():
                path.unlink()
                removed += 1
        finally:
            os.close(handle)
    return removed


def free_bytes(layout: Layout) -> int:
    """Bytes that may still be written to the store's disk.

    Raises:
        FileFailed: The disk does not say.
    """
    with mapped_errors(layout.root):
        found = os.statvfs(layout.root)
    return found.f_bavail * found.f_frsize


@contextmanager
def mapped_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors into ours.

    Raises:
        NoSpace: The disk is full.
        StoreReadOnly: Nothing can be written there.
        FileFailed: Any other.
    """
    try:
        yield
    except OSError as error:
        raise file_error(path, error) from None


def file_error(path: Path, error: OSError) -> PromptdialError:
    """Our error for one of the system's."""
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreReadOnly(f"{path}: {error.strerror or error}")
    return disk_failure(path, error)
