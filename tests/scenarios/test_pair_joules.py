"""Two coordinators on one PostgreSQL share a key's joules a day: together no more than its limit, also over a SIGKILL.

An answer's p95 is reserved; what one takes beyond that is spent, and counts.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import aiohttp
import pytest

from moe2.coordinator.database.postgresql import Session
from moe2.coordinator.keys.keys import KeyOptions
from moe2.coordinator.ledger.leases import UJ_PER_J
from tests.fakes.agentprocess import agent_process
from tests.fakes.coordinatorprocess import CoordinatorProcess
from tests.fakes.fleet import POLL_S, TOKEN
from tests.fakes.postgres import Postgres, needs_postgres
from tests.scenarios.test_pair import with_key

pytestmark = [needs_postgres, pytest.mark.slow, pytest.mark.timeout(300)]

PROFILE = "agx-orin-maxn"
AT_ONCE = 4
BODY = {"model": "moe2", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 30}
SLOW_EXPERT = ("--seconds-per-token", "0.015")
"""Long enough for the samples that a request's energy needs before anything is learned from it."""
OVER = {"budget_exhausted", "infeasible_budget"}
"""Nothing is left, or less than any answer needs."""


@dataclass
class Coordinator:
    """A coordinator's process, the joules of each of its answers, and what of them was reserved for nobody."""

    process: CoordinatorProcess
    http: aiohttp.ClientSession
    joules: list[float] = field(default_factory=list)
    beyond_p95_j: float = 0.0
    """What answers took beyond the p95 that was predicted of them: only that is reserved."""

    async def ask(self, headers: dict[str, str]) -> str:
        """Asks once; "" if it was answered, else the error's code."""
        address = f"{self.process.api_url}/v1/chat/completions"
        async with self.http.post(address, json=BODY, headers=headers) as answer:
            told: dict[str, Any] = await answer.json()
        if answer.status != 200:
            return str(told["error"]["code"])
        receipt = told["moe2"]
        self.joules.append(receipt["energy"]["joules"])
        if receipt["predicted"]["energy_j"] is not None:
            self.beyond_p95_j += max(0.0, self.joules[-1] - receipt["predicted"]["energy_j"]["p95"])
        return ""

    async def exhaust(self, headers: dict[str, str]) -> None:
        """Asks, several times at once, until the key's limit is used up here."""
        async with asyncio.timeout(200):
            while not set(await asyncio.gather(*(self.ask(headers) for _ in range(AT_ONCE)))) <= OVER:
                await asyncio.sleep(POLL_S)


@asynccontextmanager
async def pair(tmp_path: Path, url: str) -> AsyncIterator[tuple[Coordinator, Coordinator]]:
    """Two coordinators with an agent each on a simulated host, so that joules are simulated."""
    made = []
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        for name in "ab":
            root = tmp_path / name
            root.mkdir()
            database = f'[database]\nurl = "{url}"\nname = "{name}"'
            process = CoordinatorProcess(root, token=TOKEN, api='keys = "required"', agents=database)
            await stack.enter_async_context(process)
            await stack.enter_async_context(
                agent_process(
                    *(root, f"of-{name}", process.agents_url),
                    token=TOKEN,
                    expert=SLOW_EXPERT,
                    profile=PROFILE,
                    slots=AT_ONCE,
                )
            )
            made.append(Coordinator(process, http))
        yield made[0], made[1]


async def price_of_an_answer(both: tuple[Coordinator, Coordinator], url: str) -> float:
    """The mean joules of some answers, once both coordinators know what one takes."""
    free = with_key(url, KeyOptions(name="free"), nth=2)
    ample = with_key(url, KeyOptions(name="ample", daily_energy_j=1e9), nth=3)
    for each in both:
        async with asyncio.timeout(120):
            while len(each.joules) < 3 or await each.ask(ample):
                await each.ask(free)
                await asyncio.sleep(POLL_S)
    mean_j = fmean(joules for each in both for joules in each.joules)
    for each in both:
        each.joules, each.beyond_p95_j = [], 0.0
    return mean_j


def drawn_j(url: str) -> dict[str, float]:
    """The joules that each coordinator has drawn of the key `app`."""
    session = Session(url, name="test")
    with session.transaction() as cursor:
        cursor.execute("SELECT drawn FROM budgets JOIN keys ON id = key_id WHERE record ->> 'name' = 'app'")
        [(drawn,)] = cursor.fetchall()
    session.close()
    return {str(name): amount / UJ_PER_J for name, amount in drawn.items()}


async def test_a_daily_limit_of_joules_holds_over_both_coordinators(tmp_path: Path, server: Postgres) -> None:
    """Both together use most of a key's joules, and no more than its limit and what answers took beyond their p95."""
    url = server.new_tables()
    async with pair(tmp_path, url) as both:
        limit_j = 16 * await price_of_an_answer(both, url)
        headers = with_key(url, KeyOptions(name="app", daily_energy_j=limit_j))
        await asyncio.gather(*(each.exhaust(headers) for each in both))
        for each in both:
            await each.exhaust(headers)
        assert all(each.joules for each in both)
        used_j, beyond_j = sum(sum(each.joules) for each in both), sum(each.beyond_p95_j for each in both)
        assert limit_j / 2 < used_j <= limit_j + beyond_j
        assert sum(drawn_j(url).values()) <= limit_j + beyond_j + 1e-3


async def test_joules_that_a_killed_coordinator_held_come_back(tmp_path: Path, server: Postgres) -> None:
    """What it had drawn stays charged while it is dead, and what it has not used can be spent after its return."""
    url = server.new_tables()
    async with pair(tmp_path, url) as (one, two):
        limit_j = 24 * await price_of_an_answer((one, two), url)
        headers = with_key(url, KeyOptions(name="app", daily_energy_j=limit_j))
        async with asyncio.timeout(120):
            while await one.ask(headers):
                await asyncio.sleep(POLL_S)
        await one.process.end(signal.SIGKILL)
        held_j = drawn_j(url)["a"]
        await two.exhaust(headers)
        assert sum(two.joules) <= limit_j - held_j + two.beyond_p95_j
        await one.process.start()
        async with asyncio.timeout(120):
            while drawn_j(url)["a"] >= held_j:
                await asyncio.sleep(POLL_S)
        before = len(two.joules)
        async with asyncio.timeout(120):
            while len(two.joules) == before:
                await two.ask(headers)
        await two.exhaust(headers)
        assert sum(two.joules) > limit_j - held_j
        assert sum(one.joules) + sum(two.joules) <= limit_j + one.beyond_p95_j + two.beyond_p95_j
