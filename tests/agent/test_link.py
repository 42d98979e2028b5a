"""The link to the coordinator: attempts, sessions and their ends, on a virtual clock and real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import msgspec
import pytest
from aiohttp import web

from moe2.agent.link import AGENTS_PATH, Link
from moe2.common.backoff import Backoff
from moe2.common.enrolment import REFUSAL_HEADER, Refusal
from moe2.common.messages import (
    CancelJob,
    Goodbye,
    Hello,
    JobDone,
    JobFailed,
    JobPieces,
    JobUsage,
    Ping,
    Pong,
    Refused,
    TokenPiece,
    Tokens,
    WireMessage,
)
from moe2.common.session import JobMessage
from moe2.common.status import LinkState
from moe2.common.wire import wire_codec
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
    """Papers: shows `bearer`, and `other` once that is unknown."""

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
        self.papers = Shown()
        self.heard: asyncio.Queue[JobMessage] = asyncio.Queue()
        self.opened = asyncio.Event()
        self.lost_s: list[float] = []
        self._lost = asyncio.Event()
        self.link = Link(
            url=url,
            papers=self.papers,
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


# --- A session --------------------------------------------------------------------------------------------------------


@on_loopback
async def test_a_welcomed_link_is_connected() -> None:
    """The token travels in the upgrade, and status knows the session."""
    async with hub_and_agent() as (hub, agent):
        peer = await opened(hub, agent)
        assert peer.authorization == "Bearer s3cret"
        status = agent.link.status
        assert (status.state, status.protocol, status.attempts) == (LinkState.CONNECTED, 1, 1)
        assert status.connected_since_unix_s is not None
        assert status.last_error is None


@on_loopback
async def test_a_link_that_is_not_welcomed_yet_is_connecting() -> None:
    """A connection alone is no session; what is sent then is dropped."""
    async with hub_and_agent() as (hub, agent):
        peer = await hub.peers.get()
        assert agent.link.status.state is LinkState.CONNECTING
        agent.link.send(DONE)
        await peer.welcome()
        await agent.opened.wait()
        agent.link.send(CANCEL)
        assert await peer.hear() == CANCEL


@on_loopback
async def test_messages_pass_both_ways() -> None:
    """The daemon's to the coordinator, the coordinator's to the daemon."""
    async with hub_and_agent() as (hub, agent):
        peer = await opened(hub, agent)
        agent.link.send_tokens((JobPieces("j", (TokenPiece("a"),)),))
        agent.link.send(DONE)
        assert await peer.hear() == Tokens(jobs=(JobPieces("j", (TokenPiece("a"),)),))
        assert await peer.hear() == DONE
        await peer.say(CANCEL)
        assert await agent.heard.get() == CANCEL


@on_loopback
async def test_the_round_trip_is_measured() -> None:
    """By the first heartbeat, right after the welcome."""
    async with hub_and_agent() as (hub, agent):
        peer = await opened(hub, agent)
        ping = CODEC.decode(await peer.websocket.receive_bytes())
        assert isinstance(ping, Ping)
        await asyncio.sleep(0.25)
        await peer.say(Pong(seq=ping.seq))
        await peer.say(CANCEL)
        await agent.heard.get()
        assert agent.link.status.rtt_s == pytest.approx(0.25)


# --- Ends of a session ------------------------------------------------------------------------------------------------


@on_loopback
async def test_a_connection_that_breaks_is_lost_once_and_made_again() -> None:
    """The daemon hears of it at once; the next attempt comes after the first delay."""
    async with hub_and_agent() as (hub, agent):
        (await opened(hub, agent)).drop()
        await agent.until_lost()
        assert agent.link.status.state is not LinkState.CONNECTED
        await opened(hub, agent)
        assert len(agent.lost_s) == 1
        assert hub.attempts_s == pytest.approx([0.0, 1.0])
        assert agent.link.status.last_error == "the connection to the coordinator broke"


@on_loopback
async def test_a_silent_coordinator_is_lost_after_three_heartbeats() -> None:
    """Jobs for nobody stop then, not once a closing handshake has timed out as well."""
    async with hub_and_agent() as (hub, agent):
        await opened(hub, agent)
        start_s = asyncio.get_running_loop().time()
        await agent.until_lost()
        assert agent.lost_s[0] - start_s == pytest.approx(3 * WELCOME.heartbeat_s)


@on_loopback
async def test_a_coordinators_goodbye_is_the_reason_that_is_shown() -> None:
    """And the agent comes back."""
    async with hub_and_agent() as (hub, agent):
        peer = await opened(hub, agent)
        await peer.say(Goodbye(reason="shutting down"))
        await agent.until_lost()
        peer.over.set()
        await opened(hub, agent)
        assert agent.link.status.last_error == "shutting down"


@on_loopback
async def test_nothing_of_a_lost_session_is_sent_in_the_next() -> None:
    """Jobs of the old one are unknown there."""
    async with hub_and_agent() as (hub, agent):
        peer = await opened(hub, agent)
        peer.drop()
        agent.link.send(DONE)
        await agent.until_lost()
        agent.link.send(DONE)
        peer = await opened(hub, agent)
        agent.link.send(CANCEL)
        assert await peer.hear() == CANCEL


# --- Attempts ---------------------------------------------------------------------------------------------------------


@on_loopback
async def test_attempts_back_off_up_to_the_most() -> None:
    """1, 2, 4, 8 and again 8 seconds; nobody is told of a loss that there was not."""
    async with hub_and_agent() as (hub, agent):
        hub.refuse_with = 503
        await hub.until_attempt(6)
        assert hub.attempts_s == pytest.approx([0.0, 1.0, 3.0, 7.0, 15.0, 23.0])
        assert agent.lost_s == []
        assert agent.link.status.attempts == 6


@on_loopback
async def test_an_opened_session_starts_the_back_off_over() -> None:
    """After any number of failures."""
    async with hub_and_agent() as (hub, agent):
        hub.refuse_with = 503
        await hub.until_attempt(4)
        hub.refuse_with = None
        (await opened(hub, agent)).drop()
        await agent.until_lost()
        await opened(hub, agent)
        assert hub.attempts_s[5] - agent.lost_s[0] == pytest.approx(1.0)


@on_loopback
async def test_status_counts_down_to_the_next_attempt() -> None:
    """What a person who watches it wants to know."""
    async with hub_and_agent() as (hub, agent):
        hub.refuse_with = 503
        await hub.until_attempt(3)
        await asyncio.sleep(1.0)
        status = agent.link.status
        assert status.state is LinkState.WAITING
        assert status.next_attempt_in_s == pytest.approx(3.0)
        assert status.last_error_at_unix_s is not None


@pytest.mark.parametrize(
    ("http_status", "said"),
    [(401, "into the agent's token_file"), (404, "Is this its agents listener?")],
)
def test_a_refused_upgrade_says_what_to_do(http_status: int, said: str) -> None:
    """A wrong token and a wrong port are the usual reasons."""

    @on_loopback
    async def attempt() -> None:
        async with hub_and_agent() as (hub, agent):
            hub.refuse_with = http_status
            await hub.until_attempt(2)
            assert said in (agent.link.status.last_error or "")

    attempt()


@on_loopback
async def test_a_refused_agent_does_not_hammer() -> None:
    """Only a person can mend it, so that the next attempt comes late, not with the back-off."""
    async with hub_and_agent() as (hub, agent):
        hub.refuse_with, hub.refusal = 401, Refusal.CREDENTIAL_REVOKED
        await hub.until_attempt(3)
        assert hub.attempts_s == pytest.approx([0.0, REFUSED_RETRY_S, 2 * REFUSED_RETRY_S])
        status = agent.link.status
        assert status.last_error_code == "credential_revoked"
        assert status.last_error_remedy
        assert (status.last_error or "").endswith(status.last_error_remedy)


@on_loopback
async def test_a_refusal_within_the_session_does_not_hammer_either() -> None:
    """An agent that is revoked while it is connected is told so over the link."""
    async with hub_and_agent() as (hub, agent):
        peer = await opened(hub, agent)
        await peer.say(Refused(code="credential_revoked", message="Revoked.", remedy="Ask."))
        await agent.until_lost()
        peer.over.set()
        await hub.until_attempt(2)
        assert hub.attempts_s[1] >= REFUSED_RETRY_S
        assert agent.link.status.last_error_code == "credential_revoked"


@on_loopback
async def test_an_unknown_credential_gives_way_to_the_token() -> None:
    """A coordinator that lost its state is joined again without a person, and soon."""
    async with hub_and_agent() as (hub, agent):
        agent.papers.other = "the-token"
        hub.refuse_with, hub.refusal = 401, Refusal.CREDENTIAL_UNKNOWN
        await hub.until_attempt(1)
        hub.refuse_with = None
        peer = await opened(hub, agent)
        assert peer.authorization == "Bearer the-token"
        assert hub.attempts_s == pytest.approx([0.0, 1.0])


@on_loopback
async def test_a_welcome_that_knows_the_credential_ends_the_need_for_the_token() -> None:
    """A coordinator that knows of no credentials does not say so."""
    async with hub_and_agent() as (hub, agent):
        await opened(hub, agent)
        assert not agent.papers.is_enrolled
    async with hub_and_agent() as (hub, agent):
        peer = await hub.peers.get()
        assert isinstance(await peer.hear(), Hello)
        await peer.say(msgspec.structs.replace(WELCOME, enrolled=True))
        await agent.opened.wait()
        assert agent.papers.is_enrolled


@on_loopback
async def test_tokens_that_fit_no_frame_cost_their_jobs_only() -> None:
    """An answer with a hole in it is worth nothing: the job fails and is stopped, the link lives."""
    async with hub_and_agent() as (hub, agent):
        peer = await opened(hub, agent)
        agent.link.send_tokens((JobPieces("j", (TokenPiece("x" * WELCOME.max_frame_bytes),)),))
        failed = await peer.hear()
        assert isinstance(failed, JobFailed)
        assert (failed.job_id, "exceeds the limit" in failed.message) == ("j", True)
        assert await agent.heard.get() == CANCEL
        assert agent.link.status.state is LinkState.CONNECTED


@on_loopback
async def test_a_refused_handshake_shows_its_remedy() -> None:
    """What the coordinator said reaches the agent's status."""
    async with hub_and_agent() as (hub, agent):
        peer = await hub.peers.get()
        assert isinstance(await peer.hear(), Hello)
        await peer.say(Refused(code="x", message="No.", remedy="Do so."))
        peer.over.set()
        await hub.peers.get()
        assert agent.link.status.last_error == "No. Do so."
        assert agent.lost_s == []


@on_loopback
async def test_nobody_listening_is_an_error_in_words() -> None:
    """The address is in it."""
    async with listening(Hub().accept) as url:
        pass
    async with agent_of(url) as agent:
        await asyncio.sleep(0.5)
        assert url.removeprefix("ws://") in (agent.link.status.last_error or "")


@on_loopback
async def test_a_port_that_does_not_answer_is_given_up() -> None:
    """A firewall that swallows packets, or something else's port."""

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    async with server, agent_of(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}") as agent:
        await asyncio.sleep(CONNECT_TIMEOUT_S + 0.5)
        assert agent.link.status.last_error == "no answer within 10 s"


@on_loopback
async def test_a_coordinator_that_accepts_and_vanishes_is_tried_again() -> None:
    """The connection may be gone before the first frame."""
    vanished = 0

    async def vanish(request: web.Request) -> web.StreamResponse:
        nonlocal vanished
        websocket = web.WebSocketResponse()
        await websocket.prepare(request)
        assert request.transport is not None
        request.transport.close()
        vanished += 1
        return websocket

    async with listening(vanish) as url, agent_of(url) as agent:
        await asyncio.sleep(3.5)
        assert vanished == 3
        assert agent.link.status.last_error is not None
        assert agent.lost_s == []


# --- Closing ----------------------------------------------------------------------------------------------------------


@on_loopback
async def test_closing_sends_what_is_queued_then_goodbye_and_stays_away() -> None:
    """A drained agent's last words arrive, and it does not come back."""
    async with hub_and_agent() as (hub, agent):
        peer = await opened(hub, agent)
        agent.link.send(DONE)
        agent.link.close("shutting down")
        assert await peer.hear() == DONE
        assert await peer.hear() == Goodbye(reason="shutting down")
        peer.over.set()
        await agent.running
        assert len(hub.attempts_s) == 1


@on_loopback
async def test_closing_between_attempts_ends_at_once() -> None:
    """Nobody waits for a back-off to run out."""
    async with hub_and_agent() as (hub, agent):
        hub.refuse_with = 503
        await hub.until_attempt(4)
        await asyncio.sleep(0.5)
        closed_s = asyncio.get_running_loop().time()
        agent.link.close("shutting down")
        await agent.running
        assert asyncio.get_running_loop().time() == closed_s
