"""The blobs of a store: files named by their digest, checked whenever they are read."""

import hashlib
import os
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from promptdial.prompts.atomic import sync_folder
from promptdial.prompts.blob import MAX_BLOB_BYTES, PromptBlob, decode
from promptdial.prompts.errors import BlobInvalid, NoSpace
from promptdial.prompts.kept_files import read_regular
from promptdial.prompts.store.layout import (
    Layout,
    free_bytes,
    mapped_errors,
    staging_held,
)

SPACE_FACTOR = 2
"""Free bytes wanted for each byte that is written: the index and its log grow too."""

_HEX = re.compile(r"[0-9a-f]{64}")


class BlobFiles:
    """Blobs by digest. Safe to share among threads and processes."""

    def __init__(self, layout: Layout) -> None:
        """Take a store's folder; nothing is read yet."""
        self._layout = layout

    def read(self, digest: str) -> PromptBlob:
        """The blob of a digest: read from the disk, and every rule checked.

        Raises:
            FileNotFoundError: There is none.
            FileFailed: It cannot be read.
            BlobInvalid: The file has other content than its name says.
            PromptError: The content breaks the format.
        """
        return read_blob_file(self._layout.blob(digest), digest)

    @contextmanager
    def staged(self, data: bytes) -> Iterator[Path]:
        """A synced file of `data` in staging; taken away where it was not placed.

        Raises:
            NoSpace: Less than SPACE_FACTOR times its bytes are free; nothing is
                written then. Or the disk is full.
            StoreReadOnly, FileFailed: It cannot be written.
        """
        free = free_bytes(self._layout)
        if free < SPACE_FACTOR * len(data):
            raise NoSpace(
                f"{free} bytes are free at {self._layout.root}, {len(data)} more want "
                f"{SPACE_FACTOR} times as many",
                "free some space",
            )
        path = self._layout.staging / f"{os.getpid()}-{secrets.token_hex(8)}"
        with mapped_errors(self._layout.root), staging_held(self._layout):
            try:
                _write(path, data)
                yield path
            except BaseException:
                # What cannot be taken away now, the next start sweeps.
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                raise

    def place(self, staged: Mapping[str, Path]) -> None:
        """Give synced files their names, durably; they take the place of those there.

        Args:
            staged: Files by the digest of their content.

        The caller holds the index's write lock, so that no garbage is collected
        before the index names the blob.

        Raises:
            NoSpace, StoreReadOnly, FileFailed: One cannot be renamed.
        """
        if not staged:
            return
        with mapped_errors(self._layout.root):
            for digest, path in staged.items():
                path.replace(self._layout.blob(digest))
            sync_folder(self._layout.blobs)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file there, by digest.

        Raises:
            FileFailed: The folder cannot be read.
        """
        found: dict[str, int] = {}
        with mapped_errors(self._layout.blobs), os.scandir(self._layout.blobs) as files:
            for entry in files:
                if _HEX.fullmatch(entry.name):
                    with suppress(FileNotFoundError):
                        size = entry.stat(follow_symlinks=False).st_size
                        found[f"sha256:{entry.name}"] = size
        return found

    def remove(self, digests: Collection[str]) -> None:
        """Take files away; the caller holds the index's write lock.

        Raises:
            StoreReadOnly, FileFailed: One cannot be removed.
        """
        with mapped_errors(self._layout.blobs):
            for digest in digests:
                self._layout.blob(digest).unlink(missing_ok=True)


def read_blob_file(path: Path, digest: str) -> PromptBlob:
    """The blob of a file whose content has a digest; every rule is checked.

    Raises:
        FileNotFoundError: There is none.
        FileFailed: It cannot be read.
        BlobInvalid: The file has other content.
        PromptError: The content breaks the format.
    """
    data = read_regular(path, MAX_BLOB_BYTES + 1)
    found = hashlib.sha256(data).hexdigest()
    if f"sha256:{found}" != digest:
        raise BlobInvalid(
            f"blob {path.name} of the store has SHA-256 {found}",
            "install the prompt again, and check the disk",
        )
    return decode(data)


def _write(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    handle = os.open(path, flags, 0o644)
    with os.fdopen(handle, "wb", buffering=0) as file:
        left = memoryview(data)
        while left:
            left = left[file.write(left) or 0 :]
        os.fsync(handle)
