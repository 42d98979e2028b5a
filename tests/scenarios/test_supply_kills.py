"""SIGKILL at each step of a fetch and of a swap: real processes, which come back with what they had."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moe2.common.localclient import NotRunningError, fetch
from moe2.coordinator.http.paths import ORDERS_PATH, PUSHES_PATH
from tests.fakes.coordinatorprocess import CoordinatorProcess
from tests.fakes.fleet import POLL_S
from tests.gguf import write_gguf
from tests.scenarios.test_supply import stock

pytestmark = pytest.mark.slow

TOKEN = "a-test-token"
SIZE_BYTES = 6_000_000
PACE = "\n[push]\nport = 0\nmax_bytes_per_s = 4000000"


class Agent:
    """An agent's process with fake experts, which takes what the coordinator sends; started again at the same state."""

    def __init__(self, root: Path, name: str, url: str) -> None:
        self._argv = (sys.executable, "-m", "tests.fakes.agentprocess", str(root), name, url, "-")
        self._root, self._name = root, name
        self.process: asyncio.subprocess.Process | None = None
        (root / f"{name}.token").write_text(TOKEN)

    async def start(self) -> None:
        with (self._root / f"{self._name}.log").open("ab") as log:
            environment = os.environ | {"MOE2_TEST_TAKES_MODELS": "1"}
            self.process = await asyncio.create_subprocess_exec(*self._argv, stdout=log, stderr=log, env=environment)

    async def kill(self) -> None:
        """SIGKILL, as the kernel does where memory is short."""
        assert self.process
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@asynccontextmanager
async def agents(root: Path, url: str, *names: str) -> AsyncIterator[dict[str, Agent]]:
    """Running agents; killed in the end."""
    made = {name: Agent(root, name, url) for name in names}
    for agent in made.values():
        await agent.start()
    try:
        yield made
    finally:
        for agent in made.values():
            await agent.kill()


async def asked(root: Path, route: str, body: dict[str, Any] | None = None) -> Any:
    """What the coordinator answers on its socket; None while it is not there."""
    content = None if body is None else json.dumps(body).encode()
    try:
        return json.loads(
            await asyncio.to_thread(fetch, root / "coordinator.sock", route, body=content, timeout_s=30.0)
        )
    except NotRunningError:
        return None


async def until(root: Path, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Waits until the coordinator's status satisfies `holds`; the status."""
    async with asyncio.timeout(120):
        while True:
            status = await asked(root, "/status")
            if status is not None and holds(status):
                return dict(status)
            await asyncio.sleep(POLL_S)


def takes(status: dict[str, Any], *names: str) -> bool:
    """Whether these agents are there and have told of their folders."""
    rows = {row["agent_name"]: row for row in status["agents"] if row["connected"]}
    return all(name in rows and (rows[name].get("models") or {}).get("free_bytes") for name in names)


def ready(status: dict[str, Any], name: str, model: str) -> dict[str, Any] | None:
    """An agent's expert, if it is ready."""
    for row in status["agents"]:
        for expert in row["experts"] if row["agent_name"] == name and row["connected"] else ():
            if expert["model"] == model and expert["state"] == "ready":
                return dict(expert)
    return None


@pytest.mark.parametrize("step", ["told", "half", "last bytes", "checking", "entered"])
async def test_an_agent_that_is_killed_while_it_fetches_goes_on_there(tmp_path: Path, step: str) -> None:
    """Whatever it had stays, the rest alone is fetched, and the checksum holds."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(SIZE_BYTES))
    partial, whole = tmp_path / "one/models/.big.gguf.partial", tmp_path / "one/models/big.gguf"
    wanted = {"told": 0, "half": SIZE_BYTES // 2, "last bytes": SIZE_BYTES - 600_000, "checking": SIZE_BYTES}
    coordinator = CoordinatorProcess(tmp_path, token=TOKEN, agents=PACE)
    async with coordinator, agents(tmp_path, coordinator.agents_url, "one") as made:
        await until(tmp_path, lambda status: takes(status, "one"))
        await asked(tmp_path, PUSHES_PATH, {"path": str(source), "hosts": ["one"]})

        def reached(_: dict[str, Any]) -> bool:
            if step == "entered":
                return whole.exists()
            return whole.exists() or (partial.exists() and partial.stat().st_size >= wanted[step]) or step == "told"

        await until(tmp_path, reached)
        await made["one"].kill()
        had = partial.stat().st_size if partial.exists() else 0
        content = partial.read_bytes() if partial.exists() else b""
        assert content == source.read_bytes()[:had]
        inode = partial.stat().st_ino if partial.exists() else None
        await made["one"].start()
        await until(tmp_path, lambda status: all(row["state"] == "done" for row in status["pushes"]))
        assert hashlib.sha256(whole.read_bytes()).digest() == hashlib.sha256(source.read_bytes()).digest()
        assert inode is None or whole.stat().st_ino == inode
        told = (tmp_path / "one.log").read_text()
        assert "fetched_wrong_bytes" not in told


async def test_a_coordinator_that_is_killed_while_it_sends_is_told_again(tmp_path: Path) -> None:
    """It forgets its pushes; said again, the host keeps what it had and takes the rest."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(SIZE_BYTES))
    partial = tmp_path / "one/models/.big.gguf.partial"
    coordinator = CoordinatorProcess(tmp_path, token=TOKEN, agents=PACE)
    async with coordinator, agents(tmp_path, coordinator.agents_url, "one"):
        await until(tmp_path, lambda status: takes(status, "one"))
        word = {"path": str(source), "hosts": ["one"]}
        await asked(tmp_path, PUSHES_PATH, word)
        await until(tmp_path, lambda _: partial.exists() and partial.stat().st_size > SIZE_BYTES // 3)
        await coordinator.end(signal.SIGKILL)
        had = partial.stat().st_size
        await coordinator.start()
        await until(tmp_path, lambda status: takes(status, "one"))
        assert partial.stat().st_size >= had
        await asked(tmp_path, PUSHES_PATH, word)
        await until(tmp_path, lambda status: all(row["state"] == "done" for row in status["pushes"]))
        assert (tmp_path / "one/models/big.gguf").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("step", ["ordered", "loading", "kept"])
async def test_an_agent_that_is_killed_while_it_swaps_loses_no_request(tmp_path: Path, step: str) -> None:
    """Another host serves the model meanwhile; the killed one comes back with the former settings or the new ones."""
    for name in ("one", "two"):
        stock(tmp_path, name, "new.gguf")
    kept = tmp_path / "one/served.json"
    coordinator = CoordinatorProcess(tmp_path, token=TOKEN, agents="heartbeat_s = 0.5\nstale_s = 3.0")
    async with coordinator, agents(tmp_path, coordinator.agents_url, "one", "two") as made:
        await until(tmp_path, lambda status: takes(status, "one", "two"))
        await asked(tmp_path, ORDERS_PATH, {"verb": "add", "name": "new", "hosts": ["one", "two"], "slots": 2})
        await until(tmp_path, lambda status: bool(ready(status, "one", "new") and ready(status, "two", "new")))
        statuses: list[int] = []
        stop = asyncio.Event()
        async with aiohttp.ClientSession(coordinator.api_url) as http:
            clients = [asyncio.create_task(_ask(http, stop, statuses)) for _ in range(3)]
            await asked(tmp_path, ORDERS_PATH, {"verb": "set", "name": "new", "hosts": ["one"], "slots": 3})
            if step == "loading":
                await until(tmp_path, lambda status: any("new" in _swapping(row) for row in status["agents"]))
            if step == "kept":
                await until(tmp_path, lambda _: json.loads(kept.read_text())["new"]["slots"] == 3)
            await made["one"].kill()
            await made["one"].start()
            status = await until(tmp_path, lambda status: ready(status, "one", "new") is not None)
            stop.set()
            await asyncio.gather(*clients)
        found = ready(status, "one", "new")
        assert found is not None
        assert found["slots"] in ((3,) if step == "kept" else (2, 3))
        assert set(statuses) == {200}


def _swapping(row: dict[str, Any]) -> list[str]:
    return list((row.get("models") or {}).get("swapping", ()))


async def _ask(http: aiohttp.ClientSession, stop: asyncio.Event, statuses: list[int]) -> None:
    body = {"model": "new", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    while not stop.is_set():
        async with http.post("/v1/chat/completions", json=body) as answer:
            await answer.read()
            statuses.append(answer.status)
