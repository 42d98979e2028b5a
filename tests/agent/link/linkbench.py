"""A link between real sockets: the coordinator's end does what a test says, the agent's tells what it heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

from aiohttp import web

from moe2.agent.link.link import AGENTS_PATH, Link
from moe2.common.backoff import Backoff
from moe2.common.link.enrolment import REFUSAL_HEADER, Refusal
from moe2.common.link.messages import CancelJob, Hello, JobDone, JobUsage, Ping, WireMessage
from moe2.common.link.session import JobMessage
from moe2.common.link.wire import wire_codec
from tests.common.samples import HELLO, WELCOME
from tests.virtualclock import LOOPBACK_GRACE_S, on_virtual_clock

CODEC = wire_codec()
CONNECT_TIMEOUT_S = 10.0
REFUSED_RETRY_S = 60.0
on_loopback = on_virtual_clock(io_grace_s=LOOPBACK_GRACE_S)
CANCEL = CancelJob(job_id="j")
DONE = JobDone(job_id="j", reason="stop", usage=JobUsage())


class Top(Random):
    """Back-off without jitter."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Peer:
    """The coordinator's end of one connection."""

    def __init__(self, websocket: web.WebSocketResponse, authorization: str | None) -> None:
        self.websocket = websocket
        self.authorization = authorization
        self.over = asyncio.Event()

    async def say(self, message: WireMessage) -> None:
        await self.websocket.send_bytes(CODEC.encode(message))

    async def hear(self) -> WireMessage:
        """The next message that is no heartbeat."""
        while True:
            message = CODEC.decode(await self.websocket.receive_bytes())
            if not isinstance(message, Ping):
                return message

    async def welcome(self) -> None:
        assert isinstance(await self.hear(), Hello)
        await self.say(WELCOME)

    def drop(self) -> None:
        """The connection breaks."""
        assert self.websocket._req is not None
        assert self.websocket._req.transport is not None
        self.websocket._req.transport.abort()
        self.over.set()


class Hub:
    """A coordinator's agents listener that does what a test says. `refuse_with`: an HTTP status, or None to accept."""

    def __init__(self) -> None:
        self.refuse_with: int | None = None
        self.refusal: Refusal | None = None
        self.attempts_s: list[float] = []
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._attempted = asyncio.Event()

    async def accept(self, request: web.Request) -> web.StreamResponse:
        self.attempts_s.append(asyncio.get_running_loop().time())
        self._attempted.set()
        if self.refuse_with is not None:
            headers = {REFUSAL_HEADER: self.refusal.value} if self.refusal else {}
            return web.Response(status=self.refuse_with, headers=headers)
        websocket = web.WebSocketResponse(autoping=True)
        await websocket.prepare(request)
        peer = Peer(websocket, request.headers.get("Authorization"))
        self.peers.put_nowait(peer)
        await peer.over.wait()
        return websocket

    async def until_attempt(self, number: int) -> None:
        while len(self.attempts_s) < number:
            self._attempted.clear()
            await self._attempted.wait()


@dataclass
class Shown:
    """Credentials: shows `bearer`, and `other` once that is unknown."""

    bearer: str = "s3cret"
    other: str | None = None
    is_enrolled: bool = False

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.bearer}"}

    def enrolled(self) -> None:
        self.is_enrolled = True

    def unknown(self) -> bool:
        if self.other is None:
            return False
        self.bearer, self.other = self.other, None
        return True


@dataclass(frozen=True)
class Timing:
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    refused_retry_s: float = REFUSED_RETRY_S


class Agent:
    """A link and what it told its daemon."""

    def __init__(self, url: str) -> None:
        self.credentials = Shown()
        self.heard: asyncio.Queue[JobMessage] = asyncio.Queue()
        self.opened = asyncio.Event()
        self.lost_s: list[float] = []
        self._lost = asyncio.Event()
        self.link = Link(
            url=url,
            credentials=self.credentials,
            tls=lambda: None,
            hello=HELLO,
            timing=Timing(),
            backoff=Backoff(first_s=1.0, most_s=8.0, random=Top()),
            on_opened=lambda _: self.opened.set(),
            on_message=self.heard.put_nowait,
            on_lost=self._note_lost,
        )
        self.running = asyncio.create_task(self.link.run())

    def _note_lost(self) -> None:
        self.lost_s.append(asyncio.get_running_loop().time())
        self.opened.clear()
        self._lost.set()

    async def until_lost(self) -> None:
        await self._lost.wait()
        self._lost.clear()


@asynccontextmanager
async def listening(accept: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get(AGENTS_PATH, accept)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def hub_and_agent() -> AsyncIterator[tuple[Hub, Agent]]:
    hub = Hub()
    async with listening(hub.accept) as url:
        agent = Agent(url)
        try:
            yield hub, agent
        finally:
            agent.running.cancel()
            await asyncio.gather(agent.running, return_exceptions=True)


@asynccontextmanager
async def agent_of(url: str) -> AsyncIterator[Agent]:
    agent = Agent(url)
    try:
        yield agent
    finally:
        agent.running.cancel()
        await asyncio.gather(agent.running, return_exceptions=True)


async def opened(hub: Hub, agent: Agent) -> Peer:
    peer = await hub.peers.get()
    await peer.welcome()
    await agent.opened.wait()
    return peer
