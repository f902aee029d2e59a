"""Commands on a store that are refused, by their numbers in the list of bad inputs."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
from stores import end_trial, install, make_good, small_blob

from promptdial.prompts.blob import write_blob
from promptdial.prompts.store import PromptStore

Around = Callable[[Path], AbstractContextManager[None]]
FREE_BYTES = 100


@dataclass(frozen=True)
class StoreCase:
    """One refused command.

    Attributes:
        number: In the list.
        name: What is bad.
        code: The error's.
        says: Parts of the line.
        prepare: Makes the store what it is; version 1 of task `a` is good and active.
        words: The command; STORE and FILE stand for the store and a blob beside it.
        around: What the world is like meanwhile.
    """

    number: int
    name: str
    code: str
    says: tuple[str, ...]
    prepare: Callable[[PromptStore, Path], None]
    words: tuple[str, ...]
    around: Around = lambda _: nullcontext()


@contextmanager
def full_disk(store: Path) -> Iterator[None]:
    """A disk with FREE_BYTES left."""
    fields = [*os.statvfs(store)]
    fields[1], fields[4] = 1, FREE_BYTES  # f_frsize, f_bavail
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
        yield


@contextmanager
def read_only(store: Path) -> Iterator[None]:
    """As a user who may not write there; root may write everywhere."""
    paths = [store, *store.rglob("*")]
    before = os.geteuid()
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def nothing(store: PromptStore, file: Path) -> None:
    del store, file


def second_version(store: PromptStore, file: Path) -> None:
    write_blob(file, small_blob("a", 2))


def second_installed(store: PromptStore, file: Path) -> None:
    del file
    install(store, "a", 2)


def other_content(store: PromptStore, file: Path) -> None:
    del store
    write_blob(file, small_blob("a", 1, seed=9))


def second_good(store: PromptStore, file: Path) -> None:
    del file
    make_good(store, "a", 2)


def second_bad(store: PromptStore, file: Path) -> None:
    del file
    install(store, "a", 2)
    store.activate("a", 2)
    for _ in range(3):
        end_trial(store, "a", "golden input 'x' is 'red', not 'blue'")


STORE_CASES = (
    StoreCase(
        37,
        "disk full",
        "NO_SPACE",
        (f"{FREE_BYTES} bytes are free", "free some space"),
        second_version,
        ("install", "STORE", "FILE"),
        full_disk,
    ),
    StoreCase(
        46,
        "rollback with nothing before",
        "NO_PREVIOUS",
        ("task 'a' has no good version before the active one (1)",),
        nothing,
        ("rollback", "STORE", "a"),
    ),
    StoreCase(
        47,
        "rollback below the floor",
        "ROLLBACK",
        ("version 1 of task 'a', at least 2", "--allow-below-floor"),
        second_good,
        ("rollback", "STORE", "a"),
    ),
    StoreCase(
        47,
        "activation below the floor",
        "ROLLBACK",
        ("version 1 of task 'a', at least 2", "--allow-below-floor"),
        second_good,
        ("activate", "STORE", "a", "1"),
    ),
    StoreCase(
        48,
        "activating what is marked bad",
        "MARKED_BAD",
        ("version 2 of task 'a' is marked bad: golden input 'x'",),
        second_bad,
        ("activate", "STORE", "a", "2"),
    ),
    StoreCase(
        49,
        "read-only store",
        "READ_ONLY",
        ("index.sqlite: attempt to write a readonly database", "check permissions"),
        second_installed,
        ("activate", "STORE", "a", "2"),
        read_only,
    ),
    StoreCase(
        51,
        "same version with other content",
        "VERSION_TAKEN",
        ("version 1 of task 'a' is known as sha256:", "under a new version"),
        other_content,
        ("install", "STORE", "FILE"),
    ),
)
