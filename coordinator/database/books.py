"""What other coordinators' requests have cost, as far as they have shipped it: the whole fleet's sums, with one's own.

A coordinator's own ledger has all of its own requests; the database adds those of the others, who ship twice a second.
Joules of hosts that belong to no request are in the database once, though every coordinator books them for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import msgspec

from moe2.coordinator.database.postgresql import Cursor, DatabaseUnreachableError, Session
from moe2.coordinator.database.schema import check_version
from moe2.coordinator.ledger.accounts import DaySum
from moe2.coordinator.ledger.report import (
    Answered,
    By,
    Lengths,
    RequestRow,
    Span,
    StandingRow,
    SumRow,
    answered_in,
    day_sums,
    lengths,
    request_row,
    standing_hosts,
    sums_of,
)

TIMEOUT_S = 10.0


class Contributor(msgspec.Struct, frozen=True, kw_only=True):
    """A coordinator whose requests are in the sums.

    complete_s_ago: all that it had recorded until then is in the sums; None where it has not said so yet.
    """

    name: str
    cell: str
    is_own: bool
    complete_s_ago: float | None


@dataclass(frozen=True)
class Others:
    """What all coordinators but one have shipped. hosts: of all, as joules of no request are shared.

    today: of each key; None where it was not asked for.
    """

    contributors: tuple[Contributor, ...]
    sums: tuple[SumRow, ...] = ()
    answered: Answered = field(default_factory=Answered)
    hosts: tuple[StandingRow, ...] = ()
    today: tuple[DaySum, ...] = ()
    requests: tuple[RequestRow, ...] = ()


class SharedBooks:
    """What all coordinators but this one have shipped. Event loop; a thread asks."""

    def __init__(self, session: Session, own: str, cell: str) -> None:
        self._session = session
        self.own, self.cell = own, cell
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shared-books")

    async def sums(self, by: By, span: Span, today: str) -> Others:
        """Returns the sums of the others. Raises `DatabaseError`."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await loop.run_in_executor(
                    self._thread, sums_of_others, self._session, self.own, by, span, today
                )
        except TimeoutError:
            raise DatabaseUnreachableError("The database does not answer.") from None

    async def lengths(self, since_unix_s: float) -> list[Lengths]:
        """Returns the lengths of what the others of this cell have answered since a time. Raises `DatabaseError`."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await loop.run_in_executor(
                    self._thread, lengths_of_others, self._session, self.own, self.cell, since_unix_s
                )
        except TimeoutError:
            raise DatabaseUnreachableError("The database does not answer.") from None

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._session.close()


def sums_of_others(session: Session, own: str, by: By, span: Span, today: str) -> Others:
    """Returns the sums of all coordinators but `own`. Blocks. Raises `DatabaseError`."""
    with session.transaction() as cursor:
        source = _begun(cursor, own)
        return Others(
            _contributors(cursor, own),
            sums_of(source, by, span),
            answered_in(source, span),
            standing_hosts(source, span),
            day_sums(source, today),
        )


def requests_of_others(session: Session, own: str, span: Span, most: int | None) -> Others:
    """Returns the newest requests of all coordinators but `own`, the oldest first. Blocks. Raises `DatabaseError`."""
    where, values = span.where()
    with session.transaction() as cursor:
        source = _begun(cursor, own)
        found = source.execute(
            f"SELECT * FROM requests WHERE {where} ORDER BY at_unix_s DESC LIMIT ?",  # noqa: S608
            [*values, most],
        )
        names = [column[0] for column in found.description]
        rows = [dict(zip(names, row, strict=True)) for row in found][::-1]
        attempts: dict[str, list[dict[str, Any]]] = {}
        of_requests = (
            "SELECT request_id, outcome, joules, expert FROM attempts WHERE request_id = ANY(?) ORDER BY place"
        )
        for request_id, cause, joules, expert in source.execute(of_requests, [[row["request_id"] for row in rows]]):
            attempts.setdefault(request_id, []).append({"cause": cause, "joules": joules, "expert": expert})
        return Others(
            _contributors(cursor, own),
            requests=tuple(request_row(row, attempts.get(row["request_id"], ())) for row in rows),
        )


def lengths_of_others(session: Session, own: str, cell: str, since_unix_s: float) -> list[Lengths]:
    """Returns the lengths of what a cell's coordinators but `own` have answered. Blocks. Raises `DatabaseError`."""
    with session.transaction() as cursor:
        return list(lengths(_begun(cursor, own, cell), Span(since_unix_s)))


def _begun(cursor: Cursor, own: str, cell: str | None = None) -> _OfOthers:
    # All statements see one state of the tables, so that their sums fit each other.
    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
    check_version(cursor)
    return _OfOthers(cursor, own, cell)


def _contributors(cursor: Cursor, own: str) -> tuple[Contributor, ...]:
    cursor.execute(
        "SELECT name, cell, extract(epoch FROM clock_timestamp() - shipped_at)::float8 FROM coordinators "
        "WHERE name <> %s ORDER BY name",
        [own],
    )
    return tuple(
        Contributor(name=name, cell=cell, is_own=False, complete_s_ago=None if age_s is None else max(0.0, age_s))
        for name, cell, age_s in cursor.fetchall()
    )


@dataclass(frozen=True)
class _Found:
    description: Any
    rows: Sequence[tuple[Any, ...]]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)


class _OfOthers:
    """The tables `requests` and `attempts` without one coordinator's rows; a `Source` of reports.

    cell: whose coordinators' requests are in them; None for those of all cells.
    """

    def __init__(self, cursor: Cursor, own: str, cell: str | None) -> None:
        self._cursor = cursor
        self._own = own, cell, cell

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> _Found:
        self._cursor.execute(_WITHOUT_OWN + statement.replace("?", "%s"), [*self._own, self._own[0], *values])
        rows = [tuple(map(_plain, row)) for row in self._cursor.fetchall()]
        return _Found(self._cursor.description, rows)


def _plain(value: Any) -> Any:
    """A value as SQLite gives it: PostgreSQL's sums of whole numbers are decimals."""
    return int(value) if isinstance(value, Decimal) else value


_WITHOUT_OWN = """
    WITH requests AS (
             SELECT * FROM moe2.requests WHERE coordinator <> %s
             AND (%s::text IS NULL OR coordinator IN (SELECT name FROM moe2.coordinators WHERE cell = %s))
         ),
         attempts AS (SELECT * FROM moe2.attempts WHERE coordinator <> %s)
"""
