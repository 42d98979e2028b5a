"""SIGKILL of the coordinator, or of an agent, while mode act has the real SmolLM2 loaded again: real processes only."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path

import aiohttp
import msgspec
import pytest

from moe2.common.localclient import NotRunningError, fetch
from moe2.common.status import AgentRow, CoordinatorStatus
from tests.fakes.coordinatorprocess import CoordinatorProcess
from tests.fakes.fleet import POLL_S, TOKEN
from tests.fakes.idlehost import keep_idle_watts
from tests.models import smollm2_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Processes:
    """A coordinator in mode act, whose slow level is in a hurry, and two simulated hosts with the real model."""

    def __init__(self, root: Path, http: aiohttp.ClientSession) -> None:
        self.root, self._http = root, http
        more = '\n[provisioning]\nmode = "act"'
        self.coordinator = CoordinatorProcess(root, token=TOKEN, agents=more, module="tests.fakes.hastycoordinator")
        self.agents: dict[str, asyncio.subprocess.Process] = {}
        self._first_engines: set[int] = set()
        self.answered: list[str] = []
        """The ids of the requests that were answered in full."""

    async def start_agent(self, name: str) -> None:
        """Starts an agent, at the state that an earlier one of this name has left."""
        if not (self.root / name).exists():
            keep_idle_watts(self.root / name, "smollm2")
        config, token = self.root / f"{name}.toml", self.root / f"{name}.token"
        token.write_text(TOKEN)
        config.write_text(
            f"""
[agent]
name = "{name}"
state_dir = "{self.root / name}"
socket = "{self.root / name}.sock"
allow_unload = true
[coordinator]
url = "{self.coordinator.agents_url}"
token_file = "{token}"
reconnect_first_s = 0.05
[measuring]
enabled = false
[sensors]
profile = "rtx-4090"
[[models]]
name = "smollm2"
path = "{smollm2_path()}"
context_tokens = 512
slots = 2
speculation = false
"""
        )
        argv = (sys.executable, "-m", "moe2.agent", "run", "--config", str(config))
        with (self.root / f"{name}.log").open("ab") as log:
            self.agents[name] = await asyncio.create_subprocess_exec(*argv, stdout=log, stderr=log)
        self._first_engines |= {await self._new_engine(name)}

    async def _new_engine(self, name: str) -> int:
        """Waits until an agent has started a process for its model that was not its first one; the process."""
        async with asyncio.timeout(240):
            while not (new := set(engines_of(self.agents[name].pid)) - self._first_engines):
                await asyncio.sleep(POLL_S)
        return new.pop()

    async def until(self, holds: Callable[[CoordinatorStatus], bool]) -> CoordinatorStatus:
        """Waits until the coordinator's status satisfies `holds`, also while it is being started; the status."""
        async with asyncio.timeout(240):
            while True:
                with suppress(NotRunningError):
                    content = await asyncio.to_thread(fetch, self.root / "coordinator.sock", "/status", timeout_s=30.0)
                    status = msgspec.json.decode(content, type=CoordinatorStatus)
                    if holds(status):
                        return status
                await asyncio.sleep(POLL_S)

    async def ask(self, model: str) -> int:
        """Asks as clients do: again where the connection breaks, or nobody is back yet. Returns the HTTP status."""
        body = {"model": model, "messages": [{"role": "user", "content": "What is 2+2?"}], "max_tokens": 4}
        url = f"{self.coordinator.api_url}/v1/chat/completions"
        while True:
            with suppress(aiohttp.ClientError):
                async with self._http.post(url, json=body) as said:
                    await said.read()
                    if said.status == 200:
                        self.answered.append(said.headers["x-request-id"])
                    if said.status not in (502, 503, 404):
                        return said.status
            await asyncio.sleep(0.05)

    async def held_in_a_load(self) -> tuple[AgentRow, int]:
        """Waits until the slow level has had a model unloaded and loads it again, and stops the process that loads.

        Returns the agent's row and the process that loads.
        """

        def is_cold(row: AgentRow) -> bool:
            return row.connected and any(expert.state == "cold" for expert in row.experts)

        status = await self.until(lambda status: any(map(is_cold, status.agents)))
        [row] = filter(is_cold, status.agents)
        loading = await self._new_engine(row.agent_name)
        async with asyncio.timeout(240):
            # From then on it ends with its agent, and it has the model still to read.
            while b"libllama" not in Path(f"/proc/{loading}/maps").read_bytes():  # noqa: ASYNC240
                await asyncio.sleep(POLL_S)
        os.kill(loading, signal.SIGSTOP)
        await self.until(lambda status: state_of(status, row.agent_name) == "loading")
        return row, loading

    async def loading_is_booked_once(self, name: str) -> None:
        """Waits until the ledger has an agent's joules of loading as the agent has counted them since its start, and
        those of earlier starts besides."""

        def counted(status: CoordinatorStatus) -> float:
            standby = next(row.standby for row in status.agents if row.agent_name == name)
            return standby.energy.loading_j if standby and standby.energy else 0.0

        async with asyncio.timeout(240):
            while True:
                loading_j = counted(await self.until(lambda status: counted(status) > 0.0))
                with closing(sqlite3.connect(self.root / "ledger.sqlite")) as ledger:
                    [booked_j] = ledger.execute(
                        "SELECT SUM(joules) FROM standing WHERE agent_name = ? AND cause = 'loading'", (name,)
                    ).fetchone()
                if booked_j == pytest.approx(loading_j):
                    return
                await asyncio.sleep(0.1)

    def outcomes(self) -> dict[str, list[str]]:
        """What the ledger has of each request, by its id."""
        found: dict[str, list[str]] = {}
        with closing(sqlite3.connect(self.root / "ledger.sqlite")) as ledger:
            for request_id, outcome in ledger.execute("SELECT request_id, outcome FROM requests"):
                found.setdefault(request_id, []).append(outcome)
        return found


def state_of(status: CoordinatorStatus, name: str) -> str | None:
    """The state of an agent's expert; None while the agent is not connected."""
    rows = [row for row in status.agents if row.agent_name == name and row.connected and row.experts]
    return rows[0].experts[0].state if rows else None


def engines_of(pid: int) -> list[int]:
    """The processes of models that an agent has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"engine.child" in Path(f"/proc/{child}/cmdline").read_bytes()]


@asynccontextmanager
async def processes(root: Path) -> AsyncIterator[Processes]:
    async with AsyncExitStack() as stack:
        made = Processes(root, await stack.enter_async_context(aiohttp.ClientSession()))
        await stack.enter_async_context(made.coordinator)
        for name in ("one", "two"):
            await made.start_agent(name)
        try:
            yield made
        finally:
            for agent in made.agents.values():
                with suppress(ProcessLookupError):
                    agent.kill()
                await agent.wait()


async def test_a_coordinator_killed_in_the_load_of_a_real_model_loses_no_request(tmp_path: Path) -> None:
    """The load goes on and is found again, who asks again is answered, and each joule of it is in the books once."""
    async with processes(tmp_path) as made:
        row, loading = await made.held_in_a_load()
        models = [f"{row.agent_id}/smollm2", "moe2", "moe2"]
        asked = [asyncio.create_task(made.ask(model)) for model in models]
        await made.until(lambda status: status.requests_active > 0)
        await made.coordinator.end(signal.SIGKILL)
        os.kill(loading, signal.SIGCONT)
        await made.coordinator.start()
        assert await asyncio.gather(*asked) == [200, 200, 200]
        await made.until(lambda status: state_of(status, row.agent_name) == "ready")
        assert engines_of(made.agents[row.agent_name].pid) == [loading]
        await made.loading_is_booked_once(row.agent_name)
        outcomes = made.outcomes()
        assert [outcomes[request_id] for request_id in made.answered] == [["completed"]] * 3


async def test_an_agent_killed_in_the_load_of_a_real_model_loses_no_request(tmp_path: Path) -> None:
    """The other host answers; the half-loaded process ends, and the agent, started again, is known and answers."""
    async with processes(tmp_path) as made:
        row, loading = await made.held_in_a_load()
        asked = [asyncio.create_task(made.ask(model)) for model in (f"{row.agent_id}/smollm2", "moe2", "moe2")]
        await made.until(lambda status: status.requests_active > 0)
        made.agents[row.agent_name].kill()
        await made.agents[row.agent_name].wait()
        assert await asyncio.gather(*asked[1:]) == [200, 200]
        assert not asked[0].done()
        async with asyncio.timeout(240):
            while Path(f"/proc/{loading}").exists():  # noqa: ASYNC240
                await asyncio.sleep(POLL_S)
        await made.start_agent(row.agent_name)
        assert await asked[0] == 200
        status = await made.until(lambda status: state_of(status, row.agent_name) == "ready")
        assert [one.agent_id for one in status.agents if one.agent_name == row.agent_name] == [row.agent_id]
        outcomes = made.outcomes()
        assert [outcomes[request_id] for request_id in made.answered] == [["completed"]] * 3
