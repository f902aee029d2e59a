"""Counts of answers: taken in memory by requests, written by a thread of their own.

A request adds a few numbers under a lock that is never held while a disk is waited for.
What was not written when a process is killed is lost. Where nothing can be written (a
disk that is read-only or full), counts stay in memory, and later ones join them.
"""

import os
import threading
import weakref
from collections.abc import Collection
from pathlib import Path

from promptdial.prompts.store.counter_file import CounterFile, Key
from promptdial.prompts.store.forks import held_at_forks
from promptdial.prompts.store.tally import Tally

FLUSH_SECONDS = 30.0
"""Time between two writes: the most that a kill can lose."""

MAX_KEPT = 1024
"""Versions counted between two writes; what more there are go uncounted until then."""


class Counters:
    """Counts of all tenants of a store. Safe to share among threads and processes."""

    def __init__(self, path: Path) -> None:
        """Take the file that counts are added to; nothing is read or written yet."""
        self._file = CounterFile(path)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._pending: dict[Key, Tally] = {}
        self._thread: threading.Thread | None = None
        self._end = threading.Event()
        self._pid = os.getpid()
        held_at_forks(self)

    def count(
        self,
        key: Key,
        confidence: float | None,
        tokens: int,
        milliseconds: float | None,
        abstained: bool,
    ) -> None:
        """Add one answer; microseconds.

        Args:
            key: Tenant, task, version and experiment.
            confidence: The answer's; None where it has none.
            tokens: Length of the input.
            milliseconds: How long it took; None where that is not its own.
            abstained: Whether it was an abstention.
        """
        with self._lock:
            tally = self._pending.get(key)
            if tally is None:
                if len(self._pending) >= MAX_KEPT:
                    return
                tally = self._pending[key] = Tally()
            tally.count(confidence, tokens, milliseconds, abstained)
            if self._thread is None:
                self._start()

    def flush(self) -> None:
        """Write what was counted; where that cannot be, it stays in memory."""
        with self._writing:
            with self._lock:
                taken, self._pending = self._pending, {}
            if not taken or self._file.add(taken):
                return
            with self._lock:
                later, self._pending = self._pending, taken
                for key, tally in later.items():
                    taken.setdefault(key, Tally()).add(tally)
                # Added up, the histograms are within their window again.
                for key in taken.keys() - later.keys():
                    taken[key].add(Tally())

    def read(self, tenant: str) -> dict[tuple[str, int, int], Tally]:
        """A tenant's counts by task, version and experiment, those in memory included.

        The histograms of a version stand with its experiment 0.
        """
        with self._writing:
            found = self._file.read(tenant)
            with self._lock:
                for (owner, task, version, experiment), tally in self._pending.items():
                    if owner == tenant:
                        sums = found.setdefault((task, version, experiment), Tally())
                        bins = found.setdefault((task, version, 0), Tally())
                        sums.add_sums(tally)
                        bins.add_bins(tally)
        return found

    def keep(
        self, known: Collection[tuple[str, str, int]], experiments: Collection[int]
    ) -> None:
        """Forget all versions but those known, and what is of older experiments.

        Args:
            known: Tenant, task and version.
            experiments: Those whose counts stay apart; others join the rest.
        """
        with self._writing:
            with self._lock:
                for key in list(self._pending):
                    if key[:3] not in known:
                        del self._pending[key]
            self._file.keep(known, experiments)

    def close(self) -> None:
        """Write what was counted, and end the thread; later counts begin a new one."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._end.set()
        if thread is not None:
            thread.join()
        self.flush()

    def before_fork(self) -> None:
        """Wait for what is being written: SQLite must not be carried over a fork."""
        self._writing.acquire()
        self._lock.acquire()

    def after_fork(self) -> None:
        """Go on; a child has no thread, and its parent writes what was counted."""
        if self._pid != os.getpid():
            self._pid, self._pending = os.getpid(), {}
            self._thread, self._end = None, threading.Event()
        self._lock.release()
        self._writing.release()

    def _start(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(
            target=_flush_at_times,
            args=(weakref.ref(self), self._end),
            name="promptdial-counters",
            daemon=True,
        )
        self._thread.start()


def _flush_at_times(of: "weakref.ref[Counters]", end: threading.Event) -> None:
    """Flush until the end, or until nobody has the counters any more."""
    while not end.wait(FLUSH_SECONDS):
        counters = of()
        if counters is None:
            return
        counters.flush()
        # Not over the wait: it would never be let go.
        del counters
