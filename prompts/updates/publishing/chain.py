"""The metadata that a repository shows now: read from disk, each signature checked.

The publisher checks what it reads although it wrote it: who can write to the web
server's folder must not get a signature under what he put there.
"""

import re
from pathlib import Path
from typing import TypeVar

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from promptdial.prompts.errors import FileFailed, Untrusted

_ROOT_NAME = re.compile(r"([0-9]+)\.root\.json")
Body = TypeVar("Body", Root, Snapshot, Targets, Timestamp)


class Chain:
    """The current root, timestamp and snapshot, and lists of targets as asked for."""

    def __init__(self, folder: Path) -> None:
        """Read what the timestamp names; later files, of a run cut short, do not count.

        Args:
            folder: Folder of the metadata files.

        Raises:
            FileFailed: There is no repository.
            Untrusted: A file is not what was signed.
        """
        self._folder = folder
        self.root = self._newest_root()
        self.timestamp = self._checked(Timestamp, "timestamp.json", self.root)
        version = self.timestamp.snapshot_meta.version
        self.snapshot = self._checked(Snapshot, f"{version}.snapshot.json", self.root)

    def targets(self, name: str, delegator: Root | Targets) -> Targets:
        """A list of targets, as the snapshot names it.

        Raises:
            FileFailed: It cannot be read.
            Untrusted: It is not what was signed.
        """
        version = self.snapshot.meta[f"{name}.json"].version
        return self._checked(Targets, f"{version}.{name}.json", delegator, name)

    def _newest_root(self) -> Root:
        found = (_ROOT_NAME.fullmatch(path.name) for path in self._files())
        versions = [int(match[1]) for match in found if match]
        if not versions:
            raise FileFailed(
                f"{self._folder} has no root.json", "make it with promptdial repo init"
            )
        name = f"{max(versions)}.root.json"
        root = self._read(Root, name)
        try:
            root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
        except RepositoryError as error:
            raise Untrusted(f"{self._folder / name}: {error}") from None
        return root.signed

    def _files(self) -> list[Path]:
        return list(self._folder.iterdir()) if self._folder.is_dir() else []

    def _checked(
        self, kind: type[Body], file: str, delegator: Root | Targets, role: str = ""
    ) -> Body:
        found = self._read(kind, file)
        try:
            delegator.verify_delegate(
                role or kind.type, found.signed_bytes, found.signatures
            )
        except (RepositoryError, ValueError) as error:
            raise Untrusted(
                f"{self._folder / file}: {error}", "bring the folder back from a copy"
            ) from None
        return found.signed

    def _read(self, kind: type[Body], file: str) -> Metadata[Body]:
        path = self._folder / file
        try:
            found = Metadata[Body].from_bytes(path.read_bytes())
        except OSError as error:
            raise FileFailed(f"{path}: {error.strerror}", "bring it back") from None
        except RepositoryError as error:
            raise Untrusted(f"{path}: {error}", "bring it back from a copy") from None
        if not isinstance(found.signed, kind):
            raise Untrusted(f"{path} is {found.signed.type}, not {kind.type}")
        return found
