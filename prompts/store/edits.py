"""The single steps that changes of a store are made of."""

import sqlite3
import time
from dataclasses import dataclass, replace

from promptdial.prompts.store.device_rows import key_in_use, revoked_of
from promptdial.prompts.store.limits import KEPT_EVENTS
from promptdial.prompts.store.rows import (
    BAD,
    GOOD,
    Share,
    Task,
    Version,
    share_of,
    task_of,
    version_of,
)
from promptdial.prompts.updates.receiver import is_refused

REVOKED = "revoked by its publisher"
"""Failure of a version that may not be used any more."""


@dataclass(frozen=True)
class Edits:
    """Reads and writes one tenant's rows, inside a transaction of the index.

    Attributes:
        connection: It has begun a transaction.
        tenant: The tenant; "" is the default one.
    """

    connection: sqlite3.Connection
    tenant: str

    def version(self, task: str, version: int) -> Version:
        """One version.

        Raises:
            TaskNotFound, VersionUnknown: There is none.
        """
        return version_of(self.connection, self.tenant, task, version)

    def task(self, task: str) -> Task:
        """What is active for a task."""
        return task_of(self.connection, self.tenant, task)

    def base(self) -> str:
        """The base of the store, as `Version.base` names it; "" where it has none."""
        return key_in_use(self.connection)

    def good_before(self, task: str, version: int) -> int | None:
        """The newest good version for the base below a version; None for none."""
        base = self.base()
        (found,) = self.connection.execute(
            "SELECT max(version) FROM versions WHERE tenant = ? AND task = ? "
            "AND version < ? AND state = ? AND (? = '' OR base = ?)",
            (self.tenant, task, version, GOOD, base, base),
        ).fetchone()
        return None if found is None else int(found)

    def repoint(self, task: str) -> None:
        """After versions went bad, or the base changed: set a task to what may serve.

        The active version stays if it may; else it is the good one that the task goes
        back to, or none. A share ends where one of its two versions may not.
        """
        now, base = self.task(task), self.base()

        def fits(version: int) -> bool:
            found = self.version(task, version)
            return found.state != BAD and (not base or found.base == base)

        previous = now.previous
        if previous is not None and not fits(previous):
            previous = self.good_before(task, previous)
        active = now.active
        if active is not None and not fits(active):
            active = previous
            previous = None if active is None else self.good_before(task, active)
        share = self.share(task)
        if share is not None and share.percent and not fits(share.challenger):
            self.end_share(task)
        if (active, previous) != (now.active, now.previous):
            self.point(task, active, previous)

    def point(self, task: str, active: int | None, previous: int | None) -> None:
        """Set what is active for a task, and what it goes back to; a share ends."""
        self.end_share(task)
        self.connection.execute(
            "INSERT INTO tasks (tenant, task, active, previous) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (tenant, task) DO UPDATE SET "
            "active = excluded.active, previous = excluded.previous",
            (self.tenant, task, active, previous),
        )

    def raise_floor(self, version: Version) -> None:
        """Let no version below this one be activated from now on."""
        self.connection.execute(
            "UPDATE tasks SET floor = ?, floor_digest = ? "
            "WHERE tenant = ? AND task = ? AND floor < ?",
            (
                version.version,
                version.digest,
                self.tenant,
                version.task,
                version.version,
            ),
        )

    def share(self, task: str) -> Share | None:
        """The newest share of a task, which may be over."""
        return share_of(self.connection, self.tenant, task)

    def set_share(self, share: Share) -> None:
        """Set who answers beside the active version; it takes the last one's place."""
        self.connection.execute(
            "INSERT OR REPLACE INTO shares "
            "(tenant, task, incumbent, challenger, percent, experiment) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (
                self.tenant,
                share.task,
                share.incumbent,
                share.challenger,
                share.percent,
                share.experiment,
            ),
        )

    def end_share(self, task: str) -> None:
        """Let the active version answer all requests, if it did not."""
        found = self.share(task)
        if found is not None and found.percent:
            self.set_share(replace(found, percent=0))
            self.log(task, found.challenger, "unshared")

    def set_state(self, version: Version, state: str, failure: str = "") -> None:
        """Set what became of a version, and why."""
        self._update(version, "state = ?, failure = ?", state, failure)

    def set_tries(self, version: Version, tries: int) -> None:
        """Set how many trials were begun."""
        self._update(version, "tries = ?", tries)

    def set_pinned(self, version: Version, pinned: bool) -> None:
        """Pin a version or let it go."""
        self._update(version, "pinned = ?", int(pinned))

    def insert(
        self,
        task: str,
        version: int,
        digest: str,
        size: int,
        state: str,
        failure: str,
        base: str,
    ) -> None:
        """Take a new version."""
        self.connection.execute(
            "INSERT INTO versions "
            "(tenant, task, version, digest, bytes, state, failure, installed, base) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self.tenant,
                task,
                version,
                digest,
                size,
                state,
                failure,
                time.time(),
                base,
            ),
        )
        self.log(task, version, "installed", digest)

    def delete(self, version: Version) -> None:
        """Forget a version; its blob goes when garbage is collected."""
        self.connection.execute(
            "DELETE FROM versions WHERE tenant = ? AND task = ? AND version = ?",
            (self.tenant, version.task, version.version),
        )
        self.log(version.task, version.version, "removed")

    def known_bad(self, digest: str) -> str | None:
        """Why a blob may not be used here: it failed, or is revoked; None if it may."""
        found = self.connection.execute(
            "SELECT failure FROM bad WHERE tenant = ? AND digest = ?",
            (self.tenant, digest),
        ).fetchone()
        if found is not None:
            return str(found[0])
        revoked = is_refused(revoked_of(self.connection), self.tenant, digest)
        return REVOKED if revoked else None

    def remember_bad(self, digest: str, failure: str) -> None:
        """Keep a blob's failure, whatever becomes of its version."""
        self.connection.execute(
            "INSERT OR REPLACE INTO bad (tenant, digest, failure) VALUES (?, ?, ?)",
            (self.tenant, digest, failure),
        )

    def log(self, task: str, version: int, event: str, detail: str = "") -> None:
        """Add to the log; its oldest entries leave."""
        self.connection.execute(
            "INSERT INTO events (at, tenant, task, version, event, detail) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            (time.time(), self.tenant, task, version, event, detail),
        )
        self.connection.execute(
            "DELETE FROM events WHERE id <= "
            f"(SELECT max(id) FROM events) - {KEPT_EVENTS}"
        )

    def _update(self, version: Version, assignments: str, *values: str | int) -> None:
        self.connection.execute(
            f"UPDATE versions SET {assignments} "
            "WHERE tenant = ? AND task = ? AND version = ?",
            (*values, self.tenant, version.task, version.version),
        )
