"""The attacks on updates, as a table: each is arranged on a world that stands ready.

The device has version 2 of `colour`; the repository shows version 3, and what it showed
at 1 and 2 lies in `history/`. Numbers are those of the project's list of bad inputs.
"""

import gzip
import itertools
import json
import shutil
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.metadata import MetaFile, TargetFile
from update_server import SEND_BUFFER, Reply, head_of
from update_world import HASTE, OTHER_BASE, World, blob_file, days_ago

from promptdial.prompts.updates.device.dial import RECEIVE_BUFFER
from promptdial.prompts.updates.device.limits import DEFAULT_LIMITS, Limits
from promptdial.prompts.updates.publishing.roles import (
    init_repository,
    refresh,
    rotate,
)
from promptdial.prompts.updates.publishing.settings import Signers

Arrange = Callable[[World], None]
NAME = "prompts/colour~aaaaaaaa.safetensors"
TIMESTAMP = "/metadata/timestamp.json"
UNREAD = 2 * RECEIVE_BUFFER + 2 * SEND_BUFFER
"""Bytes that a server can have sent and the device has not read."""


@dataclass(frozen=True)
class Attack:
    """One attack and what must come of it.

    Attributes:
        name: What is done.
        number: Of the list of bad inputs.
        code: Of the refusal.
        arrange: Mounts it.
        says: Parts of the message.
        most_bytes: That the server's side may have sent: what the device reads, and
            for an answer without end what lies in both buffers when it hangs up.
        limits: Of the update; short ones where the attack is to take time.
    """

    name: str
    number: int
    code: str
    arrange: Arrange
    says: tuple[str, ...] = ()
    most_bytes: int = 20_000
    limits: Limits = DEFAULT_LIMITS


def show(version: int, *files: str) -> Arrange:
    """Show what the repository showed at a version: all files, or some."""

    def arrange(world: World) -> None:
        old = world.folder / "history" / str(version) / "metadata"
        if not files:
            shutil.rmtree(world.metadata)
            shutil.copytree(old, world.metadata)
        for file in files:
            shutil.copy(old / file, world.metadata / file)

    return arrange


def answer(path: str, reply: Callable[[World], Reply]) -> Arrange:
    """Lie about paths that begin so."""

    def arrange(world: World) -> None:
        def lie(asked: str, headers: Mapping[str, str]) -> Reply | None:
            del headers
            return reply(world) if asked.startswith(path) else None

        world.server.lie = lie

    return arrange


def plain(status: int, body: bytes, **extra: str) -> Callable[[World], Reply]:
    """An answer of a status and a body."""
    head = head_of(
        status, len(body), {k.replace("_", "-"): v for k, v in extra.items()}
    )
    return lambda world: lambda to: world.server.send(to, head + body)


def silent(world: World) -> Reply:
    del world
    return lambda to: time.sleep(6)


def reset(after: bytes) -> Callable[[World], Reply]:
    """Send something, then break the connection hard."""

    def make(world: World) -> Reply:
        def reply(to: socket.socket) -> None:
            if after:
                world.server.send(to, after)
                time.sleep(0.05)
            to.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

        return reply

    return make


def pieces(head: bytes, piece: bytes, pause: float) -> Callable[[World], Reply]:
    """The same piece for ever: an endless body, or one that drips."""

    def make(world: World) -> Reply:
        def reply(to: socket.socket) -> None:
            world.server.send(to, head)
            for _ in itertools.count():
                world.server.send(to, piece)
                time.sleep(pause)

        return reply

    return make


def endless(length: int = 10**9) -> Callable[[World], Reply]:
    return pieces(head_of(200, length), b"a" * 4096, 0)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
DRIP = pieces(head_of(200, 40_000), b" ", 0.2)


def edited(role: str, change: Callable[[Any], None], stolen: str = "") -> Arrange:
    """Change the current file of a role; sign with stolen keys, or not at all."""
    return lambda world: world.edit(world.current(role), change, stolen)


def signatures(role: str, change: Callable[[bytes], bytes]) -> Arrange:
    """Change the bytes of the current file of a role."""

    def arrange(world: World) -> None:
        path = world.metadata / world.current(role)
        path.write_bytes(change(path.read_bytes()))

    return arrange


def targets_like(change: Callable[[World, Any], None]) -> Arrange:
    """With the keys of targets, snapshot and timestamp: any list of targets."""

    def arrange(world: World) -> None:
        role = world.current("targets")
        number = int(role.partition(".")[0]) + 1
        bump = f"{number}.targets.json"

        def edit(targets: Any) -> None:
            targets.version = number
            change(world, targets)

        world.edit(role, edit, "targets", to=bump)
        snapshot_like(lambda s: s.meta.update({"targets.json": MetaFile(number)}))(
            world
        )

    return arrange


def snapshot_like(change: Callable[[Any], None]) -> Arrange:
    """With the keys of snapshot and timestamp: any snapshot."""

    def arrange(world: World) -> None:
        role = world.current("snapshot")
        number = int(role.partition(".")[0]) + 1

        def edit(snapshot: Any) -> None:
            snapshot.version = number
            change(snapshot)

        world.edit(role, edit, "snapshot", to=f"{number}.snapshot.json")

        def stamp(timestamp: Any) -> None:
            timestamp.version += 1
            timestamp.snapshot_meta = MetaFile(number)

        world.edit("timestamp.json", stamp, "timestamp")

    return arrange


def stamped(change: Callable[[Any], None]) -> Arrange:
    """With the key of timestamp: any timestamp."""
    return lambda world: world.edit("timestamp.json", change, "timestamp")


def content(change: Callable[[bytes], bytes]) -> Arrange:
    """Change what the newest blob holds; its signed digest stays."""

    def arrange(world: World) -> None:
        for path in (world.targets / "prompts").glob("*.safetensors"):
            path.write_bytes(change(path.read_bytes()))

    return arrange


def signed_content(make: Callable[[World], bytes], version: int = 4) -> Arrange:
    """With the keys of targets: any content as the next version."""

    def change(world: World, targets: Any) -> None:
        data = make(world)
        target = TargetFile.from_data(NAME, data, ["sha256"])
        old = targets.targets[NAME].unrecognized_fields["custom"]
        target.unrecognized_fields["custom"] = {**old, "version": version}
        targets.targets[NAME] = target
        digest = target.hashes["sha256"]
        (world.targets / "prompts" / f"{digest}.{NAME[8:]}").write_bytes(data)

    return targets_like(change)


def custom(**fields: Any) -> Arrange:
    """With the keys of targets: other custom fields."""

    def change(world: World, targets: Any) -> None:
        del world
        targets.targets[NAME].unrecognized_fields["custom"].update(fields)

    return targets_like(change)


def old_timestamp(timestamp: Any) -> None:
    timestamp.version += 1
    timestamp.snapshot_meta = MetaFile(2)


def old_targets(snapshot: Any) -> None:
    snapshot.meta["targets.json"] = MetaFile(2)


def leap(timestamp: Any) -> None:
    timestamp.version = 2**31


def expired(days: float) -> Arrange:
    def arrange(world: World) -> None:
        with days_ago(days):
            refresh(world.repository)

    return arrange


def foreign(world: World) -> None:
    """Another publisher's repository, right in itself."""
    other = world.folder / "other"
    init_repository(other)
    shutil.rmtree(world.metadata)
    shutil.copytree(other / "public" / "metadata", world.metadata)
    # A root that goes on from where the device is, by the other's keys.
    world.edit(
        "1.root.json", lambda root: setattr(root, "version", 2), to="2.root.json"
    )


def few_root_keys(world: World) -> None:
    rotate(world.repository, "root")
    path = world.metadata / "2.root.json"

    def keep_one(data: bytes) -> bytes:
        body = json.loads(data)
        body["signatures"] = body["signatures"][:1]
        return json.dumps(body).encode()

    path.write_bytes(keep_one(path.read_bytes()))


def skipping_root(world: World) -> None:
    rotate(world.repository, "root")
    rotate(world.repository, "root")
    shutil.copy(world.metadata / "3.root.json", world.metadata / "2.root.json")


def revoked_key(world: World) -> None:
    """The targets' key is replaced; who stole the old one goes on signing."""
    old = list(world.repository.keys.glob("targets-*.pem"))
    rotate(world.repository, "targets")
    for path in world.repository.keys.glob("targets-*.pem"):
        path.rename(path.with_suffix(".new"))
    for path in old:
        (world.repository.keys / "retired" / path.name).rename(path)
    targets_like(lambda world, targets: None)(world)


def duplicated(data: bytes) -> bytes:
    body = json.loads(data)
    body["signatures"] *= 2
    return json.dumps(body).encode()


def unsigned(data: bytes) -> bytes:
    body = json.loads(data)
    body["signatures"] = []
    return json.dumps(body).encode()


def broken_signature(data: bytes) -> bytes:
    body = json.loads(data)
    text = body["signatures"][0]["sig"]
    body["signatures"][0]["sig"] = ("0" if text[0] != "0" else "1") + text[1:]
    return json.dumps(body).encode()


def injected(world: World, targets: Any) -> None:
    """An entry more; nobody signed it."""
    del world
    targets.targets["prompts/evil~aaaaaaaa.safetensors"] = targets.targets[NAME]


def unsigned_injection(world: World) -> None:
    world.edit(world.current("targets"), lambda found: injected(world, found))


def renamed(role: str) -> Arrange:
    """Mix and match: the file of before under the name of the newest."""

    def arrange(world: World) -> None:
        shutil.copy(
            world.metadata / f"3.{role}.json", world.metadata / f"4.{role}.json"
        )

    return arrange


def wiped(world: World) -> None:
    """A factory reset of the metadata, then the repository of version 1."""
    shutil.rmtree(world.device.metadata_folder)
    show(1)(world)


def put_root(world: World, data: bytes) -> None:
    """Another root of trust on the device, where the file is read-only."""
    path = world.folder / "device" / "root.json"
    path.unlink()
    path.write_bytes(data)


def garbage_root(world: World) -> None:
    put_root(world, b"{}")


def stolen_root_files(world: World) -> None:
    """The device was set up with another publisher's root."""
    other = world.folder / "other"
    init_repository(other)
    shutil.rmtree(world.device.metadata_folder)
    put_root(world, (other / "public" / "metadata" / "1.root.json").read_bytes())


def wrong_range(world: World) -> None:
    """A file half here, and a server that sends from another place."""
    half_here(world, b"")

    def lie(asked: str, headers: Mapping[str, str]) -> Reply | None:
        if "range" not in headers:
            return None
        head = head_of(206, 100, {"Content-Range": "bytes 7-106/1348"})
        return lambda to: world.server.send(to, head + b"a" * 100)

    world.server.lie = lie


def half_here(world: World, begin: bytes) -> None:
    paths = (world.targets / "prompts").glob("*.safetensors")
    newest = max(paths, key=lambda path: path.stat().st_mtime_ns)
    data = newest.read_bytes()
    staging = world.device.staging_folder
    staging.mkdir(parents=True, exist_ok=True)
    part = begin + data[len(begin) : 600]
    (staging / f"{newest.name.partition('.')[0]}.part").write_bytes(part)


def poisoned_part_and_server(world: World) -> None:
    """A wrong part, and a server whose every answer about it is wrong too."""
    half_here(world, b"evil")
    content(lambda data: b"evil" + data[4:])(world)


def bomb(size: int) -> bytes:
    return gzip.compress(b" " * size, 9, mtime=0)


def gone(world: World) -> None:
    world.server.close()


def redirect(world: World) -> Reply:
    head = head_of(302, 0, {"Location": f"{world.server.url}/metadata/again.json"})
    return lambda to: world.server.send(to, head)


def too_many_roots(world: World) -> None:
    for _ in range(5):
        rotate(world.repository, "root")
    answer("/metadata/", endless())(world)


def other_base(world: World) -> bytes:
    return blob_file(world.folder / "b", "colour", 4, base=OTHER_BASE).read_bytes()


def other_version(world: World) -> bytes:
    return blob_file(world.folder / "b", "colour", 9).read_bytes()


def other_task(world: World) -> bytes:
    return blob_file(world.folder / "b", "taste", 4).read_bytes()


def same_version(world: World) -> bytes:
    return blob_file(world.folder / "b", "colour", 2, seed=77).read_bytes()


def publish_below(world: World) -> None:
    """Stolen targets key: the prompt's own version goes down."""
    signed_content(
        lambda w: blob_file(w.folder / "b", "colour", 1).read_bytes(), version=1
    )(world)


def body_shorter(world: World) -> Reply:
    return lambda to: world.server.send(to, head_of(200, 1348) + b"a" * 700)


HTML = b"<!DOCTYPE html><html><body>Welcome to our hotel. Please log in.</body></html>"
PORTAL = plain(200, HTML, Content_Type="text/html")

ATTACKS = (
    # Rollback, freeze, mix-and-match.
    Attack("whole repository of before", 29, "ROLLBACK", show(1)),
    Attack("timestamp of before", 29, "ROLLBACK", show(1, "timestamp.json")),
    Attack(
        "stolen timestamp key, old snapshot", 29, "ROLLBACK", stamped(old_timestamp)
    ),
    Attack(
        "stolen timestamp and snapshot keys, old targets",
        29,
        "ROLLBACK",
        snapshot_like(old_targets),
    ),
    Attack("stolen targets key, older prompt", 29, "ROLLBACK", publish_below),
    Attack("metadata wiped, old repository", 29, "ROLLBACK", wiped, ("had 2",)),
    Attack(
        "stolen timestamp key, version leaps",
        30,
        "ROLLBACK",
        stamped(leap),
        ("rotate",),
    ),
    Attack("freeze for two days", 28, "STALE", expired(2), ("last good check: 2",)),
    Attack("freeze for a year", 28, "STALE", expired(400), ("expired",)),
    Attack("old snapshot under its new name", 27, "UNTRUSTED", renamed("snapshot")),
    Attack("old targets under their new name", 29, "ROLLBACK", renamed("targets")),
    # Too much, too slow.
    Attack(
        "endless target",
        33,
        "TOO_BIG",
        answer("/targets/", endless()),
        most_bytes=UNREAD + 20_000,
    ),
    Attack(
        "endless timestamp",
        33,
        "TOO_BIG",
        answer(TIMESTAMP, endless()),
        most_bytes=UNREAD + DEFAULT_LIMITS.timestamp_bytes + 20_000,
    ),
    Attack(
        "endless root",
        33,
        "TOO_BIG",
        answer("/metadata/2.root", endless()),
        most_bytes=UNREAD + DEFAULT_LIMITS.root_bytes + 20_000,
    ),
    Attack(
        "endless snapshot",
        33,
        "TOO_BIG",
        answer("/metadata/4.snap", endless()),
        most_bytes=UNREAD + 20_000,
    ),
    Attack(
        "endless list of targets",
        33,
        "TOO_BIG",
        answer("/metadata/4.targ", endless()),
        most_bytes=UNREAD + DEFAULT_LIMITS.list_bytes + 20_000,
    ),
    Attack(
        "endless body without a length",
        33,
        "TOO_BIG",
        answer(TIMESTAMP, pieces(CHUNKED, b"1000\r\n" + b"a" * 4096 + b"\r\n", 0)),
        most_bytes=UNREAD + DEFAULT_LIMITS.timestamp_bytes + 20_000,
    ),
    Attack(
        "endless headers",
        32,
        "OFFLINE",
        answer(
            TIMESTAMP,
            pieces(b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"a" * 4000 + b"\r\n", 0),
        ),
        # Of 100 headers, twice.
        most_bytes=2 * (UNREAD + 100 * 4_006) + 20_000,
    ),
    Attack(
        "endless interim answers",
        33,
        "TOO_BIG",
        answer(TIMESTAMP, pieces(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100, 0)),
        most_bytes=UNREAD + DEFAULT_LIMITS.metadata_bytes + 20_000,
    ),
    Attack(
        "50 MB gzip bomb as a target",
        33,
        "TOO_BIG",
        answer("/targets/", plain(200, bomb(50_000_000), Content_Encoding="gzip")),
        most_bytes=UNREAD + 20_000,
    ),
    Attack(
        "gzip bomb as a timestamp",
        31,
        "NOT_A_REPOSITORY",
        answer(TIMESTAMP, plain(200, bomb(10_000_000), Content_Encoding="gzip")),
    ),
    Attack("body drips", 33, "TOO_SLOW", answer("/targets/", DRIP), limits=HASTE),
    Attack("metadata drips", 33, "TOO_SLOW", answer(TIMESTAMP, DRIP), limits=HASTE),
    Attack(
        "headers drip",
        33,
        "TOO_SLOW",
        answer(TIMESTAMP, pieces(b"", b"H", 0.2)),
        limits=HASTE,
    ),
    Attack("silence", 33, "TOO_SLOW", answer(TIMESTAMP, silent), limits=HASTE),
    # Content.
    Attack(
        "a bit of the blob flipped",
        27,
        "UNTRUSTED",
        content(lambda d: d[:-1] + bytes([d[-1] ^ 1])),
    ),
    Attack("blob cut short", 32, "OFFLINE", content(lambda d: d[:-100])),
    Attack("blob empty", 32, "OFFLINE", content(lambda d: b"")),
    Attack("blob longer", 33, "TOO_BIG", content(lambda d: d + b"more")),
    Attack(
        "another blob in its place", 27, "UNTRUSTED", content(lambda d: bytes(len(d)))
    ),
    Attack(
        "wrong part kept, server wrong as well",
        27,
        "UNTRUSTED",
        poisoned_part_and_server,
    ),
    Attack("range of another place", 32, "OFFLINE", wrong_range),
    # No repository at all.
    Attack("captive portal", 31, "NOT_A_REPOSITORY", answer("/", PORTAL), ("--url",)),
    Attack(
        "captive portal for the timestamp",
        31,
        "NOT_A_REPOSITORY",
        answer(TIMESTAMP, PORTAL),
    ),
    Attack("not JSON", 31, "NOT_A_REPOSITORY", answer(TIMESTAMP, plain(200, b"nope"))),
    Attack(
        "an empty list", 31, "NOT_A_REPOSITORY", answer(TIMESTAMP, plain(200, b"[]"))
    ),
    Attack(
        "16,000 brackets",
        31,
        "NOT_A_REPOSITORY",
        answer(TIMESTAMP, plain(200, b"[" * 16_000)),
        most_bytes=UNREAD + 20_000,
    ),
    Attack("nothing", 31, "NOT_A_REPOSITORY", answer(TIMESTAMP, plain(200, b""))),
    # No answer.
    Attack("404", 32, "OFFLINE", answer("/", plain(404, b"")), ("go on serving",)),
    Attack("404 for the blob", 32, "OFFLINE", answer("/targets/", plain(404, b""))),
    Attack("500", 32, "OFFLINE", answer("/", plain(500, b"")), ("500",)),
    Attack("503", 32, "OFFLINE", answer(TIMESTAMP, plain(503, b"")), ("503",)),
    Attack("connection refused", 32, "OFFLINE", gone),
    Attack("reset before an answer", 32, "OFFLINE", answer("/", reset(b""))),
    Attack(
        "reset in the blob",
        32,
        "OFFLINE",
        answer("/targets/", reset(head_of(200, 1348) + b"a" * 600)),
    ),
    Attack(
        "reset in metadata",
        32,
        "OFFLINE",
        answer(TIMESTAMP, reset(head_of(200, 500) + b"{")),
    ),
    Attack("closed in the blob", 32, "OFFLINE", answer("/targets/", body_shorter)),
    Attack("redirects for ever", 32, "OFFLINE", answer("/metadata/", redirect)),
    # Signatures and roots.
    Attack(
        "broken signature", 27, "UNTRUSTED", signatures("timestamp", broken_signature)
    ),
    Attack("no signature", 27, "UNTRUSTED", signatures("targets", unsigned)),
    Attack("signature twice", 27, "UNTRUSTED", signatures("timestamp", duplicated)),
    Attack(
        "signed by another role's key",
        27,
        "UNTRUSTED",
        edited("timestamp", lambda t: None, "snapshot"),
    ),
    Attack("an injected target", 27, "UNTRUSTED", unsigned_injection),
    Attack(
        "specification 9",
        27,
        "UNTRUSTED",
        stamped(lambda t: setattr(t, "spec_version", "9.0.0")),
    ),
    Attack("root of one key of three", 27, "UNTRUSTED", few_root_keys),
    Attack("root that skips a version", 27, "UNTRUSTED", skipping_root),
    Attack("revoked targets key", 27, "UNTRUSTED", revoked_key),
    Attack("another publisher's repository", 35, "UNTRUSTED", foreign),
    Attack(
        "another publisher's root on the device", 35, "UNTRUSTED", stolen_root_files
    ),
    Attack("garbage for a root on the device", 35, "UNTRUSTED", garbage_root),
    Attack(
        "five roots, then endless data",
        33,
        "TOO_BIG",
        too_many_roots,
        most_bytes=UNREAD + DEFAULT_LIMITS.root_bytes + 20_000,
    ),
    # Signed, and wrong all the same.
    Attack(
        "signed, same version with other content",
        27,
        "UNTRUSTED",
        signed_content(same_version, 2),
    ),
    Attack(
        "signed, no blob", 27, "BLOB_INVALID", signed_content(lambda w: b"pickle" * 9)
    ),
    Attack("signed, blob of another base", 27, "UNTRUSTED", signed_content(other_base)),
    Attack(
        "signed, blob of another version",
        27,
        "UNTRUSTED",
        signed_content(other_version),
    ),
    Attack("signed, blob of another task", 27, "UNTRUSTED", signed_content(other_task)),
    Attack("signed, 200 KB", 33, "TOO_BIG", signed_content(lambda w: bytes(200_000))),
    Attack("signed, version of text", 27, "UNTRUSTED", custom(version="7")),
    Attack(
        "signed, fingerprint of a path",
        27,
        "UNTRUSTED",
        custom(tokenizer="../../x/"),
    ),
)


def history_of(world: World, version: int) -> Path:
    return world.folder / "history" / str(version)


def make_template(world: World) -> None:
    """Build what every attack begins with."""
    init_repository(world.folder / "repository", {"root": Signers(2, 3)})
    for version in (1, 2, 3):
        world.publish(version=version)
        shutil.copytree(
            world.folder / "repository" / "public", history_of(world, version)
        )
        if version == 1:
            world.set_up_device()
        if version < 3:
            world.update()
