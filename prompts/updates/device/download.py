"""One file, by its digest: kept in parts, gone on with, whole and right in the end."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError

from promptdial.prompts.atomic import disk_failure
from promptdial.prompts.errors import NoSpace, Offline, TooBig, Untrusted
from promptdial.prompts.updates.device.fetcher import BoundedFetcher
from promptdial.prompts.updates.device.limits import Limits
from promptdial.prompts.updates.device.progress import Progress

PART = ".part"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """A file to download.

    Attributes:
        label: What people call it.
        url: Where it is.
        sha256: Its digest, hexadecimal.
        length: Its bytes.
    """

    label: str
    url: str
    sha256: str
    length: int


def target_url(base: str, target: str, sha256: str) -> str:
    """The URL of a target's content (specification 6.2.2: consistent snapshots)."""
    folder, slash, name = target.rpartition("/")
    return f"{base}{folder}{slash}{sha256}.{name}"


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what will not fit: twice the bytes must be free.

    Raises:
        NoSpace: They are not.
        FileFailed: The folder cannot be made.
    """
    with writing(folder, needed):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < 2 * needed:
        raise NoSpace(
            f"{free:,} bytes are free at {folder}, needed: {2 * needed:,}",
            "free some space",
        )


def sweep(folder: Path, wanted: set[str]) -> None:
    """Remove parts that no file of this update goes on with."""
    for path in folder.glob(f"*{PART}") if folder.is_dir() else ():
        if path.name.removesuffix(PART) not in wanted:
            path.unlink(missing_ok=True)


def download(
    wanted: Wanted,
    folder: Path,
    fetcher: BoundedFetcher,
    limits: Limits,
    progress: Progress,
) -> Path:
    """Bring a file to `folder`, verified and on the disk.

    What an earlier try left is gone on with. What is left when this one fails is kept,
    but where the disk is full.

    Raises:
        Untrusted: Its digest is another.
        TooBig: It is longer than signed.
        TooSlow: It was not done in time.
        Offline: It cannot be had.
        NoSpace: The disk is full.
        FileFailed: It cannot be written.
    """
    path = folder / f"{wanted.sha256}{PART}"
    fetcher.meter.begin(
        limits.file_seconds + wanted.length / limits.least_rate,
        2 * wanted.length + limits.headroom,
    )
    with writing(path, wanted.length):
        try:
            _fetch(wanted, path, fetcher, limits, progress)
        except (NoSpace, OSError):
            path.unlink(missing_ok=True)
            raise
    progress.end()
    return path


def _fetch(
    wanted: Wanted,
    path: Path,
    fetcher: BoundedFetcher,
    limits: Limits,
    progress: Progress,
) -> None:
    resumed = path.exists()
    if resumed and path.stat().st_size > wanted.length:
        path.unlink()
    for attempt in range(limits.attempts):
        try:
            _append(wanted, path, fetcher, progress)
        except Offline:
            if attempt + 1 == limits.attempts:
                raise
            continue
        if _digest(path) == wanted.sha256:
            return
        path.unlink()
        if not resumed:
            break
        # What an earlier try left may have been wrong: once more from the beginning.
        resumed = False
    raise Untrusted(f"{wanted.label}: what came has another digest than signed")


def _append(
    wanted: Wanted, path: Path, fetcher: BoundedFetcher, progress: Progress
) -> None:
    path.touch()
    here = path.stat().st_size
    progress.begin(wanted.label, wanted.length, here)
    if here < wanted.length:
        try:
            piece = fetcher.open(wanted.url, here)
        except DownloadHTTPError as error:
            raise Offline(f"{wanted.label}: {error}") from None
        mode = "r+b" if here else "wb"
        with closing(piece.chunks) as chunks, path.open(mode) as file:
            file.truncate(piece.offset)
            file.seek(piece.offset)
            length = piece.offset
            for chunk in chunks:
                length += len(chunk)
                if length > wanted.length:
                    file.truncate(0)
                    raise TooBig(
                        f"{wanted.label}: more than the {wanted.length} bytes signed"
                    )
                file.write(chunk)
                progress.advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if path.stat().st_size < wanted.length:
        raise Offline(
            f"{wanted.label}: {path.stat().st_size} bytes came, signed: {wanted.length}"
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def writing(path: Path, length: int = 0) -> Iterator[None]:
    """Map what the disk raises.

    Raises:
        NoSpace: It is full.
        FileFailed: Anything else.
    """
    try:
        yield
    except OSError as error:
        raise disk_failure(path, error, length) from None
