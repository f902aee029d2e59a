"""The tables of a store's index, and how an older index becomes a new one.

`PRAGMA user_version` is the format: the number of steps that were taken. A step is
never changed once it was released; a new format is one step more.
"""

import sqlite3

from promptdial.prompts.errors import StoreInvalid, StoreTooNew

STEPS: tuple[tuple[str, ...], ...] = (
    (
        # `digest` is the blob's. `tries`: trials that were begun. `failure`: why the
        # last one failed. `installed`: seconds since 1970.
        """
        CREATE TABLE versions (
            tenant TEXT NOT NULL,
            task TEXT NOT NULL,
            version INTEGER NOT NULL CHECK (version > 0),
            digest TEXT NOT NULL,
            bytes INTEGER NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('staged', 'trial', 'good', 'bad')),
            tries INTEGER NOT NULL DEFAULT 0,
            pinned INTEGER NOT NULL DEFAULT 0,
            failure TEXT NOT NULL DEFAULT '',
            installed REAL NOT NULL,
            PRIMARY KEY (tenant, task, version)
        ) WITHOUT ROWID
        """,
        "CREATE INDEX versions_by_digest ON versions (digest)",
        # `floor`: the newest version that was ever good; it stays when all are removed.
        """
        CREATE TABLE tasks (
            tenant TEXT NOT NULL,
            task TEXT NOT NULL,
            active INTEGER,
            previous INTEGER,
            floor INTEGER NOT NULL DEFAULT 0,
            floor_digest TEXT NOT NULL DEFAULT '',
            PRIMARY KEY (tenant, task)
        ) WITHOUT ROWID
        """,
        # What failed here stays known when its version is removed.
        """
        CREATE TABLE bad (
            tenant TEXT NOT NULL,
            digest TEXT NOT NULL,
            failure TEXT NOT NULL,
            PRIMARY KEY (tenant, digest)
        ) WITHOUT ROWID
        """,
        "CREATE TABLE settings (key TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID",
    ),
    (
        # What was done, for people who ask how a device came to where it is.
        """
        CREATE TABLE events (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            at REAL NOT NULL,
            tenant TEXT NOT NULL,
            task TEXT NOT NULL,
            version INTEGER NOT NULL,
            event TEXT NOT NULL,
            detail TEXT NOT NULL
        )
        """,
    ),
    (
        # The base that a blob was made for (fingerprint and tokenizer's, see
        # device_rows.py); "" where nobody looked.
        "ALTER TABLE versions ADD COLUMN base TEXT NOT NULL DEFAULT ''",
        # What updates need to know of the device: one row where it was set up for
        # them. `tenants` and `tasks` are JSON; `tasks` is NULL for all tasks. Times
        # are seconds since 1970. `base_digest` is the manifest's; "" where updates
        # did not bring the base, `fingerprint` is "" where there is none.
        """
        CREATE TABLE device (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            device_id TEXT NOT NULL,
            channel TEXT NOT NULL,
            tenants TEXT NOT NULL,
            tasks TEXT,
            bundle TEXT NOT NULL,
            fingerprint TEXT NOT NULL DEFAULT '',
            tokenizer_fingerprint TEXT NOT NULL DEFAULT '',
            base_version INTEGER NOT NULL DEFAULT 0,
            base_digest TEXT NOT NULL DEFAULT '',
            time_floor INTEGER NOT NULL DEFAULT 0,
            last_check INTEGER NOT NULL DEFAULT 0
        )
        """,
        # Files of the base that updates brought, its manifest among them.
        """
        CREATE TABLE base_files (
            name TEXT PRIMARY KEY,
            digest TEXT NOT NULL
        ) WITHOUT ROWID
        """,
        # Beginnings of digests that a tenant may not use any more.
        """
        CREATE TABLE revoked (
            tenant TEXT NOT NULL,
            beginning TEXT NOT NULL,
            PRIMARY KEY (tenant, beginning)
        ) WITHOUT ROWID
        """,
    ),
    (
        # Who answers `percent` of a task's requests beside its active version; 0 when
        # that is over. `experiment` is a new number each time, to count answers by.
        """
        CREATE TABLE shares (
            tenant TEXT NOT NULL,
            task TEXT NOT NULL,
            incumbent INTEGER NOT NULL,
            challenger INTEGER NOT NULL,
            percent INTEGER NOT NULL CHECK (percent BETWEEN 0 AND 99),
            experiment INTEGER NOT NULL,
            PRIMARY KEY (tenant, task)
        ) WITHOUT ROWID
        """,
    ),
)

FORMAT = len(STEPS)


def format_of(connection: sqlite3.Connection) -> int:
    """The format of an index, 0 for an empty file.

    Raises:
        StoreTooNew: A newer promptdial wrote it.
    """
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    if found > FORMAT:
        raise StoreTooNew(f"the store has format {found}, known up to {FORMAT}")
    return int(found)


def upgrade(connection: sqlite3.Connection) -> None:
    """Take the steps that an index lacks, all of them in one transaction.

    Raises:
        StoreTooNew: A newer promptdial wrote it.
        StoreInvalid: It has tables of something else.
        sqlite3.Error: It cannot be written; it is as before then.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Once more under the lock: another process may have been quicker.
        found = format_of(connection)
        if not found and connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            raise StoreInvalid("the index has tables, and no format")
        for step in STEPS[found:]:
            for statement in step:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
