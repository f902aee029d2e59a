"""The sweep: the power is cut at every moment of a scenario, and all is looked at.

The real code runs, SQLite's own writes included; a shim records every call, and from
those come the states that a power cut may leave (crash_states.py). Each is put on a
disk and opened as a device does after it starts again.
"""

import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from random import Random

from crash_scenario import NO_STORE, Held
from crash_shim import Call, calls_of, compiled, run_under
from crash_states import Disk, Tree, states


@dataclass(frozen=True)
class Scenario:
    """What is swept.

    Attributes:
        script: Does the steps under the shim: SCRIPT ROOT OUT [MORE ...].
        held: What a store holds; it fails where a promise is broken.
        use: Goes on with a store after a crash.
        every: After so many states, the store is also used on.
        more: Further arguments of the script.
        share: One of so many distinct states is opened, chosen by its digest.
    """

    script: Path
    held: Callable[[Path], Held]
    use: Callable[[Path], None]
    every: int
    more: tuple[str, ...] = ()
    share: int = 1


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
            elif content.link:
                (self._root / path).unlink(missing_ok=True)
                (self._root / path).symlink_to(content.data.decode())
            else:
                if (self._root / path).is_symlink():
                    (self._root / path).unlink()
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
        distinct: Different ones that were opened.
    """

    steps: int = 0
    moments: int = 0
    states: int = 0
    distinct: int = 0

    @property
    def summary(self) -> str:
        """One line."""
        return (
            f"{self.moments} moments in {self.steps} steps, {self.states} states after "
            f"a power cut, {self.distinct} distinct: none broken, no acknowledged "
            "change lost"
        )


def sweep(memory: Path, scenario: Scenario) -> Swept:
    """Cut the power at every moment.

    Args:
        memory: A folder in memory where there is one: thousands of stores are opened.
        scenario: What is done.

    Raises:
        PromiseBroken: A state cannot be used, or an acknowledged change is lost in it.
    """
    library = compiled(memory)
    root, out = memory / "device", memory / "recording"
    root.mkdir()
    run_under(library, scenario.script, root, out, *scenario.more)
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
            if key[0] % scenario.share:
                continue
            if key not in known:
                mirror.show(tree)
                try:
                    known[key] = scenario.held(root / "store")
                    if len(known) % scenario.every == 0 and known[key] != NO_STORE:
                        scenario.use(root / "store")
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
