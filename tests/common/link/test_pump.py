"""Two sessions over a real WebSocket on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web

from moe2.common.link import pump as pump_module
from moe2.common.link.messages import CancelJob, Goodbye, Ping, Refused, WireMessage
from moe2.common.link.pump import Pump, WebSocket
from moe2.common.link.session import (
    LATER,
    AgentSession,
    Closed,
    CoordinatorSession,
    JobMessage,
    MessageReceived,
    Opened,
    RttMeasured,
    Session,
    SessionEvent,
)
from moe2.common.link.wire import wire_codec
from tests.common.samples import HELLO, WELCOME
from tests.virtualclock import LOOPBACK_GRACE_S, on_virtual_clock

CODEC = wire_codec()
HANDSHAKE_S = 10.0
on_loopback = on_virtual_clock(io_grace_s=LOOPBACK_GRACE_S)


class End:
    """One end of a link: a session, its pump, what waits to be sent and what has happened."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.outgoing: deque[JobMessage] = deque()
        self.events: list[SessionEvent] = []
        self._happened = asyncio.Event()
        self.pump = Pump(
            session, next_message=lambda: self.outgoing.popleft() if self.outgoing else None, on_event=self._note
        )

    def _note(self, event: SessionEvent) -> None:
        self.events.append(event)
        self._happened.set()

    def send(self, *messages: JobMessage) -> None:
        self.outgoing.extend(messages)
        self.pump.wake()

    def seen(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._happened.clear()
            await self._happened.wait()


def agent_end() -> End:
    now_s = asyncio.get_running_loop().time()
    return End(AgentSession(HELLO, now_s=now_s, handshake_s=HANDSHAKE_S, max_frame_bytes=1_000_000))


def coordinator_end() -> End:
    welcome = msgspec.structs.replace(WELCOME, max_frame_bytes=1_000_000)
    now_s = asyncio.get_running_loop().time()
    return End(CoordinatorSession(welcome, now_s=now_s, handshake_s=HANDSHAKE_S))


@asynccontextmanager
async def websockets() -> AsyncIterator[tuple[aiohttp.ClientWebSocketResponse, web.WebSocketResponse]]:
    """A connected pair: the client's and the server's."""
    accepted: asyncio.Future[web.WebSocketResponse] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def accept(request: web.Request) -> web.WebSocketResponse:
        websocket = web.WebSocketResponse(max_msg_size=0)
        await websocket.prepare(request)
        accepted.set_result(websocket)
        await over.wait()
        return websocket

    app = web.Application()
    app.router.add_get("/", accept)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/", max_msg_size=0) as client,
        ):
            try:
                yield client, await accepted
            finally:
                # Not the closing handshake: some tests leave a peer that will never take part in it.
                abort(client)
    finally:
        over.set()
        await runner.cleanup()


def abort(websocket: WebSocket) -> None:
    """The connection breaks without a word."""
    if transport := websocket.get_extra_info("socket"):
        transport.shutdown(socket.SHUT_RDWR)


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[End, End]]:
    """Both ends pumped and open."""
    async with websockets() as (client, server), asyncio.TaskGroup() as tasks:
        agent, coordinator = agent_end(), coordinator_end()
        running = [
            tasks.create_task(agent.pump.run(client)),
            tasks.create_task(coordinator.pump.run(server)),
        ]
        await agent.until(lambda: agent.session.is_open)
        yield agent, coordinator
        for task in running:
            task.cancel()


def has_received(end: End, number: int) -> bool:
    return len(end.seen(MessageReceived)) == number


async def say(websocket: WebSocket, *messages: WireMessage) -> None:
    for message in messages:
        await websocket.send_bytes(CODEC.encode(message))


@on_loopback
async def test_two_ends_shake_hands_and_measure_the_round_trip() -> None:
    """Without anybody asking for it."""
    async with linked() as (agent, coordinator):
        await agent.until(lambda: agent.seen(RttMeasured))
        await coordinator.until(lambda: coordinator.seen(RttMeasured))
        assert [event.hello for event in coordinator.seen(Opened)] == [HELLO]
        assert [event.protocol for event in agent.seen(Opened)] == [1]


@on_loopback
async def test_messages_arrive_in_order_both_ways() -> None:
    """As many as there are."""
    messages = [CancelJob(job_id=str(n)) for n in range(400)]
    async with linked() as (agent, coordinator):
        agent.send(*messages)
        coordinator.send(*messages)
        for end in (agent, coordinator):
            await end.until(partial(has_received, end, len(messages)))
            assert [event.message for event in end.seen(MessageReceived)] == messages


@on_loopback
async def test_what_waited_before_the_handshake_is_sent_after_it() -> None:
    """The queue is only asked once the session is open."""
    async with websockets() as (client, server), asyncio.TaskGroup() as tasks:
        agent, coordinator = agent_end(), coordinator_end()
        agent.send(CancelJob(job_id="early"))
        running = [tasks.create_task(agent.pump.run(client)), tasks.create_task(coordinator.pump.run(server))]
        await coordinator.until(lambda: coordinator.seen(MessageReceived))
        assert coordinator.seen(MessageReceived) == [MessageReceived(CancelJob(job_id="early"))]
        for task in running:
            task.cancel()


@on_loopback
async def test_closing_sends_what_is_queued_and_then_says_goodbye() -> None:
    """A draining agent's last answers arrive; both ends end with the reason."""
    async with websockets() as (client, server), asyncio.TaskGroup() as tasks:
        agent, coordinator = agent_end(), coordinator_end()
        running = [tasks.create_task(agent.pump.run(client)), tasks.create_task(coordinator.pump.run(server))]
        await agent.until(lambda: agent.session.is_open)
        agent.send(*(CancelJob(job_id=str(n)) for n in range(50)))
        agent.pump.close("draining")
        await asyncio.gather(*running)
    assert len(coordinator.seen(MessageReceived)) == 50
    assert coordinator.events[-1] == Closed("goodbye", "draining")
    assert agent.session.closed == coordinator.session.closed


@on_loopback
async def test_a_connection_that_breaks_ends_both_pumps() -> None:
    """The sessions were not closed: that is how the shells know."""
    async with websockets() as (client, server), asyncio.TaskGroup() as tasks:
        agent, coordinator = agent_end(), coordinator_end()
        running = [tasks.create_task(agent.pump.run(client)), tasks.create_task(coordinator.pump.run(server))]
        await agent.until(lambda: agent.session.is_open)
        abort(client)
        await asyncio.gather(*running)
    assert agent.session.closed is None
    assert coordinator.session.closed is None


@on_loopback
async def test_a_pump_over_a_lost_connection_ends() -> None:
    """A peer may accept and vanish before the pump starts: that is no defect of ours."""
    async with websockets() as (client, _):
        client._response.close()
        agent = agent_end()
        await agent.pump.run(client)
    assert agent.session.closed is None


@on_loopback
async def test_text_frames_are_ignored() -> None:
    """The protocol is binary; the session goes on."""
    async with websockets() as (client, server), asyncio.TaskGroup() as tasks:
        coordinator = coordinator_end()
        running = tasks.create_task(coordinator.pump.run(server))
        await client.send_str("hello?")
        await say(client, HELLO, CancelJob(job_id="j"))
        await coordinator.until(lambda: coordinator.seen(MessageReceived))
        assert coordinator.session.is_open
        running.cancel()


@on_loopback
async def test_a_peer_that_breaks_the_protocol_is_told_why() -> None:
    """The refusal leaves before the connection is given up."""
    async with websockets() as (client, server), asyncio.TaskGroup() as tasks:
        coordinator = coordinator_end()
        running = tasks.create_task(coordinator.pump.run(server))
        await client.send_bytes(b"\xc1")
        refusal = CODEC.decode(await client.receive_bytes())
        assert isinstance(refusal, Refused)
        assert refusal.code == "malformed_frame"
        await running
    assert coordinator.session.closed is not None


@on_loopback
async def test_a_peer_that_never_introduces_itself_is_let_go() -> None:
    """At the handshake's deadline, not later."""
    async with websockets() as (_, server):
        coordinator = coordinator_end()
        start_s = asyncio.get_running_loop().time()
        await coordinator.pump.run(server)
        assert asyncio.get_running_loop().time() - start_s == pytest.approx(HANDSHAKE_S)
    [closed] = coordinator.seen(Closed)
    assert closed.code == "handshake_timeout"


@on_loopback
async def test_heartbeats_keep_an_idle_link_open() -> None:
    """A minute in which nobody has anything to say: each end asks about every second heartbeat."""
    async with linked() as (agent, coordinator):
        await asyncio.sleep(60.5)
        for end in (agent, coordinator):
            assert end.session.is_open
            quiet_s = (end.session.quiet_heartbeats + LATER) * WELCOME.heartbeat_s
            assert len(end.seen(RttMeasured)) == 1 + 60 // quiet_s


@on_loopback
async def test_a_silent_peer_is_given_up_after_three_heartbeats() -> None:
    """The connection still stands, but nobody is at its other end."""
    async with websockets() as (client, server):
        coordinator = coordinator_end()
        start_s = asyncio.get_running_loop().time()
        await say(client, HELLO)
        await coordinator.pump.run(server)
        assert asyncio.get_running_loop().time() - start_s == pytest.approx(3 * WELCOME.heartbeat_s)
    [closed] = coordinator.seen(Closed)
    assert closed.code == "silent"


@on_loopback
@pytest.mark.parametrize("is_open", [True, False], ids=["open", "shaking hands"])
async def test_a_peer_that_has_spoken_while_nothing_ran_here_is_heard_first(is_open: bool) -> None:
    """After a pause of the process all timers are due before what has arrived is read: nobody is given up for that."""
    async with websockets() as (client, server), asyncio.TaskGroup() as tasks:
        coordinator = coordinator_end()
        running = tasks.create_task(coordinator.pump.run(server))
        if is_open:
            await say(client, HELLO)
            await coordinator.until(lambda: coordinator.session.is_open)
        else:
            while coordinator.pump._alarm is None:
                await asyncio.sleep(0)
        late_s = coordinator.session.gives_up_at_s + 1.0
        coordinator.pump._clock = lambda: late_s
        await say(client, *((Ping(seq=7),) if is_open else (HELLO,)))
        coordinator.pump._look()
        while coordinator.session.closed is None and coordinator.session.last_heard_s < late_s:
            await asyncio.sleep(pump_module.READ_S)
        assert coordinator.session.closed is None
        assert coordinator.session.is_open
        running.cancel()


@on_loopback
async def test_a_silent_peer_is_given_up_although_the_link_is_full() -> None:
    """A host that loses power while tokens stream to it leaves full buffers behind; that must not hide its silence."""
    async with websockets() as (client, server):
        abandoned(client)
        coordinator = coordinator_end()
        coordinator.send(*(CancelJob(job_id="x" * 60_000) for _ in range(400)))
        start_s = asyncio.get_running_loop().time()
        await say(client, HELLO)
        await coordinator.pump.run(server)
        assert coordinator.outgoing, "the link was never full; the test proves nothing"
        assert asyncio.get_running_loop().time() - start_s == pytest.approx(3 * WELCOME.heartbeat_s)
    [closed] = coordinator.seen(Closed)
    assert closed.code == "silent"


@on_loopback
async def test_messages_wait_while_the_link_is_full() -> None:
    """What waits in the queue can still be merged; what is in the kernel cannot. It all arrives in the end."""
    async with websockets() as (client, server), asyncio.TaskGroup() as tasks:
        transport = abandoned(client)
        coordinator = coordinator_end()
        messages = [CancelJob(job_id=f"{n}-" + "x" * 60_000) for n in range(400)]
        coordinator.send(*messages)
        running = tasks.create_task(coordinator.pump.run(server))
        await say(client, HELLO)
        await coordinator.until(lambda: coordinator.session.is_open)
        await asyncio.sleep(0.1)
        waiting = len(coordinator.outgoing)
        await asyncio.sleep(0.1)
        assert 0 < len(coordinator.outgoing) == waiting

        transport.resume_reading()
        received: list[WireMessage] = []
        while len(received) < len(messages):
            message = CODEC.decode(await client.receive_bytes())
            received += [message] if isinstance(message, CancelJob) else []
        assert received == messages
        running.cancel()


@on_loopback
async def test_a_peer_that_takes_no_last_words_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait for the sender is bounded."""
    async with websockets() as (client, server), asyncio.TaskGroup() as tasks:
        abandoned(client)
        coordinator = coordinator_end()
        coordinator.send(*(CancelJob(job_id="x" * 60_000) for _ in range(400)))
        running = tasks.create_task(coordinator.pump.run(server))
        await say(client, HELLO)
        await coordinator.until(lambda: coordinator.session.is_open)
        await asyncio.sleep(1)
        await say(client, Goodbye(reason="leaving"))
        await running
        assert asyncio.get_running_loop().time() == pytest.approx(1 + pump_module.LAST_WORDS_S, abs=0.1)
    assert coordinator.session.closed == Closed("goodbye", "leaving")


@on_loopback
async def test_small_frames_are_not_held_back() -> None:
    """TCP_NODELAY on both ends: a token leaves when it is there."""
    async with websockets() as (client, server), asyncio.TaskGroup() as tasks:
        agent, coordinator = agent_end(), coordinator_end()
        running = [tasks.create_task(agent.pump.run(client)), tasks.create_task(coordinator.pump.run(server))]
        await agent.until(lambda: agent.session.is_open)
        for websocket in (client, server):
            sock = websocket.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        for task in running:
            task.cancel()


@on_loopback
async def test_a_defect_in_the_shell_is_not_swallowed() -> None:
    """An exception of `on_event` comes out of `run`."""

    def broken(event: SessionEvent) -> None:
        raise ZeroDivisionError

    async with websockets() as (client, server):
        pump = Pump(coordinator_end().session, next_message=lambda: None, on_event=broken)
        await say(client, HELLO)
        with pytest.raises(ZeroDivisionError):
            await pump.run(server)


def abandoned(websocket: aiohttp.ClientWebSocketResponse) -> asyncio.ReadTransport:
    """Let the peer stop reading its socket; it can still send."""
    transport: Any = websocket._response.connection.transport  # type: ignore[union-attr]
    transport.pause_reading()
    assert isinstance(transport, asyncio.ReadTransport)
    return transport


# What the kernel has taken for the peer is acknowledged up to 40 ms later, by its own clock.
@on_virtual_clock(io_grace_s=0.06)
async def test_a_peer_that_speaks_but_never_reads_is_given_up() -> None:
    """A peer whose pings keep coming while it takes no byte of what it is sent is cut off, not served for ever."""
    async with websockets() as (client, server), asyncio.TaskGroup() as tasks:
        abandoned(client)
        coordinator = coordinator_end()
        coordinator.send(*(CancelJob(job_id="x" * 60_000) for _ in range(400)))
        running = tasks.create_task(coordinator.pump.run(server))
        await say(client, HELLO)
        await coordinator.until(lambda: coordinator.session.is_open)
        start_s, seq = asyncio.get_running_loop().time(), 0
        while not running.done():
            await say(client, Ping(seq=seq))
            seq += 1
            await asyncio.wait((running,), timeout=1.0)
        latest_s = HANDSHAKE_S + (CoordinatorSession.quiet_heartbeats + LATER) * WELCOME.heartbeat_s
        assert HANDSHAKE_S <= asyncio.get_running_loop().time() - start_s <= latest_s
    [closed] = coordinator.seen(Closed)
    assert closed.code == "unread"
