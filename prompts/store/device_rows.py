"""What a store knows of its device: what it follows, its base, what is revoked."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from promptdial.prompts.updates.receiver import BaseState, Following


@dataclass(frozen=True)
class Device:
    """A device that was set up for updates.

    Attributes:
        following: What it wants of the repository.
        base: The base in use; None where it has none yet.
        time_floor: The least time that a clock may show, seconds since 1970.
        last_check: Time of the last check that was noted, seconds since 1970.
    """

    following: Following
    base: BaseState | None = None
    time_floor: int = 0
    last_check: int = 0


def device_of(connection: sqlite3.Connection) -> Device | None:
    """The device; None where the store was not set up for updates."""
    row = connection.execute(
        "SELECT device_id, channel, tenants, tasks, bundle, time_floor, last_check "
        "FROM device"
    ).fetchone()
    if row is None:
        return None
    device_id, channel, tenants, tasks, bundle, time_floor, last_check = row
    following = Following(
        device_id,
        channel,
        tuple(json.loads(tenants)),
        None if tasks is None else frozenset(json.loads(tasks)),
        bundle,
    )
    return Device(following, base_of(connection), time_floor, last_check)


def put_device(connection: sqlite3.Connection, device: Device) -> None:
    """Write everything about the device."""
    following = device.following
    base = device.base or BaseState("", "")
    tasks = following.tasks
    connection.execute(
        "INSERT OR REPLACE INTO device VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            following.device_id,
            following.channel,
            json.dumps(following.tenants),
            None if tasks is None else json.dumps(sorted(tasks)),
            following.bundle,
            base.fingerprint,
            base.tokenizer_fingerprint,
            base.version,
            base.digest,
            device.time_floor,
            device.last_check,
        ),
    )


def base_of(connection: sqlite3.Connection) -> BaseState | None:
    """The base in use; None where there is none, or none is known."""
    row = connection.execute(
        "SELECT fingerprint, tokenizer_fingerprint, base_version, base_digest "
        "FROM device WHERE fingerprint != ''"
    ).fetchone()
    return None if row is None else BaseState(*row)


def base_key(fingerprint: str, tokenizer_fingerprint: str) -> str:
    """What versions for a base have in their column `base`."""
    return f"{fingerprint} {tokenizer_fingerprint}"


def key_in_use(connection: sqlite3.Connection) -> str:
    """The key of the base in use; "" where there is none."""
    base = base_of(connection)
    if base is None:
        return ""
    return base_key(base.fingerprint, base.tokenizer_fingerprint)


def base_files_of(connection: sqlite3.Connection) -> dict[str, str]:
    """Name to digest of the base's files; {} where updates did not bring it."""
    rows = connection.execute("SELECT name, digest FROM base_files ORDER BY name")
    return dict(rows.fetchall())


def put_base_files(connection: sqlite3.Connection, files: Mapping[str, str]) -> None:
    """Take these files for those of the base."""
    connection.execute("DELETE FROM base_files")
    connection.executemany(
        "INSERT INTO base_files (name, digest) VALUES (?, ?)", files.items()
    )


def revoked_of(connection: sqlite3.Connection) -> frozenset[tuple[str, str]]:
    """(tenant, beginning of a digest) of what may not be used any more."""
    rows = connection.execute("SELECT tenant, beginning FROM revoked")
    return frozenset(rows.fetchall())


def add_revoked(connection: sqlite3.Connection, tenant: str, beginning: str) -> None:
    """Let a tenant use nothing whose digest begins so."""
    connection.execute(
        "INSERT OR IGNORE INTO revoked (tenant, beginning) VALUES (?, ?)",
        (tenant, beginning),
    )
