"""The thread that ships the ledger's journal to the shared database: batches, as often as it takes, counted once.

A row that arrives again replaces itself. Joules of hosts that belong to no request come from counters of agents that
several coordinators may hear of, so that only what is above the highest counters seen is added.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import structlog

from moe2.coordinator.database.postgresql import Cursor, DatabaseError, DatabaseRowError, Session, defect_of
from moe2.coordinator.database.schema import check_version
from moe2.coordinator.ledger.entry import ATTEMPT_COLUMNS, REQUEST_COLUMNS, StandingEntry
from moe2.coordinator.ledger.journal import Journal, JournalError, Shipment

SHIP_EVERY_S = 0.5
RETRY_S = 1.0
MAX_PER_BATCH = 512
CAUSES = ("idle", "loading", "waking", "other")

log = structlog.get_logger()


@dataclass(frozen=True)
class Shipping:
    """How shipping stands. error: why it stands still; None while it works. n_waiting: entries to be shipped."""

    error: DatabaseError | None = None
    n_waiting: int = 0
    n_shipped: int = 0
    n_refused: int = 0
    """Entries that the database does not take."""


class Shipper:
    """Ships the journal of a ledger from `start` to `stop`. on_shipped: called in the thread after each batch.

    name: of the coordinator, which its rows are kept under. The ledger has to be open.
    """

    def __init__(
        self,
        session: Session,
        path: Path,
        name: str,
        *,
        on_shipped: Callable[[], None] = lambda: None,
        every_s: float = SHIP_EVERY_S,
    ) -> None:
        self.session = session
        self._path = path
        self._name = name
        self._on_shipped = on_shipped
        self._every_s = every_s
        self.state = Shipping()
        self.complete_s: float | None = None
        """All that had been recorded by then has been shipped, monotonic; None where that was never so."""
        self._seen_opened = 0
        """The connection for which it has been settled what is to be shipped again."""
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        # A daemon thread: a database that hangs must not keep the coordinator from ending.
        self._thread = threading.Thread(target=self._run, name="journal-shipper", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ships what there is and ends. Blocks; False if that was not done in time, and the next start goes on."""
        self._stopping.set()
        self._hurry.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self.state.error is None and not self.state.n_waiting

    def _run(self) -> None:
        journal: Journal | None = None
        is_last = False
        while not is_last:
            is_last = self._stopping.is_set()
            if not is_last:
                self._hurry.wait(self._every_s if self.state.error is None else RETRY_S)
                self._hurry.clear()
            try:
                journal = journal or Journal(self._path)
                self._ship_all(journal)
            except JournalError as error:
                self._stands_still(_unreadable(error), self.state.n_waiting)
            except Exception as error:
                # Without this thread nothing would be shipped any more, and nobody would be told.
                self.session.close()
                self._stands_still(defect_of(error), self.state.n_waiting, error)
        if journal is not None:
            journal.close()
        self.session.close()

    def _ship_all(self, journal: Journal) -> None:
        n_shipped, n_refused = self.state.n_shipped, self.state.n_refused
        try:
            while True:
                began_s = monotonic()
                if (shipment := self._next(journal)) is None:
                    self.complete_s = began_s
                    break
                refused = self._ship(shipment)
                if self._seen_opened != self.session.n_opened:
                    # It may be another server, which has not got what the last one had.
                    log.info("journal_shipped_again", entries=journal.again())
                    self._seen_opened = self.session.n_opened
                    continue
                journal.shipped(shipment.upto)
                n_refused += refused
                n_shipped += len(shipment.requests) + len(shipment.standing)
                self._on_shipped()
        except DatabaseError as error:
            self.state = replace(self.state, n_shipped=n_shipped, n_refused=n_refused)
            self._stands_still(error, self._n_waiting(journal))
        else:
            if self.state.error is not None:
                log.info("journal_shipped_after_all")
            self.state = Shipping(n_shipped=n_shipped, n_refused=n_refused)

    def _stands_still(self, fault: DatabaseError, n_waiting: int, defect: Exception | None = None) -> None:
        """Notes why nothing is shipped now; it is tried again."""
        if str(self.state.error) != str(fault):
            log.error("journal_not_shipped", error=str(fault), waiting=n_waiting, exc_info=defect)
        self.state = replace(self.state, error=fault, n_waiting=n_waiting)

    def _next(self, journal: Journal) -> Shipment | None:
        shipment = journal.next(MAX_PER_BATCH)
        if not shipment.upto and self.state.error is not None:
            # Nothing to ship: only whether the database is there again.
            with self.session.transaction() as cursor:
                check_version(cursor)
        return shipment if shipment.upto else None

    def _n_waiting(self, journal: Journal) -> int:
        try:
            return journal.n_waiting()
        except JournalError:
            return self.state.n_waiting

    def _ship(self, shipment: Shipment) -> int:
        """Writes a shipment in one transaction. Returns how many entries the database would not take."""
        try:
            self._write(shipment)
        except DatabaseRowError as error:
            parts = _halves(shipment)
            if len(parts) > 1:
                return sum(self._ship(part) for part in parts)
            log.error("journal_entry_refused", entry=_named(shipment), error=str(error))
            return 1
        return 0

    def _write(self, shipment: Shipment) -> None:
        with self.session.transaction() as cursor:
            check_version(cursor)
            write_requests(cursor, self._name, shipment.requests, shipment.attempts)
            for entry in shipment.standing:
                write_standing(cursor, entry)


def write_requests(
    cursor: Cursor, coordinator: str, requests: Sequence[Sequence[Any]], attempts: Sequence[Sequence[Any]]
) -> None:
    """Writes rows of a coordinator's ledger in the place of what is there of the same requests."""
    cursor.executemany(_UPSERT_REQUEST, [(coordinator, *map(_plain, row)) for row in requests])
    cursor.executemany(_UPSERT_ATTEMPT, [(coordinator, *map(_plain, row)) for row in attempts])


def write_standing(cursor: Cursor, entry: StandingEntry) -> None:
    """Adds what an agent's counters are above the highest that any coordinator has shipped of this epoch."""
    counters = entry.counters
    now = [getattr(counters, f"{cause}_j") for cause in CAUSES]
    cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [entry.agent])
    cursor.execute(
        "SELECT idle_j, loading_j, waking_j, other_j FROM standing_counters WHERE agent = %s AND epoch = %s",
        [entry.agent, counters.epoch],
    )
    before = cursor.fetchone()
    booked = dict(entry.by_cause)
    added = {
        # Of counters that nobody has shipped yet, what the coordinator has booked: it knows which are too old.
        cause: booked.get(cause, 0.0) if before is None else max(0.0, joules - before[place])
        for place, (cause, joules) in enumerate(zip(CAUSES, now, strict=True))
    }
    rows = [
        (entry.agent, entry.hour_unix_s, cause, entry.quality, _plain(entry.agent_name), joules)
        for cause, joules in added.items()
        if joules > 0
    ]
    cursor.executemany(_ADD_STANDING, rows)
    cursor.execute(KEEP_COUNTERS, [entry.agent, counters.epoch, *now, counters.requests_j])


def _plain(value: Any) -> Any:
    """A value as PostgreSQL takes it: it knows no text with a NUL in it."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value


def _halves(shipment: Shipment) -> tuple[Shipment, ...]:
    """Splits a shipment in two; one that holds a single entry stays whole."""
    if len(shipment.requests) + len(shipment.standing) <= 1:
        return (shipment,)
    if shipment.standing and shipment.requests:
        return (
            Shipment(shipment.upto, shipment.requests, shipment.attempts),
            Shipment(shipment.upto, standing=shipment.standing),
        )
    if shipment.standing:
        middle = len(shipment.standing) // 2
        return tuple(
            Shipment(shipment.upto, standing=part) for part in (shipment.standing[:middle], shipment.standing[middle:])
        )
    middle = len(shipment.requests) // 2
    return tuple(
        Shipment(shipment.upto, part, tuple(row for row in shipment.attempts if row[0] in {one[0] for one in part}))
        for part in (shipment.requests[:middle], shipment.requests[middle:])
    )


def _unreadable(error: Exception) -> DatabaseError:
    return DatabaseError(
        f"The ledger cannot be used for shipping: {error}.",
        remedy="Make room on its disk, or end what locks it; it is tried again every second.",
    )


def _named(shipment: Shipment) -> str | None:
    if shipment.requests:
        return str(shipment.requests[0][0])
    return shipment.standing[0].agent if shipment.standing else None


def _upsert(table: str, key: Sequence[str], columns: Sequence[str]) -> str:
    # Names of our own tables and columns, no input.
    changes = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in key)
    return (
        f"INSERT INTO {table} (coordinator, {', '.join(columns)}) VALUES (%s{', %s' * len(columns)}) "  # noqa: S608
        f"ON CONFLICT (coordinator, {', '.join(key)}) DO UPDATE SET {changes}"
    )


_UPSERT_REQUEST = _upsert("requests", ("request_id",), REQUEST_COLUMNS)
_UPSERT_ATTEMPT = _upsert("attempts", ("request_id", "place"), ATTEMPT_COLUMNS)
_ADD_STANDING = """
    INSERT INTO standing (agent, hour_unix_s, cause, quality, agent_name, joules) VALUES (%s, %s, %s, %s, %s, %s)
    ON CONFLICT (agent, hour_unix_s, cause, quality)
    DO UPDATE SET joules = standing.joules + excluded.joules, agent_name = excluded.agent_name
"""
KEEP_COUNTERS = """
    INSERT INTO standing_counters (agent, epoch, idle_j, loading_j, waking_j, other_j, requests_j)
    VALUES (%s, %s, %s, %s, %s, %s, %s)
    ON CONFLICT (agent, epoch) DO UPDATE SET
        idle_j = greatest(standing_counters.idle_j, excluded.idle_j),
        loading_j = greatest(standing_counters.loading_j, excluded.loading_j),
        waking_j = greatest(standing_counters.waking_j, excluded.waking_j),
        other_j = greatest(standing_counters.other_j, excluded.other_j),
        requests_j = greatest(standing_counters.requests_j, excluded.requests_j)
"""
