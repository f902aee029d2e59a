"""Where the static files go: a folder, or any URL that fsspec knows."""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from promptdial.prompts.atomic import disk_failure
from promptdial.prompts.errors import MissingExtra, Offline, UsageError
from promptdial.prompts.updates.publishing.files import (
    METADATA,
    TARGETS,
    copied,
    make_folder,
)

_METADATA_NAME = re.compile(rf"{METADATA}/(?:([0-9]+)\.)?([a-z0-9_.-]+)\.json")
CONTENT, LIST, SNAPSHOT, TIMESTAMP, ROOT = 1, 2, 3, 4, 5
"""When a file is sent: what is named before what names it."""

_OBJECT_STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "oss", "memory")
"""Kinds of URL that show a file when all of it is there."""


class Destination(Protocol):
    """A place that readers read from."""

    def names(self) -> set[str]:
        """Names of the files that are there: relative, with `/`."""
        ...

    def put(self, name: str, source: Path) -> None:
        """Put a file there; a reader sees the old one or the new one, whole."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file that is there."""
        ...


class FolderDestination:
    """A local folder, or a mounted one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> set[str]:
        """See `Destination`."""
        found = self._folder.rglob("*")
        return {x.relative_to(self._folder).as_posix() for x in found if x.is_file()}

    def put(self, name: str, source: Path) -> None:
        """See `Destination`."""
        path = self._folder / name
        make_folder(path.parent)
        with copied(source, path):
            pass

    def remove(self, name: str) -> None:
        """See `Destination`."""
        path = self._folder / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise disk_failure(path, error) from None


class UrlDestination:
    """A URL that fsspec knows."""

    def __init__(self, url: str) -> None:
        """Open it.

        Raises:
            MissingExtra: fsspec is not installed.
            UsageError: The URL's kind is unknown, or needs a package of its own.
            Offline: It cannot be reached.
        """
        try:
            from fsspec.core import url_to_fs
        except ModuleNotFoundError:
            raise MissingExtra("publishing to a URL", "ota") from None
        try:
            with _failing(url):
                self._fs, root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            # fsspec names the package that a kind of URL needs.
            raise UsageError(
                f"{url}: {error}", "install it, or give a folder"
            ) from None
        self._url = url
        self._root = str(root).rstrip("/")
        self._whole = url.partition(":")[0] in _OBJECT_STORES

    def names(self) -> set[str]:
        """See `Destination`."""
        with _failing(self._url):
            self._fs.invalidate_cache()
            if not self._fs.exists(self._root):
                return set()
            found = self._fs.find(self._root)
        return {str(name).removeprefix(f"{self._root}/") for name in found}

    def put(self, name: str, source: Path) -> None:
        """See `Destination`."""
        target = f"{self._root}/{name}"
        with _failing(f"{self._url}/{name}"):
            if self._whole:
                self._fs.put_file(str(source), target)
                return
            folder, _, last = target.rpartition("/")
            self._fs.makedirs(folder, exist_ok=True)
            beside = f"{folder}/.{last}.{secrets.token_hex(6)}"
            self._fs.put_file(str(source), beside)
            self._fs.mv(beside, target)

    def remove(self, name: str) -> None:
        """See `Destination`."""
        with _failing(f"{self._url}/{name}"):
            self._fs.rm_file(f"{self._root}/{name}")


def open_destination(to: str) -> Destination:
    """The destination of a folder or URL.

    Raises:
        MissingExtra: fsspec is not installed.
        UsageError: No such kind of URL.
        Offline: It cannot be reached.
    """
    if to.startswith("file://"):
        return FolderDestination(Path(to.removeprefix("file://")))
    if "://" not in to:
        return FolderDestination(Path(to))
    return UrlDestination(to)


def upload(public: Path, destination: Destination) -> int:
    """Send what is new: content first, the timestamp after all that it leads to.

    A file that is there stays: but for the timestamp, a name never changes its content.

    Returns:
        Files that were sent.
    """
    there = destination.names()
    names = (x.relative_to(public).as_posix() for x in public.rglob("*") if x.is_file())
    new = [name for name in names if rank(name) and name not in there]
    timestamp = f"{METADATA}/timestamp.json"
    for name in sorted({*new, timestamp}, key=lambda name: (rank(name), name)):
        destination.put(name, public / name)
    return len({*new, timestamp})


def rank(name: str) -> int:
    """When a file is sent: `CONTENT` first, `ROOT` last; 0 for none of ours.

    A new root comes last: what it trusts is signed by the replaced keys as well, so
    that readers of either root are content with it.
    """
    if name.startswith(f"{TARGETS}/"):
        return 0 if "/." in name else CONTENT
    match = _METADATA_NAME.fullmatch(name)
    if match is None:
        return 0
    ranks = {"snapshot": SNAPSHOT, "timestamp": TIMESTAMP, "root": ROOT}
    return ranks.get(match[2], LIST)


@contextmanager
def _failing(where: str) -> Iterator[None]:
    """Map what a file system of any kind may raise.

    Raises:
        Offline: It failed.
    """
    try:
        yield
    except (ImportError, ValueError):
        raise
    except Exception as error:  # each kind has errors of its own, without a common root
        raise Offline(
            f"{where}: {type(error).__name__}: {str(error)[:200]}",
            "check the URL, the network and the credentials; what readers see is whole",
        ) from None
