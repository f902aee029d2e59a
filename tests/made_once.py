"""Folders that several test files need, made once for all workers of a run."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

MakeOnce = Callable[[str, Callable[[Path], object]], Path]
"""A name and what fills its folder, to that folder; nobody may change what is in it."""


def maker(factory: pytest.TempPathFactory) -> MakeOnce:
    """Makes folders under the run's own one, which all workers share."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    shared = base / "made-once"
    shared.mkdir(exist_ok=True)

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        folder = shared / name
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                # Under another name, so that what failed half-way is not taken.
                begun = shared / f"{name}.part"
                begun.mkdir()
                make(begun)
                begun.rename(folder)
        return folder

    return make_once
