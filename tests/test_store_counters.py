"""Counts of answers: fixed memory, never in a request's way, and losable."""

import os
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from bad_stores import read_only
from store_process import StoreProcess
from stores import install, make_good, new_store

from promptdial.prompts.distribution import EDGES
from promptdial.prompts.store import PromptStore, counters
from promptdial.prompts.store.counter_file import CounterFile
from promptdial.prompts.store.tally import WINDOW, Tally


@pytest.fixture
def store(tmp_path: Path) -> PromptStore:
    found = new_store(tmp_path / "store")
    make_good(found, "a", 1)
    return found


def count(store: PromptStore, times: int, version: int = 1) -> None:
    """Answers with confidence 0.8, 10 tokens and 2 ms, one in four an abstention."""
    store.serving("a")
    for number in range(times):
        store.count("a", version, 0.8, 10, 2.0, number % 4 == 0)


def answers(store: PromptStore, version: int = 1) -> int:
    return store.figures.counted().get(("a", version), Tally()).answers


def file_of(store: PromptStore) -> Path:
    return store.path / "counters.sqlite"


def test_counts_survive_a_close(store: PromptStore) -> None:
    count(store, 40)
    assert answers(store) == 40
    assert not file_of(store).exists()
    store.close()
    other = PromptStore(store.path)
    count(other, 40)
    other.close()
    found = PromptStore(store.path).figures.counted()["a", 1]
    assert (found.answers, found.abstained) == (80, 20)
    assert (found.scored, found.timed) == (80, 80)
    assert found.confidence == pytest.approx(64)
    assert found.confidence_squares == pytest.approx(80 * 0.64)
    assert (found.latency, found.latency_squares) == (160, 320)
    assert sum(found.bins["tokens"]) == sum(found.bins["confidence"]) == 80


def test_they_are_written_by_another_thread(
    store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote: list[str] = []
    add = CounterFile.add

    def heard(self: CounterFile, *arguments: object) -> bool:
        wrote.append(threading.current_thread().name)
        return add(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(CounterFile, "add", heard)
    monkeypatch.setattr(counters, "FLUSH_SECONDS", 0.05)
    count(store, 10)
    deadline = time.monotonic() + 20
    while not wrote and time.monotonic() < deadline:
        time.sleep(0.01)
    store.close()
    assert {*wrote} == {"promptdial-counters"}
    assert answers(PromptStore(store.path)) == 10
    assert "promptdial-counters" not in [item.name for item in threading.enumerate()]


def test_a_store_that_is_let_go_ends_its_thread(
    store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "FLUSH_SECONDS", 0.05)
    other = PromptStore(store.path)
    count(other, 1)
    thread = other._counters._thread
    assert thread is not None and thread.is_alive()
    del other
    thread.join(20)
    assert not thread.is_alive()


def test_a_request_never_waits_for_the_disk(store: PromptStore) -> None:
    """While another process holds the file, and a flush waits for it."""
    count(store, 1)
    store._counters.flush()
    holder = sqlite3.connect(file_of(store), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    count(store, 1)
    waiting = threading.Thread(target=store._counters.flush)
    waiting.start()
    while not store._counters._writing.locked():
        time.sleep(0.001)
    count(store, 1000)
    # The flush had not begun to give up: none of these waited for it.
    assert waiting.is_alive()
    holder.execute("ROLLBACK")
    holder.close()
    waiting.join()
    assert answers(store) == 1002


def test_two_processes_add_up(store: PromptStore) -> None:
    with StoreProcess(store.path) as one, StoreProcess(store.path) as two:
        for _ in range(3):
            for process in (one, two):
                for _ in range(20):
                    said = process.do("count", "a", 1, 0.5, 7, 1.0, False)
                    assert said == "done"
            count(store, 20)
            for process in (one, two):
                assert process.do("close") == "done"
            store._counters.flush()
    assert answers(store) == 180
    assert sum(store.figures.counted()["a", 1].bins["tokens"]) == 180


def test_a_kill_loses_what_was_not_written_and_no_more(store: PromptStore) -> None:
    for written in (5, 10):
        with StoreProcess(store.path) as other:
            for _ in range(5):
                other.do("count", "a", 1, 0.5, 7, 1.0, False)
            other.do("close")
            for _ in range(3):
                other.do("count", "a", 1, 0.5, 7, 1.0, False)
            other.kill()
        assert answers(PromptStore(store.path)) == written


def test_a_kill_while_they_are_written_breaks_nothing(store: PromptStore) -> None:
    """Over and over, at whatever moment it comes."""
    least = 0
    for number in range(8):
        with StoreProcess(store.path) as other:
            other.do("count", "a", 1, 0.5, 7, 1.0, False)
            threading.Timer(0.0005 * number, other.kill).start()
            # It may be gone before it is asked.
            with suppress(BrokenPipeError):
                other.do("close")
        found = answers(store)
        assert least <= found <= least + 1
        least = found
    with sqlite3.connect(file_of(store)) as connection:
        check = connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()
    assert check == [("ok",)]
    count(store, 1)
    store.close()
    assert answers(PromptStore(store.path)) == least + 1


def test_a_store_that_cannot_be_written_counts_in_memory() -> None:
    with TemporaryDirectory() as name:
        # Not tmp_path, into which only its owner may look.
        folder = Path(name)
        folder.chmod(0o755)
        with new_store(folder / "store") as store:
            make_good(store, "a", 1)
        with read_only(folder / "store"):
            there = PromptStore(folder / "store")
            count(there, 3 * WINDOW)
            there._counters.flush()
            count(there, 5)
            assert answers(there) == 3 * WINDOW + 5
            # Within their bounds, as on the disk.
            (tally,) = there._counters._pending.values()
            assert sum(tally.bins["tokens"]) <= WINDOW + 5
            assert not file_of(there).exists()
        there.close()
        assert answers(PromptStore(folder / "store")) == 3 * WINDOW + 5


def test_what_is_counted_has_a_bound(
    store: PromptStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counters, "MAX_KEPT", 10)
    for number in range(50):
        store.count(f"task{number}", 1, 0.5, 3, None, False)
    assert len(store._counters._pending) == 10
    store._counters.flush()
    store.count("task49", 1, 0.5, 3, None, False)
    assert store.figures.counted()["task49", 1].answers == 1


@pytest.mark.parametrize("damage", [b"no database" * 100, b"SQLite format 3\0" * 300])
def test_a_damaged_file_is_begun_anew(store: PromptStore, damage: bytes) -> None:
    count(store, 10)
    store.close()
    file_of(store).write_bytes(damage)
    other = PromptStore(store.path)
    assert other.figures.counted() == {}
    count(other, 4)
    assert answers(other) == 4
    other.close()
    assert answers(PromptStore(store.path)) == 4


def test_a_file_of_a_newer_format_is_left_alone(store: PromptStore) -> None:
    count(store, 10)
    store.close()
    with sqlite3.connect(file_of(store)) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = file_of(store).read_bytes()
    other = PromptStore(store.path)
    count(other, 4)
    other._counters.flush()
    assert answers(other) == 4
    assert file_of(store).read_bytes() == before


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_counts_its_own_alone(store: PromptStore) -> None:
    count(store, 10)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            count(store, 3)
            store.close()
            code = 42
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 42
    store.close()
    assert answers(PromptStore(store.path)) == 13


def test_histograms_fade(store: PromptStore) -> None:
    """What a device saw long ago does not hide what it sees today."""
    for _ in range(5):
        count(store, WINDOW)
        store._counters.flush()
    for _ in range(WINDOW):
        store.count("a", 1, 0.2, 100, 2.0, False)
    store._counters.flush()
    tally = store.figures.counted()["a", 1]
    assert tally.answers == 6 * WINDOW
    for name, new in (("confidence", 0), ("tokens", 10)):
        assert len(tally.bins[name]) == len(EDGES[name]) + 1
        assert WINDOW / 2 <= sum(tally.bins[name]) <= WINDOW
        assert tally.bins[name][new] >= sum(tally.bins[name]) / 2


def test_garbage_goes_from_the_counts_too(store: PromptStore) -> None:
    install(store, "a", 2)
    store.share("a", 2, 50)
    other = store.for_tenant("t")
    make_good(other, "a", 2)
    count(store, 3)
    count(store, 4, version=2)
    count(other, 5, version=2)
    store._counters.flush()
    count(store, 1, version=2)
    store.gc()
    assert answers(store, 2) == 5
    assert store.figures.compare("a").challenger.answers == 5
    # The counts of a share that is over join the rest when the next one begins.
    store.share("a", 2, 40)
    assert store.figures.compare("a").challenger.answers == 0
    store.gc()
    assert (answers(store), answers(store, 2)) == (3, 5)
    store.share("a", 2, 0)
    store.remove("a", 2)
    store.gc()
    assert (answers(store), answers(store, 2)) == (3, 0)
    assert answers(other, 2) == 5
