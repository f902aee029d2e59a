"""The file that counts of answers are kept in, beside the index: small, and losable.

Not in the index, whose commits are synced: nobody who changes the store waits for
counts, nor the other way round. A connection lives as long as one call, so several
processes add to one file, and none holds it open over a fork. A kill or a power cut
leaves what was there before or after a write (SQLite's rollback journal); for a disk
that does worse, a damaged file is begun anew.
"""

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from promptdial.prompts.distribution import EDGES
from promptdial.prompts.store.tally import SUMS, Tally, faded

BUSY_SECONDS = 2.0
"""Time to wait for another process that writes counts."""

_FORMAT = 1
_SCHEMA = (
    f"""
    CREATE TABLE counts (
        tenant TEXT NOT NULL,
        task TEXT NOT NULL,
        version INTEGER NOT NULL,
        experiment INTEGER NOT NULL,
        {", ".join(f"{name} REAL NOT NULL" for name in SUMS)},
        PRIMARY KEY (tenant, task, version, experiment)
    ) WITHOUT ROWID
    """,
    # `bins` is a JSON list of numbers.
    """
    CREATE TABLE histograms (
        tenant TEXT NOT NULL,
        task TEXT NOT NULL,
        version INTEGER NOT NULL,
        name TEXT NOT NULL,
        bins TEXT NOT NULL,
        PRIMARY KEY (tenant, task, version, name)
    ) WITHOUT ROWID
    """,
    f"PRAGMA user_version = {_FORMAT}",
)
_OR_ADD = "ON CONFLICT (tenant, task, version, experiment) DO UPDATE SET " + ", ".join(
    f"{name} = {name} + excluded.{name}" for name in SUMS
)
_ADD = f"INSERT INTO counts VALUES (?, ?, ?, ?, {', '.join('?' * len(SUMS))}) {_OR_ADD}"
_JOIN = (
    f"INSERT INTO counts SELECT tenant, task, version, 0, {', '.join(SUMS)} "
    f"FROM counts WHERE experiment = ? {_OR_ADD}"
)

Key = tuple[str, str, int, int]
"""Tenant, task, version, experiment; 0 for answers outside of any."""


class CounterFile:
    """Counts of all tenants, on the disk."""

    def __init__(self, path: Path) -> None:
        """Take a file; made by the first counts."""
        self._path = path

    def add(self, tallies: Mapping[Key, Tally]) -> bool:
        """Add to what is there, all or nothing; False where it cannot be written."""
        try:
            self._add(tallies)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                return False
            try:
                self._begin_anew()
                self._add(tallies)
            except (sqlite3.Error, OSError):
                return False
        except (sqlite3.Error, OSError):
            return False
        return True

    def read(self, tenant: str) -> dict[tuple[str, int, int], Tally]:
        """A tenant's counts by task, version and experiment; none without a file.

        The histograms of a version stand with its experiment 0.
        """
        found: dict[tuple[str, int, int], Tally] = {}
        with suppress(sqlite3.Error), self._opened("rw") as connection:
            sums = connection.execute(
                f"SELECT task, version, experiment, {', '.join(SUMS)} FROM counts "
                "WHERE tenant = ?",
                (tenant,),
            )
            for task, version, experiment, *values in sums.fetchall():
                tally = found.setdefault((task, version, experiment), Tally())
                _set_sums(tally, values)
            bins = connection.execute(
                "SELECT task, version, name, bins FROM histograms WHERE tenant = ?",
                (tenant,),
            )
            for task, version, name, text in bins.fetchall():
                if name in EDGES:
                    tally = found.setdefault((task, version, 0), Tally())
                    tally.bins[name] = _parsed(name, text)
        return found

    def keep(
        self, known: Collection[tuple[str, str, int]], experiments: Collection[int]
    ) -> None:
        """Forget all versions but those known; nothing where it cannot be written.

        Args:
            known: Tenant, task and version.
            experiments: Those whose counts stay apart; others join experiment 0.
        """
        with suppress(sqlite3.Error), self._opened("rw") as connection:
            connection.execute("BEGIN IMMEDIATE")
            for table in ("counts", "histograms"):
                rows = connection.execute(
                    f"SELECT DISTINCT tenant, task, version FROM {table}"
                )
                connection.executemany(
                    f"DELETE FROM {table} "
                    "WHERE tenant = ? AND task = ? AND version = ?",
                    set(rows.fetchall()) - set(known),
                )
            rows = connection.execute("SELECT DISTINCT experiment FROM counts")
            for (number,) in set(rows.fetchall()) - {(0,)}:
                if number not in experiments:
                    connection.execute(_JOIN, (number,))
                    connection.execute(
                        "DELETE FROM counts WHERE experiment = ?", (number,)
                    )
            connection.execute("COMMIT")

    def _add(self, tallies: Mapping[Key, Tally]) -> None:
        with self._opened("rwc") as connection:
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("PRAGMA user_version").fetchone()[0]:
                for statement in _SCHEMA:
                    connection.execute(statement)
            for key, tally in tallies.items():
                values = [getattr(tally, name) for name in SUMS]
                connection.execute(_ADD, (*key, *values))
                for name, bins in tally.bins.items():
                    _add_bins(connection, key, name, bins)
            connection.execute("COMMIT")

    @contextmanager
    def _opened(self, mode: str) -> Iterator[sqlite3.Connection]:
        """A connection to a file of this format, or to an empty one."""
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
        )
        # Closed without a commit, it is rolled back.
        with closing(connection):
            connection.execute("PRAGMA synchronous = NORMAL")
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            if found > _FORMAT:
                raise sqlite3.NotSupportedError(f"counts of format {found}")
            yield connection

    def _begin_anew(self) -> None:
        for name in (self._path.name, f"{self._path.name}-journal"):
            self._path.with_name(name).unlink(missing_ok=True)


def _add_bins(
    connection: sqlite3.Connection, key: Key, name: str, bins: list[float]
) -> None:
    tenant, task, version, _ = key
    row = connection.execute(
        "SELECT bins FROM histograms "
        "WHERE tenant = ? AND task = ? AND version = ? AND name = ?",
        (tenant, task, version, name),
    ).fetchone()
    before = _parsed(name, row[0] if row else "")
    after = faded([a + b for a, b in zip(before, bins, strict=True)])
    connection.execute(
        "INSERT OR REPLACE INTO histograms VALUES (?, ?, ?, ?, ?)",
        (tenant, task, version, name, json.dumps(after)),
    )


def _set_sums(tally: Tally, values: list[float]) -> None:
    for name, value in zip(SUMS, values, strict=True):
        kind = type(getattr(tally, name))
        setattr(tally, name, kind(value))


def _parsed(name: str, text: str) -> list[float]:
    """A histogram; empty where it is damaged, which a count may be."""
    empty = [0.0] * (len(EDGES[name]) + 1)
    try:
        found = [float(count) for count in json.loads(text)]
    except (TypeError, ValueError):
        return empty
    return found if len(found) == len(empty) else empty


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
