"""A change of a repository: edited in memory, then signed and written in one order."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Role,
    Root,
    Signed,
    Snapshot,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from promptdial.prompts.atomic import write_atomic
from promptdial.prompts.tenants import ALL
from promptdial.prompts.updates.names import ISSUED
from promptdial.prompts.updates.publishing.chain import Chain
from promptdial.prompts.updates.publishing.keys import choose_signers
from promptdial.prompts.updates.publishing.settings import Lifetimes

_TOP_FILES = {"root", "snapshot", "timestamp"}

_BIN = "_-"
"""In names of bins, which no tenant's name can be taken for."""


@dataclass(frozen=True)
class Signing:
    """What signs a change.

    Attributes:
        signers: Private keys by id.
        lifetimes: Of each role.
        now: Time of the change.
    """

    signers: Mapping[str, CryptoSigner]
    lifetimes: Lifetimes
    now: datetime


class Draft:
    """The repository's metadata while it is changed.

    `root` and what `targets` returns may be edited; `touch` says that a list was.
    """

    def __init__(self, folder: Path, signing: Signing) -> None:
        """Read the repository.

        Raises:
            FileFailed: There is none.
            Untrusted: A file is not what was signed.
        """
        self._folder = folder
        self._signing = signing
        self._signers_by_id = dict(signing.signers)
        self._chain = Chain(folder)
        self._old_root = copy.deepcopy(self._chain.root)
        self.root: Root = self._chain.root
        self._lists: dict[str, Targets] = {}
        self._touched: set[str] = set()
        self._dropped: set[str] = set()

    @property
    def now(self) -> datetime:
        """Time of the change."""
        return self._signing.now

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot as it was."""
        return self._chain.snapshot

    @property
    def timestamp(self) -> Timestamp:
        """The timestamp as it was."""
        return self._chain.timestamp

    @property
    def touched(self) -> frozenset[str]:
        """Lists that were changed."""
        return frozenset(self._touched - _TOP_FILES)

    @property
    def has_changes(self) -> bool:
        """Whether there is anything to sign."""
        return bool(self._touched or self._dropped)

    def take_keys(self, signers: list[CryptoSigner]) -> None:
        """Let new keys sign too."""
        self._signers_by_id |= {key.public_key.keyid: key for key in signers}

    def can_sign(self, name: str) -> bool:
        """Whether enough keys of a role are here."""
        role = self._role(name)
        here = [keyid for keyid in role.keyids if keyid in self._signers_by_id]
        return len(here) >= role.threshold

    def knows(self, name: str) -> bool:
        """Whether there is a list of targets of that name."""
        return name in self._lists or f"{name}.json" in self._chain.snapshot.meta

    def names(self) -> list[str]:
        """Names of all lists of targets."""
        found = {name.removesuffix(".json") for name in self._chain.snapshot.meta}
        return sorted(found | set(self._lists))

    def targets(self, name: str = "targets") -> Targets:
        """A list of targets: the top one, a tenant's, or a bin.

        Raises:
            FileFailed: It cannot be read.
            Untrusted: It is not what was signed.
        """
        if name not in self._lists:
            self._lists[name] = self._chain.targets(name, self._delegator(name))
        return self._lists[name]

    def add(self, name: str) -> Targets:
        """A new list without targets. Its delegator must name it as well."""
        old = self._chain.snapshot.meta.get(f"{name}.json")
        # A name that was in use goes on counting: versions never go down.
        version = old.version if old else 0
        self._lists[name] = Targets(version=version or 1, expires=self.now)
        self._touched.add(name)
        return self._lists[name]

    def touch(self, name: str) -> None:
        """Say that a list was changed, or that the file of a top role is due."""
        self._touched.add(name)

    def drop_unused(self, used: set[str]) -> None:
        """Forget lists of other names.

        Devices refuse a snapshot that lost a name until the snapshot has other keys.
        """
        self._dropped = {name for name in self.names() if name not in used}

    def save(self) -> list[str]:
        """Sign what was changed, and a new snapshot and timestamp; write all of it.

        What a reader finds at any moment fits together: what is named is written
        before what names it, and the timestamp last; a new root comes after it, and
        what it trusts carries signatures of the replaced keys as well.

        Returns:
            Names of the files that were written, in order.

        Raises:
            KeyRefused: Too few keys are there; nothing was written.
            FileFailed: A file cannot be written.
            NoSpace: The disk is full.
        """
        files: dict[str, bytes] = {}
        snapshot = copy.deepcopy(self._chain.snapshot)
        for name in sorted(self._touched - self._dropped - _TOP_FILES):
            found = self._lists[name]
            meta = snapshot.meta.get(f"{name}.json")
            found.version = meta.version + 1 if meta else 1
            data = self._signed(name, found)
            snapshot.meta[f"{name}.json"] = MetaFile(found.version)
            files[f"{found.version}.{name}.json"] = data
        for name in self._dropped:
            snapshot.meta.pop(f"{name}.json", None)
        if self._dropped or self._touched - {"root", "timestamp"}:
            files |= self._sign_snapshot(snapshot)
        else:
            snapshot = self._chain.snapshot
        files |= self._sign_timestamp(snapshot, files)
        if "root" in self._touched or self.root != self._old_root:
            self.root.version = self._old_root.version + 1
            data = self._signed("root", self.root)
            files[f"{self.root.version}.root.json"] = data
        self._remove_leftovers()
        for name, data in files.items():
            write_atomic(self._folder / name, data)
        return list(files)

    def _remove_leftovers(self) -> None:
        """Remove what a run that was cut short had written, and nothing names.

        An upload would send it, and not send the file that gets the same name later.
        """
        current = {
            name.removesuffix(".json"): meta.version
            for name, meta in self._chain.snapshot.meta.items()
        }
        current["snapshot"] = self._chain.snapshot.version
        current["root"] = self._old_root.version
        for path in self._folder.glob("*.json"):
            version, _, name = path.stem.partition(".")
            if version.isdecimal() and int(version) > current.get(name, 0):
                path.unlink()

    def _sign_snapshot(self, snapshot: Snapshot) -> dict[str, bytes]:
        snapshot.version += 1
        return {f"{snapshot.version}.snapshot.json": self._signed("snapshot", snapshot)}

    def _sign_timestamp(
        self, snapshot: Snapshot, files: Mapping[str, bytes]
    ) -> dict[str, bytes]:
        timestamp = copy.deepcopy(self._chain.timestamp)
        timestamp.version += 1
        data = files.get(f"{snapshot.version}.snapshot.json")
        if data is not None:
            timestamp.snapshot_meta = MetaFile.from_data(
                snapshot.version, data, ["sha256"]
            )
        timestamp.unrecognized_fields[ISSUED] = int(self.now.timestamp())
        return {"timestamp.json": self._signed("timestamp", timestamp)}

    def _signed(self, name: str, signed: Signed) -> bytes:
        signed.expires = _whole(
            self.now + timedelta(days=self._signing.lifetimes.of(name))
        )
        return sign(signed, self._signers(name))

    def _signers(self, name: str) -> list[CryptoSigner]:
        signers = self._signers_by_id
        found = choose_signers(signers, name, self._role(name))
        if name in self._old_root.roles:
            old = self._old_root.roles[name]
            if name == "root":
                # Specification 5.3.4: by the old root's threshold and its own.
                found += choose_signers(signers, name, old)
            else:
                found += [signers[key] for key in old.keyids if key in signers]
        return list({signer.public_key.keyid: signer for signer in found}.values())

    def _role(self, name: str) -> Role:
        if name in self.root.roles:
            return self.root.roles[name]
        return self._delegator(name).get_delegated_role(name)

    def _delegator(self, name: str) -> Root | Targets:
        if name == "targets":
            return self.root
        if name.startswith(_BIN):
            return self.targets(ALL if self.knows(ALL) else "targets")
        holder, found, _ = name.partition(f".{_BIN}")
        return self.targets(holder if found else "targets")


def bin_prefix(holder: str) -> str:
    """What names of a holder's bins begin with: short, the snapshot has them all."""
    return "_" if holder in ("targets", ALL) else f"{holder}._"


def sign(signed: Signed, signers: list[CryptoSigner]) -> bytes:
    """The file of a signed document, as few bytes as can be."""
    found: Metadata[Any] = Metadata(signed)
    for signer in signers:
        found.sign(signer, append=True)
    return found.to_bytes(JSONSerializer(compact=True))


def first_files(
    roles: Mapping[str, Role], root: Root, signing: Signing
) -> dict[str, bytes]:
    """The files of an empty repository, in the order of writing."""
    signers = dict(signing.signers)

    def signed(name: str, found: Signed) -> bytes:
        days = timedelta(days=signing.lifetimes.of(name))
        found.expires = _whole(signing.now + days)
        return sign(found, choose_signers(signers, name, roles[name]))

    snapshot = signed("snapshot", Snapshot(meta={"targets.json": MetaFile(1)}))
    timestamp = Timestamp(snapshot_meta=MetaFile.from_data(1, snapshot, ["sha256"]))
    timestamp.unrecognized_fields[ISSUED] = int(signing.now.timestamp())
    return {
        "1.targets.json": signed("targets", Targets()),
        "1.snapshot.json": snapshot,
        "1.root.json": signed("root", root),
        "timestamp.json": signed("timestamp", timestamp),
    }


def utc_now() -> datetime:
    """The time, in whole seconds as metadata has it."""
    return _whole(datetime.now(UTC))


def _whole(time: datetime) -> datetime:
    return time.replace(microsecond=0)
