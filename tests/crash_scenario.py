"""What a device does to a store, step by step; under the shim, all of it is recorded.

As a script: `crash_scenario.py ROOT OUT [FLAW]` does every step at ROOT/store and
writes OUT: the recording, and what the store held after each step. With a flaw, the
store leaves something out that it must not.
"""

import os
import pickle
import sqlite3
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from crash_shim import loaded, recorded
from stores import small_blob

from promptdial.prompts.errors import TaskNotFound
from promptdial.prompts.store import PromptStore, blobs, is_store, make_store
from promptdial.prompts.store.index import Index

TENANTS = ("", "t")
Held = tuple[Any, ...]
"""What a store holds, as far as a step may change it."""

NO_STORE: Held = ("no store",)


def held(folder: Path) -> Held:
    """What a store holds; every blob that it names is read and checked.

    Raises:
        PromptdialError, AssertionError: It cannot be opened, or something is missing.
    """
    return held_by(folder, listed)


def held_by(folder: Path, listing: Callable[[PromptStore], Held]) -> Held:
    """What a store holds as a listing has it, once every blob was read and checked.

    Raises:
        PromptdialError, AssertionError: It cannot be opened, or something is missing.
    """
    if not is_store(folder):
        return NO_STORE
    with PromptStore(folder) as store:
        assert store.damaged() == {}, store.damaged()
        for tenant in TENANTS:
            view = store.for_tenant(tenant)
            for task in view.list():
                assert view.get(task).meta.task == task
        with store._index.reading() as connection:
            check = connection.execute("PRAGMA integrity_check").fetchall()
            assert check == [("ok",)], check
        # They may be lost, at most.
        counted = store.figures.counted().get(("a", 1))
        assert counted is None or counted.answers in (0, 1, 2), counted
        return listing(store)


def listed(store: PromptStore) -> Held:
    """What the index of a store says."""
    found: list[Any] = []
    for tenant in TENANTS:
        view = store.for_tenant(tenant)
        for item in view.versions():
            found.append((tenant, *[getattr(item, key) for key in _KEYS]))
        found += [(tenant, task) for task in view.tasks()]
    with store._index.reading() as connection:
        found += connection.execute("SELECT * FROM bad").fetchall()
        found += connection.execute("SELECT * FROM shares").fetchall()
    return tuple(found)


_KEYS = ("task", "version", "digest", "state", "pinned", "tries", "failure")


class Device:
    """The steps, and the store that they are done to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store: PromptStore | None = None

    @property
    def store(self) -> PromptStore:
        if self._store is None:
            self._store = PromptStore(self._folder)
        return self._store

    def install(self, task: str, version: int, tenant: str = "") -> None:
        self.store.for_tenant(tenant).install(small_blob(task, version))

    def activate(self, task: str, version: int, tenant: str = "") -> None:
        self.store.for_tenant(tenant).activate(task, version)

    def on_trial(self, task: str) -> str:
        """The digest of what is on trial, active or answering a share."""
        found = [item for item in self.store.versions(task) if item.state == "trial"]
        (digest,) = [item.digest for item in found if item.active or item.share]
        return digest

    def begins(self, task: str) -> None:
        self.store.begin_trial(task, self.on_trial(task), wait=False)
        self.store._trials.release_all()

    def ends(self, task: str, failure: str) -> None:
        self.store.end_trial(task, self.on_trial(task), failure)

    def counts(self) -> None:
        """An answer, written at once; the index stays as it is."""
        self.store.count("a", 1, 0.5, 7, 1.0, False)
        self.store._counters.flush()

    def checkpoint(self, mode: str) -> None:
        with self.store._index.reading() as connection:
            connection.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()

    def reopen(self) -> None:
        self.store.close()
        self._store = None
        assert self.store.list()

    def steps(self) -> list[Callable[[], object]]:
        """Every step changes the store once, or not at all."""

        def back() -> None:
            self.store.rollback("a", allow_below_floor=True)

        def unknown() -> None:
            try:
                self.store.activate("nope")
            except TaskNotFound:
                pass

        # A trial that begins and passes is two changes, so two steps.
        trial = [lambda: self.begins("a"), lambda: self.ends("a", "")]
        return [
            lambda: make_store(self._folder),
            lambda: self.install("a", 1),
            lambda: self.activate("a", 1),
            *trial,
            lambda: self.install("a", 2),
            self.counts,
            self.counts,
            lambda: self.install("b", 1),
            lambda: self.activate("a", 2),
            *trial,
            unknown,
            lambda: self.checkpoint("PASSIVE"),
            # The log starts anew: its old pages are written over.
            lambda: self.install("a", 3),
            lambda: self.activate("a", 3),
            *[
                step
                for _ in range(3)
                for step in (
                    lambda: self.begins("a"),
                    lambda: self.ends("a", "golden input 'x' is 'y', not 'z'"),
                )
            ],
            back,
            lambda: self.store.share("a", 2, 30),
            lambda: self.store.share("a", 2, 0),
            lambda: self.install("a", 4),
            lambda: self.store.share("a", 4, 50),
            *trial,
            lambda: self.activate("a", 4),
            back,
            lambda: self.store.pin("a"),
            lambda: self.store.pin("a", pinned=False),
            lambda: self.install("a", 1, "t"),
            lambda: self.activate("a", 1, "t"),
            lambda: self.store.remove("a", 3),
            lambda: self.store.gc(),
            self.reopen,
            lambda: self.activate("b", 1),
            lambda: self.store.remove("b"),
            lambda: self.store.gc(),
            lambda: self.checkpoint("TRUNCATE"),
            lambda: self.install("c", 7),
            lambda: self.activate("c", 7),
            self.reopen,
            lambda: self.install("c", 8),
            lambda: self.activate("c", 8),
        ]


def leave_out_folders() -> None:
    """New names are not synced."""
    vars(blobs)["sync_folder"] = lambda folder: None


def leave_out_files() -> None:
    """Blobs are not synced."""
    sync = os.fsync

    def folders_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            sync(handle)

    os.fsync = folders_only  # type: ignore[assignment]


def leave_out_log() -> None:
    """Commits are not synced, checkpoints are."""
    connect = Index._connect

    def normal(self: Index, options: str) -> sqlite3.Connection:
        found = connect(self, options)
        found.execute("PRAGMA synchronous = NORMAL")
        return found

    Index._connect = normal  # type: ignore[method-assign]


FLAWS = {
    "folders": leave_out_folders,
    "files": leave_out_files,
    "log": leave_out_log,
}


def main(root: Path, out: Path, flaw: str = "") -> None:
    if flaw:
        FLAWS[flaw]()
    shim = loaded()
    device = Device(root / "store")
    after: list[Held] = []
    shim.shim_start(str(root).encode())
    for number, step in enumerate(device.steps()):
        step()
        shim.shim_mark(f"done {number}".encode())
        after.append(listed(device.store))
    shim.shim_stop()
    out.write_bytes(pickle.dumps((recorded(shim), after)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
