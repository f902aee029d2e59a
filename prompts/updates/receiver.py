"""What an update needs of a device's store: the seam between the two."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from promptdial.prompts.updates.names import STABLE


@dataclass(frozen=True)
class Following:
    """What a device wants of a repository.

    Attributes:
        device_id: Stays the same for the life of the device; shares go by it.
        channel: The channel that it is on.
        tenants: Whose prompts; "" are everyone's.
        tasks: Tasks of interest; None for all that fit.
        bundle: Name of the base bundle that it gets with its prompts; "" where the
            base comes another way.
    """

    device_id: str
    channel: str = STABLE
    tenants: tuple[str, ...] = ("",)
    tasks: frozenset[str] | None = None
    bundle: str = ""


@dataclass(frozen=True)
class BaseState:
    """The base that a device has.

    Attributes:
        fingerprint: `ckpt1:...`.
        tokenizer_fingerprint: `tok1:...`.
        version: Version of the bundle that updates brought; 0 for none.
        digest: Digest of the bundle's manifest; "" where updates did not bring it.
    """

    fingerprint: str
    tokenizer_fingerprint: str
    version: int = 0
    digest: str = ""


@dataclass(frozen=True)
class PromptState:
    """What a device has of a task.

    Attributes:
        version: The version in use (on trial or good); 0 for none.
        digest: Digest of its blob; "" for none.
        floor: The least version that may still be taken.
        pinned: It stays at this version, whatever is offered.
    """

    version: int = 0
    digest: str = ""
    floor: int = 0
    pinned: bool = False


@dataclass(frozen=True)
class Activation:
    """A prompt that goes into use. Its blob was given to `stage`, or was there."""

    tenant: str
    task: str
    version: int
    digest: str


@dataclass(frozen=True)
class BundleActivation:
    """A base that goes into use.

    Attributes:
        name: Of the bundle.
        base: Its state when it is in use.
        files: Name to digest of every file, the manifest among them; all are staged.
    """

    name: str
    base: BaseState
    files: Mapping[str, str]


@dataclass(frozen=True)
class Change:
    """Everything that one update changes: all of it becomes true at once, or nothing.

    Attributes:
        checked: Time of this check, seconds since 1970.
        time_floor: No clock may show less from now on, seconds since 1970.
        prompts: Prompts that go into use.
        bundle: The base that goes into use with them; None to stay with the present
            one. Prompts of another base than the new one leave use.
        revoked: (tenant, beginning of a digest): the tenant's prompts whose digest
            begins so may not be used any more. A task that uses one goes back to its
            newest good version that is not revoked, or has none.
    """

    checked: int
    time_floor: int
    prompts: tuple[Activation, ...] = ()
    bundle: BundleActivation | None = None
    revoked: frozenset[tuple[str, str]] = frozenset()

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing but the time of the check."""
        return not self.prompts and self.bundle is None and not self.revoked


class Receiver(Protocol):
    """A store as an update sees it.

    One update at a time uses it: the update holds the lock at `lock_path`.
    """

    @property
    def lock_path(self) -> Path:
        """A file to lock; made where it is missing."""
        ...

    @property
    def metadata_folder(self) -> Path:
        """A folder for the repository's metadata; it may be lost, and comes back."""
        ...

    @property
    def staging_folder(self) -> Path:
        """A folder for what is half downloaded; it may be lost, and comes back."""
        ...

    def root(self) -> bytes:
        """The root of trust that the device was set up with: read-only, never lost."""
        ...

    def following(self) -> Following:
        """What the device wants of the repository."""
        ...

    def base(self) -> BaseState | None:
        """The base in use; None where the device has none yet."""
        ...

    def prompts(self) -> Mapping[tuple[str, str], PromptState]:
        """State of each (tenant, task) that was ever in use."""
        ...

    def time_floor(self) -> int:
        """The least time that a clock may show, seconds since 1970."""
        ...

    def last_check(self) -> int:
        """Time of the last check that was good, seconds since 1970; 0 for never."""
        ...

    def has(self, digest: str) -> bool:
        """Whether the content of that digest is here, whole and right."""
        ...

    def refused(self) -> frozenset[tuple[str, str]]:
        """(tenant, beginning of a digest) of what this device does not use.

        Changes have revoked it, or it failed its self-test here.
        """
        ...

    def stage(self, digest: str, data: bytes) -> None:
        """Keep a prompt's verified bytes, not in use yet; they survive a power cut.

        Raises:
            PromptError: They cannot be kept (no space, quota).
        """
        ...

    def stage_file(self, digest: str, path: Path) -> None:
        """Keep a bundle's verified file, not in use yet, by moving it.

        Raises:
            PromptError: It cannot be kept.
        """
        ...

    def commit(self, change: Change) -> None:
        """Make a change true, all at once; when this returns, a power cut keeps it.

        An empty change may be left out where a check was noted not long ago.

        Raises:
            PromptError: It cannot be; then nothing is changed.
        """
        ...


def is_refused(refused: frozenset[tuple[str, str]], tenant: str, digest: str) -> bool:
    """Whether a tenant's digest begins as one that is refused."""
    return any(digest.startswith(start) for who, start in refused if who == tenant)
