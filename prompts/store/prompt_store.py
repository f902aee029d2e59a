"""The store of prompts on a device: versions, trials, tenants; a source for engines."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from promptdial.prompts.blob import PromptBlob, decode, encode
from promptdial.prompts.errors import (
    PromptError,
    TaskNotFound,
    UsageError,
)
from promptdial.prompts.store.blobs import BlobFiles
from promptdial.prompts.store.changes import Changes, require_room
from promptdial.prompts.store.collecting import collect
from promptdial.prompts.store.counters import Counters
from promptdial.prompts.store.device_rows import Device, device_of
from promptdial.prompts.store.edits import Edits
from promptdial.prompts.store.figures import Figures
from promptdial.prompts.store.index import Index
from promptdial.prompts.store.layout import Layout, require_store, sweep
from promptdial.prompts.store.limits import Limits
from promptdial.prompts.store.making import limits_of
from promptdial.prompts.store.rows import (
    Event,
    Task,
    Version,
    active_tasks,
    events_of,
    tasks_of,
    version_of,
    versions_of,
)
from promptdial.prompts.store.serving import Served, Serving
from promptdial.prompts.store.share_changes import (
    begin_share,
    end_share,
    refuse_unlike,
)
from promptdial.prompts.store.trials import StoreTrials, blob_gone
from promptdial.prompts.tenants import check_tenant

DEFAULT_TENANT = ""


@dataclass(frozen=True)
class Collected:
    """What the garbage collector took away.

    Attributes:
        versions: Versions that were forgotten.
        blobs: Files that no version named.
        bytes: Their bytes.
    """

    versions: tuple[Version, ...]
    blobs: int
    bytes: int


class PromptStore(StoreTrials):
    """One tenant's view of a store; a PromptSource that an Engine reads live.

    A change is seen by the next request, in every process that has the store open, and
    is on the disk when the call returns. Safe to share among threads; a forked child
    may go on using it. The folder itself must not be replaced by another one.

    Attributes:
        path: Its folder.
        tenant: Whose tasks it shows.
        figures: What was counted of answers: comparisons of two versions, and shifts.
    """

    def __init__(
        self, path: str | os.PathLike[str], tenant: str = DEFAULT_TENANT
    ) -> None:
        """Open a store that is there; what a crash left in staging is taken away.

        Args:
            path: Its folder.
            tenant: Whose tasks to see; "" for the default tenant.

        Raises:
            StoreInvalid: There is none, or its index is damaged.
            StoreTooNew: A newer promptdial wrote it.
            StoreReadOnly: It is of an older format and cannot be written.
            UsageError: No tenant can have that name.
        """
        layout = require_store(Path(path))
        sweep(layout)
        counters = Counters(layout.counters)
        self._take(layout, Index(layout), BlobFiles(layout), counters, tenant)

    def _take(
        self,
        layout: Layout,
        index: Index,
        blobs: BlobFiles,
        counters: Counters,
        tenant: str,
    ) -> None:
        if tenant:
            check_tenant(tenant)
        self.path = layout.root
        self.tenant = tenant
        self._layout, self._index, self._blobs = layout, index, blobs
        self._counters = counters
        self._serving = Serving(index, blobs, tenant)
        self.figures = Figures(index, self._serving, counters, tenant)
        StoreTrials.__init__(self, layout, index, self._serving, tenant)

    def for_tenant(self, tenant: str) -> "PromptStore":
        """The same store as another tenant sees it.

        Raises:
            UsageError: No tenant can have that name.
        """
        other = PromptStore.__new__(PromptStore)
        other._take(self._layout, self._index, self._blobs, self._counters, tenant)
        return other

    # What an engine asks.

    def get(self, task: str) -> PromptBlob:
        """The good blob of the active version; where none ever was, the one on trial.

        Raises:
            TaskNotFound: The tenant has no version of it that is active.
            PromptError: The blob cannot be read, or every version failed here.
        """
        good, on_trial = self._serving.served(task)
        if good is not None:
            return good
        assert on_trial is not None
        return self.trial_blob(on_trial)

    def list(self) -> list[str]:
        """Names of the tasks that are active, sorted.

        Raises:
            StoreError, FileFailed: The index cannot be read.
        """
        with self._index.reading() as connection:
            return active_tasks(connection, self.tenant)

    def count(
        self,
        task: str,
        version: int,
        confidence: float | None,
        tokens: int,
        milliseconds: float | None,
        abstained: bool,
    ) -> None:
        """Count an answer: in memory, written later by another thread. Never fails.

        Args:
            task: The task.
            version: The version that answered.
            confidence: How sure it was, 0 to 1; None where the kind does not say.
            tokens: Length of the input.
            milliseconds: How long it took; None where that is not its own.
            abstained: Whether the answer was none.
        """
        self.figures.count(task, version, confidence, tokens, milliseconds, abstained)

    def report(self, task: str, digest: str, event: str) -> None:
        """Nothing: a commit takes milliseconds, and trials report by `end_trial`."""

    def serving(self, task: str, unit: str | None = None) -> Served:
        """The good blob that answers a request, and the digest of the one on trial.

        Either may be None, not both. Asked at every request: microseconds.

        Args:
            task: The task.
            unit: Of two versions that share the task, whoever has this unit gets the
                same one each time, on every device; None for either by chance.

        Raises:
            PromptError: As `get`.
        """
        return self._serving.drawn(task, unit)

    # What people and updaters do.

    def install(self, blob: PromptBlob | bytes) -> Version:
        """Take a blob; nothing is served from it until it is activated.

        Taken already, with the same content, it is written anew: what a disk damaged is
        whole again.

        Raises:
            PromptError: It breaks the format.
            VersionTaken: Its version is known with other content.
            StoreFull: The store's limits leave no room.
            NoSpace: The disk has less than twice its bytes; nothing is written then.
            StoreError, FileFailed: It cannot be written.
        """
        if isinstance(blob, PromptBlob):
            data = encode(blob.meta, blob.tensors)
        else:
            data = bytes(blob)
        # Either way as a reader will find it.
        made = decode(data)
        task, version = made.meta.task, made.meta.version
        with self._index.reading() as connection:
            Changes(Edits(connection, self.tenant)).known(task, version, made.digest)
        with self._blobs.staged(data) as staged, self._index.writing() as connection:
            changes = Changes(Edits(connection, self.tenant))
            if changes.known(task, version, made.digest) is None:
                changes.add(made)
                require_room(connection, limits_of(connection))
            self._blobs.place({made.digest: staged})
            found = version_of(connection, self.tenant, task, version)
        return found

    def activate(
        self,
        task: str,
        version: int | None = None,
        *,
        allow_below_floor: bool = False,
    ) -> Version:
        """Set a task to a version; one that was never good is on trial first.

        Args:
            task: The task.
            version: None for the newest that is not bad.
            allow_below_floor: Let it be older than one that was good; it is logged.

        Raises:
            TaskNotFound, VersionUnknown: There is none.
            MarkedBad: It failed here.
            BelowFloor: It is older than one that was good here.
            VersionInUse: The active version is pinned.
            OtherBase: It is for another base than the store's.
            PromptError: The blob cannot be read.
            StoreError, NoSpace, FileFailed: It cannot be written.
        """
        with self._index.writing() as connection:
            found = Changes(Edits(connection, self.tenant)).activate(
                task, version, allow_below_floor=allow_below_floor
            )
            self._require_blob(found.digest)
        return found

    def rollback(
        self,
        task: str,
        version: int | None = None,
        *,
        allow_below_floor: bool = False,
    ) -> Version:
        """Set a task back to an earlier version.

        Args:
            task: The task.
            version: None for the good one before the active.
            allow_below_floor: Let it be older than one that was good; it is logged.

        Raises:
            NothingBefore: There is no earlier good version.
            PromptError: As `activate`.
        """
        with self._index.writing() as connection:
            found = Changes(Edits(connection, self.tenant)).rollback(
                task, version, allow_below_floor=allow_below_floor
            )
            self._require_blob(found.digest)
        return found

    def share(
        self,
        task: str,
        version: int,
        percent: int,
        *,
        allow_below_floor: bool = False,
    ) -> Version:
        """Let a version answer a share of a task's requests beside the active one.

        One that was never good is on trial first. It ends with any other activation, a
        rollback, or a challenger that goes bad: the active version then answers alone.

        Args:
            task: The task.
            version: The challenger, of the same kind as the active one.
            percent: 1 to 99; 0 ends it.
            allow_below_floor: Let it be older than one that was good; it is logged.

        Raises:
            TaskNotFound, VersionUnknown: There is none.
            MarkedBad: It failed here.
            VersionInUse: It is the active one.
            NothingBefore: No good version is active.
            BelowFloor: It is older than one that was good here.
            UsageError: The percentage is out of range, there is no share to end, or the
                two cannot be compared.
            PromptError: A blob cannot be read.
            StoreError, NoSpace, FileFailed: It cannot be written.
        """
        with self._index.writing() as connection:
            edits = Edits(connection, self.tenant)
            if not percent:
                return end_share(edits, task, version)
            found = begin_share(
                edits, task, version, percent, allow_below_floor=allow_below_floor
            )
            active = edits.task(task).active
            assert active is not None
            refuse_unlike(
                self._require_blob(edits.version(task, active).digest).meta,
                self._require_blob(found.digest).meta,
            )
        return found

    def pin(
        self, task: str, version: int | None = None, *, pinned: bool = True
    ) -> Version:
        """Keep a version, None for the active one; while active it stays so.

        Raises:
            TaskNotFound, VersionUnknown: There is none.
            StoreError, NoSpace, FileFailed: It cannot be written.
        """
        with self._index.writing() as connection:
            changes = Changes(Edits(connection, self.tenant))
            return changes.pin(task, version, pinned)

    def remove(self, task: str, version: int | None = None) -> Sequence[Version]:
        """Forget a version, None for the whole task; the floor stays.

        Raises:
            TaskNotFound, VersionUnknown: There is none.
            VersionInUse: It is pinned; or it alone is asked for, and it is active,
                previous or answers a share.
            StoreError, NoSpace, FileFailed: It cannot be written.
        """
        with self._index.writing() as connection:
            return Changes(Edits(connection, self.tenant)).remove(task, version)

    def gc(self, keep: int | None = None) -> Collected:
        """Take away the files that no version of any tenant names.

        Args:
            keep: Before that, forget all but so many of the newest versions of each of
                this tenant's tasks; those in use or pinned stay.

        Raises:
            UsageError: `keep` below 1.
            StoreError, NoSpace, FileFailed: It cannot be written.
        """
        pruned: Sequence[Version] = ()
        if keep is not None:
            if keep < 1:
                raise UsageError(f"keep {keep}", "give at least 1")
            with self._index.writing() as connection:
                pruned = Changes(Edits(connection, self.tenant)).prune(keep)
        sweep(self._layout)
        found = Collected(tuple(pruned), *collect(self._index, self._blobs))
        self.figures.forget_the_gone()
        return found

    # What there is.

    def versions(self, task: str | None = None) -> Sequence[Version]:
        """The tenant's versions, of one task or of all, by task and version.

        Raises:
            TaskNotFound: There is no such task.
            StoreError, FileFailed: The index cannot be read.
        """
        with self._index.reading() as connection:
            found = versions_of(connection, self.tenant, task)
        if task is not None and not found:
            raise TaskNotFound(f"no task {task[:64]!r} in the store", "see store list")
        return found

    def tasks(self) -> Sequence[Task]:
        """What is active for each task that ever was, by name.

        Raises:
            StoreError, FileFailed: The index cannot be read.
        """
        with self._index.reading() as connection:
            return tasks_of(connection, self.tenant)

    def events(self, limit: int = 100) -> Sequence[Event]:
        """The newest entries of the log, oldest first.

        Raises:
            StoreError, FileFailed: The index cannot be read.
        """
        with self._index.reading() as connection:
            return events_of(connection, self.tenant, limit)

    def tenants(self) -> Sequence[str]:
        """Every tenant that has versions, sorted; for who runs the device.

        Raises:
            StoreError, FileFailed: The index cannot be read.
        """
        with self._index.reading() as connection:
            rows = connection.execute("SELECT DISTINCT tenant FROM versions")
            return sorted(str(tenant) for (tenant,) in rows.fetchall())

    def damaged(self) -> dict[str, str]:
        """Digests of all tenants whose blob cannot be used, and why; reads them all.

        Raises:
            StoreError, FileFailed: The index cannot be read.
        """
        with self._index.reading() as connection:
            rows = connection.execute("SELECT DISTINCT digest FROM versions")
            digests = sorted(str(digest) for (digest,) in rows.fetchall())
        found = {}
        for digest in digests:
            try:
                self._require_blob(digest)
            except PromptError as error:
                found[digest] = str(error)
        return found

    def device(self) -> Device | None:
        """What it follows, and its base; None where it takes no updates over the air.

        Raises:
            StoreError, FileFailed: The index cannot be read.
        """
        with self._index.reading() as connection:
            return device_of(connection)

    def base_folder(self) -> Path:
        """The bundle that updates brought: what to open an Engine on.

        After an update to another base, the folder of the one before stays until the
        update after it.

        Raises:
            UsageError: Updates brought none.
            StoreError, FileFailed: The index cannot be read.
        """
        device = self.device()
        if device is None or device.base is None or not device.base.digest:
            raise UsageError(
                f"{self.path} has no base of its own",
                "let it follow one: promptdial store init --base-name, then update",
            )
        return self._layout.base(device.base.digest)

    def limits(self) -> Limits:
        """The bounds of the store.

        Raises:
            StoreError, FileFailed: The index cannot be read.
        """
        with self._index.reading() as connection:
            return limits_of(connection)

    def close(self) -> None:
        """Let go of the index and of trials, and write what was counted.

        A later call opens the index again.
        """
        self._trials.release_all()
        self._index.close()
        self._counters.close()

    def _require_blob(self, digest: str) -> PromptBlob:
        """Before what names it is committed: it is on the disk, and whole."""
        try:
            return self._blobs.read(digest)
        except FileNotFoundError:
            raise blob_gone(digest) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
