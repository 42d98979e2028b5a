"""Two coordinators on one PostgreSQL whose clocks differ and jump: no key gets more than its limit."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import time
from typing import Any

import aiohttp
import pytest

from moe2.coordinator.keys.keys import KeyOptions, Scope
from tests.fakes.agentprocess import agent_process
from tests.fakes.clockedcoordinator import set_ahead
from tests.fakes.coordinatorprocess import CoordinatorProcess
from tests.fakes.fleet import POLL_S, TOKEN
from tests.fakes.postgres import Postgres, needs_postgres
from tests.scenarios.test_pair import with_key

pytestmark = [needs_postgres, pytest.mark.slow, pytest.mark.timeout(300)]

DAY_S = 86_400.0
IN_1970_S = 100_000 - time()
LIMIT = 100


@dataclass
class Coordinator:
    """A coordinator's process, where its clock is set, and what its answers took."""

    root: Path
    process: CoordinatorProcess
    http: aiohttp.ClientSession
    tokens: int = 0

    async def ask(self, headers: dict[str, str]) -> str:
        """Asks once; "" if it was answered, else the error's code."""
        body = {"model": "moe2", "messages": [{"role": "user", "content": "a b c"}], "max_tokens": 8}
        address = f"{self.process.api_url}/v1/chat/completions"
        async with self.http.post(address, json=body, headers=headers) as answer:
            told = await answer.json()
        self.tokens += told["usage"]["total_tokens"] if answer.status == 200 else 0
        return "" if answer.status == 200 else str(told["error"]["code"])

    async def decided(self, headers: dict[str, str]) -> str:
        """Asks until it is answered or refused for its limit: agents, copies of keys and leases take a moment."""
        async with asyncio.timeout(60):
            while (told := await self.ask(headers)) not in ("", "budget_exhausted"):
                await asyncio.sleep(POLL_S)
        return told

    async def exhaust(self, headers: dict[str, str]) -> None:
        """Asks until the key's limit is used up here."""
        while not await self.decided(headers):
            pass

    async def warnings(self, headers: dict[str, str]) -> list[dict[str, Any]]:
        """What its status warns of."""
        async with self.http.get(f"{self.process.api_url}/v1/moe2/fleet", headers=headers) as answer:
            return list((await answer.json())["warnings"])

    async def until_its_clock_differs(self, headers: dict[str, str], *, differs: bool) -> None:
        """Returns once the difference to the database's clock has been found, or found gone."""
        name = f"coordinator {self.root.name} is"
        async with asyncio.timeout(60):
            while differs is not any(
                warning["code"] == "database_clock_differs" and name in warning["message"]
                for warning in await self.warnings(headers)
            ):
                await asyncio.sleep(POLL_S)


@asynccontextmanager
async def pair(tmp_path: Path, url: str, *, ahead_s: float) -> AsyncIterator[tuple[Coordinator, Coordinator]]:
    """Two coordinators with an agent each. The clock of the second one begins so far ahead."""
    made = []
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(aiohttp.ClientSession())
        for name, one_ahead_s in (("right", 0.0), ("wrong", ahead_s)):
            root = tmp_path / name
            root.mkdir()
            set_ahead(root, one_ahead_s)
            database = f'[database]\nurl = "{url}"\nname = "{name}"'
            process = CoordinatorProcess(
                root,
                token=TOKEN,
                api='keys = "required"',
                agents=database,
                module="tests.fakes.clockedcoordinator",
            )
            await stack.enter_async_context(process)
            await stack.enter_async_context(agent_process(root, f"of-{name}", process.agents_url, token=TOKEN))
            made.append(Coordinator(root, process, http))
        yield made[0], made[1]


@pytest.mark.parametrize("ahead_s", [DAY_S, -DAY_S, 40 * DAY_S, IN_1970_S], ids=["+1d", "-1d", "+40d", "1970"])
async def test_a_limit_holds_whatever_the_clock_of_one_coordinator_says(
    tmp_path: Path, server: Postgres, ahead_s: float
) -> None:
    """A day is the database's: a key gets its limit once from both, also from one whose clock jumps back and that is
    killed and started with a wrong one."""
    url = server.new_tables()
    headers = with_key(url, KeyOptions(name="app", scopes=(Scope.INFER, Scope.OBSERVE), daily_tokens=LIMIT))
    async with pair(tmp_path, url, ahead_s=ahead_s) as (right, wrong):
        for one in (wrong, right):
            await one.exhaust(headers)
        await wrong.until_its_clock_differs(headers, differs=True)
        set_ahead(wrong.root, 0.0)
        await wrong.until_its_clock_differs(headers, differs=False)
        await wrong.exhaust(headers)
        set_ahead(wrong.root, ahead_s)
        await wrong.process.end(signal.SIGKILL)
        await wrong.process.start()
        await wrong.exhaust(headers)
        await right.exhaust(headers)
        assert LIMIT - 40 <= right.tokens + wrong.tokens <= LIMIT


async def test_a_key_that_has_expired_is_not_valid_where_a_clock_is_behind(tmp_path: Path, server: Postgres) -> None:
    """Keys expire by the database's clock at both coordinators."""
    url = server.new_tables()
    steady = with_key(url, KeyOptions(name="steady", scopes=(Scope.OBSERVE,)))
    expired = with_key(url, KeyOptions(name="expired", expires_at_unix_s=time() - 60), nth=2)
    async with pair(tmp_path, url, ahead_s=-300.0) as both:
        await both[1].until_its_clock_differs(steady, differs=True)
        assert [await one.ask(expired) for one in both] == ["invalid_api_key", "invalid_api_key"]
