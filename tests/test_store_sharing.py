"""One store, many users: threads, processes, forks."""

import os
import threading
import time
from pathlib import Path

import pytest
from store_process import StoreProcess
from stores import end_trial, install, make_good, new_store, served, small_blob, states

from promptdial.prompts.errors import BelowFloor
from promptdial.prompts.store import PromptStore

READERS = 8


class Readers:
    """Threads that ask for one task until they are told to stop."""

    def __init__(self, store: PromptStore, task: str) -> None:
        self._store, self._task = store, task
        self.published = self.begun = 0
        self.wrong: list[str] = []
        self.answers = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(READERS)]

    def _ask(self) -> None:
        try:
            while not self._stop.is_set():
                least = self.published
                blob = self._store.get(self._task)
                most, version = self.begun, blob.meta.version
                if not least <= version <= most:
                    self.wrong.append(f"version {version}, not {least} to {most}")
                if blob.digest != small_blob(self._task, version).digest:
                    self.wrong.append(f"version {version} has other content")
                self.answers += 1
        except Exception as error:
            self.wrong.append(repr(error))

    def __enter__(self) -> "Readers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_threads_see_every_activation_at_once(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    make_good(store, "a", 1)
    readers = Readers(store, "a")
    readers.published = readers.begun = 1
    with readers:
        for version in range(2, 30):
            readers.begun = version
            make_good(store, "a", version)
            readers.published = version
    assert readers.wrong == []
    assert readers.answers > 30


def test_threads_see_the_activations_of_another_process(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    make_good(store, "a", 1)
    readers = Readers(store, "a")
    readers.published = readers.begun = 1
    with StoreProcess(store.path) as other, readers:
        for version in range(2, 15):
            readers.begun = version
            assert other.do("make_good", "a", version) == "done"
            readers.published = version
        # A commit of this process, and then one of the other: neither hides the other.
        for version in range(15, 25, 2):
            readers.begun = version + 1
            make_good(store, "a", version)
            assert other.do("make_good", "a", version + 1) == "done"
            readers.published = version + 1
    assert readers.wrong == []


def test_threads_that_change_the_store_wait_for_one_another(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    wrong: list[str] = []

    def change(number: int) -> None:
        own = store if number % 2 else PromptStore(store.path)
        task = f"task{number}"
        try:
            make_good(own, task, 1, 2, 3)
            with pytest.raises(BelowFloor):
                own.activate(task, 1)
            install(own, "shared", 1 + number)
            own.gc()
        except BaseException as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert store.list() == [f"task{number}" for number in range(8)]
    assert states(store, "shared") == dict.fromkeys(range(1, 9), "staged")
    assert store.damaged() == {}


def test_processes_that_change_the_store_wait_for_one_another(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    with StoreProcess(store.path) as one, StoreProcess(store.path) as two:
        said: list[str] = []

        def change(process: StoreProcess, task: str) -> None:
            for version in range(1, 16):
                said.append(process.do("make_good", task, version))
                said.append(process.do("gc", 2))

        threads = [
            threading.Thread(target=change, args=(process, task))
            for process, task in ((one, "a"), (two, "b"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert said == ["done"] * 60
    assert (served(store, "a"), served(store, "b")) == (15, 15)
    assert store.damaged() == {}


def test_a_process_that_is_killed_holds_nothing_up(tmp_path: Path) -> None:
    store = new_store(tmp_path / "store")
    make_good(store, "a", 1)
    install(store, "a", 2)
    store.activate("a", 2)
    digest = small_blob("a", 2).digest
    with StoreProcess(store.path) as other:
        assert other.do("begin_trial", "a", digest, False) == "done"
        assert not store.begin_trial("a", digest, wait=False)
        other.kill()
    started = time.monotonic()
    end_trial(store, "a")
    assert time.monotonic() - started < 5
    assert served(store, "a") == 2


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_may_go_on(tmp_path: Path) -> None:
    """Where another thread uses the connections, the fork waits for it."""
    store = new_store(tmp_path / "store")
    make_good(store, "a", 1)
    used = threading.Event()

    def hold() -> None:
        with store._index.writing(), store._index.reading():
            used.set()
            time.sleep(0.1)

    thread = threading.Thread(target=hold)
    thread.start()
    assert used.wait(10)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            make_good(store, "a", 2)
            code = 42
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 42
    assert served(store, "a") == 2
    make_good(store, "a", 3)
    assert served(store, "a") == 3
