"""Content in the public folder: `targets/<folder>/<digest>.<name>`, never replaced."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptdial.prompts.atomic import disk_failure, sync_folder, write_atomic
from promptdial.prompts.errors import BlobInvalid

METADATA = "metadata"
TARGETS = "targets"
_CHUNK = 1 << 20


def content_path(public: Path, target: str, sha256: str) -> Path:
    """Where a target's content lies (specification 6.2.2: consistent snapshots)."""
    folder, _, name = target.rpartition("/")
    return public / TARGETS / folder / f"{sha256}.{name}"


def put_bytes(public: Path, target: str, data: bytes) -> str:
    """Put a target's content where readers look for it.

    Returns:
        Its digest, hexadecimal.

    Raises:
        FileFailed: It cannot be written.
        NoSpace: The disk is full.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    path = content_path(public, target, sha256)
    if not path.exists():
        make_folder(path.parent)
        write_atomic(path, data)
    return sha256


def put_file(public: Path, target: str, source: Path, sha256: str, length: int) -> None:
    """Copy a large target's content, whole or not at all.

    Raises:
        BlobInvalid: The file's digest or length is another.
        FileFailed: It cannot be read or written.
        NoSpace: The disk is full.
    """
    path = content_path(public, target, sha256)
    make_folder(path.parent)
    with copied(source, path) as (found, size):
        if (found, size) != (sha256, length):
            raise BlobInvalid(
                f"{source} has SHA-256 {found} and {size} bytes, allowed: what the "
                f"manifest says, {sha256} and {length}",
                "export the bundle again",
            )


@contextmanager
def copied(source: Path, path: Path) -> Iterator[tuple[str, int]]:
    """Copy a file of any size to `path`, whole; the block may look at it before.

    Yields:
        Digest (hexadecimal) and bytes of the copy. It appears at the block's end; where
        the block raises, it does not.

    Raises:
        FileFailed: It cannot be read or written.
        NoSpace: The disk is full.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        yield _copy(source, beside)
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_failure(source, error) from None
    finally:
        beside.unlink(missing_ok=True)


def _copy(source: Path, path: Path) -> tuple[str, int]:
    digest, length = hashlib.sha256(), 0
    with source.open("rb") as reading, path.open("xb") as writing:
        while chunk := reading.read(_CHUNK):
            digest.update(chunk)
            length += len(chunk)
            writing.write(chunk)
        writing.flush()
        os.fsync(writing.fileno())
    return digest.hexdigest(), length


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        FileFailed: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_failure(folder, error) from None
