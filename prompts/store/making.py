"""A new store: its folders, its index, its limits."""

import os
import sqlite3
from pathlib import Path

from promptdial.prompts.errors import UsageError
from promptdial.prompts.store.index import Index, make_index
from promptdial.prompts.store.layout import Layout, is_store, make_folders, staging_held
from promptdial.prompts.store.limits import Limits


def make_store(path: str | os.PathLike[str], limits: Limits | None = None) -> bool:
    """Make a store, durably; one that is there stays, with the limits given.

    A crash under way leaves a folder that is no store yet; the next call goes on.

    Args:
        path: Its folder; made where it is missing.
        limits: Its bounds; None for the defaults, or those that it has.

    Returns:
        Whether it was made now.

    Raises:
        UsageError: The limits are below 1, or the path is a file.
        NoSpace, StoreReadOnly, FileFailed: It cannot be written.
        StoreError: One is there and cannot be opened.
    """
    layout = Layout(Path(path))
    if limits is not None and min(limits.versions, limits.bytes) < 1:
        raise UsageError(f"limits {limits}", "give at least 1")
    if layout.root.exists() and not layout.root.is_dir():
        raise UsageError(f"{layout.root} is no folder", "name another one")
    new = not is_store(layout.root)
    if new:
        make_folders(layout)
        with staging_held(layout):
            make_index(layout)
    if new or limits is not None:
        index = Index(layout)
        try:
            with index.writing() as connection:
                _set_limits(connection, limits or Limits())
        finally:
            index.close()
    return new


def limits_of(connection: sqlite3.Connection) -> Limits:
    """The bounds of a store; the defaults where it has none."""
    rows = connection.execute("SELECT key, value FROM settings")
    found = {str(key): int(value) for key, value in rows.fetchall()}
    default = Limits()
    return Limits(
        versions=found.get("versions", default.versions),
        bytes=found.get("bytes", default.bytes),
    )


def _set_limits(connection: sqlite3.Connection, limits: Limits) -> None:
    connection.executemany(
        "INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)",
        (("versions", limits.versions), ("bytes", limits.bytes)),
    )
