"""Power cuts at every moment of a store's life: nothing broken, no promise lost.

The real code runs, SQLite's own writes included; a shim records every call, and from
those come the states that a power cut may leave (crash_states.py). Each is put on a
disk and opened as a device does after it starts again.
"""

import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from crash_scenario import FLAWS, NO_STORE, Held, held
from crash_shim import Call, calls_of, compiled, run_under
from crash_states import Disk, Tree, states
from stores import make_good, served

from promptdial.prompts.store import PromptStore

WANTED = 10_000
SCENARIO = Path(__file__).with_name("crash_scenario.py")
_GO_ON = 50
"""Every so many states, the store is also used on."""


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of stores are opened."""
    fast = Path("/dev/shm")
    with TemporaryDirectory(dir=fast if fast.is_dir() else None) as name:
        yield Path(name)


def key_of(tree: Tree) -> bytes:
    """What tells one state from another."""
    found = sha256()
    for path in sorted(tree):
        content = tree[path]
        found.update(path.encode() + b"\0")
        found.update(b"/" if content is None else content.digest)
    return found.digest()


class Mirror:
    """A folder that is made equal to one tree after another; what is equal stays."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._there: Tree = {}

    def show(self, tree: Tree) -> None:
        """Make the folder equal to a tree."""
        for path in sorted(self._there.keys() - tree.keys(), reverse=True):
            if self._there.pop(path) is None:
                (self._root / path).rmdir()
            else:
                (self._root / path).unlink()
        for path in sorted(tree):
            content = tree[path]
            if path in self._there and self._there[path] == content:
                continue
            if content is None:
                (self._root / path).mkdir()
            else:
                (self._root / path).write_bytes(content.data)
            self._there[path] = content

    def opened(self) -> None:
        """The store was opened, and so all but its blobs were written to."""
        for path in self._root.glob("store/*.sqlite*"):
            path.unlink()
        for path in self._root.glob("store/staging/*"):
            path.unlink()
        gone = ("store/index.sqlite", "store/counters.sqlite", "store/staging/")
        self._there = {k: v for k, v in self._there.items() if not k.startswith(gone)}

    def used(self) -> None:
        """Anything may have been written."""
        shutil.rmtree(self._root)
        self._root.mkdir()
        self._there = {}


def use(store: Path) -> None:
    """Go on with a store after a crash."""
    with PromptStore(store) as opened:
        view = opened.for_tenant("next")
        make_good(view, "d", 1)
        assert served(view, "d") == 1
        view.count("d", 1, 0.5, 7, 1.0, False)
        opened._counters.flush()
        assert view.figures.counted()["d", 1].answers == 1
        assert not opened._counters._pending
        view.remove("d")
        opened.gc()


def calls(recording: bytes) -> Iterator[Call]:
    """What changes the disk, and the marks.

    SQLite makes its shared memory anew when it starts: what a crash leaves of it does
    not matter.
    """
    shared: set[int] = set()
    for call in calls_of(recording):
        if call.kind == "open":
            shared.discard(call.fd)
            if call.path.endswith("-shm"):
                shared.add(call.fd)
        if call.fd not in shared and not call.path.endswith("-shm"):
            yield call


class PromiseBroken(Exception):
    """A state after a power cut is not what it must be."""


@dataclass
class Swept:
    """What a sweep saw.

    Attributes:
        steps: Things that the device did.
        moments: Calls, after each of which the power was cut.
        states: States at all moments.
        distinct: Different ones: those were opened.
    """

    steps: int = 0
    moments: int = 0
    states: int = 0
    distinct: int = 0


def sweep(memory: Path, flaw: str = "") -> Swept:
    """Cut the power at every moment.

    Raises:
        PromiseBroken: A state cannot be used, or an acknowledged change is lost in it.
    """
    library = compiled(memory)
    root, out = memory / "device", memory / "recording"
    root.mkdir()
    run_under(library, SCENARIO, root, out, *([flaw] if flaw else []))
    recording, after = pickle.loads(out.read_bytes())
    shutil.rmtree(root)
    root.mkdir()
    mirror, disk, random = Mirror(root), Disk(str(root)), Random(0)
    known: dict[bytes, Held] = {}
    found = Swept()
    for call in calls(recording):
        if call.kind == "mark":
            found.steps += 1
            continue
        disk.do(call)
        if call.kind == "close":
            continue
        found.moments += 1
        done = found.steps
        allowed = {after[done - 1] if done else NO_STORE, *after[done : done + 1]}
        where = f"after step {done - 1}, {call.kind} {call.path} {call.other}"
        seen: set[bytes] = set()
        for tree in states(disk, random):
            key = key_of(tree)
            if key in seen:
                continue
            seen.add(key)
            if key not in known:
                mirror.show(tree)
                try:
                    known[key] = held(root / "store")
                    if len(known) % _GO_ON == 0 and known[key] != NO_STORE:
                        use(root / "store")
                        mirror.used()
                except Exception as error:
                    raise PromiseBroken(f"{where}: {error!r}") from error
                mirror.opened()
            if known[key] not in allowed:
                raise PromiseBroken(f"{where}: there is {known[key]}")
        found.states += len(seen)
    assert found.steps == len(after)
    found.distinct = len(known)
    return found


def test_a_power_cut_at_any_moment_loses_nothing(memory: Path) -> None:
    found = sweep(memory)
    print(
        f"{found.moments} moments in {found.steps} steps, {found.states} states after "
        f"a power cut, {found.distinct} distinct: none broken, no acknowledged change "
        "lost"
    )
    assert found.states >= WANTED


@pytest.mark.parametrize("flaw", FLAWS)
def test_the_sweep_sees_what_a_missing_sync_does(memory: Path, flaw: str) -> None:
    """Else it might find nothing because it sees nothing."""
    with pytest.raises(PromiseBroken) as caught:
        sweep(memory, flaw)
    print(caught.value)
