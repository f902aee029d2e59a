"""Who is trying a version: one thread of one process at a time, and no dead one.

The lock is one on the blob's file (flock), which ends with its process: what a crash
leaves is a count, never a lock.
"""

import fcntl
import os
import time
from contextlib import suppress

from promptdial.prompts.store.layout import Layout

WAIT_SECONDS = 30.0
"""Longest time to wait for the trial of another."""

_POLL_SECONDS = 0.01


class TrialLocks:
    """Locks of versions on trial, by digest. Safe to share among threads."""

    def __init__(self, layout: Layout) -> None:
        """Take a store's folder."""
        self._layout = layout
        self._held: dict[str, int] = {}

    def take(self, digest: str, wait: bool) -> bool:
        """Take the lock of a digest; False where another has it.

        Args:
            digest: The blob's.
            wait: Wait until the other is done, for WAIT_SECONDS at most.
        """
        try:
            handle = os.open(self._layout.blob(digest), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            # No file to lock: the trial begins, finds that out, and is counted.
            return True
        deadline = time.monotonic() + (WAIT_SECONDS if wait else 0.0)
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() >= deadline:
                    os.close(handle)
                    return False
                time.sleep(_POLL_SECONDS)
                continue
            self._held[digest] = handle
            return True

    def release_all(self) -> None:
        """Give back every lock: their trials count, and will never end."""
        for digest in tuple(self._held):
            self.release(digest)

    def release(self, digest: str) -> None:
        """Give back a lock that was taken."""
        handle = self._held.pop(digest, None)
        if handle is not None:
            # Unlocked, not closed alone: a child forked meanwhile holds it open too.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)
