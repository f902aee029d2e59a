"""What people and updaters do with versions: the rules, inside one transaction.

    staged --activate--> trial --passes--> good       the floor rises here, only here
                           |
                           +--three trials fail, or never end--> bad: back to previous

`active` is what a task is set to, `previous` the good version that it goes back to.
What becomes of a version on trial: trial_changes.py.
"""

import sqlite3
from dataclasses import dataclass

from promptdial.prompts.blob import PromptBlob
from promptdial.prompts.errors import (
    BelowFloor,
    MarkedBad,
    NothingBefore,
    OtherBase,
    StoreFull,
    VersionInUse,
    VersionTaken,
    VersionUnknown,
)
from promptdial.prompts.store.device_rows import add_revoked, base_key
from promptdial.prompts.store.edits import REVOKED, Edits
from promptdial.prompts.store.limits import Limits
from promptdial.prompts.store.rows import (
    BAD,
    GOOD,
    STAGED,
    TRIAL,
    Task,
    Version,
    known_versions,
    versions_of,
)


@dataclass(frozen=True)
class Changes:
    """Changes of one tenant's versions, of which all happen or none.

    Attributes:
        edits: They have a transaction.
    """

    edits: Edits

    def known(self, task: str, version: int, digest: str) -> Version | None:
        """The version where it is there already, with the same content.

        Raises:
            VersionTaken: It is known with other content.
        """
        for item in self._versions(task):
            if item.version == version:
                _require_same(task, version, item.digest, digest)
                return item
        now = self.edits.task(task)
        if now.floor == version:
            _require_same(task, version, now.floor_digest, digest)
        return None

    def add(self, blob: PromptBlob) -> None:
        """Take a new version; what failed here before is bad from the start."""
        meta, failure = blob.meta, self.edits.known_bad(blob.digest)
        self.edits.insert(
            meta.task,
            meta.version,
            blob.digest,
            blob.size,
            STAGED if failure is None else BAD,
            failure or "",
            base_key(meta.base_fingerprint, meta.tokenizer_fingerprint),
        )

    def activate(
        self, task: str, version: int | None, *, allow_below_floor: bool = False
    ) -> Version:
        """Set a task to a version: the rules of `PromptStore.activate`."""
        if version is None:
            version = self._newest(task)
        wanted = self.edits.version(task, version)
        now = self.edits.task(task)
        before = self._last_good(now, version)
        return self._switch(wanted, now, before, "activated", allow_below_floor)

    def rollback(
        self, task: str, version: int | None, *, allow_below_floor: bool = False
    ) -> Version:
        """Set a task back: the rules of `PromptStore.rollback`."""
        known_versions(self.edits.connection, self.edits.tenant, task)
        now = self.edits.task(task)
        if version is None:
            version = now.previous
        if version is None:
            raise NothingBefore(
                f"task {task!r} has no good version before the active one "
                f"({now.active or 'none'})",
                "activate another version",
            )
        wanted = self.edits.version(task, version)
        # Who goes back wants to go back further next time, not forth again.
        before = self.edits.good_before(task, version)
        if wanted.state != GOOD:
            before = self._last_good(now, version)
        return self._switch(wanted, now, before, "rolled_back", allow_below_floor)

    def pin(self, task: str, version: int | None, pinned: bool) -> Version:
        """Pin a version or let it go: the rules of `PromptStore.pin`."""
        if version is None:
            known_versions(self.edits.connection, self.edits.tenant, task)
            version = self.edits.task(task).active
        if version is None:
            raise VersionUnknown(
                f"no version of task {task!r} is active", "say which one"
            )
        found = self.edits.version(task, version)
        self.edits.set_pinned(found, pinned)
        self.edits.log(task, version, "pinned" if pinned else "unpinned")
        return self.edits.version(task, version)

    def remove(self, task: str, version: int | None) -> list[Version]:
        """Forget a version: the rules of `PromptStore.remove`."""
        if version is None:
            gone = known_versions(self.edits.connection, self.edits.tenant, task)
            for item in gone:
                if item.pinned:
                    raise VersionInUse(
                        f"version {item.version} of task {task!r} is pinned",
                        "let it go first: store pin --off",
                    )
            self.edits.point(task, None, None)
        else:
            gone = [self.edits.version(task, version)]
            use = in_use(gone[0])
            if use:
                raise VersionInUse(
                    f"version {version} of task {task!r} is {use}",
                    "activate another one, let it go, or remove the whole task",
                )
        for item in gone:
            self.edits.delete(item)
        return gone

    def revoke(self, beginning: str) -> None:
        """Let no version whose digest begins so be used any more, pinned or not."""
        add_revoked(self.edits.connection, self.edits.tenant, beginning)
        for item in self._versions():
            if item.digest.startswith(beginning) and item.failure != REVOKED:
                self.edits.set_state(item, BAD, REVOKED)
                self.edits.remember_bad(item.digest, REVOKED)
                self.edits.log(item.task, item.version, "revoked")
                self.edits.repoint(item.task)

    def forget_below(self, task: str, version: int) -> None:
        """Forget versions of a task below one that are not in use."""
        for item in self._versions(task):
            if item.version < version and not in_use(item):
                self.edits.delete(item)

    def prune(self, keep: int) -> list[Version]:
        """Forget all but the newest `keep` versions of each task and those in use."""
        by_task: dict[str, list[Version]] = {}
        for item in self._versions():
            by_task.setdefault(item.task, []).append(item)
        gone: list[Version] = []
        for items in by_task.values():
            # Of the newest, one may be installed and about to be activated.
            gone += [item for item in items[:-keep] if not in_use(item)]
        for item in gone:
            self.edits.delete(item)
        return gone

    def _switch(
        self,
        wanted: Version,
        now: Task,
        before: int | None,
        event: str,
        allow_below_floor: bool,
    ) -> Version:
        task, version = wanted.task, wanted.version
        refuse_bad(wanted)
        if version == now.active:
            # Asked for alone, it answers alone.
            self.edits.end_share(task)
            return wanted
        refuse_other_base(self.edits, wanted)
        if now.active is not None and self.edits.version(task, now.active).pinned:
            raise VersionInUse(
                f"task {task!r} is pinned to version {now.active}",
                "let it go first: store pin --off",
            )
        refuse_below_floor(self.edits, wanted, now, allow_below_floor)
        if wanted.state == STAGED:
            self.edits.set_state(wanted, TRIAL)
        if wanted.state == GOOD:
            # It was found good while it answered a share, which raises no floor.
            self.edits.raise_floor(wanted)
        self.edits.point(task, version, before)
        self.edits.log(task, version, event, f"before: {now.active or 'none'}")
        return self.edits.version(task, version)

    def _last_good(self, now: Task, version: int) -> int | None:
        """Where a task goes back to if `version`, which comes next, fails."""
        active, before = now.active, now.previous
        if active is not None and self.edits.version(now.task, active).state == GOOD:
            before = active
        if before == version:
            before = self.edits.good_before(now.task, version)
        return before

    def _newest(self, task: str) -> int:
        found = known_versions(self.edits.connection, self.edits.tenant, task)
        base = self.edits.base()
        usable = [
            item.version
            for item in found
            if item.state != BAD and (not base or item.base == base)
        ]
        return max(usable or [item.version for item in found])

    def _versions(self, task: str | None = None) -> list[Version]:
        return versions_of(self.edits.connection, self.edits.tenant, task)


def require_room(connection: sqlite3.Connection, limits: Limits) -> None:
    """Whether what was taken is within the limits; asked before the commit.

    Raises:
        StoreFull: It is not.
    """
    count, held = connection.execute(
        "SELECT count(*), coalesce(sum(bytes), 0) FROM versions"
    ).fetchone()
    if count > limits.versions:
        raise StoreFull(
            f"with this the store has {count} versions, at most {limits.versions}"
        )
    if held > limits.bytes:
        raise StoreFull(f"with this the store has {held} bytes, at most {limits.bytes}")


def refuse_bad(wanted: Version) -> None:
    """Refuse a version that failed here.

    Raises:
        MarkedBad: It did.
    """
    if wanted.state == BAD:
        raise MarkedBad(
            f"version {wanted.version} of task {wanted.task!r} is marked bad: "
            f"{wanted.failure}"
        )


def refuse_other_base(edits: Edits, wanted: Version) -> None:
    """Refuse a version for another base than the store has; one without takes all.

    Raises:
        OtherBase: It is.
    """
    base = edits.base()
    if base and wanted.base != base:
        raise OtherBase(
            f"version {wanted.version} of task {wanted.task!r} is for base "
            f"{wanted.base or 'unknown'}, the store's is {base}"
        )


def refuse_below_floor(edits: Edits, wanted: Version, now: Task, allowed: bool) -> None:
    """Refuse a version below one that was good here, or log that it is allowed.

    Raises:
        BelowFloor: It is not allowed.
    """
    version, task = wanted.version, wanted.task
    if version >= now.floor:
        return
    if not allowed:
        raise BelowFloor(
            f"version {version} of task {task!r}, at least {now.floor}: that one was "
            "good on this device"
        )
    edits.log(task, version, "below_floor", f"the floor is {now.floor}")


def in_use(version: Version) -> str:
    """Why a version must stay, in a word; "" where it may go."""
    if version.active:
        return "active"
    if version.share:
        return "sharing"
    if version.previous:
        return "previous"
    return "pinned" if version.pinned else ""


def _require_same(task: str, version: int, known: str, digest: str) -> None:
    if known != digest:
        raise VersionTaken(
            f"version {version} of task {task!r} is known as {known}, this one is "
            f"{digest}"
        )
