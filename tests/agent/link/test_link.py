"""The link to the coordinator: attempts, sessions and their ends, on a virtual clock and real sockets."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web

from moe2.common.link.messages import Goodbye, JobFailed, JobPieces, Ping, Pong, TokenPiece, Tokens
from moe2.common.link.session import AgentSession
from moe2.common.status import LinkState
from tests.agent.link.linkbench import (
    CANCEL,
    CODEC,
    CONNECT_TIMEOUT_S,
    DONE,
    Hub,
    agent_of,
    hub_and_agent,
    listening,
    on_loopback,
    opened,
)
from tests.common.samples import WELCOME

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
async def test_a_silent_coordinator_is_lost_after_four_heartbeats() -> None:
    """Jobs for nobody stop then, not once a closing handshake has timed out as well."""
    async with hub_and_agent() as (hub, agent):
        await opened(hub, agent)
        start_s = asyncio.get_running_loop().time()
        await agent.until_lost()
        assert agent.lost_s[0] - start_s == pytest.approx(AgentSession.silent_heartbeats * WELCOME.heartbeat_s)


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
async def test_nobody_listening_is_an_error_in_words() -> None:
    """The address is in it."""
    async with listening(Hub().accept) as url:
        pass
    async with agent_of(url) as agent:
        await asyncio.sleep(0.5)
        assert agent.link.status.last_error == f"{url.removeprefix('ws://')} cannot be connected to: Connection refused"


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
