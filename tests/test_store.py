"""The store's rules: states, floors, pins, limits, garbage, tenants, formats."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from blobs import META
from store_process import StoreProcess
from stores import (
    end_trial,
    install,
    make_good,
    new_store,
    served,
    small_blob,
    states,
)

from promptdial.prompts.blob import encode
from promptdial.prompts.errors import (
    BelowFloor,
    BlobInvalid,
    FileFailed,
    MarkedBad,
    NoSpace,
    NothingBefore,
    OtherBase,
    StoreBusy,
    StoreFull,
    StoreInvalid,
    StoreReadOnly,
    StoreTooNew,
    TaskNotFound,
    UsageError,
    VersionInUse,
    VersionTaken,
    VersionUnknown,
)
from promptdial.prompts.store import (
    Limits,
    PromptStore,
    is_store,
    make_store,
    set_up_updates,
)
from promptdial.prompts.store import index as index_module
from promptdial.prompts.store.layout import staging_held
from promptdial.prompts.store.schema import FORMAT, STEPS
from promptdial.prompts.updates.receiver import BaseState


@pytest.fixture
def store(tmp_path: Path) -> PromptStore:
    return new_store(tmp_path / "store")


def file_of(store: PromptStore, digest: str) -> Path:
    return store.path / "blobs" / "sha256" / digest.removeprefix("sha256:")


def test_a_version_goes_from_staged_over_trial_to_good(store: PromptStore) -> None:
    install(store, "a", 1)
    assert states(store, "a") == {1: "staged"}
    assert store.list() == []
    with pytest.raises(TaskNotFound):
        store.get("a")
    store.activate("a")
    assert states(store, "a") == {1: "trial"}
    assert store.list() == ["a"]
    assert store.serving("a")[0] is None
    assert served(store, "a") == 1
    end_trial(store, "a")
    assert states(store, "a") == {1: "good"}
    good, on_trial = store.serving("a")
    assert good is not None and on_trial is None
    assert good.digest == small_blob("a", 1).digest


def test_the_good_version_serves_until_the_next_one_passed(store: PromptStore) -> None:
    make_good(store, "a", 1)
    install(store, "a", 2)
    assert store.activate("a").version == 2
    assert served(store, "a") == 1
    assert store.serving("a")[1] == small_blob("a", 2).digest
    end_trial(store, "a")
    assert served(store, "a") == 2
    task = store.tasks()[0]
    assert (task.active, task.previous, task.floor) == (2, 1, 2)


@pytest.mark.parametrize("ended", [True, False], ids=["failed", "never ended"])
def test_three_failures_go_back_by_themselves(
    tmp_path: Path, store: PromptStore, ended: bool
) -> None:
    make_good(store, "a", 1)
    install(store, "a", 2)
    store.activate("a", 2)
    digest = small_blob("a", 2).digest
    for tried in (1, 2, 3):
        assert store.begin_trial("a", digest, wait=False)
        assert store.versions("a")[1].tries == tried
        if ended:
            store.end_trial("a", digest, "wrong label\n\x00")
        else:
            # A process that ends leaves the count, and no lock.
            store.close()
            store = PromptStore(tmp_path / "store")
    assert not store.begin_trial("a", digest, wait=False)
    bad = store.versions("a")[1]
    assert bad.state == "bad"
    assert bad.failure == (
        "wrong label \\x00" if ended else "3 trials were begun and never ended"
    )
    assert served(store, "a") == 1
    task = store.tasks()[0]
    assert (task.active, task.previous, task.floor) == (1, None, 1)
    with pytest.raises(MarkedBad, match="version 2 of task 'a' is marked bad"):
        store.activate("a", 2)
    # On its own it is never chosen again, not after it was removed either.
    assert store.activate("a").version == 1
    store.remove("a", 2)
    store.gc()
    assert store.install(small_blob("a", 2)).state == "bad"
    with pytest.raises(MarkedBad):
        store.rollback("a", 2)


def test_what_failed_without_one_before_is_said(store: PromptStore) -> None:
    install(store, "a", 1)
    store.activate("a")
    for _ in range(3):
        end_trial(store, "a", "slow")
    with pytest.raises(MarkedBad, match="no good version; 1 failed: slow"):
        store.get("a")
    assert store.list() == []
    make_good(store, "a", 2)
    assert served(store, "a") == 2


def test_a_stopped_trial_does_not_count(store: PromptStore) -> None:
    install(store, "a", 1)
    store.activate("a")
    digest = small_blob("a", 1).digest
    for _ in range(5):
        assert store.begin_trial("a", digest, wait=False)
        store.drop_trial("a", digest)
    assert store.versions("a")[0].tries == 0
    end_trial(store, "a")


def test_one_tries_at_a_time(store: PromptStore) -> None:
    """Else eight workers that start at once would use up three tries."""
    make_good(store, "a", 1)
    install(store, "a", 2)
    store.activate("a", 2)
    digest = small_blob("a", 2).digest
    assert store.begin_trial("a", digest, wait=False)
    other = PromptStore(store.path)
    assert not other.begin_trial("a", digest, wait=False)
    done: list[bool] = []
    waiter = threading.Thread(
        target=lambda: done.append(other.begin_trial("a", digest, wait=True))
    )
    waiter.start()
    time.sleep(0.05)
    assert not done
    store.end_trial("a", digest, "")
    waiter.join()
    assert done == [False]
    assert served(other, "a") == 2
    assert other.versions("a")[1].tries == 1


def test_a_trial_of_what_is_active_no_more_changes_nothing(store: PromptStore) -> None:
    make_good(store, "a", 1)
    install(store, "a", 2)
    store.activate("a", 2)
    digest = small_blob("a", 2).digest
    assert store.begin_trial("a", digest, wait=False)
    store.rollback("a")
    store.end_trial("a", digest, "")
    assert states(store, "a") == {1: "good", 2: "trial"}
    assert store.tasks()[0].floor == 1


def test_the_floor_rises_only_when_a_version_is_good(store: PromptStore) -> None:
    make_good(store, "a", 2)
    install(store, "a", 1, 3)
    with pytest.raises(BelowFloor, match="version 1 of task 'a', at least 2"):
        store.activate("a", 1)
    store.activate("a", 3)
    assert store.tasks()[0].floor == 2
    store.rollback("a")  # not yet good: back without a flag
    store.activate("a", 3)
    end_trial(store, "a")
    with pytest.raises(BelowFloor):
        store.rollback("a")
    assert served(store, "a") == 3
    store.rollback("a", allow_below_floor=True)
    assert served(store, "a") == 2
    assert store.tasks()[0].floor == 3
    logged = [(item.event, item.version) for item in store.events()]
    assert ("below_floor", 2) in logged
    with pytest.raises(NothingBefore, match=r"no good version before.* \(2\)"):
        store.rollback("a")


def test_a_floor_outlives_its_versions(store: PromptStore) -> None:
    make_good(store, "a", 5)
    store.remove("a")
    assert store.gc().blobs == 1
    with pytest.raises(TaskNotFound):
        store.get("a")
    install(store, "a", 4)
    with pytest.raises(BelowFloor):
        store.activate("a")
    with pytest.raises(VersionTaken, match="version 5 of task 'a' is known as sha256"):
        store.install(small_blob("a", 5, seed=9))
    make_good(store, "a", 5)
    assert served(store, "a") == 5


def test_back_again_goes_further_back(store: PromptStore) -> None:
    make_good(store, "a", 1, 2, 3)
    for wanted in (2, 1):
        store.rollback("a", allow_below_floor=True)
        assert served(store, "a") == wanted
    with pytest.raises(NothingBefore):
        store.rollback("a", allow_below_floor=True)
    store.activate("a", 3)
    assert served(store, "a") == 3


def test_going_back_to_what_was_never_good_is_a_trial(store: PromptStore) -> None:
    make_good(store, "a", 3)
    install(store, "a", 2)
    store.rollback("a", 2, allow_below_floor=True)
    assert served(store, "a") == 3
    for _ in range(3):
        end_trial(store, "a", "no")
    assert (served(store, "a"), store.tasks()[0].active) == (3, 3)


def test_the_same_version_with_other_content_is_refused(store: PromptStore) -> None:
    first = store.install(small_blob("a", 1))
    assert store.install(small_blob("a", 1)) == first
    with pytest.raises(VersionTaken) as caught:
        store.install(small_blob("a", 1, seed=5))
    assert small_blob("a", 1, seed=5).digest in caught.value.message
    assert first.digest in caught.value.message
    assert len(list((store.path / "blobs" / "sha256").iterdir())) == 1


def test_pinned_versions_stay(store: PromptStore) -> None:
    make_good(store, "a", 1)
    install(store, "a", 2, 3, 4)
    store.pin("a", 2)
    with pytest.raises(VersionInUse, match="2 of task 'a' is pinned"):
        store.remove("a", 2)
    with pytest.raises(VersionInUse):
        store.remove("a")
    assert [item.version for item in store.gc(keep=1).versions] == [3]
    assert store.pin("a").pinned
    with pytest.raises(VersionInUse, match="'a' is pinned to version 1"):
        store.activate("a", 2)
    store.pin("a", pinned=False)
    store.activate("a", 2)
    # A pin does not hold what is bad.
    for _ in range(3):
        end_trial(store, "a", "no")
    assert served(store, "a") == 1


def test_what_is_in_use_is_not_removed(store: PromptStore) -> None:
    make_good(store, "a", 1, 2)
    for version, use in ((1, "previous"), (2, "active")):
        with pytest.raises(VersionInUse, match=f"{version} of task 'a' is {use}"):
            store.remove("a", version)
    install(store, "a", 3, 4, 5, 6)
    assert [item.version for item in store.remove("a", 3)] == [3]
    assert [item.version for item in store.gc(keep=2).versions] == [4]
    assert [item.version for item in store.gc(keep=1).versions] == [5]
    assert list(states(store, "a")) == [1, 2, 6]
    with pytest.raises(UsageError):
        store.gc(keep=0)


def test_garbage_is_what_no_version_of_any_tenant_names(store: PromptStore) -> None:
    other = store.for_tenant("b")
    install(store, "a", 1, 2)
    install(other, "a", 2)
    store.remove("a")
    found = store.gc()
    assert (found.blobs, found.bytes) == (1, small_blob("a", 1).size)
    other.activate("a")
    assert served(other, "a") == 2


def test_limits_of_count_and_bytes(tmp_path: Path) -> None:
    size = small_blob("a", 1).size
    store = new_store(tmp_path / "few", Limits(versions=2))
    install(store, "a", 1, 2)
    with pytest.raises(StoreFull, match="has 3 versions, at most 2"):
        install(store, "a", 3)
    install(store, "a", 2)  # there already
    with pytest.raises(StoreFull):
        install(store.for_tenant("b"), "a", 1)
    store = new_store(tmp_path / "small", Limits(bytes=2 * size + 10))
    install(store, "a", 1, 2)
    with pytest.raises(StoreFull, match=f"has {3 * size} bytes"):
        install(store, "a", 3)
    assert not make_store(tmp_path / "small", Limits(bytes=3 * size + 10))
    install(store, "a", 3)
    assert len(list((store.path / "blobs" / "sha256").iterdir())) == 3
    with pytest.raises(UsageError):
        make_store(tmp_path / "none", Limits(versions=0))


def test_nothing_is_written_where_there_is_too_little_room(
    store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, real = small_blob("a", 1).size, os.statvfs(store.path)

    def nearly_full(path: object) -> os.statvfs_result:
        fields = list(real)
        fields[1], fields[4] = 1, 2 * size - 1  # f_frsize, f_bavail
        return os.statvfs_result(fields)

    monkeypatch.setattr(os, "statvfs", nearly_full)
    with pytest.raises(NoSpace, match=f"{2 * size - 1} bytes are free"):
        install(store, "a", 1)
    assert store.versions() == []
    assert list((store.path / "staging").iterdir()) == []


def test_blobs_are_checked_whenever_they_are_read(store: PromptStore) -> None:
    make_good(store, "a", 1)
    digest = small_blob("a", 1).digest
    path = file_of(store, digest)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    again = PromptStore(store.path)
    with pytest.raises(BlobInvalid, match="has SHA-256"):
        again.get("a")
    assert list(store.damaged()) == [digest]
    install(store, "a", 1)  # what the disk damaged is whole again
    assert path.read_bytes() == whole
    assert served(again, "a") == 1
    assert store.damaged() == {}
    path.unlink()
    with pytest.raises(FileFailed, match="'a' is gone"):
        PromptStore(store.path).get("a")
    path.symlink_to("/etc/passwd")
    with pytest.raises(FileFailed):
        PromptStore(store.path).get("a")
    path.unlink()
    os.mkfifo(path)  # nobody writes to it: reading must not wait
    with pytest.raises(BlobInvalid, match="no regular file"):
        PromptStore(store.path).get("a")


def test_what_cannot_be_read_is_not_activated(store: PromptStore) -> None:
    make_good(store, "a", 1)
    install(store, "a", 2)
    file_of(store, small_blob("a", 2).digest).write_bytes(b"x")
    with pytest.raises(BlobInvalid):
        store.activate("a", 2)
    assert store.tasks()[0].active == 1
    assert states(store, "a")[2] == "staged"


def test_broken_blobs_are_not_installed(store: PromptStore) -> None:
    blob = small_blob("a", 1)
    data = encode(blob.meta, blob.tensors)
    with pytest.raises(BlobInvalid):
        store.install(data[:-1])
    assert store.versions() == []
    assert store.install(data).digest == blob.digest


def test_tenants_see_their_own_tasks_only(store: PromptStore) -> None:
    make_good(store.for_tenant("a"), "one", 1)
    b = store.for_tenant("b")
    make_good(b, "two", 7)
    assert (store.list(), b.list(), store.for_tenant("a").list()) == (
        [],
        ["two"],
        ["one"],
    )
    assert store.tenants() == ["a", "b"]
    make_good(b, "one", 2)
    assert served(store.for_tenant("a"), "one") == 1
    assert {item.task for item in b.events()} == {"one", "two"}
    unknown: list[str] = []
    mine = store.for_tenant("a")
    calls: list[Callable[[str], object]] = [
        mine.get,
        mine.activate,
        mine.rollback,
        mine.pin,
        mine.remove,
        mine.versions,
    ]
    for call in calls:
        for task in ("two", "nope"):
            with pytest.raises(TaskNotFound) as caught:
                call(task)
            unknown.append(str(caught.value).replace(task, "x"))
    assert unknown[::2] == unknown[1::2]
    # A repository's roles are no tenants, in the store either.
    for name in ("../x", "A", "a/b", "x" * 33, "a.b", "root", "all"):
        with pytest.raises(UsageError, match="choose another name"):
            store.for_tenant(name)


def test_versions_that_are_not_there_are_named(store: PromptStore) -> None:
    install(store, "a", 1, 4)
    calls: list[Callable[[str, int], object]] = [
        store.activate,
        store.rollback,
        store.pin,
        store.remove,
    ]
    for call in calls:
        with pytest.raises(VersionUnknown, match=r"no version 9; there is 1, 4"):
            call("a", 9)
    with pytest.raises(VersionUnknown, match="no version of task 'a' is active"):
        store.pin("a")


def test_a_crash_leaves_files_that_the_next_start_takes_away(
    store: PromptStore,
) -> None:
    leftover = store.path / "staging" / "123-abc"
    leftover.write_bytes(b"x")
    with staging_held(store._layout):
        PromptStore(store.path)
        assert leftover.exists()  # someone writes
    PromptStore(store.path)
    assert not leftover.exists()


def test_making_a_store_goes_on_after_a_crash(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "store"
    (folder / "staging").mkdir(parents=True)
    (folder / "staging" / "new-index.sqlite").write_bytes(b"half")
    assert not is_store(folder)
    with pytest.raises(StoreInvalid, match=r"is no store: it has no index\.sqlite"):
        PromptStore(folder)
    assert make_store(folder)
    assert not make_store(folder)
    assert PromptStore(folder).limits() == Limits()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError):
        make_store(tmp_path / "file")


def old_index(path: Path, steps: int) -> None:
    """An index as a promptdial of an older format wrote it."""
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        for step in STEPS[:steps]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {steps}")
    connection.close()


@pytest.mark.parametrize("steps", range(1, FORMAT))
def test_an_older_index_opens_and_loses_nothing(tmp_path: Path, steps: int) -> None:
    store = new_store(tmp_path / "store")
    make_good(store, "a", 1, 2)
    wanted, tasks = store.versions(), store.tasks()
    index = store.path / "index.sqlite"
    store.close()
    with sqlite3.connect(index) as connection:
        rows = connection.execute("SELECT * FROM versions").fetchall()
        active = connection.execute("SELECT * FROM tasks").fetchall()
    connection.close()
    index.unlink()
    old_index(index, steps)
    with sqlite3.connect(index) as connection:
        # New columns come behind the old ones.
        count = len(connection.execute("PRAGMA table_info (versions)").fetchall())
        marks = ", ".join("?" * count)
        cut = [row[:count] for row in rows]
        connection.executemany(f"INSERT INTO versions VALUES ({marks})", cut)
        marks = ", ".join("?" * len(active[0]))
        connection.executemany(f"INSERT INTO tasks VALUES ({marks})", active)
    connection.close()
    store = PromptStore(tmp_path / "store")
    knew = count == len(rows[0])
    older = wanted if knew else [replace(item, base="") for item in wanted]
    assert (store.versions(), store.tasks()) == (older, tasks)
    # Set up for updates, it knows what base they are for.
    root = b'{"signed": {"_type": "root"}}'
    base = BaseState(META.base_fingerprint, META.tokenizer_fingerprint)
    other = BaseState("ckpt1:" + "c" * 64, META.tokenizer_fingerprint)
    with pytest.raises(OtherBase, match="version 2 of task a is in use, for base"):
        set_up_updates(store.path, root, base=other)
    set_up_updates(store.path, root, base=base)
    assert (store.versions(), store.tasks()) == (wanted, tasks)
    make_good(store, "a", 3)
    assert served(store, "a") == 3
    with store._index.reading() as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (FORMAT,)


def test_an_upgrade_is_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    new_store(folder).close()
    index = folder / "index.sqlite"
    index.unlink()
    old_index(index, 1)
    broken = (*STEPS, ("CREATE TABLE later (a)", "NOT SQL"))
    monkeypatch.setattr("promptdial.prompts.store.schema.STEPS", broken)
    with pytest.raises(StoreInvalid, match="syntax error"):
        PromptStore(folder)
    monkeypatch.undo()
    store = PromptStore(folder)
    with store._index.reading() as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert ("events",) in tables and ("later",) not in tables


def test_a_newer_index_is_refused(store: PromptStore) -> None:
    with store._index.writing() as connection:
        connection.execute(f"PRAGMA user_version = {FORMAT + 1}")
    with pytest.raises(StoreTooNew, match=f"has format {FORMAT + 1}, known up to"):
        PromptStore(store.path)


@pytest.mark.parametrize("damage", [b"", b"no database" * 100, b"SQLite format 3\0"])
def test_a_damaged_index_says_so(tmp_path: Path, damage: bytes) -> None:
    folder = tmp_path / "store"
    new_store(folder).close()
    (folder / "index.sqlite").write_bytes(damage)
    if damage:
        with pytest.raises(StoreInvalid):
            PromptStore(folder)
    else:
        # An empty file is an empty database: it is of format 0, and gets its tables.
        assert PromptStore(folder).versions() == []


def test_another_sqlite_file_is_not_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    new_store(folder).close()
    index = folder / "index.sqlite"
    index.unlink()
    with sqlite3.connect(index) as connection:
        connection.execute("CREATE TABLE mine (a)")
    connection.close()
    before = index.read_bytes()
    with pytest.raises(StoreInvalid, match="has tables, and no format"):
        PromptStore(folder)
    assert index.read_bytes() == before


def test_a_store_that_another_process_holds_is_busy(
    store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_good(store, "a", 1)
    monkeypatch.setattr(index_module, "BUSY_SECONDS", 0.05)
    other = PromptStore(store.path)
    with store._index.writing():
        with pytest.raises(StoreBusy):
            install(other, "b", 1)
        assert served(other, "a") == 1  # who reads is not held up
    assert list((store.path / "staging").iterdir()) == []
    install(other, "b", 1)


def test_a_store_used_after_close_opens_again(store: PromptStore) -> None:
    with store:
        make_good(store, "a", 1)
    assert not (store.path / "index.sqlite-wal").exists()
    assert served(store, "a") == 1
    make_good(store, "a", 2)
    assert served(store, "a") == 2


def test_the_log_is_bounded(
    store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptdial.prompts.store.edits.KEPT_EVENTS", 5)
    make_good(store, "a", 1, 2, 3)
    events = store.events()
    assert [(item.event, item.version) for item in events] == [
        ("activated", 2),
        ("good", 2),
        ("installed", 3),
        ("activated", 3),
        ("good", 3),
    ]
    assert len(store.events(limit=2)) == 2


def test_a_change_under_way_that_fails_leaves_nothing(
    store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_good(store, "a", 1)

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("promptdial.prompts.store.blobs.sync_folder", fail)
    with pytest.raises(FileFailed, match="Input/output error"):
        install(store, "a", 2)
    assert states(store, "a") == {1: "good"}
    monkeypatch.undo()
    assert list((store.path / "staging").iterdir()) == []
    install(store, "a", 2)


READ_ONLY: list[Callable[[PromptStore], object]] = [
    lambda store: store.install(small_blob("b", 1)),
    lambda store: store.activate("a", 3),
    lambda store: store.rollback("a", allow_below_floor=True),
    lambda store: store.share("a", 3, 50),
    lambda store: store.pin("a"),
    lambda store: store.remove("a", 3),
    lambda store: store.gc(),
]


@contextmanager
def no_privileges() -> Iterator[None]:
    """As a user that is not root, to whom permissions say nothing."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open elsewhere"])
def test_a_read_only_store_serves_and_says_so(closed: bool) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        make_store(folder / "store")
        with StoreProcess(folder / "store") as other:
            assert other.do("make_good", "a", 1, 2) == "done"
            assert other.do("install", "a", 3) == "done"
            if closed:
                assert other.do("close") == "done"
            paths = [folder / "store", *(folder / "store").rglob("*")]
            for path in paths:
                path.chmod(0o555 if path.is_dir() else 0o444)
            with no_privileges():
                reader = PromptStore(folder / "store")
                assert served(reader, "a") == 2
                for change in READ_ONLY:
                    with pytest.raises(StoreReadOnly):
                        change(reader)
                assert served(reader, "a") == 2
            for path in paths:
                path.chmod(0o755 if path.is_dir() else 0o644)
            # A change by who may write is seen, though SQLite was told of none.
            assert other.do("make_good", "a", 3) == "done"
            with no_privileges():
                assert served(reader, "a") == 3
            reader.close()
