"""Peers that speak protocol 1 and nothing else, as builds in the field do: later words are unreadable to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import msgpack
from aiohttp import web

from moe2.common.link.messages import (
    CancelJob,
    Hello,
    JobDone,
    JobPieces,
    JobStarted,
    JobUsage,
    Report,
    Submit,
    TokenPiece,
    Tokens,
    Welcome,
    WireMessage,
)
from moe2.common.link.pump import Pump
from moe2.common.link.reports import HostFacts
from moe2.common.link.session import (
    AgentSession,
    CoordinatorSession,
    JobMessage,
    MessageReceived,
    PeerFaulted,
    Session,
    SessionEvent,
)
from moe2.common.link.wire import Codec, UnreadableMessage
from tests.common.samples import SAMPLES

OPS = frozenset(
    [
        "hello",
        "welcome",
        "refused",
        "ping",
        "pong",
        "fault",
        "goodbye",
        "report",
        "submit",
        "cancel",
        "job_started",
        "tokens",
        "job_done",
        "job_failed",
    ]
)
STATES = frozenset({"loading", "ready", "restarting", "failed"})


class Version1Codec(Codec[WireMessage]):
    """Reads what protocol 1 knows."""

    def __init__(self) -> None:
        super().__init__(WireMessage)
        self._ops = set(OPS)

    def decode(self, frame: bytes) -> WireMessage:
        message = super().decode(frame)
        if isinstance(message, Report) and not {expert.state.value for expert in message.experts} <= STATES:
            raise UnreadableMessage("Invalid 'report': Invalid enum value", code="invalid_message", op="report")
        return message


def _limited(session: Session) -> None:
    session._codec = Version1Codec()


class Peer:
    """One end of a link that speaks protocol 1, with what it heard."""

    def __init__(self) -> None:
        self.heard: list[JobMessage] = []
        self.faults: list[str] = []
        self.changed = asyncio.Event()
        self.session: Session | None = None
        self._waiting: list[JobMessage] = []
        self._pump: Pump | None = None
        self.answer: Callable[[JobMessage], list[JobMessage]] = lambda _: []

    def say(self, message: JobMessage) -> None:
        self._waiting.append(message)
        assert self._pump is not None
        self._pump.wake()

    def say_op(self, op: str) -> None:
        """Something that no build knows."""
        assert self.session is not None
        assert self._pump is not None
        self.session._frames.append(msgpack.packb({"op": op}))
        self._pump.wake()

    async def until(self, holds: Callable[[Peer], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds(self):
                self.changed.clear()
                await self.changed.wait()

    async def serve(self, session: Session, websocket: aiohttp.ClientWebSocketResponse | web.WebSocketResponse) -> None:
        _limited(session)
        self.session = session
        self._pump = Pump(session, next_message=self._next, on_event=self._happened)
        self.changed.set()
        await self._pump.run(websocket)

    def _next(self) -> JobMessage | None:
        return self._waiting.pop(0) if self._waiting else None

    def _happened(self, event: SessionEvent) -> None:
        if isinstance(event, MessageReceived):
            self.heard.append(event.message)
            for message in self.answer(event.message):
                self.say(message)
        elif isinstance(event, PeerFaulted):
            self.faults.append(event.code)
        self.changed.set()


@asynccontextmanager
async def coordinator1(token: str) -> AsyncIterator[tuple[Peer, str]]:
    """A coordinator that asks for the token at each connection; its one peer, and its URL."""
    peer = Peer()

    async def accept(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != f"Bearer {token}":
            raise web.HTTPUnauthorized(text="Wrong or missing enrolment token.")
        websocket = web.WebSocketResponse(compress=False)
        await websocket.prepare(request)
        welcome = Welcome(
            protocol=1,
            coordinator_id="old",
            coordinator_version="0",
            heartbeat_s=30.0,
            report_s=30.0,
            max_frame_bytes=2**20,
        )
        session = CoordinatorSession(welcome, now_s=asyncio.get_running_loop().time(), handshake_s=30.0)
        await peer.serve(session, websocket)
        return websocket

    app = web.Application()
    app.router.add_get("/v1/agents", accept)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield peer, f"ws://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def agent1(url: str, token: str) -> AsyncIterator[Peer]:
    """An agent that knows the token and no credentials, with one ready model: it answers every job with two tokens."""
    peer = Peer()
    peer.answer = _echo
    hello = Hello(protocol_min=1, protocol_max=1, agent_id="agent-old", agent_name="old", agent_version="0")
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as http, http.ws_connect(url + "/v1/agents", headers=headers) as websocket:
        session = AgentSession(hello, now_s=asyncio.get_running_loop().time(), handshake_s=30.0, max_frame_bytes=2**20)
        serving = asyncio.create_task(peer.serve(session, websocket))
        try:
            await peer.until(lambda peer: peer.session is not None)
            recorded = SAMPLES["report"]
            assert isinstance(recorded, Report)
            [ready] = [expert for expert in recorded.experts if expert.state == "ready"][:1]
            host = HostFacts(hostname="old", system="Linux", architecture="aarch64")
            peer.say(Report(seq=1, host=host, experts=(ready,)))
            yield peer
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


def _echo(message: JobMessage) -> list[JobMessage]:
    match message:
        case Submit(job_id=job_id):
            usage = JobUsage(prompt_tokens=3, decoded_tokens=2, queue_s=0.0, prefill_s=0.01, decode_s=0.02)
            return [
                JobStarted(job_id=job_id, prompt_tokens=3, queue_s=0.0),
                Tokens(jobs=(JobPieces(job_id, (TokenPiece("old "), TokenPiece("answer"))),)),
                JobDone(job_id=job_id, reason="stop", usage=usage),
            ]
        case CancelJob(job_id=job_id):
            return [JobDone(job_id=job_id, reason="cancelled", usage=JobUsage())]
    return []
