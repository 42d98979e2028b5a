"""The journal's way to the shared database: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from moe2.common.standby import StandingEnergy
from moe2.coordinator.database.books import sums_of_others
from moe2.coordinator.database.importing import import_files
from moe2.coordinator.database.postgresql import DatabaseUnreachableError, Session
from moe2.coordinator.database.shipper import MAX_PER_BATCH, Shipper
from moe2.coordinator.ledger.entry import StandingEntry
from moe2.coordinator.ledger.report import By, Span, sums
from moe2.coordinator.ledger.schema import open_for_writing, reading
from moe2.coordinator.ledger.store import Ledger
from tests.coordinator.ledger.entries import attempt_entry, request_entry, reservation
from tests.fakes.postgres import Postgres, needs_postgres

pytestmark = needs_postgres
POLL_S = 0.005


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(POLL_S)


@asynccontextmanager
async def journal(path: Path, url: str, name: str = "a") -> AsyncIterator[tuple[Ledger, Shipper]]:
    """A ledger that is shipped as soon as anything is in it."""
    ledger = Ledger(path, retention_days=36_500, is_journal=True)
    async with ledger.running():
        shipper = Shipper(Session(url, name=name), path, name, every_s=0.01)
        shipper.start()
        try:
            yield ledger, shipper
        finally:
            await asyncio.to_thread(shipper.stop, 10)


def rows(session: Session, query: str) -> list[tuple[Any, ...]]:
    with session.transaction() as cursor:
        cursor.execute(query)
        return cursor.fetchall()


def standing(joules: float, *, epoch: str = "e1", booked: float | None = None) -> StandingEntry:
    counters = StandingEnergy(epoch=epoch, idle_j=joules)
    by_cause = (("idle", joules if booked is None else booked),)
    return StandingEntry("id-1", "orin", 3600, by_cause, "measured_counter", counters)


async def test_entries_arrive_whole(tmp_path: Path, url: str, session: Session) -> None:
    """What is recorded is in the shared database, with attempts, under the coordinator's name."""
    async with journal(tmp_path / "ledger.sqlite", url) as (ledger, _):
        assert await ledger.record(request_entry("req-1"))
        await until(lambda: rows(session, "SELECT count(*) FROM requests") == [(1,)])
    assert rows(session, "SELECT coordinator, request_id, joules, charged_tokens FROM requests") == [
        ("a", "req-1", 5.0, 17)
    ]
    assert rows(session, "SELECT expert, predicted_j_p95 FROM attempts") == [("id-1/tiny", 8.0)]


async def test_what_others_have_shipped_is_summed_up_by_file(tmp_path: Path, url: str, session: Session) -> None:
    """PostgreSQL sums up models as SQLite does: by the file, whatever its names, and by name where none is known."""
    made = (("new", "aa"), ("old", "aa"), ("new", "bb"), ("new", None))
    async with journal(tmp_path / "ledger.sqlite", url) as (ledger, _):
        for number, (name, sha256) in enumerate(made):
            worked = attempt_entry(f"req-{number}", model=name, file_sha256=sha256)
            await ledger.record(request_entry(f"req-{number}", worked))
    found = sums_of_others(session, "another", By.MODEL, Span(), "2026-11-28").sums
    with reading(tmp_path / "ledger.sqlite") as connection:
        assert found == sums(connection, By.MODEL, Span())
    assert [(row.group, row.file_sha256) for row in found] == [("new", None), ("new", "bb"), ("new, old", "aa")]


async def test_a_stop_ships_what_is_left(tmp_path: Path, url: str, session: Session) -> None:
    """Entries that were recorded just before the end arrive, many batches of them."""
    n_entries = 2 * MAX_PER_BATCH + 7
    async with journal(tmp_path / "ledger.sqlite", url) as (ledger, _):
        await asyncio.gather(*(ledger.record(request_entry(f"req-{number}")) for number in range(n_entries)))
    assert rows(session, "SELECT count(*) FROM requests") == [(n_entries,)]


async def test_a_later_entry_takes_the_place_of_the_shipped_one(tmp_path: Path, url: str, session: Session) -> None:
    """A request whose costs become known after its first entry was shipped is counted once, with them."""
    async with journal(tmp_path / "ledger.sqlite", url) as (ledger, _):
        await ledger.record(request_entry("req-1", joules=None, charged_j=8.0))
        await until(lambda: rows(session, "SELECT count(*) FROM requests") == [(1,)])
        await ledger.record(request_entry("req-1", joules=5.0, charged_j=5.0))
        await until(lambda: rows(session, "SELECT joules, charged_j FROM requests") == [(5.0, 5.0)])


async def test_a_request_that_a_crash_interrupted_is_shipped(tmp_path: Path, url: str, session: Session) -> None:
    """The reservation that a crash left charged arrives as an interrupted request after the restart."""
    path = tmp_path / "ledger.sqlite"
    first = open_for_writing(path, is_journal=True)
    one = reservation("req-1")
    values = (one.request_id, one.at_unix_s, one.day, one.key_id, one.key_name, one.model, one.energy_j, one.tokens)
    first.execute("INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
    first.close()
    async with journal(path, url):
        await until(lambda: rows(session, "SELECT outcome, charged_j FROM requests") == [("interrupted", 8.0)])


async def test_what_was_recorded_without_a_database_is_shipped(tmp_path: Path, url: str, session: Session) -> None:
    """A coordinator that was alone, before it shared a database or in between, ships what it recorded then."""
    path = tmp_path / "ledger.sqlite"

    async def alone(request_id: str) -> None:
        ledger = Ledger(path, retention_days=36_500)
        async with ledger.running():
            await ledger.record(request_entry(request_id))

    await alone("req-1")
    async with journal(path, url) as (ledger, _):
        await ledger.record(request_entry("req-2"))
    await alone("req-3")
    async with journal(path, url):
        pass
    assert rows(session, "SELECT request_id FROM requests ORDER BY 1") == [("req-1",), ("req-2",), ("req-3",)]


async def test_standing_joules_are_brought_in_again_and_counted_once(
    tmp_path: Path, url: str, session: Session
) -> None:
    """An import after more hours have passed, and what is shipped after it, add up to what the host has counted."""
    path = tmp_path / "ledger.sqlite"
    first, later = standing(50.0), msgspec.structs.replace(standing(120.0, booked=70.0), hour_unix_s=7200)
    for entry in (first, later):
        ledger = Ledger(path, retention_days=36_500)
        async with ledger.running():
            await ledger.record(entry)
        await asyncio.to_thread(import_files, session, "a", tmp_path, path, tmp_path / "none.jsonl")
    async with journal(path, url) as (ledger, _):
        await ledger.record(msgspec.structs.replace(standing(125.0, booked=5.0), hour_unix_s=7200))
    assert rows(session, "SELECT hour_unix_s, joules FROM standing ORDER BY 1") == [(3600, 50.0), (7200, 75.0)]


@pytest.mark.slow
async def test_nothing_is_lost_while_the_database_is_down(tmp_path: Path, server: Postgres, url: str) -> None:
    """Entries of an outage are acknowledged at once, wait in the journal, and arrive after it: the sums are equal."""
    path = tmp_path / "ledger.sqlite"
    async with journal(path, url) as (ledger, shipper):
        await ledger.record(request_entry("req-0", joules=0.1))
        await until(lambda: shipper.state.n_shipped == 1)
        await asyncio.to_thread(server.kill)
        try:
            recorded = [ledger.record(request_entry(f"req-{number}", joules=0.1)) for number in range(1, 50)]
            assert all(await asyncio.gather(*recorded))
            await until(lambda: isinstance(shipper.state.error, DatabaseUnreachableError))
            assert shipper.state.n_waiting == 49
        finally:
            await asyncio.to_thread(server.start)
        await until(lambda: shipper.state.error is None and not shipper.state.n_waiting)
    session = Session(url, name="test")
    shared = [joules for (joules,) in rows(session, "SELECT joules FROM requests")]
    with reading(path) as connection:
        own = [joules for (joules,) in connection.execute("SELECT joules FROM requests")]
    session.close()
    assert (len(shared), math.fsum(shared)) == (50, math.fsum(own))


@pytest.mark.slow
async def test_commits_that_a_failover_lost_are_shipped_again(tmp_path: Path, server: Postgres, url: str) -> None:
    """Rows that the database has lost with its last commits come back once the connection is another one."""
    async with journal(tmp_path / "ledger.sqlite", url) as (ledger, shipper):
        await ledger.record(request_entry("req-1"))
        await ledger.record(standing(10.0))
        await until(lambda: shipper.state.n_shipped >= 2)
        session = Session(url, name="test")
        with session.transaction() as cursor:
            for table in ("requests", "standing", "standing_counters"):
                cursor.execute(f"DELETE FROM {table}")
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
        session.close()
        await ledger.record(request_entry("req-2"))
        await until(lambda: rows(session, "SELECT request_id FROM requests ORDER BY 1") == [("req-1",), ("req-2",)])
        assert rows(session, "SELECT sum(joules) FROM standing") == [(10.0,)]
        session.close()


async def test_waiting_joules_that_two_coordinators_book_are_counted_once(
    tmp_path: Path, url: str, session: Session
) -> None:
    """Two coordinators that hear the same counters of an agent ship them; the sum is the counter's."""
    async with (
        journal(tmp_path / "a.sqlite", url, "a") as (one, _),
        journal(tmp_path / "b.sqlite", url, "b") as (two, _),
    ):
        await one.record(standing(10.0))
        await until(lambda: rows(session, "SELECT sum(joules) FROM standing") == [(10.0,)])
        await two.record(standing(14.0))
        await until(lambda: rows(session, "SELECT sum(joules) FROM standing") == [(14.0,)])
        await one.record(standing(12.0, booked=2.0))
        await one.record(standing(3.0, epoch="e2"))
        await until(lambda: rows(session, "SELECT sum(joules) FROM standing") == [(17.0,)])


async def test_one_entry_that_no_database_takes_does_not_stop_the_others(
    tmp_path: Path, url: str, session: Session
) -> None:
    """A row with a figure beyond the column's range is left out, counted, and told; NULs in texts are replaced."""
    path = tmp_path / "ledger.sqlite"
    async with journal(path, url) as (ledger, shipper):
        entries = [request_entry(f"req-{number}") for number in range(5)]
        entries += [request_entry("nul", model="a\0b"), request_entry("late", at_unix_s=2.0)]
        await asyncio.gather(*(ledger.record(entry) for entry in entries))
        with session.transaction() as cursor:
            cursor.execute("ALTER TABLE requests ADD CONSTRAINT small CHECK (request_id <> 'bad')")
        await ledger.record(request_entry("bad"))
        await ledger.record(request_entry("after"))
        await until(lambda: rows(session, "SELECT count(*) FROM requests") == [(8,)])
        assert rows(session, "SELECT model FROM requests WHERE request_id = 'nul'") == [("a\ufffdb",)]
        # The rows are there a moment before the thread says so.
        await until(lambda: shipper.state.n_shipped >= 9)
        assert shipper.state.n_refused == 1


async def test_without_a_database_nothing_is_noted_for_shipping(tmp_path: Path) -> None:
    """A ledger that is nobody's journal has no table of shipments."""
    path = tmp_path / "ledger.sqlite"
    async with Ledger(path, retention_days=90).running():
        pass
    with reading(path) as connection:
        assert not connection.execute("SELECT name FROM sqlite_master WHERE name LIKE '%shipments%'").fetchall()


@pytest.mark.slow
async def test_a_database_whose_disk_is_full_loses_nothing(tmp_path: Path, server: Postgres, url: str) -> None:
    """While the database has no room its error is told, entries wait, and they arrive once there is room."""
    async with journal(tmp_path / "ledger.sqlite", url) as (ledger, shipper):
        await ledger.record(request_entry("req-1"))
        await until(lambda: shipper.state.n_shipped == 1)
        session = Session(url, name="test")
        with session.transaction() as cursor:
            # What a full disk does to every insert: SQLSTATE 53100.
            cursor.execute(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
            )
            cursor.execute("CREATE TRIGGER full_disk BEFORE INSERT ON requests EXECUTE FUNCTION full_disk()")
        assert await ledger.record(request_entry("req-2"))
        await until(lambda: shipper.state.error is not None)
        assert isinstance(shipper.state.error, DatabaseUnreachableError)
        assert "No space left" in str(shipper.state.error)
        assert shipper.state.n_waiting == 1
        with session.transaction() as cursor:
            cursor.execute("DROP TRIGGER full_disk ON requests")
        await until(lambda: shipper.state.error is None and shipper.state.n_waiting == 0)
        assert rows(session, "SELECT count(*) FROM requests") == [(2,)]
        session.close()


async def test_a_slow_disk_of_the_database_delays_no_answer(tmp_path: Path, server: Postgres, url: str) -> None:
    """While a commit of the database hangs, entries are acknowledged by the local journal, and arrive after it."""
    async with journal(tmp_path / "ledger.sqlite", url) as (ledger, shipper):
        await ledger.record(request_entry("req-1"))
        await until(lambda: shipper.state.n_shipped == 1)
        server.hang(hangs=True)
        try:
            recorded = [ledger.record(request_entry(f"slow-{number}")) for number in range(20)]
            assert all(await asyncio.gather(*recorded))
        finally:
            server.hang(hangs=False)
        await until(lambda: shipper.state.n_shipped >= 21)
