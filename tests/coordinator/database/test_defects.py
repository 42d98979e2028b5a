"""Whatever the database says or a defect does, the threads and tasks that work with it go on, and say what is wrong."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.choosing.result import NoExpert
from moe2.coordinator.database import lender as lender_module
from moe2.coordinator.database import pair as pair_module
from moe2.coordinator.database.postgresql import Cursor, DatabaseUnreachableError, Session
from moe2.coordinator.database.shared_trust import SharedRegister
from moe2.coordinator.ledger.accounts import Amount
from tests.coordinator.database.test_lender import DAY, coordinators, drawn, limited
from tests.coordinator.database.test_membership import codes, member
from tests.coordinator.database.test_shipper import journal, rows, until
from tests.coordinator.ledger.entries import request_entry
from tests.fakes.fleet import fleet
from tests.fakes.postgres import Postgres, needs_postgres

pytestmark = needs_postgres


@pytest.mark.slow
async def test_a_poll_that_fails_in_an_unforeseen_way_is_made_again(url: str) -> None:
    """A defect while a copy is made is told as a warning; the membership goes on, and is whole once it has passed."""
    odd = [True]

    def load(_: Cursor) -> None:
        if odd[0]:
            raise ValueError("odd")

    odd[0] = False
    with member(url, "a", loads={"keys": load}) as one:
        odd[0] = True
        one.session.cut()
        await until(lambda: codes(one) == ["database_refused"])
        assert "ValueError: odd" in one.warnings()[0].message
        odd[0] = False
        await until(lambda: codes(one) == [] and one.holds_chores)


@pytest.mark.slow
async def test_a_shipment_that_fails_in_an_unforeseen_way_is_made_again(
    tmp_path: Path, url: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in shipping is told, and what waits is shipped once it has passed."""
    async with journal(tmp_path / "ledger.sqlite", url) as (ledger, shipper):
        with monkeypatch.context() as patched:
            patched.setattr(shipper, "_ship", lambda _: 1 // 0)
            await ledger.record(request_entry("req-1"))
            await until(lambda: "ZeroDivisionError" in str(shipper.state.error))
        await until(lambda: shipper.state.error is None)
    assert rows(session, "SELECT request_id FROM requests") == [("req-1",)]


async def test_a_damaged_entry_of_the_journal_does_not_stop_the_others(
    tmp_path: Path, url: str, session: Session
) -> None:
    """Standing joules that cannot be read any more are passed over; the requests after them arrive."""
    path = tmp_path / "ledger.sqlite"
    async with journal(path, url) as (ledger, shipper):
        await ledger.record(request_entry("req-1"))
        await until(lambda: shipper.state.n_shipped == 1)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("INSERT INTO shipments (payload) VALUES ('no entry')")
        other.close()
        await ledger.record(request_entry("req-2"))
        await until(lambda: rows(session, "SELECT count(*) FROM requests") == [(2,)])


async def test_renewing_goes_on_after_a_defect(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the renewal of leases breaks off by a defect, the coordinator serves on, warns, and begins it anew."""
    monkeypatch.setattr(pair_module, "RETRY_S", 0.01)
    monkeypatch.setattr(lender_module, "RENEW_EVERY_S", 0.01)
    renewed: list[bool] = []

    def renew(_: object) -> None:
        renewed.append(True)
        if len(renewed) == 1:
            raise KeyError("odd")

    async with fleet(tmp_path, database={"url": url, "name": "a"}) as running:
        pair = running.coordinator._pair
        assert pair is not None
        monkeypatch.setattr(pair.lender, "_renew", renew)
        await until(lambda: len(renewed) > 2)
        assert (await running.chat("a b c")).status == 200
        assert "database_refused" in [warning.code for warning in running.coordinator.status().warnings]


@pytest.mark.slow
async def test_a_request_does_not_wait_for_a_database_that_hangs(server: Postgres, url: str) -> None:
    """A key whose lease cannot be drawn in time is told so, long before the connection is given up."""
    async with coordinators(url, limited(tokens=1000), "a") as [one]:
        assert isinstance(await one.request(Amount(tokens=10)), str)
        server.hang(hangs=True)
        try:
            async with asyncio.timeout(lender_module.DRAW_TIMEOUT_S + 2):
                told = await one.request(Amount(tokens=900))
        finally:
            server.hang(hangs=False)
        assert isinstance(told, NoExpert)
        assert told.code is ErrorCode.DATABASE_UNREACHABLE


@pytest.mark.slow
async def test_what_was_drawn_without_an_answer_is_given_back(
    url: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the database has drawn and its answer was lost, the rest is given back: it is not stranded."""
    async with coordinators(url, limited(tokens=100_000), "a") as [one]:
        asked = one.lender._ask

        def lost(*arguments: object) -> object:
            asked(*arguments)  # type: ignore[arg-type]
            raise DatabaseUnreachableError("the answer was lost")

        with monkeypatch.context() as patched:
            patched.setattr(one.lender, "_ask", lost)
            assert isinstance(await one.request(Amount(tokens=10)), NoExpert)
            assert drawn(session)["a"] > 10
        await until(lambda: drawn(session) == {"a": 0})
        await until(lambda: not one.lender._budget(one.principal, DAY).is_unsure)


async def test_a_register_that_lost_its_last_change_in_a_failover_is_read_again(
    server: Postgres, url: str, session: Session
) -> None:
    """After a reconnection the copy is the database's, also where its revision has fallen behind the copy's."""
    with session.transaction() as cursor:
        cursor.execute("INSERT INTO revisions VALUES ('agents', 5) ON CONFLICT (subject) DO UPDATE SET n = 5")
    register = SharedRegister(Session(url, name="register"))
    with member(url, "a", loads={"agents": register.load}, on_connected=register.doubt) as one:
        await until(lambda: one.standing.error is None)
        register._known = (7, SimpleNamespace(agents=("lost",), tokens=()))  # type: ignore[assignment]
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'moe2 a'")
        await until(lambda: register.current().agents == ())
    register.close()
