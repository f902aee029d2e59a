"""What holds files or locks lets go of them before a fork, and goes on after it."""

import os
import threading
import weakref
from typing import Protocol


class Held(Protocol):
    """What must not be carried into a forked process as it is."""

    def before_fork(self) -> None:
        """Wait until nobody uses it, and let go."""
        ...

    def after_fork(self) -> None:
        """Go on, in the parent and in the child."""
        ...


def held_at_forks(item: Held) -> None:
    """Have something let go at every fork, for as long as it is used."""
    _OPEN.add(item)


_OPEN: "weakref.WeakSet[Held]" = weakref.WeakSet()
"""All there are in this process: Python's hooks of forks know no objects."""

_FORKING = threading.local()


def _before_fork() -> None:
    # In one order: two threads may fork at once.
    _FORKING.held = sorted(_OPEN, key=id)
    for item in _FORKING.held:
        item.before_fork()


def _after_fork() -> None:
    for item in _FORKING.held:
        item.after_fork()
    _FORKING.held = []


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
)
