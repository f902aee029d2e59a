"""A repository as its publisher has it, and the frame of every change of it.

    DIR/repository.json    settings
    DIR/keys/              private keys, mode 0600 (or another folder: --keys)
    DIR/public/            what a web server shows: metadata/ and targets/

A change reads what is there, edits it in memory, signs, and writes it so that a reader
never sees files that do not fit together.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from promptdial.prompts.updates.lock import locked
from promptdial.prompts.updates.publishing.destination import open_destination, upload
from promptdial.prompts.updates.publishing.draft import Draft, Signing, utc_now
from promptdial.prompts.updates.publishing.files import METADATA
from promptdial.prompts.updates.publishing.keys import load_signers
from promptdial.prompts.updates.publishing.settings import Settings, read_settings

LOCK = ".lock"


@dataclass(frozen=True)
class Repository:
    """Where everything of a repository lies.

    Attributes:
        folder: The publisher's folder.
        settings: What the publisher decided.
    """

    folder: Path
    settings: Settings

    @property
    def keys(self) -> Path:
        """Folder of the private keys."""
        return self.folder / (self.settings.keys or "keys")

    @property
    def public(self) -> Path:
        """Folder of the static files."""
        return self.folder / "public"

    @property
    def metadata(self) -> Path:
        """Folder of the signed metadata."""
        return self.public / METADATA


@dataclass(frozen=True)
class Published:
    """What an operation did.

    Attributes:
        written: Metadata files that were written, in order.
        changed: Targets that are new or gone.
        sent: Files that were sent to the destination.
    """

    written: tuple[str, ...]
    changed: tuple[str, ...] = ()
    sent: int = 0


def open_repository(folder: Path) -> Repository:
    """Open a repository.

    Raises:
        FileFailed: The folder is none.
    """
    return Repository(folder, read_settings(folder))


@contextmanager
def changing(repository: Repository) -> Iterator[Draft]:
    """A draft of the repository, which no other process changes meanwhile.

    Raises:
        UpdateBusy: Another process changes it.
        KeyRefused: A key can be read by others, or is none.
        FileFailed: There is no repository.
        Untrusted: A file is not what was signed.
    """
    with locked(repository.folder / LOCK, "a change of the repository"):
        yield Draft(repository.metadata, signing(repository))


def signing(repository: Repository) -> Signing:
    """What signs a change that is made now.

    Raises:
        KeyRefused: A key can be read by others, or is none.
    """
    signers = load_signers(repository.keys)
    return Signing(signers, repository.settings.lifetimes, utc_now())


def finish(repository: Repository, draft: Draft, changed: list[str]) -> Published:
    """Sign and write a draft that has changes, and send what is new.

    Raises:
        KeyRefused: Too few keys are there; nothing was written.
        PromptError: A file cannot be written or sent.
    """
    written = draft.save() if draft.has_changes else []
    return Published(tuple(written), tuple(changed), send(repository))


def send(repository: Repository) -> int:
    """Send what is new to where the settings say; 0 for nowhere.

    Raises:
        PromptError: It cannot be sent; readers see the state of before, or the new one.
    """
    if not repository.settings.to:
        return 0
    return upload(repository.public, open_destination(repository.settings.to))
