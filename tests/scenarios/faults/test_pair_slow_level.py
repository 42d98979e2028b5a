"""The half of a pair that decides who is awake is killed in the middle of a change: the other half takes it up."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import msgspec
import pytest

from moe2.agent.daemon import AgentDaemon
from moe2.common.localclient import STATUS_ROUTE, fetch
from moe2.common.status import AgentRow, CoordinatorStatus
from tests.fakes.coordinatorprocess import CoordinatorProcess
from tests.fakes.fleet import FAKE_EXPERT, POLL_S, TOKEN, Fleet
from tests.fakes.postgres import Postgres, needs_postgres
from tests.scenarios.test_standby import FakeHost

pytestmark = [needs_postgres, pytest.mark.slow]


class Halves:
    """Two coordinator processes in mode act on one database, and two agents that dial both. `one` may be suspended or
    unloaded, and never was; `two` always serves."""

    def __init__(
        self, acting: CoordinatorProcess, other: CoordinatorProcess, http: aiohttp.ClientSession, root: Path
    ) -> None:
        self.acting, self._other, self._root = acting, other, root
        self.host, self.agent = FakeHost(), cast(AgentDaemon, None)
        self.statuses: list[int] = []
        """Of every request that was sent to the other half."""
        self.http = http
        self._asking: asyncio.Task[None] | None = None

    def woken(self, half: str) -> Path:
        """The file that a half's command to wake touches."""
        return self._root / half / "woken"

    async def until(self, half: str, holds: Callable[[AgentRow], bool]) -> None:
        """Wait until this half's row of `one` satisfies `holds`."""
        async with asyncio.timeout(60):
            while True:
                content = await asyncio.to_thread(fetch, self._root / half / "coordinator.sock", STATUS_ROUTE)
                status = msgspec.json.decode(content, type=CoordinatorStatus)
                if any(row.agent_name == "one" and holds(row) for row in status.agents):
                    return
                await asyncio.sleep(POLL_S)

    async def until_preferred(self) -> None:
        """Wait until the other half is the one that does the chores."""
        async with asyncio.timeout(60):
            while True:
                async with self.http.get(f"{self._other.api_url}/readyz?preferred") as said:
                    if said.status == 200:
                        return
                await asyncio.sleep(POLL_S)

    async def kill(self) -> None:
        """SIGKILL to the half that acts, while the other one is asked one request after the other."""
        self._asking = asyncio.create_task(self._ask())
        while not self.statuses:
            await asyncio.sleep(POLL_S)
        await self.acting.end(signal.SIGKILL)

    def stop_asking(self) -> None:
        """Ends the requests."""
        if self._asking is not None:
            self._asking.cancel()

    async def _ask(self) -> None:
        body = {"model": "moe2", "messages": [{"role": "user", "content": "one two"}], "max_tokens": 2}
        while True:
            async with self.http.post(f"{self._other.api_url}/v1/chat/completions", json=body) as said:
                await said.read()
                self.statuses.append(said.status)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def halves(
    root: Path, url: str, engine_argv: Sequence[str] = FAKE_EXPERT, **allowed: Any
) -> AsyncIterator[Halves]:
    made = []
    for name in "ab":
        (root / name).mkdir()
        command = json.dumps(["/usr/bin/touch", str(root / name / "woken")])
        more = f'\n[provisioning]\nmode = "act"\nwake_command = {command}\n[database]\nurl = "{url}"\nname = "{name}"'
        made.append(CoordinatorProcess(root / name, token=TOKEN, agents=more, module="tests.fakes.hastycoordinator"))
    # The first one gets the lock.
    async with made[0] as acting, aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
        built = Halves(acting, made[1], http, root)
        async with made[1] as other:
            running = Fleet(root, cast(Any, acting), http, tasks, {})
            link = {"urls": [acting.agents_url, other.agents_url]}
            await running.start_agent("two", profile="rtx-4090", link=link)
            built.agent = await running.start_agent(
                "one", agent=allowed, control=built.host, profile="rtx-4090", engine_argv=engine_argv, link=link
            )
            await built.until("b", lambda row: row.connected)
            try:
                yield built
                await built.until_preferred()
                # All of them were answered, from before the kill until the change had ended.
                assert set(built.statuses) == {200}
            finally:
                built.stop_asking()
                built.host.wake(1.0)
                for agent in running.agents.values():
                    agent.stop()


async def exists(path: Path) -> None:
    async with asyncio.timeout(60):
        while not path.exists():  # noqa: ASYNC240
            await asyncio.sleep(POLL_S)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("step", ["falling", "asleep", "waking"])
async def test_the_other_half_ends_a_hosts_first_sleep(tmp_path: Path, server: Postgres, step: str) -> None:
    """The survivor sees that the host sleeps, wakes it in its turn, and answers all the while."""
    async with halves(tmp_path, server.new_tables(), allow_suspend=True, asleep_w=3.0) as built:
        async with asyncio.timeout(60):
            await built.host.asleep.wait()
        if step != "falling":
            await built.until("a", lambda row: row.asleep)
        if step == "waking":
            await exists(built.woken("a"))
        await built.kill()
        await built.until("b", lambda row: row.asleep)
        await exists(built.woken("b"))
        built.host.wake(3600.0)
        await built.until("b", lambda row: row.connected and bool(row.standby and row.standby.wake_cost))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("step", ["cold", "loading"])
async def test_the_other_half_has_a_model_loaded_again_that_was_out_of_memory_to_be_measured(
    tmp_path: Path, server: Postgres, step: str
) -> None:
    """The survivor reads from the agent's report that the model is cold, or on its way, and has it in memory again."""
    loads = tmp_path / "loads"
    # The first start goes through; any later one lasts until it may go on.
    held = 'if [ -e "$0.first" ]; then while [ ! -e "$0" ]; do sleep 0.02; done; fi; : > "$0.first"; exec "$@"'
    engine = ("/bin/sh", "-c", held, str(loads), *FAKE_EXPERT)
    async with halves(tmp_path, server.new_tables(), engine, allow_unload=True) as built:
        await built.until("a", lambda row: bool(row.experts) and row.experts[0].state == "cold")
        if step == "loading":
            await built.until("a", lambda row: bool(row.experts) and row.experts[0].state == "loading")
        await built.kill()
        loads.touch()
        await built.until("b", lambda row: row.connected and bool(row.experts) and row.experts[0].state == "ready")
        assert built.agent.engine_pids()["fake"] is not None
