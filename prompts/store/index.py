"""The index of a store: its SQLite connections, one to read and one to write.

WAL and synchronous=FULL (https://sqlite.org/wal.html): a commit is on the disk when it
returns, and who reads is never held up by who writes. Both connections are shared among
threads under locks. SQLite forbids to carry a connection into a forked process, so a
child gets its own and leaves the parent's alone.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from promptdial.prompts.errors import (
    FileFailed,
    NoSpace,
    PromptdialError,
    StoreBusy,
    StoreInvalid,
    StoreReadOnly,
)
from promptdial.prompts.kept_files import stamp_of
from promptdial.prompts.store.layout import Layout, sync_folder
from promptdial.prompts.store.limits import BUSY_SECONDS
from promptdial.prompts.store.schema import FORMAT, format_of, upgrade

Token = tuple[object, ...]
"""Equal as long as nothing in the index changed."""

_NEW = "new-index.sqlite"


@dataclass
class _Connections:
    """The connections of one process; `before` are its parent's, never touched."""

    pid: int
    before: "_Connections | None"
    opened: int = 0
    reader: sqlite3.Connection | None = None
    asking: sqlite3.Cursor | None = None
    writer: sqlite3.Connection | None = None
    frozen: Token | None = None
    reading: threading.Lock = field(default_factory=threading.Lock)
    writing: threading.Lock = field(default_factory=threading.Lock)


class Index:
    """Reads and changes the index. Safe to share among threads and processes."""

    def __init__(self, layout: Layout) -> None:
        """Take the index of a store that is there; older formats are upgraded.

        Raises:
            StoreTooNew: A newer promptdial wrote it.
            StoreInvalid: It is damaged.
            StoreReadOnly: It is of an older format and cannot be written.
            FileFailed: It cannot be read.
        """
        self._layout = layout
        self._connections = _Connections(os.getpid(), None)
        with self.reading() as connection:
            found = format_of(connection)
        if found < FORMAT:
            self._upgrade()

    def token(self) -> Token:
        """What changes with every commit, of this process or another: microseconds.

        `PRAGMA data_version` tells of all other connections; this one never writes.

        Raises:
            StoreError, FileFailed: The index cannot be read.
        """
        here = self._connections
        if here.asking is not None and here.pid == os.getpid():
            # What `reading` does takes longer than the question itself.
            with here.reading, suppress(sqlite3.Error):
                if here.asking is not None:
                    return here.opened, _data_version(here.asking)
        with self.reading() as connection:
            here = self._connections
            if here.frozen is not None:
                return here.opened, here.frozen
            here.asking = connection.cursor()
            return here.opened, _data_version(here.asking)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read with, for this thread alone as long as it holds it.

        Raises:
            StoreError, FileFailed: The index cannot be read.
        """
        here = self._here()
        with here.reading:
            if here.frozen is not None and here.frozen != self._stamp():
                self._close_reader(here)
            try:
                if here.reader is None:
                    self._open_reader(here)
                assert here.reader is not None
                yield here.reader
            except sqlite3.Error as error:
                self._close_reader(here)
                raise mapped(self._layout.index, error) from None

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on the disk when this ends, or nothing is.

        Raises:
            StoreBusy: Another process holds the store for over BUSY_SECONDS.
            NoSpace, StoreReadOnly, FileFailed, StoreInvalid: It cannot be written.
        """
        here = self._here()
        with here.writing:
            try:
                if here.writer is None:
                    here.writer = self._connect("mode=rw")
                here.writer.execute("BEGIN IMMEDIATE")
                # A file that is read-only lets transactions begin, without the lock.
                here.writer.execute("UPDATE settings SET value = value WHERE 0")
                yield here.writer
                here.writer.execute("COMMIT")
            except sqlite3.Error as error:
                # Whatever state it is in: the next change starts with a new one.
                _close(here.writer)
                here.writer = None
                raise mapped(self._layout.index, error) from None
            except BaseException:
                if here.writer is not None and here.writer.in_transaction:
                    with suppress(sqlite3.Error):
                        here.writer.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        here = self._here()
        with here.writing, here.reading:
            _close(here.writer)
            here.writer = None
            self._close_reader(here)

    def _here(self) -> _Connections:
        """This process's connections."""
        found = self._connections
        if found.pid != os.getpid():
            found = self._connections = _Connections(os.getpid(), found)
        return found

    def _open_reader(self, here: _Connections) -> None:
        here.opened += 1
        try:
            here.reader = self._connect("mode=rw")
            here.reader.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            # A disk that is read-only has no room for the shared memory of WAL. With
            # no log to read there is no need of it.
            if not _needs_writing(error) or self._log().exists():
                raise
            here.frozen = self._stamp()
            _close(here.reader)
            here.reader = self._connect("mode=ro&immutable=1")

    def _close_reader(self, here: _Connections) -> None:
        _close(here.reader)
        here.reader = here.asking = here.frozen = None

    def _connect(self, options: str) -> sqlite3.Connection:
        # mode=rw never makes a file: an index that is gone is an error.
        connection = sqlite3.connect(
            f"{self._layout.index.absolute().as_uri()}?{options}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    def _upgrade(self) -> None:
        here = self._here()
        with here.writing:
            connection = None
            try:
                connection = self._connect("mode=rw")
                upgrade(connection)
            except sqlite3.Error as error:
                raise mapped(self._layout.index, error) from None
            finally:
                _close(connection)

    def _log(self) -> Path:
        return self._layout.index.with_name(f"{self._layout.index.name}-wal")

    def _stamp(self) -> Token:
        """What shows a change where SQLite itself is told that there is none."""
        try:
            found = os.stat(self._layout.index)  # noqa: PTH116 (a request's path)
        except OSError:
            return ()
        return (*stamp_of(found), self._log().exists())


def make_index(layout: Layout) -> None:
    """Make an empty index of the newest format, whole or not at all.

    Raises:
        NoSpace, StoreReadOnly, FileFailed: It cannot be written.
    """
    path = layout.staging / _NEW
    try:
        for name in (_NEW, f"{_NEW}-wal", f"{_NEW}-shm"):
            (layout.staging / name).unlink(missing_ok=True)
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA journal_mode = WAL")
            upgrade(connection)
        finally:
            # The last one to close writes the log into the file, and syncs it.
            connection.close()
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        path.replace(layout.index)
        sync_folder(layout.root)
    except sqlite3.Error as error:
        raise mapped(path, error) from None


def mapped(path: Path, error: sqlite3.Error) -> PromptdialError | sqlite3.Error:
    """Our error for one of SQLite's; a mistake in our own calls stays as it is."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        return error
    said = f"{path}: {error}"
    match code & 0xFF:
        case sqlite3.SQLITE_FULL:
            return NoSpace(said, "free some space")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusy(said)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return StoreReadOnly(said)
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_IOERR:
            return FileFailed(said, "check the disk and the folder's permissions")
    return StoreInvalid(said)


def _data_version(cursor: sqlite3.Cursor) -> int:
    ((version,),) = cursor.execute("PRAGMA data_version").fetchall()
    return int(version)


def _needs_writing(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
    )


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        with suppress(sqlite3.Error):
            connection.close()
