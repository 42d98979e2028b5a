"""The ledger as a journal: what is still to be shipped to the database that coordinators share, in order.

A shipment that has arrived is kept for a while: a database that fails over to a standby may have lost the latest
commits, and then gets these rows again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

import msgspec
import structlog

from moe2.coordinator.ledger.entry import ATTEMPT_COLUMNS, REQUEST_COLUMNS, StandingEntry
from moe2.coordinator.ledger.schema import open_beside, reading

KEEP_SHIPPED_S = 300.0
"""The time for which what was shipped can be shipped again."""
_STANDING_COLUMNS = "agent, hour_unix_s, cause, quality, agent_name, joules"


log = structlog.get_logger()


@dataclass(frozen=True)
class Shipment:
    """A part of the journal, as it stands now. upto: the last number of it; 0 where there is nothing.

    requests, attempts: rows with `REQUEST_COLUMNS` and `ATTEMPT_COLUMNS`.
    """

    upto: int = 0
    requests: tuple[tuple[Any, ...], ...] = ()
    attempts: tuple[tuple[Any, ...], ...] = ()
    standing: tuple[StandingEntry, ...] = ()


class Journal:
    """The journal in an open ledger, for one thread at a time. The ledger has to be open, as it makes the tables."""

    def __init__(self, path: Path) -> None:
        self._connection = open_beside(path)
        self._decoder = msgspec.json.Decoder(StandingEntry)

    def next(self, most: int) -> Shipment:
        """Returns the oldest `most` entries that have not been shipped. Raises sqlite3.Error."""
        noted = self._connection.execute(
            "SELECT seq, request_id, payload FROM shipments WHERE shipped_unix_s IS NULL ORDER BY seq LIMIT ?", (most,)
        ).fetchall()
        if not noted:
            return Shipment()
        ids = tuple(dict.fromkeys(request_id for _, request_id, _ in noted if request_id is not None))
        return Shipment(
            upto=noted[-1][0],
            requests=self._rows("requests", REQUEST_COLUMNS, ids),
            attempts=self._rows("attempts", ATTEMPT_COLUMNS, ids),
            standing=tuple(
                entry
                for _, _, payload in noted
                if payload is not None and (entry := self._standing_of(payload)) is not None
            ),
        )

    def shipped(self, upto: int) -> None:
        """Notes that everything up to this number has arrived. Raises sqlite3.Error."""
        now_unix_s = time()
        self._connection.execute(
            "UPDATE shipments SET shipped_unix_s = ? WHERE shipped_unix_s IS NULL AND seq <= ?", (now_unix_s, upto)
        )
        self._connection.execute(
            "DELETE FROM shipments WHERE shipped_unix_s NOT BETWEEN ? AND ?",
            # A wall clock that was set back must not keep them for ever.
            (now_unix_s - KEEP_SHIPPED_S, now_unix_s + KEEP_SHIPPED_S),
        )

    def again(self) -> int:
        """Has everything that was shipped lately be shipped once more; returns how much. Raises sqlite3.Error."""
        return self._connection.execute(
            "UPDATE shipments SET shipped_unix_s = NULL WHERE shipped_unix_s >= ?", (time() - KEEP_SHIPPED_S,)
        ).rowcount

    def n_waiting(self) -> int:
        """Returns how many entries have not been shipped. Raises sqlite3.Error."""
        [n_waiting] = self._connection.execute("SELECT count(*) FROM shipments WHERE shipped_unix_s IS NULL").fetchone()
        return int(n_waiting)

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def _standing_of(self, payload: str) -> StandingEntry | None:
        """Returns an entry; None for one that was damaged, which must not hold up all that come after it."""
        try:
            return self._decoder.decode(payload)
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            log.error("journal_entry_damaged", reason=str(error))
            return None

    def _rows(self, table: str, columns: Sequence[str], ids: Sequence[str]) -> tuple[tuple[Any, ...], ...]:
        """Returns the rows of some requests; one that was pruned has none."""
        # Names of our own tables and columns, no input.
        statement = f"SELECT {', '.join(columns)} FROM {table} WHERE request_id = ?"  # noqa: S608
        return tuple(row for each in ids for row in self._connection.execute(statement, (each,)))


@dataclass(frozen=True)
class Kept:
    """A part of all that a ledger holds; rows as in `Shipment`, standing joules and counters as in their tables."""

    requests: tuple[tuple[Any, ...], ...] = ()
    attempts: tuple[tuple[Any, ...], ...] = ()
    standing: tuple[tuple[Any, ...], ...] = ()
    counters: tuple[tuple[Any, ...], ...] = ()


def everything(path: Path, most: int) -> Iterator[Kept]:
    """Yields all that a ledger holds, at most so many requests at once. Raises LedgerError. Blocks."""
    of_request = f"SELECT {', '.join(ATTEMPT_COLUMNS)} FROM attempts WHERE request_id = ?"  # noqa: S608
    with reading(path) as connection:
        yield Kept(
            standing=tuple(
                connection.execute("SELECT agent, hour_unix_s, cause, quality, agent_name, joules FROM standing")
            ),
            counters=tuple(connection.execute("SELECT * FROM standing_counters")),
        )
        found = connection.execute(f"SELECT {', '.join(REQUEST_COLUMNS)} FROM requests ORDER BY rowid")  # noqa: S608
        while part := tuple(found.fetchmany(most)):
            attempts = tuple(attempt for row in part for attempt in connection.execute(of_request, (row[0],)))
            yield Kept(requests=part, attempts=attempts)


JournalError = sqlite3.Error
"""What the methods of `Journal` raise."""
