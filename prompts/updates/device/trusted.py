"""The repository as a device may trust it: the client of tuf, fenced in.

What the stock client leaves open is closed here: its root is always the one that the
device was set up with, a version that leaps is refused, what is no metadata is told
from what is forged, and every error comes out as one of promptdial's own.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadHTTPError,
    ExpiredMetadataError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, Root, TargetFile, Targets, Timestamp
from tuf.ngclient import Updater, UpdaterConfig

from promptdial.prompts.atomic import disk_failure, sync_folder
from promptdial.prompts.errors import (
    NotARepository,
    Offline,
    RolledBack,
    Stale,
    Untrusted,
)
from promptdial.prompts.tenants import ALL
from promptdial.prompts.updates.device.fetcher import BoundedFetcher
from promptdial.prompts.updates.device.limits import DEFAULT_LIMITS, Limits
from promptdial.prompts.updates.names import ISSUED, BundleFileName, PromptName
from promptdial.prompts.updates.offer import Offer, read_offer

_FAR = 1_000_000
_ROTATE = (
    "if the publisher agrees, the timestamp's key was stolen: "
    "promptdial repo rotate DIR timestamp heals it"
)
Body = TypeVar("Body", Root, Targets, Timestamp)


class TrustedRepository:
    """Metadata of a repository, verified from the root of the device on."""

    def __init__(
        self,
        root: bytes,
        folder: Path,
        url: str,
        fetcher: BoundedFetcher,
        limits: Limits = DEFAULT_LIMITS,
        last_check: int = 0,
    ) -> None:
        """Load the root and what the device has of the metadata.

        Args:
            root: The device's root of trust (specification 5.2).
            folder: Where metadata is kept between updates.
            url: Of the folder of the metadata.
            fetcher: What fetches from there.
            limits: Of sizes, and how far the version of a timestamp may leap.
            last_check: Time of the last good check, for messages; seconds since 1970.

        Raises:
            Untrusted: The root is none.
            PromptError: The folder cannot be written.
        """
        self._folder = folder
        self._fetcher = fetcher
        self._limits = limits
        self._last_check = last_check
        self._looked_at = ""
        with self._failing():
            folder.mkdir(parents=True, exist_ok=True)
            self._before = self._local_bytes("timestamp")
            fetcher.look = self._look
            self._bootstrap, self._url = root, url
            self._updater = self._new_updater()

    def refresh(self) -> None:
        """Load and verify root, timestamp, snapshot, top list (specification 5.3-5.6).

        Raises:
            UpdateError: Anything is not as it must be, or cannot be had.
            PromptError: The folder cannot be written.
        """
        with self._failing():
            try:
                self._updater.refresh()
            except UnsignedMetadataError:
                # The publisher may have replaced keys after the roots were read; a
                # root that is wrong itself stays so.
                if self._looked_at.endswith(".root.json") or not self._root_is_out():
                    raise
                self._updater = self._new_updater()
                self._updater.refresh()

    @property
    def root(self) -> Root:
        """The newest root."""
        return self._local(Root, "root")

    @property
    def timestamp(self) -> Timestamp:
        """The newest timestamp."""
        return self._local(Timestamp, "timestamp")

    @property
    def issued(self) -> int:
        """When the timestamp was signed, seconds since 1970; 0 for not said."""
        value = self.timestamp.unrecognized_fields.get(ISSUED, 0)
        return value if type(value) is int and value > 0 else 0

    def target(self, name: str) -> TargetFile | None:
        """What is signed about a target (specification 5.6.7); None for no such target.

        Raises:
            UpdateError: A list of targets is not as it must be, or cannot be had.
        """
        with self._failing():
            return self._updater.get_targetinfo(name)

    def offer(self, name: PromptName | BundleFileName) -> Offer | None:
        """The release of a name.

        Raises:
            UpdateError: As `target`, or what is signed about it cannot be read.
        """
        found = self.target(name.target)
        if found is None:
            return None
        return read_offer(name, found.length, found.hashes, found.custom)

    def names(self, tenant: str) -> list[str]:
        """Names of all targets in a tenant's lists; each must still be asked for.

        Raises:
            UpdateError: As `target`.
        """
        folder = f"prompts/{tenant}/" if tenant else "prompts/"
        # A name that no target has makes the client load what could have it.
        self.target(f"{folder}~")
        holder = self._holder(tenant)
        if holder is None:
            return []
        found = self._local(Targets, holder)
        bins = found.delegations.succinct_roles if found.delegations else None
        if bins is None:
            return sorted(found.targets)
        missing, number, names = set(bins.get_roles()), 0, set[str]()
        while missing:
            probe = f"{folder}~{number}"
            number += 1
            role = bins.get_role_for_target(probe)
            if role in missing:
                missing.remove(role)
                self.target(probe)
                names |= set(self._local(Targets, role).targets)
        return sorted(names)

    def signed_texts(self, tenant: str, key: str) -> tuple[str, ...]:
        """A list of texts that a tenant's list carries; () where it has none.

        One of the tenant's targets must have been asked for.
        """
        holder = self._holder(tenant)
        if holder is None:
            return ()
        found = self._local(Targets, holder).unrecognized_fields.get(key, [])
        plain = isinstance(found, list) and all(isinstance(x, str) for x in found)
        return tuple(found) if plain else ()

    def keep(self) -> None:
        """Make what was loaded survive a power cut.

        Raises:
            PromptError: It cannot be written.
        """
        if self._local_bytes("timestamp") == self._before:
            return
        with self._failing():
            for path in self._folder.rglob("*.json"):
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
            sync_folder(self._folder)

    def _new_updater(self) -> Updater:
        limits = self._limits
        return Updater(
            str(self._folder),
            self._url,
            fetcher=self._fetcher,
            config=UpdaterConfig(
                max_root_rotations=limits.roots,
                max_delegations=limits.lists,
                root_max_length=limits.root_bytes,
                timestamp_max_length=limits.timestamp_bytes,
                snapshot_max_length=limits.snapshot_bytes,
                targets_max_length=limits.list_bytes,
            ),
            bootstrap=self._bootstrap,
        )

    def _root_is_out(self) -> bool:
        """Whether there is a root newer than the one that was just loaded."""
        url = f"{self._url.rstrip('/')}/{self.root.version + 1}.root.json"
        try:
            self._fetcher.download_bytes(url, self._limits.root_bytes)
        except DownloadHTTPError:
            return False
        return True

    def _holder(self, tenant: str) -> str | None:
        delegations = self._local(Targets, "targets").delegations
        named = delegations.roles or {} if delegations else {}
        if tenant:
            return tenant if tenant in named else None
        return ALL if ALL in named else "targets"

    def _local(self, kind: type[Body], role: str) -> Body:
        """A document that was verified in this run, from the folder."""
        with self._failing():
            data = (self._folder / f"{role}.json").read_bytes()
            return Metadata[Body].from_bytes(data).signed

    def _local_bytes(self, role: str) -> bytes:
        try:
            return (self._folder / f"{role}.json").read_bytes()
        except OSError:
            return b""

    def _look(self, url: str, data: bytes) -> None:
        """Look at metadata before the client does."""
        self._looked_at = url
        body = _signed_part(data)
        if body is None:
            raise NotARepository(
                f"{url} answers with {len(data)} bytes that are no signed metadata "
                f"({data[:24]!r})"
            )
        if not url.endswith("/timestamp.json"):
            return
        before = (_signed_part(self._before) or {}).get("version")
        now = body.get("version")
        if type(before) is int and type(now) is int:
            if now - before > self._limits.version_jump:
                raise RolledBack(
                    f"timestamp version leaps from {before} to {now}, allowed: "
                    f"{self._limits.version_jump} more",
                    _ROTATE,
                )

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Map what tuf and the disk raise.

        Raises:
            PromptError: They raised something.
        """
        try:
            yield
        except ExpiredMetadataError as error:
            raise Stale(f"{error}; last good check: {when(self._last_check)}") from None
        except BadVersionNumberError as error:
            local = (_signed_part(self._local_bytes("timestamp")) or {}).get("version")
            far = type(local) is int and local > _FAR
            raise RolledBack(str(error), _ROTATE if far else "") from None
        except RepositoryError as error:
            raise Untrusted(_with_cause(error)[:300]) from None
        except DownloadError as error:
            raise Offline(str(error) or type(error).__name__) from None
        except OSError as error:
            raise disk_failure(self._folder, error) from None
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            # Signed or not, values that the client has not thought of.
            raise Untrusted(f"{type(error).__name__}: {str(error)[:200]}") from None


def when(seconds: int) -> str:
    """A time as people and logs read it; `never` for 0."""
    if not seconds:
        return "never"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _with_cause(error: Exception) -> str:
    """What tuf says, and what lies under it: "cannot deserialize" alone is no help."""
    cause = error.__cause__
    return f"{error}: {cause}" if cause is not None else str(error)


def _signed_part(data: bytes) -> dict[str, Any] | None:
    """The `signed` part of what looks like metadata; None for anything else."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or "signatures" not in body:
        return None
    signed = body.get("signed")
    return signed if isinstance(signed, dict) else None
