"""A repository of The Update Framework that may be anything: of any keys, any versions.

What publishing makes is always right; this one signs whatever a test wants a client to
see. Its files lie in a folder that `StaticServer` shows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

TOP = ("root", "timestamp", "snapshot", "targets")


def in_days(days: float) -> datetime:
    """A time, in whole seconds as metadata has it."""
    return (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)


@dataclass
class TufRepository:
    """The documents, which may be edited, and the keys that sign them.

    Attributes:
        folder: What a server shows.
        hashes: Snapshot and timestamp say lengths and hashes of what they name.
        signers: Keys that sign a role, whether it is one of the role's or not.
    """

    folder: Path
    hashes: bool = False
    signers: dict[str, list[CryptoSigner]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        late = in_days(30)
        self.root = Root(expires=late, consistent_snapshot=True)
        self.timestamp = Timestamp(expires=late)
        self.snapshot = Snapshot(expires=late)
        self.lists: dict[str, Targets] = {"targets": Targets(expires=late)}
        for name in ("metadata", "targets"):
            (self.folder / name).mkdir(parents=True)
        for role in TOP:
            self.set_keys(role, [CryptoSigner.generate_ed25519()])
        self.write_root()
        self.write()

    @property
    def targets(self) -> Targets:
        """The top list of targets."""
        return self.lists["targets"]

    def set_keys(
        self,
        role: str,
        keys: Sequence[CryptoSigner],
        threshold: int = 1,
        signers: Sequence[CryptoSigner] | None = None,
    ) -> None:
        """Give a top role keys, and let those sign, or others."""
        self.root.roles[role].keyids.clear()
        for key in keys:
            self.root.add_key(key.public_key, role)
        self.root.roles[role].threshold = threshold
        self.signers[role] = list(keys if signers is None else signers)

    def delegate(
        self, by: str, name: str, paths: Sequence[str], terminating: bool = False
    ) -> None:
        """Let a list delegate to another one, which is made where it is not there."""
        if name not in self.lists:
            self.lists[name] = Targets(expires=in_days(30))
            self.signers[name] = [CryptoSigner.generate_ed25519()]
        found = self.lists[by]
        if found.delegations is None:
            found.delegations = Delegations({}, roles={})
        assert found.delegations.roles is not None
        keys = [key.public_key for key in self.signers[name]]
        found.delegations.keys.update({key.keyid: key for key in keys})
        found.delegations.roles[name] = DelegatedRole(
            name, [key.keyid for key in keys], 1, terminating, list(paths)
        )

    def add(self, role: str, path: str, data: bytes, algorithm: str = "sha256") -> None:
        """Put a target's content where clients look for it, and into a list."""
        target = TargetFile.from_data(path, data, [algorithm])
        self.lists[role].targets[path] = target
        folder, _, name = path.rpartition("/")
        prefix = f"{target.hashes[algorithm]}." if self.root.consistent_snapshot else ""
        file = self.folder / "targets" / folder / f"{prefix}{name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def publish(self, *roles: str) -> None:
        """A next version of some lists, and of what leads to them."""
        for role in roles:
            self.lists[role].version += 1
        self.snapshot.version += 1
        self.timestamp.version += 1
        self.write()

    def publish_root(self) -> None:
        """A next version of the root."""
        self.root.version += 1
        self.write_root()

    def write(self) -> None:
        """Sign and write all but the root, in the versions that they have."""
        for name, found in self.lists.items():
            data = self._file(name, found)
            self.snapshot.meta[f"{name}.json"] = self._meta(found.version, data)
        data = self._file("snapshot", self.snapshot)
        self.timestamp.snapshot_meta = self._meta(self.snapshot.version, data)
        self.write_timestamp()

    def write_timestamp(self) -> None:
        """Sign and write the timestamp alone, as it is."""
        data = self.sign("timestamp", self.timestamp)
        (self.folder / "metadata" / "timestamp.json").write_bytes(data)

    def write_root(self) -> None:
        """Sign and write the root, in the version that it has."""
        data = self.sign("root", self.root)
        name = f"{self.root.version}.root.json"
        (self.folder / "metadata" / name).write_bytes(data)

    def sign(self, role: str, signed: Any) -> bytes:
        """The file of a document."""
        found: Metadata[Any] = Metadata(signed)
        for signer in self.signers[role]:
            found.sign(signer, append=True)
        return found.to_bytes(JSONSerializer(validate=False))

    def _meta(self, version: int, data: bytes) -> MetaFile:
        if not self.hashes:
            return MetaFile(version)
        return MetaFile.from_data(version, data, ["sha256"])

    def _file(self, role: str, signed: Any) -> bytes:
        data = self.sign(role, signed)
        consistent = self.root.consistent_snapshot
        name = f"{signed.version}.{role}" if consistent else role
        if "/" not in name:
            (self.folder / "metadata" / f"{name}.json").write_bytes(data)
        return data


def kept_versions(folder: Path) -> dict[str, int]:
    """Versions of what a client keeps in a folder, by role."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        signed: Any = Metadata.from_bytes(path.read_bytes()).signed
        found[path.stem] = int(signed.version)
    return found


def metadata_asked(requests: Sequence[str]) -> list[str]:
    """Files of metadata that were asked for, in order."""
    start = "/metadata/"
    return [
        path.removeprefix(start).removesuffix(".json")
        for path in requests
        if path.startswith(start)
    ]


def quoted(role: str) -> str:
    """A role's name as it stands in URLs and names of files."""
    return quote(role, "")
