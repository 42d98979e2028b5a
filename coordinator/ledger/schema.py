"""The ledger's database: its tables, how older ones are brought up to date, and why one is refused.

WAL with `synchronous = NORMAL`: a commit has reached the kernel, so that the coordinator's death does not take it back;
the disk has it after the next checkpoint, which `moe2.coordinator.ledger.writer` makes every few seconds.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe2.common.errors import Moe2Error

VERSION = 3
BUSY_S = 0.5
"""The time for which another process may hold the database before a write counts as failed and is tried again later."""

# One script per version, each from the one before it. Never change one that has been released.
_MIGRATIONS = (
    """
    CREATE TABLE requests (
        request_id TEXT NOT NULL UNIQUE,
        at_unix_s REAL NOT NULL,
        day TEXT NOT NULL,
        key_id TEXT,
        key_name TEXT NOT NULL,
        mode TEXT NOT NULL,
        category TEXT,
        model TEXT NOT NULL,
        outcome TEXT NOT NULL,
        code TEXT,
        prompt_tokens INTEGER,
        cached_tokens INTEGER,
        decoded_tokens INTEGER,
        ttft_s REAL,
        total_s REAL,
        joules REAL,
        quality TEXT NOT NULL,
        charged_j REAL,
        charged_tokens INTEGER
    );
    CREATE INDEX requests_by_day ON requests (day);
    CREATE TABLE attempts (
        request_id TEXT NOT NULL,
        place INTEGER NOT NULL,
        expert TEXT NOT NULL,
        agent TEXT NOT NULL,
        model TEXT NOT NULL,
        outcome TEXT NOT NULL,
        prompt_tokens INTEGER,
        cached_tokens INTEGER,
        decoded_tokens INTEGER,
        seconds REAL,
        joules REAL,
        quality TEXT NOT NULL,
        predicted_j_p50 REAL,
        predicted_j_p95 REAL,
        predicted_s_p50 REAL,
        predicted_s_p95 REAL,
        PRIMARY KEY (request_id, place)
    ) WITHOUT ROWID;
    CREATE TABLE reservations (
        request_id TEXT NOT NULL PRIMARY KEY,
        at_unix_s REAL NOT NULL,
        day TEXT NOT NULL,
        key_id TEXT,
        key_name TEXT NOT NULL,
        model TEXT NOT NULL,
        energy_j REAL,
        tokens INTEGER
    ) WITHOUT ROWID;
    """,
    """
    CREATE TABLE standing (
        agent TEXT NOT NULL,
        hour_unix_s INTEGER NOT NULL,
        cause TEXT NOT NULL,
        quality TEXT NOT NULL,
        agent_name TEXT NOT NULL,
        joules REAL NOT NULL,
        PRIMARY KEY (agent, hour_unix_s, cause, quality)
    ) WITHOUT ROWID;
    CREATE INDEX standing_by_hour ON standing (hour_unix_s);
    CREATE TABLE standing_counters (
        agent TEXT NOT NULL PRIMARY KEY,
        epoch TEXT NOT NULL,
        idle_j REAL NOT NULL,
        loading_j REAL NOT NULL,
        waking_j REAL NOT NULL,
        other_j REAL NOT NULL,
        requests_j REAL NOT NULL
    ) WITHOUT ROWID;
    """,
    "ALTER TABLE attempts ADD COLUMN file_sha256 TEXT;",
)

# What was in progress when the coordinator died: nobody knows what it took, so its reservation stays charged.
_INTERRUPTED = """
    INSERT OR IGNORE INTO requests (request_id, at_unix_s, day, key_id, key_name, mode, model, outcome, quality,
                                    charged_j, charged_tokens)
    SELECT request_id, at_unix_s, day, key_id, key_name, 'unknown', model, 'interrupted', 'unmeasured', energy_j, tokens
    FROM reservations
"""


# Where coordinators share a database, the ledger is a journal, too: what is to be shipped there, in order. A request is
# named, as its row may still change; standing joules are in the payload. What was entered before is to be shipped, too.
_JOURNAL = """
    CREATE TABLE shipments (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        request_id TEXT,
        payload TEXT,
        shipped_unix_s REAL
    );
    CREATE INDEX shipments_to_come ON shipments (seq) WHERE shipped_unix_s IS NULL;
    CREATE INDEX shipments_done ON shipments (shipped_unix_s) WHERE shipped_unix_s IS NOT NULL;
    INSERT INTO shipments (request_id) SELECT request_id FROM requests ORDER BY rowid;
"""


class LedgerError(Moe2Error):
    """A ledger cannot be used."""


def open_for_writing(path: Path, *, is_journal: bool = False) -> sqlite3.Connection:
    """Opens the database, made or brought up to date, and enters requests that a crash interrupted as such.

    is_journal: whether entries are also noted for shipping. Raises LedgerError. The connection may be used by another
    thread.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # It holds who asked and when, so that it is not for everybody; SQLite gives its other files the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o640))
        connection = sqlite3.connect(
            path, timeout=BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
    except (OSError, sqlite3.Error) as error:
        raise LedgerError(
            f"The ledger {path} cannot be opened: {_said(error)}.",
            remedy="Make it and its folder writable for the daemon's user, or set ledger.path.",
        ) from error
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        # Checkpoints wait for the disk; they are made beside the writing, not within it.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        _migrate(connection, path)
        if not is_journal:
            # What is entered from now on is not in it; when it is one again, all is shipped once more.
            connection.execute("DROP TABLE IF EXISTS shipments")
        elif not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'shipments'").fetchone():
            connection.executescript(f"BEGIN IMMEDIATE; {_JOURNAL} COMMIT;")
        connection.execute("BEGIN IMMEDIATE")
        if is_journal:
            connection.execute("INSERT INTO shipments (request_id) SELECT request_id FROM reservations")
        connection.execute(_INTERRUPTED)
        connection.execute("DELETE FROM reservations")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        connection.close()
        raise unusable(path, error) from error
    except LedgerError:
        connection.close()
        raise
    return connection


def open_beside(path: Path) -> sqlite3.Connection:
    """Opens a second connection to an open database, for checkpoints. It may be used by another thread."""
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Opens the database for reading, also while a coordinator writes into it.

    Raises LedgerError if it cannot be read, now or while it is being read.
    """
    connection = _open_for_reading(path)
    try:
        yield connection
    except sqlite3.Error as error:
        raise unusable(path, error) from error
    finally:
        connection.close()


def unusable(path: Path, error: sqlite3.Error) -> LedgerError:
    """Returns the error for a database that was opened but cannot be used."""
    return LedgerError(f"The ledger {path} cannot be used: {error}.", remedy=_remedy(error))


def _open_for_reading(path: Path) -> sqlite3.Connection:
    if not path.exists():
        raise LedgerError(
            f"There is no ledger at {path}.", remedy="Name it with --database, or the coordinator's --config."
        )
    try:
        try:
            return _reading(path)
        except sqlite3.OperationalError:
            # Where this user may not write, SQLite cannot make the files beside the database that it shares with
            # writers; without any, nobody writes, and the file alone is complete.
            if Path(f"{path}-wal").exists():
                raise
            return _reading(path, "&immutable=1")
    except sqlite3.Error as error:
        raise unusable(path, error) from error


def is_full(error: BaseException) -> bool:
    """Whether the error says that the disk, or the database, has no room for more."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL


def _reading(path: Path, options: str = "") -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro{options}", uri=True, timeout=5.0, isolation_level=None
    )
    try:
        if _refuse_newer(connection, path) < VERSION:
            raise LedgerError(
                f"The database {path} is no ledger of this release.",
                remedy="Start the coordinator once, which brings its ledger up to date.",
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    for version in range(_refuse_newer(connection, path), VERSION):
        connection.executescript(
            f"BEGIN IMMEDIATE; {_MIGRATIONS[version]} PRAGMA user_version = {version + 1}; COMMIT;"
        )


def _refuse_newer(connection: sqlite3.Connection, path: Path) -> int:
    """Returns the version of the database's tables. Raises LedgerError for one that is newer than this release."""
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise LedgerError(
            f"The ledger {path} was written by a newer moe2 (version {version} of its tables, known are {VERSION}).",
            remedy="Use that release, or set ledger.path to another file.",
        )
    return int(version)


def _said(error: Exception) -> str:
    return str(error.strerror or error) if isinstance(error, OSError) else str(error)


def _remedy(error: sqlite3.Error) -> str:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_FULL:
            return "Make room on its disk, or set ledger.path."
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "Another process holds it: end that one first."
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return "Move it away, and a new one is begun; `sqlite3 FILE .recover` may save what it held."
        case _:
            return "Make it and its folder writable for the daemon's user, or set ledger.path."
