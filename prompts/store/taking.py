"""What one update changes of a store, inside one transaction: all of it or nothing."""

import sqlite3
from collections.abc import Mapping
from dataclasses import replace

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.errors import OtherBase
from promptdial.prompts.store.changes import Changes, require_room
from promptdial.prompts.store.device_rows import (
    Device,
    key_in_use,
    put_base_files,
    put_device,
)
from promptdial.prompts.store.edits import Edits
from promptdial.prompts.store.limits import Limits
from promptdial.prompts.updates.receiver import BundleActivation, Change


def take(
    connection: sqlite3.Connection,
    device: Device,
    change: Change,
    blobs: Mapping[str, PromptBlob],
    limits: Limits,
) -> None:
    """Make a change true.

    Args:
        connection: It has begun a transaction.
        device: As it is now.
        change: What changes.
        blobs: Of the prompts that go into use, by digest.
        limits: The store's.

    Raises:
        VersionTaken, MarkedBad, BelowFloor, VersionInUse: What the store holds does
            not let a prompt go into use.
        OtherBase: A prompt in use would be for another base.
        StoreFull: The limits leave no room.
    """
    for tenant, beginning in sorted(change.revoked):
        Changes(Edits(connection, tenant)).revoke(beginning)
    if change.bundle is not None:
        device = replace(device, base=change.bundle.base)
    put_device(
        connection,
        replace(
            device,
            time_floor=max(device.time_floor, change.time_floor),
            last_check=change.checked,
        ),
    )
    if change.bundle is not None:
        _take_base(connection, change.bundle)
    for item in change.prompts:
        changes = Changes(Edits(connection, item.tenant))
        if changes.known(item.task, item.version, item.digest) is None:
            changes.add(blobs[item.digest])
        changes.activate(item.task, item.version)
        # Nobody is there to tidy up: one version to go back to is enough.
        changes.forget_below(item.task, item.version)
    if change.prompts:
        require_room(connection, limits)
    if change.prompts or change.bundle is not None:
        require_base(connection)


def _take_base(connection: sqlite3.Connection, bundle: BundleActivation) -> None:
    """Set the base, and let go of the prompts of another one."""
    put_base_files(connection, bundle.files)
    tasks = connection.execute("SELECT tenant, task FROM tasks").fetchall()
    for tenant, task in tasks:
        Edits(connection, tenant).repoint(task)
    base = bundle.base
    Edits(connection, "").log(bundle.name, base.version, "base", base.digest)


def require_base(connection: sqlite3.Connection) -> None:
    """Whether every prompt in use is for the base in use; asked before the commit.

    Raises:
        OtherBase: One is not.
    """
    base = key_in_use(connection)
    found = connection.execute(
        "SELECT v.tenant, v.task, v.version, v.base FROM tasks t JOIN versions v "
        "ON v.tenant = t.tenant AND v.task = t.task "
        "LEFT JOIN shares s ON s.tenant = t.tenant AND s.task = t.task "
        "AND s.percent > 0 AND s.challenger = v.version "
        "WHERE (v.version = t.active OR s.challenger IS NOT NULL) "
        "AND ? != '' AND v.base != ?",
        (base, base),
    ).fetchone()
    if found is not None:
        tenant, task, version, other = found
        name = f"{tenant}/{task}" if tenant else task
        raise OtherBase(
            f"version {version} of task {name} is in use, for base "
            f"{other or 'unknown'}; the base is {base}"
        )
