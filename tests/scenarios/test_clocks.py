"""A coordinator and an agent whose clocks are wrong and jump: nothing is lost, and nothing is valid that is not."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moe2.coordinator.keys.store import KeyFile
from moe2.coordinator.ledger.accounts import day_of
from tests.coordinator.keys.keys import add_key
from tests.fakes.agentprocess import agent_process
from tests.fakes.clockedcoordinator import set_ahead
from tests.fakes.coordinatorprocess import CoordinatorProcess
from tests.fakes.fleet import POLL_S, TOKEN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

YEAR_S = 365.25 * 86_400
IN_1970_S = 100_000 - time.time()
IN_2099_S = 73 * YEAR_S
IN_2030_S = 4 * YEAR_S


class Client:
    """A client of one key. keys: their names."""

    def __init__(self, http: aiohttp.ClientSession, key: str) -> None:
        self._http = http
        self._headers = {"Authorization": f"Bearer {key}"}
        self.n_answered = 0

    async def ask(self) -> tuple[int, str]:
        """Asks for an answer; its status, and what an error says."""
        body = {"model": "moe2", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
        async with self._http.post("/v1/chat/completions", json=body, headers=self._headers) as answer:
            said = await answer.json()
            self.n_answered += answer.status == 200
            return answer.status, said.get("error", {}).get("message", "")

    async def answered(self) -> None:
        """Asks until it is answered: an agent needs a moment to come back."""
        async with asyncio.timeout(60):
            while (await self.ask())[0] != 200:
                await asyncio.sleep(POLL_S)

    async def get(self, path: str) -> Any:
        """A document of the API."""
        async with self._http.get(path, headers=self._headers) as answer:
            assert answer.status == 200
            return await answer.json()


def kept(root: Path) -> int:
    """Requests in the ledger."""
    with closing(sqlite3.connect(root / "ledger.sqlite")) as connection:
        return int(connection.execute("SELECT count(*) FROM requests WHERE outcome = 'completed'").fetchone()[0])


@pytest.mark.parametrize("wrong_s", [IN_1970_S, IN_2030_S, IN_2099_S], ids=["1970", "2030", "2099"])
async def test_a_clock_that_jumps_there_and_back_loses_nothing(tmp_path: Path, wrong_s: float) -> None:
    """Keys that expire are refused meanwhile, others are answered; entries and limits are there when it is right."""
    file = KeyFile(tmp_path)
    _, steady = add_key(file, 1, scopes=("infer", "observe"), daily_tokens=1_000_000)
    _, expiring = add_key(file, 2, expires_at_unix_s=time.time() + 3600)
    set_ahead(tmp_path, 0)
    module = "tests.fakes.clockedcoordinator"
    process = CoordinatorProcess(tmp_path, token=TOKEN, api='keys = "required"', module=module)
    async with (
        process as coordinator,
        agent_process(tmp_path, "one", coordinator.agents_url, token=TOKEN),
        agent_process(tmp_path, "two", coordinator.agents_url, token=TOKEN, ahead_s=wrong_s),
        aiohttp.ClientSession(coordinator.api_url) as http,
    ):
        one, other = Client(http, steady), Client(http, expiring)
        for client in (one, other):
            await client.answered()
        set_ahead(tmp_path, wrong_s)
        status, said = await other.ask()
        assert status == 401
        assert ("has expired" if wrong_s == IN_2030_S else "clock is wrong") in said
        await one.answered()
        codes = {warning["code"] for warning in (await one.get("/v1/moe2/fleet"))["warnings"]}
        assert ("clock_wrong" in codes) is (wrong_s != IN_2030_S)
        await coordinator.end(signal.SIGKILL)
        await coordinator.start()
        await one.answered()
        assert (await other.ask())[0] == 401
        set_ahead(tmp_path, 0)
        for client in (one, other):
            await client.answered()
        n_answered = one.n_answered + other.n_answered
        assert kept(tmp_path) == n_answered
        [mine] = [row for row in (await one.get("/v1/moe2/ledger"))["today"] if row["key"] == "app-1"]
        assert mine["day"] == day_of(time.time())
        assert mine["tokens_left"] < 1_000_000
        await coordinator.end(signal.SIGTERM)
        await coordinator.start()
        await one.answered()
        assert kept(tmp_path) == n_answered + 1
