"""Coordinators, agents and engines that are killed while a host changes its state, at each step of the change."""

from __future__ import annotations

import asyncio
import json
import os
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
from tests.fakes.agentprocess import agent_process
from tests.fakes.coordinatorprocess import CoordinatorProcess
from tests.fakes.fleet import FAKE_EXPERT, POLL_S, TOKEN, Fleet, fleet
from tests.scenarios.test_standby import FakeHost

pytestmark = pytest.mark.slow


class Killable:
    """Two hosts under a coordinator process in mode act; `one` may be suspended or unloaded, and never was."""

    def __init__(self, coordinator: CoordinatorProcess, http: aiohttp.ClientSession, root: Path) -> None:
        self.coordinator, self.host, self.agent = coordinator, FakeHost(), cast(AgentDaemon, None)
        self.woken = root / "woken"
        self._http, self._root = http, root

    async def until(self, holds: Callable[[AgentRow], bool]) -> None:
        """Wait until the coordinator's row of `one` satisfies `holds`, also while it is being started."""
        async with asyncio.timeout(40):
            while True:
                try:
                    content = await asyncio.to_thread(fetch, self._root / "coordinator.sock", STATUS_ROUTE)
                    status = msgspec.json.decode(content, type=CoordinatorStatus)
                    if any(row.agent_name == "one" and holds(row) for row in status.agents):
                        return
                except OSError:
                    pass
                await asyncio.sleep(POLL_S)

    async def kill(self) -> None:
        """SIGKILL, and another start with the same state."""
        await self.coordinator.end(signal.SIGKILL)
        await self.coordinator.start()

    async def answered(self) -> int:
        """The status of a request that waits for experts as long as it takes."""
        body = {"model": "moe2", "messages": [{"role": "user", "content": "one two"}], "max_tokens": 2}
        while True:
            async with self._http.post(f"{self.coordinator.api_url}/v1/chat/completions", json=body) as said:
                await said.read()
                if said.status != 503:  # nobody has come back yet
                    return said.status
            await asyncio.sleep(POLL_S)


@asynccontextmanager
async def killable(root: Path, engine_argv: Sequence[str] = FAKE_EXPERT, **allowed: Any) -> AsyncIterator[Killable]:
    command = json.dumps(["/usr/bin/touch", str(root / "woken")])
    more = f'\n[provisioning]\nmode = "act"\nwake_command = {command}'
    process = CoordinatorProcess(root, token=TOKEN, agents=more, module="tests.fakes.hastycoordinator")
    async with process as coordinator, aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
        built = Killable(coordinator, http, root)
        running = Fleet(root, cast(Any, coordinator), http, tasks, {})
        built.agent = await running.start_agent(
            "one", agent=allowed, control=built.host, profile="rtx-4090", engine_argv=engine_argv
        )
        await running.start_agent("two", profile="rtx-4090")
        try:
            yield built
        finally:
            built.host.wake(1.0)
            for agent in running.agents.values():
                agent.stop()


async def exists(path: Path) -> None:
    async with asyncio.timeout(40):
        while not path.exists():  # noqa: ASYNC240
            await asyncio.sleep(POLL_S)


@pytest.mark.parametrize("step", ["falling", "asleep", "waking"])
async def test_a_coordinator_killed_in_a_hosts_first_sleep_finds_it_again_and_wakes_it(
    tmp_path: Path, step: str
) -> None:
    """Whatever was under way, the next run knows that the host sleeps, brings it back, and answers meanwhile."""
    async with killable(tmp_path, allow_suspend=True, asleep_w=3.0) as built:
        async with asyncio.timeout(60):
            await built.host.asleep.wait()
        if step != "falling":
            await built.until(lambda row: row.asleep)
        if step == "waking":
            await exists(built.woken)
            built.woken.unlink()
        await built.kill()
        await built.until(lambda row: row.asleep)
        assert await built.answered() == 200
        await exists(built.woken)
        built.host.wake(3600.0)
        await built.until(lambda row: row.connected and bool(row.standby and row.standby.wake_cost))
        assert await built.answered() == 200


@pytest.mark.parametrize("step", ["cold", "loading"])
async def test_a_coordinator_killed_while_a_model_is_out_of_memory_to_be_measured_has_it_loaded_again(
    tmp_path: Path, step: str
) -> None:
    """The state is read from the agent's report, and what the last run began is ended, also in the midst of loading."""
    loads = tmp_path / "loads"
    # The first start goes through; any later one lasts until it may go on.
    held = 'if [ -e "$0.first" ]; then while [ ! -e "$0" ]; do sleep 0.02; done; fi; : > "$0.first"; exec "$@"'
    async with killable(tmp_path, ("/bin/sh", "-c", held, str(loads), *FAKE_EXPERT), allow_unload=True) as built:
        await built.until(lambda row: bool(row.experts) and row.experts[0].state == "cold")
        if step == "cold":
            loads.touch()
        else:
            await built.until(lambda row: bool(row.experts) and row.experts[0].state == "loading")
        await built.kill()
        assert await built.answered() == 200
        if step == "loading":
            await built.until(lambda row: row.connected and row.experts[0].state == "loading")
            loads.touch()
        await built.until(lambda row: row.connected and row.experts[0].state == "ready")
        assert built.agent.engine_pids()["fake"] is not None


# --- The agent is killed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["falling", "asleep", "waking"])
async def test_an_agent_killed_in_a_sleep_or_a_wake_costs_no_request(tmp_path: Path, step: str) -> None:
    """Its host is known as asleep until its agent is started again, as a booting host does it, and is then used."""
    woken = tmp_path / "woken"
    command = ("/bin/sh", "-c", f"printf x >> {woken}")
    async with fleet(tmp_path, agents=(), provisioning={"mode": "act", "wake_command": command}) as running:
        await running.start_agent("two")

        def one_is(**expected: bool) -> Callable[[CoordinatorStatus], bool]:
            def holds(status: CoordinatorStatus) -> bool:
                rows = [row for row in status.agents if row.agent_name == "one"]
                return bool(rows) and all(getattr(rows[0], name) == value for name, value in expected.items())

            return holds

        async def answered() -> None:
            asked = [running.chat("one two", max_tokens=2) for _ in range(4)]
            for said in [await one for one in asked]:
                assert said.status == 200, await said.text()

        options: dict[str, Any] = {"token": TOKEN, "sleeps_until": woken}
        url = running.coordinator.agents_url
        async with agent_process(tmp_path, "one", url, **options) as doomed:
            await running.until(ready=2)
            await answered()
            running.coordinator._keeper.wish("sleep", "one")
            if step != "falling":
                await running.until_status(one_is(asleep=True))
            if step == "waking":
                running.coordinator._keeper.wish("wake", "one")
                await running.until_status(one_is(connected=True))
            doomed.kill()
            await doomed.wait()
            await answered()
        running.coordinator._keeper.wish("wake", "one")
        async with agent_process(tmp_path, "one", url, **options):
            await running.until_status(one_is(connected=True, asleep=False))
            await running.until(ready=2)
            await answered()


async def test_an_engine_killed_while_its_host_is_told_to_sleep_costs_no_request(tmp_path: Path) -> None:
    """The host sleeps without it, and it is started again after the wake."""
    woken = tmp_path / "woken"
    command = ("/usr/bin/touch", str(woken))
    host = FakeHost()
    async with fleet(tmp_path, agents=(), provisioning={"mode": "act", "wake_command": command}) as running:
        allowed = {"allow_suspend": True}
        agent = await running.start_agent("one", agent=allowed, control=host, profile="rtx-4090")
        await running.start_agent("two")
        await running.until(ready=2)
        pid = agent.engine_pids()["fake"]
        assert pid is not None
        running.coordinator._keeper.wish("sleep", "one")
        os.kill(pid, signal.SIGKILL)
        async with await running.chat("one two", max_tokens=2) as said:
            assert said.status == 200
        await host.asleep.wait()
        await running.until_status(lambda status: any(row.asleep for row in status.agents))
        running.coordinator._keeper.wish("wake", "one")
        host.wake(3600.0)
        await running.until(ready=2)
        assert agent.engine_pids()["fake"] not in (None, pid)
