"""Leases on a real PostgreSQL: what the one UPDATE computes, and a limit that several coordinators never exceed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from random import Random
from time import monotonic, time
from typing import Any

import pytest

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.choosing.result import NoExpert
from moe2.coordinator.database import lender as module
from moe2.coordinator.database.lender import Lender, write_off
from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.database.shipper import write_requests
from moe2.coordinator.keys.keys import DailyLimits, Principal
from moe2.coordinator.ledger.accounts import Accounts, Amount, DaySum
from moe2.coordinator.ledger.entry import REQUEST_COLUMNS
from moe2.coordinator.ledger.leases import FRESH_S, Ask, Resource, lend
from tests.coordinator.ledger.entries import request_entry
from tests.fakes.postgres import Postgres, needs_postgres

pytestmark = needs_postgres
DAY = "2026-11-28"
NOW_UNIX_S = 1795824000.0
POLL_S = 0.002


def limited(energy_j: float | None = None, tokens: int | None = None) -> Principal:
    return Principal(key_id="k1", name="app", daily=DailyLimits(energy_j, tokens))


class Coordinator:
    """A coordinator's accounts and lender, and what it answers to requests."""

    def __init__(self, url: str, name: str, principal: Principal) -> None:
        self.accounts = Accounts()
        self.news = asyncio.Event()
        self.principal = principal
        self.session = Session(url, name=name)
        self.lender = Lender(
            self.session,
            name,
            accounts=self.accounts,
            n_coordinators=2,
            on_news=self.news.set,
            wall_clock=lambda: self.now_unix_s,
        )
        self.now_unix_s = NOW_UNIX_S
        self.n_asked = 0

    async def request(self, need: Amount) -> str | NoExpert:
        """Reserves for one request as the books do, waiting while that is pending; returns its id."""
        self.n_asked += 1
        request_id = f"{id(self)}-{self.n_asked}"
        async with asyncio.timeout(60):
            while True:
                self.news.clear()
                used = self.accounts.used(self.principal, DAY)
                left = self.lender.left(self.principal, DAY, used)
                fits = (left.tokens is None or (need.tokens or 0) <= left.tokens) and (
                    left.energy_j is None or (need.energy_j or 0.0) <= left.energy_j
                )
                refused = (
                    self.lender.covers(self.principal, DAY, used, need)
                    if fits
                    else self.lender.refused(self.principal, DAY)
                )
                if refused is None and fits:
                    self.accounts.reserve(self.principal, DAY, request_id, need)
                    return request_id
                if refused is None:
                    return NoExpert(ErrorCode.BUDGET_EXHAUSTED, "nothing left")
                if refused.code != ErrorCode.BUDGET_PENDING:
                    return refused
                await self.news.wait()

    def settle(self, request_id: str, used: Amount) -> None:
        self.accounts.settle(self.principal, DAY, request_id, used)

    @property
    def spent(self) -> Amount:
        return self.accounts.used(self.principal, DAY)


@asynccontextmanager
async def coordinators(url: str, principal: Principal, *names: str) -> AsyncIterator[list[Coordinator]]:
    made = [Coordinator(url, name, principal) for name in names]
    renewing = [asyncio.create_task(one.lender.run()) for one in made]
    try:
        yield made
    finally:
        for task in renewing:
            task.cancel()
        for one in made:
            await one.lender.close()


def drawn(session: Session) -> dict[str, int]:
    with session.transaction() as cursor:
        cursor.execute("SELECT drawn FROM budgets")
        found = cursor.fetchone()
    return dict(found[0]) if found else {}


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(POLL_S)


def is_known(one: Coordinator) -> bool:
    """Whether a refusal now would be final."""
    return monotonic() - one.lender._budget(one.principal, DAY).recalled_s < FRESH_S


def test_the_update_computes_what_the_pure_core_says(url: str, session: Session) -> None:
    """Two hundred random questions of three coordinators get the answers of `lend`, and leave the same row."""
    random, limit = Random(7), 1000
    accounts = Accounts()
    options: dict[str, Any] = {"accounts": accounts, "n_coordinators": 3, "on_news": lambda: None, "wall_clock": time}
    lenders = {name: Lender(session, name, **options) for name in "abc"}
    expected: dict[str, int] = {}
    for _ in range(200):
        name = random.choice("abc")
        ask = Ask(random.randrange(400), random.randrange(300), random.randrange(200))
        expected, answer = lend(expected, name, limit, ask)
        assert lenders[name]._ask_one("k1", DAY, Resource.TOKENS, limit, ask) == answer
        assert drawn(session) == expected


@pytest.mark.slow
async def test_two_coordinators_never_exceed_a_limit_together(url: str) -> None:
    """Clients of both coordinators spend at once; what both have reserved and spent stays within the limit."""
    principal, random = limited(tokens=5000), Random(3)
    async with coordinators(url, principal, "a", "b") as both:
        refused = 0

        async def client(one: Coordinator) -> None:
            nonlocal refused
            for _ in range(40):
                need = random.randrange(10, 60)
                told = await one.request(Amount(tokens=need))
                if isinstance(told, NoExpert):
                    refused += 1
                    continue
                assert sum(each.spent.tokens or 0 for each in both) <= 5000
                await asyncio.sleep(0)
                one.settle(told, Amount(0.0, random.randrange(need + 1)))

        await asyncio.gather(*(client(one) for one in both for _ in range(6)))
        for _ in range(3):
            # What has ended since may be given back and lent again, once what is known of it is no longer fresh.
            await until(lambda: not any(is_known(one) for one in both))
            for one in both:
                while isinstance(told := await one.request(Amount(tokens=60)), str):
                    one.settle(told, Amount(0.0, 60))
        spent = sum(each.spent.tokens or 0 for each in both)
        assert refused > 0
        assert 5000 - 2 * 60 <= spent <= 5000


async def test_energy_limits_hold_to_the_microjoule(url: str) -> None:
    """Joules that no binary fraction holds exactly are shared without exceeding the limit by rounding."""
    async with coordinators(url, limited(energy_j=1.0), "a", "b") as both:
        told = [await both[number % 2].request(Amount(energy_j=0.1, tokens=0)) for number in range(12)]
        taken = [one for one in told if not isinstance(one, NoExpert)]
        assert len(taken) == 10


async def test_what_an_idle_coordinator_holds_is_called_back(url: str, session: Session) -> None:
    """A coordinator that holds a large lease and does nothing gives it back when the other one has nothing left."""
    principal = limited(tokens=10_000)
    async with coordinators(url, principal, "a", "b") as (idle, busy):
        first = await idle.request(Amount(tokens=100))
        assert drawn(session)["a"] > 100
        assert isinstance(first, str)
        listener = Session(url, name="listener")
        with listener.transaction() as cursor:
            cursor.execute("LISTEN moe2")
        loop = asyncio.get_running_loop()

        def hear() -> None:
            for word in listener.wait_for_news(30.0):
                loop.call_soon_threadsafe(idle.lender.recalled, word.removeprefix(module.RECALL))

        hearing = asyncio.create_task(asyncio.to_thread(hear))
        told = [await busy.request(Amount(tokens=100)) for _ in range(99)]
        await hearing
        listener.close()
        # One request's worth may stay with the idle one.
        assert sum(isinstance(one, str) for one in told) >= 98


async def test_leases_outlast_a_short_outage_and_end_in_a_long_one(
    server: Postgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database is down requests go on within the lease, and are then refused with when to come again."""
    async with coordinators(url, limited(tokens=100_000), "a") as (one,):
        assert isinstance(await one.request(Amount(tokens=10)), str)
        await asyncio.to_thread(server.kill)
        try:
            assert isinstance(await one.request(Amount(tokens=10)), str)
            told: str | NoExpert = ""
            while not isinstance(told, NoExpert):
                told = await one.request(Amount(tokens=1000))
            assert (told.code, told.retry_after_s) == (ErrorCode.DATABASE_UNREACHABLE, 5)
        finally:
            await asyncio.to_thread(server.start)
        monkeypatch.setattr(module, "RETRY_S", 0.0)
        assert isinstance(await one.request(Amount(tokens=1000)), str)
        assert (one.spent.tokens or 0) <= 100_000


async def test_a_coordinator_that_crashed_gives_back_what_it_had_drawn(url: str, session: Session) -> None:
    """What a dead coordinator had drawn stays charged until it starts again, and then only what it has used."""
    principal = limited(tokens=10_000)
    dead = Coordinator(url, "a", principal)
    assert isinstance(await dead.request(Amount(tokens=50)), str)
    dead.session.close()
    held = drawn(session)["a"]
    assert held > 50
    again = Coordinator(url, "a", principal)
    again.accounts.reserve(principal, DAY, "interrupted", Amount(tokens=50))
    again.settle("interrupted", Amount(None, 50))
    running = asyncio.create_task(again.lender.run())
    await until(lambda: drawn(session) == {"a": 50})
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await again.lender.close()


async def test_what_was_drawn_before_a_start_with_a_wrong_clock_is_given_back_once_it_is_right(
    url: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coordinator that starts in 1970 gives back the present day's when its clock has been set, less what it used."""
    principal = limited(tokens=10_000)
    dead = Coordinator(url, "a", principal)
    assert isinstance(await dead.request(Amount(tokens=50)), str)
    dead.session.close()
    again = Coordinator(url, "a", principal)
    again.now_unix_s = 100_000.0
    again.accounts.restore("1970-01-02", {DAY: [DaySum("k1", "app", tokens=50, n_requests=1)]})
    released: list[str] = []
    release_all = again.lender._release_all

    def release(day: str, but: frozenset[str]) -> None:
        release_all(day, but)
        released.append(day)

    monkeypatch.setattr(again.lender, "_release_all", release)
    running = asyncio.create_task(again.lender.run())
    await until(lambda: released == ["1970-01-02"])
    assert drawn(session)["a"] > 50
    again.now_unix_s = NOW_UNIX_S
    await until(lambda: drawn(session) == {"a": 50})
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await again.lender.close()


async def test_an_operator_writes_off_what_a_lost_coordinator_holds(url: str, session: Session) -> None:
    """Written off is what was drawn beyond what the lost coordinator's shipped requests were charged."""
    principal = limited(tokens=10_000)
    lost = Coordinator(url, "a", principal)
    assert isinstance(await lost.request(Amount(tokens=50)), str)
    lost.session.close()
    entry = request_entry("req-1", day=DAY, charged_tokens=17)
    with session.transaction() as cursor:
        write_requests(cursor, "a", [[getattr(entry, column) for column in REQUEST_COLUMNS]], [])
    assert write_off(session, "a", DAY) == 1
    assert drawn(session) == {"a": 17}


async def test_a_day_that_began_without_the_database_counts(url: str, session: Session) -> None:
    """What requests of the day were charged before the first draw is drawn already, by whoever answered them."""
    entry = request_entry("req-1", day=DAY, charged_tokens=900)
    with session.transaction() as cursor:
        write_requests(cursor, "old", [[getattr(entry, column) for column in REQUEST_COLUMNS]], [])
    async with coordinators(url, limited(tokens=1000), "a") as (one,):
        assert isinstance(await one.request(Amount(tokens=101)), NoExpert)
        assert isinstance(await one.request(Amount(tokens=100)), str)
