"""Versions and expiry as TUF asks of a client: what is taken, and what stays.

The topics are those of tuf-conformance, the suite for clients.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tuf", reason="the extra ota is not installed")

from tuf.api.metadata import MetaFile
from tuf_in_process import Client, keys, new_client, trusted, versions
from tuf_repository import TufRepository, in_days, metadata_asked
from update_server import StaticServer, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StaticServer]:
    with serving(tmp_path / "public") as found:
        yield found


@pytest.fixture
def repository(tmp_path: Path) -> TufRepository:
    return TufRepository(tmp_path / "public")


@pytest.fixture
def client(repository: TufRepository, server: StaticServer, tmp_path: Path) -> Client:
    return new_client(repository, server, tmp_path)


# What is there at first, and what nobody expects.


def no_version(root: Any) -> None:
    del root["signed"]["version"]


def no_signature(root: Any) -> None:
    root["signatures"] = []


def other_signature(root: Any) -> None:
    root["signatures"][0]["sig"] = "00" * 64


def other_role(root: Any) -> None:
    root["signed"]["_type"] = "targets"


@pytest.mark.parametrize(
    "spoil", [no_version, no_signature, other_signature, other_role]
)
def test_a_first_root_that_is_wrong(
    repository: TufRepository,
    server: StaticServer,
    tmp_path: Path,
    spoil: Callable[[Any], None],
) -> None:
    body = json.loads(repository.sign("root", repository.root))
    spoil(body)
    client = Client(tmp_path / "other", server)
    client.init(json.dumps(body).encode())
    assert client.refresh() == 1
    assert server.requests == []


def test_a_download_refreshes_first(client: Client, server: StaticServer) -> None:
    assert client.download("nothing") == 1
    assert metadata_asked(server.requests) == [
        *("2.root", "timestamp", "1.snapshot", "1.targets")
    ]
    assert trusted(client) == versions(1, 1, 1, 1)


def test_fields_that_nobody_knows_are_signed_too(
    client: Client, repository: TufRepository
) -> None:
    root = repository.root
    (keyid,) = root.roles["snapshot"].keyids
    root.unrecognized_fields["more"] = "text"
    root.keys[keyid].unrecognized_fields["keyid_hash_algorithms"] = ["md5"]
    root.roles["root"].unrecognized_fields["more"] = {"a": 1}
    repository.publish_root()
    assert client.refresh() == 0
    assert trusted(client)["root"] == 2


def test_the_same_version_of_a_timestamp_is_not_taken_again(
    client: Client, repository: TufRepository
) -> None:
    assert client.refresh() == 0
    before = (client.metadata / "timestamp.json").read_bytes()
    repository.timestamp.snapshot_meta = MetaFile(100)
    repository.write_timestamp()
    assert client.refresh() == 0
    assert (client.metadata / "timestamp.json").read_bytes() == before


# Rollback, and the way out of a leap.


def older_timestamp(repository: TufRepository) -> None:
    repository.timestamp.version -= 1
    repository.write_timestamp()


def older_snapshot(repository: TufRepository) -> None:
    repository.snapshot.version -= 1
    repository.timestamp.version += 1
    repository.write()


def older_targets(repository: TufRepository) -> None:
    repository.targets.version -= 1
    repository.publish()


def other_snapshot(repository: TufRepository) -> None:
    """Its file has another version than the timestamp says."""
    repository.publish("targets")
    repository.timestamp.version += 1
    repository.timestamp.snapshot_meta = MetaFile(9)
    repository.write_timestamp()
    folder = repository.folder / "metadata"
    (folder / "9.snapshot.json").write_bytes((folder / "3.snapshot.json").read_bytes())


def other_targets(repository: TufRepository) -> None:
    """Its file has another version than the snapshot says."""
    repository.publish("targets")
    folder = repository.folder / "metadata"
    (folder / "3.targets.json").write_bytes((folder / "2.targets.json").read_bytes())


@pytest.mark.parametrize("hashes", [False, True], ids=["versions", "hashes"])
@pytest.mark.parametrize(
    ("attack", "after"),
    [
        (older_timestamp, (1, 2, 2, 2)),
        (older_snapshot, (1, 2, 2, 2)),
        (older_targets, (1, 3, 2, 2)),
        (other_snapshot, (1, 4, 2, 2)),
        (other_targets, (1, 3, 3, 2)),
    ],
    ids=lambda item: getattr(item, "__name__", ""),
)
def test_versions_never_go_back(
    client: Client,
    repository: TufRepository,
    attack: Callable[[TufRepository], None],
    after: tuple[int, int, int, int],
    hashes: bool,
) -> None:
    repository.hashes = hashes
    repository.publish("targets")
    assert client.refresh() == 0
    attack(repository)
    assert client.refresh() == 1
    assert trusted(client) == versions(*after)


@pytest.mark.parametrize(
    ("role", "replaced"),
    [
        ("timestamp", ("timestamp",)),
        ("snapshot", ("snapshot", "timestamp")),
        ("targets", ("snapshot",)),
    ],
)
def test_new_keys_heal_a_leap(
    client: Client, repository: TufRepository, role: str, replaced: tuple[str, ...]
) -> None:
    """Who had a key let a version leap; the honest ones are below it ever after."""
    documents: dict[str, Any] = {
        "timestamp": repository.timestamp,
        "snapshot": repository.snapshot,
        "targets": repository.targets,
    }
    found = documents[role]
    found.version = 99_999
    if role != "timestamp":
        repository.timestamp.version += 1
    if role == "targets":
        repository.snapshot.version += 1
    repository.write()
    assert client.refresh() == 0
    found.version = 2
    if role != "timestamp":
        repository.timestamp.version += 1
    if role == "targets":
        repository.snapshot.version += 1
    repository.write()
    assert client.refresh() == 1
    for name in replaced:
        repository.set_keys(name, keys(1))
    repository.publish_root()
    repository.write()
    assert client.refresh() == 0
    assert trusted(client)[role] == 2


# Expiry.


@pytest.mark.parametrize(
    ("role", "after"),
    [
        ("root", (2, 1, 1, 1)),
        ("timestamp", (1, 1, 1, 1)),
        ("snapshot", (1, 2, 1, 1)),
        ("targets", (1, 2, 2, 1)),
    ],
)
def test_what_has_expired_is_not_taken(
    client: Client,
    repository: TufRepository,
    role: str,
    after: tuple[int, int, int, int],
) -> None:
    """A root is kept all the same: the next one may follow it."""
    assert client.refresh() == 0
    documents: dict[str, Any] = {
        "root": repository.root,
        "timestamp": repository.timestamp,
        "snapshot": repository.snapshot,
        "targets": repository.targets,
    }
    documents[role].expires = in_days(-1)
    if role == "root":
        repository.publish_root()
    repository.publish("targets")
    assert client.refresh() == 1
    assert trusted(client) == versions(*after)
    documents[role].expires = in_days(1)
    if role == "root":
        repository.publish_root()
    repository.publish("targets")
    assert client.refresh() == 0


def test_an_expired_root_may_lead_to_the_next(
    client: Client, repository: TufRepository
) -> None:
    for days in (-2, -1, 1):
        repository.root.expires = in_days(days)
        repository.publish_root()
    assert client.refresh() == 0
    assert trusted(client)["root"] == 4


def test_what_a_client_has_may_have_expired_since(
    client: Client, repository: TufRepository
) -> None:
    """Rollback is told by it still, and new metadata replaces it."""
    repository.publish("targets")
    assert client.refresh() == 0
    for role, found in (
        ("timestamp", repository.timestamp),
        ("snapshot", repository.snapshot),
    ):
        expires, found.expires = found.expires, in_days(-3)
        (client.metadata / f"{role}.json").write_bytes(repository.sign(role, found))
        found.expires = expires
    older_timestamp(repository)
    assert client.refresh() == 1
    repository.timestamp.version = 2
    repository.publish("targets")
    assert client.refresh() == 0
    assert trusted(client) == versions(1, 3, 3, 3)
