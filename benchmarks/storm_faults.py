"""The faults of a storm: signals to every process, spoilt and broken links, and agents that lie. A seed draws them."""

from __future__ import annotations

import asyncio
import math
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from typing import Any

import aiohttp
import msgpack
import msgspec

from benchmarks.storm_books import LinkRecord, Span
from benchmarks.storm_clients import Client
from benchmarks.storm_fleet import TOKEN, Agent, Fleet, send_signal
from moe2.common.energy import Energy, Quality
from moe2.common.link.messages import (
    Hello,
    JobDone,
    JobFailed,
    JobPieces,
    JobUsage,
    Ping,
    Pong,
    Submit,
    TokenPiece,
    Tokens,
    Welcome,
)
from moe2.common.link.wire import DEFAULT_MAX_FRAME_BYTES, wire_codec
from tests.coordinator.experts import expert_report, report
from tests.fakes import faultproxy
from tests.fakes.faultproxy import Connection

CODEC = wire_codec()
N_LIARS = 3
LULL_SHARE, LULL_S = 0.12, 6.0
"""How often nothing happens for a while, so that breakers close and answers are given."""
LIE_S = 3.0
"""A liar stays at most so long."""

SPOILS = (
    faultproxy.swallowed,
    faultproxy.doubled,
    faultproxy.truncated,
    faultproxy.corrupted,
    faultproxy.misshapen,
    faultproxy.oversized(DEFAULT_MAX_FRAME_BYTES + 1),
)


class Storm:
    """Draws one fault after the other. counts: how many of each there were.

    A process, an engine or a link that is being harmed is left alone by the others until it is well again.
    """

    def __init__(self, fleet: Fleet, seed: int) -> None:
        self._fleet = fleet
        self._random = random.Random(f"{seed} faults")
        self._harmed: set[str] = set()
        self.counts: Counter[str] = Counter()

    async def rage(self, until_s: float, *, spares_coordinator_from_s: float) -> None:
        """Harm things until this moment of the monotonic clock; returns once all of them have been mended.

        spares_coordinator_from_s: from then on the coordinator's process is not ended any more.
        """
        kinds: dict[Callable[[], tuple[str, Awaitable[None]]], int] = {
            self._end_agent: 6,
            self._stop_agent: 10,
            self._end_engine: 10,
            self._stop_engine: 10,
            self._harm_link: 20,
            self._stop_coordinator: 5,
            self._end_coordinator: 8,
        }
        async with asyncio.TaskGroup() as tasks:
            while time.monotonic() < until_s:
                await asyncio.sleep(LULL_S if self._random.random() < LULL_SHARE else self._random.uniform(0.2, 1.5))
                fault = self._random.choices(list(kinds), list(kinds.values()))[0]
                if fault == self._end_coordinator and time.monotonic() > spares_coordinator_from_s:
                    continue
                target, act = fault()
                tasks.create_task(self._alone(target, act))

    async def _alone(self, target: str, act: Awaitable[None]) -> None:
        if target in self._harmed:
            if asyncio.iscoroutine(act):
                act.close()
            return
        self._harmed.add(target)
        try:
            await act
        finally:
            self._harmed.discard(target)

    # --- Processes ----------------------------------------------------------------------------------------------------

    def _end_coordinator(self) -> tuple[str, Awaitable[None]]:
        number = self._random.choice((signal.SIGKILL, signal.SIGTERM))

        async def act() -> None:
            self.counts[f"coordinator {number.name}"] += 1
            since_s = time.monotonic()
            await self._fleet.coordinator.end(number)
            await self._fleet.coordinator.start()
            self._fleet.away.append(Span(since_s, time.monotonic()))

        return "coordinator", act()

    def _stop_coordinator(self) -> tuple[str, Awaitable[None]]:
        for_s = self._random.uniform(0.1, 2.0)

        async def act() -> None:
            self.counts["coordinator SIGSTOP"] += 1
            since_s = time.monotonic()
            self._fleet.coordinator.send_signal(signal.SIGSTOP)
            await asyncio.sleep(for_s)
            self._fleet.coordinator.send_signal(signal.SIGCONT)
            self._fleet.away.append(Span(since_s, time.monotonic(), deadly=False))

        return "coordinator", act()

    def _end_agent(self) -> tuple[str, Awaitable[None]]:
        agent, number = self._agent(), self._random.choice((signal.SIGKILL, signal.SIGTERM))

        async def act() -> None:
            self.counts[f"agent {number.name}"] += 1
            await agent.end(number)
            await agent.start()

        return agent.name, act()

    def _stop_agent(self) -> tuple[str, Awaitable[None]]:
        agent, for_s = self._agent(), self._random.choice((0.3, 1.0, 5.0))

        async def act() -> None:
            self.counts["agent SIGSTOP"] += 1
            agent.send_signal(signal.SIGSTOP)
            await asyncio.sleep(for_s)
            agent.send_signal(signal.SIGCONT)

        return agent.name, act()

    def _end_engine(self) -> tuple[str, Awaitable[None]]:
        agent, number = self._agent(), self._random.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV))

        async def act() -> None:
            self.counts[f"engine {number.name}"] += 1
            for pid in agent.engine_pids():
                send_signal(pid, number)

        return f"engine of {agent.name}", act()

    def _stop_engine(self) -> tuple[str, Awaitable[None]]:
        agent, for_s = self._agent(), self._random.choice((0.2, 1.0, 6.0))

        async def act() -> None:
            self.counts["engine SIGSTOP"] += 1
            pids = agent.engine_pids()
            for pid in pids:
                send_signal(pid, signal.SIGSTOP)
            await asyncio.sleep(for_s)
            for pid in pids:
                send_signal(pid, signal.SIGCONT)

        return f"engine of {agent.name}", act()

    def _agent(self) -> Agent:
        return self._random.choice(self._fleet.agents)

    # --- Links --------------------------------------------------------------------------------------------------------

    def _harm_link(self) -> tuple[str, Awaitable[None]]:
        agent = self._agent()
        kind = self._random.choice(("reset", "hold", "drop", "half_close", "spoil", "spoil"))
        way, for_s = self._random.choice(("up", "down")), self._random.uniform(0.1, 2.0)
        spoil = self._random.choice(SPOILS)

        async def act() -> None:
            for connection, link in agent.open_links():
                self.counts[f"link {kind}"] += 1
                await _harm(connection, link, kind, way, for_s, spoil)

        return f"link of {agent.name}", act()


async def _harm(
    connection: Connection, link: LinkRecord, kind: str, way: str, for_s: float, spoil: faultproxy.Spoil
) -> None:
    direction = connection.up if way == "up" else connection.down
    if kind == "hold":
        direction.hold()
        await asyncio.sleep(for_s)
        direction.release()
        return
    link.broken_s = time.monotonic()
    match kind:
        case "reset":
            connection.reset()
        case "drop":
            direction.drop()
        case "half_close":
            direction.half_close()
        case "spoil":
            direction.next(None, spoil)


# --- Liars ------------------------------------------------------------------------------------------------------------


async def lie_again_and_again(fleet: Fleet, seed: int, client: Client, until_s: float, counts: Counter[str]) -> None:
    """Connect as an agent that says what cannot be, again and again, each time in another way.

    client: asks for what only a liar could answer.
    """
    draw = random.Random(f"{seed} liars")
    async with aiohttp.ClientSession(fleet.coordinator.api_url) as http:
        while time.monotonic() < until_s:
            lie, number = draw.choice(LIES), draw.randrange(N_LIARS)
            counts[f"lie {lie}"] += 1
            with suppress(aiohttp.ClientError, OSError, TimeoutError, TypeError, msgspec.MsgspecError):
                async with asyncio.timeout(LIE_S):
                    await _lie(http, fleet, client, lie, f"liar-{number}")
            await asyncio.sleep(draw.uniform(0.5, 3.0))


LIES = (
    "no_hello",
    "bad_name",
    "twice_the_same_model",
    "20000_experts",
    "300000_jobs",
    "empty_maps",
    "nan_joules",
    "absurd_tokens",
    "unknown_word",
)
_ENERGIES = {
    "nan_joules": Energy(joules=math.nan, quality=Quality.MEASURED_COUNTER),
    "absurd_tokens": Energy(joules=1.0, quality=Quality.MEASURED_COUNTER),
    "unknown_word": Energy(joules=1.0),
}


async def _lie(http: aiohttp.ClientSession, fleet: Fleet, client: Client, lie: str, agent_id: str) -> None:
    url, headers = fleet.coordinator.agents_url + "/v1/agents", {"Authorization": f"Bearer {TOKEN}"}
    async with http.ws_connect(url, headers=headers, max_msg_size=0) as websocket:
        if lie == "no_hello":
            await websocket.receive()
            return
        name = "a\x1b[2J" if lie == "bad_name" else agent_id
        hello = Hello(protocol_min=1, protocol_max=2, agent_id=agent_id, agent_name=name, agent_version="1")
        await websocket.send_bytes(CODEC.encode(hello))
        await _hear(websocket, Welcome)
        if lie in _ENERGIES:
            await _lie_about_a_job(http, websocket, client, lie)
            return
        await websocket.send_bytes(_frame(lie))
        while not websocket.closed:
            await _hear(websocket, Submit)


@cache
def _frame(lie: str) -> bytes:
    """One frame that is a lie by itself; made once, as it takes long."""
    packed: bytes
    match lie:
        case "20000_experts":
            small = {"model": "m", "state": "ready", "context_tokens": 1, "slots": 1}
            packed = msgpack.packb({**msgspec.to_builtins(report()), "experts": [small] * 20_000})
        case "300000_jobs":
            packed = msgpack.packb({"op": "tokens", "jobs": [[f"j{n}", [["a"]]] for n in range(300_000)]})
        case "empty_maps":
            packed = msgpack.packb({**msgspec.to_builtins(report()), "experts": [{}] * 4_000_000})
        case _:
            packed = CODEC.encode(report(expert_report("lie"), expert_report("lie")))
    return packed


async def _lie_about_a_job(
    http: aiohttp.ClientSession, websocket: aiohttp.ClientWebSocketResponse, client: Client, lie: str
) -> None:
    """Take a job of a model that only this agent has, and end it with a lie."""
    model = f"lie-{lie}"
    await websocket.send_bytes(CODEC.encode(report(expert_report(model))))
    # It goes on where the liar is cut off: the request must end all the same.
    asking = asyncio.create_task(client.ask_of_liar(http, model))
    try:
        job = await _hear(websocket, Submit)
        await websocket.send_bytes(CODEC.encode(Tokens(jobs=(JobPieces(job.job_id, (TokenPiece("a"),)),))))
        n_tokens = -(10**9) if lie == "absurd_tokens" else 1
        usage = JobUsage(prompt_tokens=1, decoded_tokens=n_tokens, energy=_ENERGIES[lie])
        content = msgspec.to_builtins(JobDone(job_id=job.job_id, reason="stop", usage=usage))
        if lie == "unknown_word":
            content["usage"]["energy"]["quality"] = "guessed"
        await websocket.send_bytes(msgpack.packb(content))
    finally:
        await asyncio.wait([asking], timeout=LIE_S)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def _hear(websocket: aiohttp.ClientWebSocketResponse, kind: type[Any]) -> Any:
    """The next message of this kind; pings are answered meanwhile."""
    while True:
        heard = CODEC.decode(await websocket.receive_bytes())
        if isinstance(heard, Ping):
            await websocket.send_bytes(CODEC.encode(Pong(seq=heard.seq)))
        if isinstance(heard, Submit) and kind is not Submit:
            await websocket.send_bytes(CODEC.encode(JobFailed(job_id=heard.job_id, code="internal", message="No.")))
        if isinstance(heard, kind):
            return heard
