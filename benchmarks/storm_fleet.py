"""The fleet of a storm: coordinator and agents in processes of their own, and a record of what goes over each link."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgpack
import msgspec

from benchmarks.storm_books import LinkRecord, Span
from benchmarks.storm_clients import DIES_ON, HANGS_ON, REQUEST_TIMEOUT_S
from moe2.common.localclient import STATUS_ROUTE, NotRunningError, fetch
from moe2.common.status import CoordinatorStatus
from tests.fakes.agentprocess import agent_process
from tests.fakes.coordinatorprocess import CoordinatorProcess
from tests.fakes.countedcoordinator import TASKS_FILE_VARIABLE
from tests.fakes.faultproxy import Connection, FaultProxy, Frame, fault_proxy

TOKEN = "a-storm-token"
PROFILES = {"orin": "agx-orin-maxn", "orin-30w": "agx-orin-30w", "rtx": "rtx-4090"}
EXPERT = ("--dies-on", DIES_ON, "--hangs-on", HANGS_ON, "--prefers", "yes", "--seconds-per-token", "0.02")
SLOTS = 4
STUCK_S = 3.0
HEARTBEAT_S = 1.0
POLL_S = 0.05
ANSWERS_S = 10.0
ENDS_BY_ITSELF_S = 12.0
"""An agent that is told to stop drains for 5 s; what then still lives is killed."""

_ENDS = ("job_done", "job_scored", "job_failed")
_SUBMITS = ("submit", "score", "follow")


class Agent:
    """One agent of the fleet behind a proxy of its own; it can be ended and started again."""

    def __init__(self, root: Path, name: str, proxy: FaultProxy) -> None:
        self._root = root
        self.name = name
        self.proxy = proxy
        self.links: list[LinkRecord] = []
        self._records: dict[int, LinkRecord] = {}
        self._stack = AsyncExitStack()
        self._process: asyncio.subprocess.Process | None = None
        self._closings: list[asyncio.Task[None]] = []
        proxy.on_connected = self._record

    async def start(self) -> None:
        running = agent_process(
            self._root,
            self.name,
            self.proxy.url,
            token=TOKEN,
            expert=EXPERT,
            profile=PROFILES[self.name],
            slots=SLOTS,
            stuck_s=STUCK_S,
        )
        self._process = await self._stack.enter_async_context(running)

    async def end(self, number: signal.Signals) -> None:
        """Send a signal and wait for the end, whatever it takes."""
        assert self._process
        engines = self.engine_pids()
        self.send_signal(number)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), ENDS_BY_ITSELF_S)
        await self._stack.aclose()
        # An engine that is stopped cannot see that its agent is gone.
        for pid in engines:
            send_signal(pid, signal.SIGCONT)

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process
        send_signal(self._process.pid, number)

    def engine_pids(self) -> list[int]:
        assert self._process
        pid = self._process.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def open_links(self) -> list[tuple[Connection, LinkRecord]]:
        connections = [one for one in self.proxy.connections if not one.over.is_set()]
        return [(one, self._records[id(one)]) for one in connections]

    def _record(self, connection: Connection) -> None:
        link = LinkRecord(self.name)
        self.links.append(link)
        self._records[id(connection)] = link
        connection.up.on_sent = partial(_note_up, link)
        connection.down.on_sent = partial(_note_down, link)
        self._closings.append(asyncio.create_task(_note_close(connection, link)))


class Fleet:
    """Everything that a storm can harm. away: when the coordinator was dead or stopped, or this process."""

    def __init__(self, root: Path, coordinator: CoordinatorProcess, agents: list[Agent]) -> None:
        self.root = root
        self.coordinator = coordinator
        self.agents = agents
        self.away: list[Span] = []

    async def status(self) -> CoordinatorStatus | None:
        """The coordinator's; None if it does not answer."""
        try:
            content = await asyncio.to_thread(fetch, self.root / "coordinator.sock", STATUS_ROUTE, timeout_s=5.0)
        except (NotRunningError, PermissionError):
            return None
        return msgspec.json.decode(content, type=CoordinatorStatus)

    async def until(self, holds: Callable[[CoordinatorStatus], bool], limit_s: float) -> bool:
        """Wait until the status satisfies `holds`; False if it has not by then."""
        by_s = time.monotonic() + limit_s
        while time.monotonic() < by_s:
            status = await self.status()
            if status is not None and holds(status):
                return True
            await asyncio.sleep(POLL_S)
        return False

    def is_whole(self, status: CoordinatorStatus) -> bool:
        """True if every agent of the fleet is connected with a ready expert."""
        ready = {
            row.agent_name
            for row in status.agents
            if row.connected and any(expert.state == "ready" for expert in row.experts)
        }
        return ready >= {agent.name for agent in self.agents}

    def fds(self) -> int:
        """Open files of the coordinator's process, sockets included."""
        return len(list(Path(f"/proc/{self.coordinator.pid}/fd").iterdir()))

    async def tasks(self) -> list[str]:
        """The coordinator's asyncio tasks, a line for each."""
        path = self.root / "tasks"
        path.unlink(missing_ok=True)
        self.coordinator.send_signal(signal.SIGUSR1)
        for _ in range(round(ANSWERS_S / POLL_S)):
            if path.exists():
                return path.read_text().splitlines()
            await asyncio.sleep(POLL_S)
        raise RuntimeError(f"The coordinator has not told its tasks within {ANSWERS_S:.0f} s.")


@asynccontextmanager
async def storm_fleet(root: Path) -> AsyncIterator[Fleet]:
    """A running fleet, all of it ready; everything is killed in the end. The keys' file must be there."""
    with patch.dict(os.environ, {TASKS_FILE_VARIABLE: str(root / "tasks")}):
        coordinator = CoordinatorProcess(
            root,
            token=TOKEN,
            drain_s=1.0,
            api=f'keys = "required"\nrequest_timeout_s = {REQUEST_TIMEOUT_S}',
            agents=f"heartbeat_s = {HEARTBEAT_S}",
            module="tests.fakes.countedcoordinator",
        )
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(coordinator)
            agents = []
            for name in PROFILES:
                proxy = await stack.enter_async_context(fault_proxy(coordinator.agents_url))
                agent = Agent(root, name, proxy)
                stack.push_async_callback(agent.end, signal.SIGKILL)
                await agent.start()
                agents.append(agent)
            fleet = Fleet(root, coordinator, agents)
            if not await fleet.until(fleet.is_whole, 60.0):
                raise RuntimeError(f"The fleet is not ready after 60 s: see the logs in {root}.")
            yield fleet


def send_signal(pid: int, number: signal.Signals) -> None:
    """To whoever still lives."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _note_up(link: LinkRecord, frame: Frame) -> None:
    message = _content(frame)
    if message.get("op") in _ENDS:
        energy = (message.get("usage") or {}).get("energy") or {}
        link.ends[message["job_id"]] = (time.monotonic(), energy.get("joules"))


def _note_down(link: LinkRecord, frame: Frame) -> None:
    message = _content(frame)
    if message.get("op") in _SUBMITS:
        link.submitted_s[message["job_id"]] = time.monotonic()
    elif message.get("op") == "cancel":
        link.cancelled_s.setdefault(message["job_id"], time.monotonic())


def _content(frame: Frame) -> dict[str, Any]:
    try:
        content = msgpack.unpackb(frame.payload, raw=False, strict_map_key=False)
    except Exception:
        return {}
    return content if isinstance(content, dict) else {}


async def _note_close(connection: Connection, link: LinkRecord) -> None:
    await connection.over.wait()
    link.closed_s = time.monotonic()
