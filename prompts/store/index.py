"""The index of a store: its SQLite connections, one to read and one to write.

WAL and synchronous=FULL (https://sqlite.org/wal.html): a commit is on the disk when it
returns, and who reads is never held up by who writes. Both connections are shared among
threads under locks. None may be carried into a forked process, whose locks would be a
copy of what its parent holds (https://sqlite.org/howtocorrupt.html, 2.6): before a fork
they are closed, and both processes open them again when they need them.
"""

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from promptdial.prompts.atomic import sync_folder
from promptdial.prompts.errors import (
    FileFailed,
    NoSpace,
    PromptdialError,
    StoreBusy,
    StoreInvalid,
    StoreReadOnly,
)
from promptdial.prompts.kept_files import stamp_of
from promptdial.prompts.store.forks import held_at_forks
from promptdial.prompts.store.layout import Layout
from promptdial.prompts.store.limits import BUSY_SECONDS
from promptdial.prompts.store.schema import FORMAT, format_of, upgrade

Token = tuple[object, ...]
"""Equal as long as nothing in the index changed."""

_NEW = "new-index.sqlite"


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
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._asking: sqlite3.Cursor | None = None
        # What the file was like where SQLite was told that it never changes.
        self._frozen: Token | None = None
        self._opened = 0
        held_at_forks(self)
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
        # What `reading` does takes longer than the question itself.
        with self._reading, suppress(sqlite3.Error):
            if self._asking is not None:
                return self._opened, _data_version(self._asking)
        with self.reading() as connection:
            if self._frozen is not None:
                return self._opened, self._frozen
            self._asking = connection.cursor()
            return self._opened, _data_version(self._asking)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection to read with, for this thread alone as long as it holds it.

        Raises:
            StoreError, FileFailed: The index cannot be read.
        """
        with self._reading:
            if self._frozen is not None and self._frozen != self._stamp():
                self._close_reader()
            try:
                if self._reader is None:
                    self._reader = self._open_reader()
                yield self._reader
            except sqlite3.Error as error:
                self._close_reader()
                raise mapped(self._layout.index, error) from None

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all of it is on the disk when this ends, or nothing is.

        Raises:
            StoreBusy: Another process holds the store for over BUSY_SECONDS.
            NoSpace, StoreReadOnly, FileFailed, StoreInvalid: It cannot be written.
        """
        with self._writing:
            try:
                if self._writer is None:
                    self._writer = self._connect("mode=rw")
                self._writer.execute("BEGIN IMMEDIATE")
                # A file that is read-only lets transactions begin, without the lock.
                self._writer.execute("UPDATE settings SET value = value WHERE 0")
                yield self._writer
                self._writer.execute("COMMIT")
            except sqlite3.Error as error:
                # Whatever state it is in: the next change starts with a new one.
                self._close_writer()
                raise mapped(self._layout.index, error) from None
            except BaseException:
                if self._writer is not None and self._writer.in_transaction:
                    with suppress(sqlite3.Error):
                        self._writer.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self.before_fork()
        self.after_fork()

    def before_fork(self) -> None:
        """Wait until nobody uses the connections, and close them."""
        self._writing.acquire()
        self._reading.acquire()
        self._close_writer()
        self._close_reader()

    def after_fork(self) -> None:
        """Go on, in the parent and in the child."""
        self._reading.release()
        self._writing.release()

    def _open_reader(self) -> sqlite3.Connection:
        self._opened += 1
        connection = None
        try:
            connection = self._connect("mode=rw")
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            _close(connection)
            # A disk that is read-only has no room for the shared memory of WAL. With
            # no log to read there is no need of it.
            if not _needs_writing(error) or self._log().exists():
                raise
            self._frozen = self._stamp()
            return self._connect("mode=ro&immutable=1")
        return connection

    def _close_reader(self) -> None:
        _close(self._reader)
        self._reader = self._asking = self._frozen = None

    def _close_writer(self) -> None:
        _close(self._writer)
        self._writer = None

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
        with self._writing:
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
