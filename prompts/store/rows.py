"""What a store knows of versions, tasks and what happened to them: plain data."""

import sqlite3
from dataclasses import dataclass
from typing import Any

from promptdial.prompts.errors import TaskNotFound, VersionUnknown

STAGED = "staged"
TRIAL = "trial"
GOOD = "good"
BAD = "bad"


@dataclass(frozen=True)
class Version:
    """One version of a task in a store.

    Attributes:
        task: The task.
        version: Its version.
        digest: The blob's, `sha256:<hex>`.
        bytes: Size of the blob.
        state: `staged` (never active), `trial` (active once, not yet found good),
            `good`, or `bad` (failed its self-test here).
        active: It is the one of its task.
        previous: Where the task goes back to.
        pinned: It is kept, and while it is active no other becomes active.
        share: Percent of the requests that it answers beside the active version; 0
            where it answers none.
        tries: Trials that were begun.
        failure: Why the last trial failed; "" where none did.
        installed: When it came, in seconds since 1970.
        base: The base that it is for: fingerprint, blank, tokenizer's fingerprint; ""
            for one that came before stores kept that.
    """

    task: str
    version: int
    digest: str
    bytes: int
    state: str
    active: bool
    previous: bool
    pinned: bool
    share: int
    tries: int
    failure: str
    installed: float
    base: str


@dataclass(frozen=True)
class Task:
    """What is active for a task.

    Attributes:
        task: Its name.
        active: The version; None where there is none.
        previous: The good version before it; None where there is none.
        floor: The newest version that was ever good here; 0 before the first.
        floor_digest: The digest of that one's blob.
    """

    task: str
    active: int | None
    previous: int | None
    floor: int
    floor_digest: str


@dataclass(frozen=True)
class Share:
    """Two versions of a task that answer side by side, or last did.

    Attributes:
        task: The task.
        incumbent: The version that is active.
        challenger: The version beside it.
        percent: Percent of the requests that the challenger answers; 0 when it is over.
        experiment: What their answers are counted under; a new number for every share.
    """

    task: str
    incumbent: int
    challenger: int
    percent: int
    experiment: int


@dataclass(frozen=True)
class Event:
    """One entry of a store's log.

    Attributes:
        at: Seconds since 1970.
        task: The task.
        version: The version.
        event: What happened: `installed`, `activated`, `below_floor`, ...
        detail: More of it; "" where there is none.
    """

    at: float
    task: str
    version: int
    event: str
    detail: str


_VERSIONS = """
SELECT v.task, v.version, v.digest, v.bytes, v.state, v.version IS t.active,
       v.version IS t.previous, v.pinned, coalesce(s.percent, 0), v.tries, v.failure,
       v.installed, v.base
FROM versions v LEFT JOIN tasks t ON t.tenant = v.tenant AND t.task = v.task
LEFT JOIN shares s
    ON s.tenant = v.tenant AND s.task = v.task AND s.challenger = v.version
WHERE v.tenant = ?
"""


def versions_of(
    connection: sqlite3.Connection, tenant: str, task: str | None = None
) -> list[Version]:
    """A tenant's versions, of one task or of all, by task and version."""
    query, values = _VERSIONS, [tenant]
    if task is not None:
        query, values = f"{query} AND v.task = ?", [tenant, task]
    found = connection.execute(f"{query} ORDER BY v.task, v.version", values)
    return [_version(row) for row in found.fetchall()]


def version_of(
    connection: sqlite3.Connection, tenant: str, task: str, version: int
) -> Version:
    """One version.

    Raises:
        TaskNotFound: The tenant has no such task.
        VersionUnknown: The task has no such version; the message lists what it has.
    """
    query = f"{_VERSIONS} AND v.task = ? AND v.version = ?"
    row = connection.execute(query, (tenant, task, version)).fetchone()
    if row is not None:
        return _version(row)
    there = known_versions(connection, tenant, task)
    shown = ", ".join(str(item.version) for item in there)
    raise VersionUnknown(
        f"task {task!r} has no version {version}; there is {shown}", "choose one"
    )


def known_versions(
    connection: sqlite3.Connection, tenant: str, task: str
) -> list[Version]:
    """The versions of a task that is there.

    Raises:
        TaskNotFound: The tenant has no such task.
    """
    found = versions_of(connection, tenant, task)
    if not found:
        raise TaskNotFound(f"no task {task[:64]!r} in the store", "see store list")
    return found


def task_of(connection: sqlite3.Connection, tenant: str, task: str) -> Task:
    """What is active for a task; nothing is for one that is not known."""
    row = connection.execute(
        "SELECT active, previous, floor, floor_digest FROM tasks "
        "WHERE tenant = ? AND task = ?",
        (tenant, task),
    ).fetchone()
    return Task(task, None, None, 0, "") if row is None else Task(task, *row)


def tasks_of(connection: sqlite3.Connection, tenant: str) -> list[Task]:
    """Every task that was ever activated, by name."""
    rows = connection.execute(
        "SELECT task, active, previous, floor, floor_digest FROM tasks "
        "WHERE tenant = ? ORDER BY task",
        (tenant,),
    )
    return [Task(*row) for row in rows.fetchall()]


def active_tasks(connection: sqlite3.Connection, tenant: str) -> list[str]:
    """Names of the tasks that have an active version, sorted."""
    rows = connection.execute(
        "SELECT task FROM tasks WHERE tenant = ? AND active IS NOT NULL ORDER BY task",
        (tenant,),
    )
    return [task for (task,) in rows.fetchall()]


def share_of(connection: sqlite3.Connection, tenant: str, task: str) -> Share | None:
    """The newest share of a task, which may be over; None where there never was one."""
    row = connection.execute(
        "SELECT incumbent, challenger, percent, experiment FROM shares "
        "WHERE tenant = ? AND task = ?",
        (tenant, task),
    ).fetchone()
    return None if row is None else Share(task, *row)


def events_of(connection: sqlite3.Connection, tenant: str, limit: int) -> list[Event]:
    """The newest entries of the log, oldest first."""
    rows = connection.execute(
        "SELECT at, task, version, event, detail FROM events WHERE tenant = ? "
        "ORDER BY id DESC LIMIT ?",
        (tenant, limit),
    )
    return [Event(*row) for row in reversed(rows.fetchall())]


def _version(row: tuple[Any, ...]) -> Version:
    task, version, digest, size, state, active, previous, *rest = row
    pinned, share, tries, failure, installed, base = rest
    return Version(
        task,
        version,
        digest,
        size,
        state,
        bool(active),
        bool(previous),
        bool(pinned),
        share,
        tries,
        failure,
        installed,
        base,
    )
