"""Requests per minute and prices that coordinators share, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.database.rates import SharedRates
from moe2.coordinator.keys.keys import Principal
from moe2.coordinator.provisioning.price_book import Averages, PriceBook, Spending
from tests.fakes.postgres import needs_postgres

pytestmark = needs_postgres
AVERAGES = Averages(fleet_j=10.0)


@asynccontextmanager
async def rates(url: str, *names: str) -> AsyncIterator[list[tuple[SharedRates, PriceBook]]]:
    made = []
    for name in names:
        book = PriceBook(AVERAGES)
        made.append((SharedRates(Session(url, name=name), book, n_coordinators=2), book))
    try:
        yield made
    finally:
        for one, _ in made:
            await one.close()


async def test_two_coordinators_let_no_more_than_a_minutes_requests_pass(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a burst that is spread over both coordinators the key's rate passes, and the rest is told when to come."""
    # A busy machine's database is slow, not away.
    monkeypatch.setattr("moe2.coordinator.database.rates.DRAW_TIMEOUT_S", 60.0)
    principal = Principal(key_id="k1", requests_per_minute=40.0)
    async with rates(url, "a", "b") as ((one, _), (two, _)):
        began_s = asyncio.get_running_loop().time()
        waits = await asyncio.gather(*((one, two)[number % 2].take(principal) for number in range(100)))
        took_s = asyncio.get_running_loop().time() - began_s
    passed = sum(wait == 0.0 for wait in waits)
    assert 39 <= passed <= 40 + took_s * 40 / 60 + 1
    assert all(wait is not None and 0.0 <= wait <= 1.5 for wait in waits)


async def test_a_rate_below_one_a_minute_lets_one_pass(url: str) -> None:
    """A key of one request in two minutes gets one, from whichever coordinator; the next waits most of that time."""
    principal = Principal(key_id="k1", requests_per_minute=0.5)
    async with rates(url, "a", "b") as ((one, _), (two, _)):
        assert await one.take(principal) == 0.0
        wait_s = await two.take(principal)
    assert wait_s is not None
    assert 100 < wait_s <= 120


async def test_a_database_whose_clock_was_a_year_ahead_refuses_nobody_for_a_year(url: str, session: Session) -> None:
    """A bucket that was emptied at a time to come is filled again from the next draw on."""
    principal = Principal(key_id="k1", requests_per_minute=60.0)
    async with rates(url, "a") as ((one, _),):
        assert await one.take(principal) == 0.0
        with session.transaction() as cursor:
            cursor.execute("UPDATE rates SET available = 0, at = now() + interval '1 year'")
        async with asyncio.timeout(60):
            while await one.take(principal) != 0.0:
                await asyncio.sleep(0.05)


async def test_a_rate_that_cannot_be_asked_for_is_none() -> None:
    """Where the database is away nobody can say how long to wait; keys without a rate go on."""
    async with rates("postgresql:///x?host=/nowhere", "a") as ((one, _),):
        assert await one.take(Principal(key_id="k1", requests_per_minute=40.0)) is None
        assert await one.take(Principal(key_id="k2")) == 0.0


def spend(book: PriceBook, joules: float, n_answers: int) -> None:
    spending = Spending(None, joules, joules, joules, 0.0, is_answer=True)
    for _ in range(n_answers):
        book.settle(Principal(), spending, left_j=None, now_unix_s=0.0)


async def test_prices_are_learned_together(url: str) -> None:
    """What either coordinator has spent is in the price of both, and counted once."""
    async with rates(url, "a", "b") as ((one, own), (two, other)):
        await one._share_prices()
        await two._share_prices()
        spend(own, 15.0, 20)
        spend(other, 25.0, 10)
        for _ in range(2):
            await one._share_prices()
            await two._share_prices()
        prices = [book.saved().prices["fleet"] for book in (own, other)]
    assert prices[0] == prices[1]
    assert (prices[0].n_answers, prices[0].spent_j) == (30, 550.0)
    alone = PriceBook(AVERAGES)
    spend(alone, 15.0, 20)
    assert prices[0].price_per_j > alone.saved().prices["fleet"].price_per_j
