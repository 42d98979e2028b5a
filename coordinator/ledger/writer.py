"""The thread that writes the ledger: each commit takes all entries that have gathered, and failed ones are kept.

A second thread makes the checkpoints: they wait for the disk, and no commit has to wait for them. SQLite begins the log
anew when all of it has been taken over, which never is so where commits follow one another: beyond a size the writing
thread takes over itself what has come since the last checkpoint.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain, islice
from queue import Empty, SimpleQueue
from typing import Any

import msgspec
import structlog
from msgspec.structs import astuple

from moe2.common.clock import EARLIEST_UNIX_S
from moe2.coordinator.ledger.accounts import day_of
from moe2.coordinator.ledger.entry import (
    ATTEMPT_COLUMNS,
    REQUEST_COLUMNS,
    RequestEntry,
    ReservationEntry,
    StandingEntry,
)
from moe2.coordinator.ledger.schema import is_full

CHECKPOINT_EVERY_S = 5.0
MAX_LOG_PAGES = 4096
"""Pages of the log, mostly of 4 kB, beyond which it is to begin anew: a few seconds' worth of 500 requests a second."""
RETRY_S = 1.0
MAX_PER_COMMIT = 256
MAX_KEPT = 10_000
"""The number of entries that are kept while the database cannot be written; beyond it the oldest is dropped."""
PRUNED_AT_ONCE = 200
_ROWS_PER_STATEMENT = 32

_COUNTER_COLUMNS = ("epoch", "idle_j", "loading_j", "waking_j", "other_j", "requests_j")
_ADD_STANDING = """
    INSERT INTO standing (agent, hour_unix_s, cause, quality, agent_name, joules) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET joules = joules + excluded.joules, agent_name = excluded.agent_name
"""
_KEEP_COUNTERS = """
    INSERT OR REPLACE INTO standing_counters (agent, epoch, idle_j, loading_j, waking_j, other_j, requests_j)
    VALUES (?, ?, ?, ?, ?, ?, ?)
"""
# What was written while the clock said 1970 is as old as what was written after it.
_FIRST_DAY = day_of(EARLIEST_UNIX_S)
_TOO_OLD = """
    SELECT rowid, request_id FROM requests
    WHERE day < :before AND (
        day >= :first OR rowid < (SELECT max(rowid) FROM requests WHERE day >= :first AND day < :before)
    )
    LIMIT :most
"""
_RESERVATIONS = f"reservations ({', '.join(ReservationEntry.__struct_fields__)})"
_NO_REQUEST: tuple[Any, ...] = (None,) * len(REQUEST_COLUMNS)
_NO_ATTEMPT: tuple[Any, ...] = (None,) * len(ATTEMPT_COLUMNS)

# What ails the database or its disk; every other error is about what was to be written.
_MAY_PASS = (sqlite3.OperationalError, sqlite3.DatabaseError)

Entry = RequestEntry | ReservationEntry | StandingEntry

log = structlog.get_logger()


class Batch(msgspec.Struct, frozen=True):
    """Entries on their way to the writer."""

    number: int
    """The number of the last entry; numbers ascend by one for each entry."""
    entries: tuple[Entry, ...]


class Prune(msgspec.Struct, frozen=True):
    """An order to delete the requests of the days before `before_day`."""

    before_day: str


class Progress(msgspec.Struct, frozen=True):
    """The writer's report after each try."""

    handled: int
    """Every entry up to this number has been tried."""
    error: str | None
    """Why the try failed; None if it did not."""
    n_waiting: int
    """Entries that are kept for the next try."""
    n_dropped: int
    """Entries that were lost since the start."""


class Stop:
    """An order to write what there is, and to end."""


class LedgerWriter:
    """The writing thread, which owns the writing connection from `start` on.

    on_progress: called in the thread. is_journal: whether entries are also noted for shipping, in the same transaction.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        checkpointer: sqlite3.Connection,
        on_progress: Callable[[Progress], None],
        *,
        retry_s: float = RETRY_S,
        is_journal: bool = False,
    ) -> None:
        connection.executescript(_view())
        self._is_journal = is_journal
        self._connection = connection
        self._checkpointer = checkpointer
        self._on_progress = on_progress
        self._retry_s = retry_s
        self._inbox: SimpleQueue[Batch | Prune | Stop] = SimpleQueue()
        self._kept: deque[Entry] = deque()
        self._n_dropped = 0
        self._told = Progress(0, None, 0, 0)
        self._error: str | None = None
        self._prune_before: str | None = None
        self._stopping = False
        self._stopped = threading.Event()
        self._written = threading.Event()
        self._log_is_long = False
        # Daemon threads: a disk that hangs must not keep the coordinator from ending.
        self._threads = (
            threading.Thread(target=self._run, name="ledger-writer", daemon=True),
            threading.Thread(target=self._keep_checkpoints, name="ledger-checkpoints", daemon=True),
        )

    def start(self) -> None:
        """Starts the thread."""
        for thread in self._threads:
            thread.start()

    def put(self, item: Batch | Prune | Stop) -> None:
        """Hands over work and returns at once."""
        self._inbox.put(item)

    def join(self, timeout_s: float) -> bool:
        """Waits for the end that `Stop` ordered. Returns False if it has not come by then."""
        self._threads[0].join(timeout_s)
        if self._threads[0].is_alive():
            return False
        self._stopped.set()
        self._written.set()
        self._threads[1].join(timeout_s)
        return True

    # --- The writer's thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            self._write(self._gather())
            if self._log_is_long:
                self._log_is_long = False
                self._checkpoint(self._connection)
        try:
            # The last connection that closes writes everything into the database and removes the log beside it.
            self._connection.close()
        except sqlite3.Error as error:
            log.warning("ledger_not_closed", error=str(error))

    def _gather(self) -> list[Batch]:
        """Waits for work and returns the batches that have come since."""
        batches: list[Batch] = []
        try:
            item = self._inbox.get(timeout=self._patience_s())
            while True:
                match item:
                    case Batch():
                        batches.append(item)
                    case Prune(before_day=day):
                        self._prune_before = day
                    case Stop():
                        self._stopping = True
                        break
                item = self._inbox.get_nowait()
        except Empty:
            pass
        return batches

    def _patience_s(self) -> float | None:
        if self._kept:
            return self._retry_s
        return None if self._prune_before is None else 0.0

    def _write(self, batches: Sequence[Batch]) -> None:
        self._kept.extend(entry for batch in batches for entry in batch.entries)
        try:
            while self._kept:
                part = tuple(islice(self._kept, MAX_PER_COMMIT))
                self._commit_or_refuse(part)
                for _ in part:
                    self._kept.popleft()
            if not batches and self._prune_before is not None:
                self._prune(self._prune_before)
        except sqlite3.Error as error:
            self._failed(error)
        else:
            if self._error is not None:
                log.info("ledger_written_again", dropped=self._n_dropped)
            self._error = None
        while len(self._kept) > MAX_KEPT:
            self._kept.popleft()
            self._n_dropped += 1
        told = Progress(
            batches[-1].number if batches else self._told.handled, self._error, len(self._kept), self._n_dropped
        )
        if told != self._told:
            self._told = told
            self._on_progress(told)

    def _failed(self, error: sqlite3.Error) -> None:
        said = "its disk is full" if is_full(error) else str(error)
        if said != self._error:
            log.error("ledger_not_written", error=said, kept=len(self._kept))
        self._error = said
        # A prune that failed waits for the next order.
        self._prune_before = None

    def _commit_or_refuse(self, entries: Sequence[Entry]) -> None:
        """Writes entries. An entry that no database would take is left out, so that it does not stop the others.

        Raises sqlite3.Error where the same may succeed later.
        """
        try:
            self._commit(entries)
        except Exception as error:
            if type(error) in _MAY_PASS:
                raise
            if len(entries) > 1:
                for entry in entries:
                    self._commit_or_refuse((entry,))
                return
            log.error("ledger_entry_refused", request_id=getattr(entries[0], "request_id", None), error=str(error))
            self._n_dropped += 1

    def _commit(self, entries: Sequence[Entry]) -> None:
        """Writes entries in one transaction: all of them or none."""
        rows: list[tuple[Any, ...]] = []
        reserved, ended, standing = [], [], []
        for entry in entries:
            if isinstance(entry, RequestEntry):
                rows += _rows(entry)
                if entry.was_reserved:
                    ended.append((entry.request_id,))
            elif isinstance(entry, ReservationEntry):
                reserved.append(astuple(entry))
            else:
                standing.append(entry)
        if reserved or ended or standing or self._is_journal or len(rows) > _ROWS_PER_STATEMENT:
            with _Transaction(self._connection):
                self._insert(_RESERVATIONS, reserved)
                self._insert("entered", rows)
                self._connection.executemany("DELETE FROM reservations WHERE request_id = ?", ended)
                for entry in standing:
                    self._book_standing(entry)
                if self._is_journal:
                    self._note_shipments(entries)
        else:
            # One statement is a transaction by itself.
            self._insert("entered", rows)
        self._written.set()

    def _insert(self, into: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Inserts several rows per statement, as the thread gives way to others after each statement."""
        for start in range(0, len(rows), _ROWS_PER_STATEMENT):
            part = rows[start : start + _ROWS_PER_STATEMENT]
            values = tuple(chain.from_iterable(part))
            # `execute` would give way once more, to ask for the last row's id.
            self._connection.executemany(_insertion(into, len(part[0]), len(part)), (values,))

    def _book_standing(self, entry: StandingEntry) -> None:
        """Adds joules and keeps the counters that they came from, both in the same transaction."""
        rows = [
            (entry.agent, entry.hour_unix_s, cause, entry.quality, entry.agent_name, joules)
            for cause, joules in entry.by_cause
        ]
        self._connection.executemany(_ADD_STANDING, rows)
        counters = [getattr(entry.counters, name) for name in _COUNTER_COLUMNS]
        self._connection.execute(_KEEP_COUNTERS, [entry.agent, *counters])

    def _note_shipments(self, entries: Sequence[Entry]) -> None:
        """Notes what is to be shipped. Reservations are this coordinator's own affair until a crash settles them."""
        rows = [
            (entry.request_id, None) if isinstance(entry, RequestEntry) else (None, msgspec.json.encode(entry).decode())
            for entry in entries
            if not isinstance(entry, ReservationEntry)
        ]
        self._connection.executemany("INSERT INTO shipments (request_id, payload) VALUES (?, ?)", rows)

    def _prune(self, before_day: str) -> None:
        """Deletes some of the requests that are too old; it is called again until none is left."""
        with _Transaction(self._connection):
            found = self._connection.execute(
                _TOO_OLD, {"first": _FIRST_DAY, "before": before_day, "most": PRUNED_AT_ONCE}
            ).fetchall()
            self._connection.executemany(
                "DELETE FROM attempts WHERE request_id = ?", [(found_id,) for _, found_id in found]
            )
            self._connection.executemany("DELETE FROM requests WHERE rowid = ?", [(rowid,) for rowid, _ in found])
            self._connection.execute(
                "DELETE FROM standing WHERE hour_unix_s >= ? AND hour_unix_s < CAST(strftime('%s', ?) AS INTEGER)",
                (EARLIEST_UNIX_S, before_day),
            )
        self._written.set()
        if len(found) < PRUNED_AT_ONCE:
            self._prune_before = None

    # --- The checkpoints' thread --------------------------------------------------------------------------------------

    def _keep_checkpoints(self) -> None:
        while not self._stopped.is_set():
            self._written.wait()
            self._written.clear()
            self._log_is_long = self._checkpoint(self._checkpointer) > MAX_LOG_PAGES
            self._stopped.wait(CHECKPOINT_EVERY_S)
        self._checkpointer.close()

    # --- Of both threads ----------------------------------------------------------------------------------------------

    @staticmethod
    def _checkpoint(connection: sqlite3.Connection) -> int:
        """Takes over from the log what no reader holds up. Returns the pages of the log; 0 where that failed."""
        try:
            _, n_pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            log.warning("ledger_checkpoint_failed", error=str(error))
            return 0
        return int(n_pages)


class _Transaction:
    """A transaction that commits at the end, or rolls back on an error."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                self._roll_back()
                raise
        else:
            self._roll_back()

    def _roll_back(self) -> None:
        # A full disk makes SQLite roll back by itself.
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def _view() -> str:
    """Makes the view `entered`, of which a row is a request with its first attempt, or a further attempt.

    With each statement the thread lets the event loop run, and has to wait until that lets it go on. So that requests
    need one only, which is a transaction by itself, it is a trigger that enters them into the two tables.
    """
    tables = (("requests", "request", REQUEST_COLUMNS), ("attempts", "attempt", ATTEMPT_COLUMNS))
    # Names of our own tables and columns, no input.
    nothing = ", ".join(f"NULL AS {part}_{name}" for _, part, columns in tables for name in columns)
    inserts = " ".join(
        f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) "
        f"SELECT {', '.join(f'NEW.{part}_{name}' for name in columns)} WHERE NEW.{part}_request_id IS NOT NULL;"
        for table, part, columns in tables
    )
    return f"""
        CREATE TEMP VIEW entered AS SELECT {nothing};
        CREATE TEMP TRIGGER enter INSTEAD OF INSERT ON entered BEGIN {inserts} END;
    """


def _rows(entry: RequestEntry) -> list[tuple[Any, ...]]:
    """The rows of `entered` that one request is."""
    first, *others = [astuple(attempt)[: len(ATTEMPT_COLUMNS)] for attempt in entry.attempts] or [_NO_ATTEMPT]
    return [astuple(entry)[: len(REQUEST_COLUMNS)] + first, *(_NO_REQUEST + other for other in others)]


@lru_cache(maxsize=256)
def _insertion(into: str, n_columns: int, n_rows: int) -> str:
    row = f"({', '.join('?' * n_columns)})"
    # Names of our own tables and columns, no input.
    return f"INSERT OR REPLACE INTO {into} VALUES {', '.join([row] * n_rows)}"  # noqa: S608
