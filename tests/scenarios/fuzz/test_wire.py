"""Anything may come over a link: it is understood, answered with a fault, or ends that link; nothing else happens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from moe2.agent.settings import ModelSection
from moe2.common.errors import ProtocolError
from moe2.common.link.messages import (
    PROTOCOL_VERSION,
    CancelJob,
    FollowJob,
    JobDone,
    JobFailed,
    JobScored,
    JobStarted,
    NextTokens,
    Report,
    ScoreJob,
    Submit,
    TakeToken,
    Tokens,
)
from moe2.common.link.session import AgentSession, Closed, CoordinatorSession, Session
from moe2.common.link.wire import wire_codec
from moe2.coordinator.serving.request import Request
from tests.common.samples import HELLO, WELCOME
from tests.coordinator.experts import expert_report, report, request
from tests.scenarios.fuzz.messages import any_message, golden
from tests.scenarios.simulation.agent import Books, SimAgent
from tests.scenarios.simulation.coordinator import SimCoordinator, Socket
from tests.scenarios.simulation.wire import Wire
from tests.scenarios.simulation.world import World
from tests.virtualclock import VirtualClockLoop

CODEC = wire_codec()
# Shrinking lists of whole reports takes minutes; the printed case says enough.
GENERATED = (Phase.explicit, Phase.reuse, Phase.generate)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), phases=GENERATED)
LONG = settings(QUICK, max_examples=1500)
FRAMES = st.lists(st.binary(max_size=64) | golden() | golden(mutated=False), max_size=12)

# --- Sessions ---------------------------------------------------------------------------------------------------------


def agent_session() -> AgentSession:
    return AgentSession(HELLO, now_s=0.0, handshake_s=5.0, max_frame_bytes=100_000)


def coordinator_session() -> CoordinatorSession:
    return CoordinatorSession(WELCOME, now_s=0.0, handshake_s=5.0)


def check_session(session: Session, opening: bytes | None, frames: list[bytes]) -> None:
    """It never raises; once closed it is deaf; what it says is well-formed."""
    now_s = 0.0
    for frame in [*([opening] if opening else []), *frames]:
        was_closed = session.closed
        events = session.receive(frame, now_s)
        assert not (was_closed and events)
        assert sum(isinstance(event, Closed) for event in events) == (not was_closed and session.closed is not None)
        for said in session.take_frames():
            CODEC.decode(said)
        now_s += 0.5
        session.tick(now_s)


SESSIONS: dict[str, Callable[[], tuple[Session, bytes | None]]] = {
    "agent-new": lambda: (agent_session(), None),
    "agent-open": lambda: (agent_session(), CODEC.encode(WELCOME)),
    "coordinator-new": lambda: (coordinator_session(), None),
    "coordinator-open": lambda: (coordinator_session(), CODEC.encode(HELLO)),
}


@pytest.mark.parametrize("state", SESSIONS)
def test_any_frames_to_a_session(state: str) -> None:
    """Random bytes, mutated messages and whole ones in any order."""

    @QUICK
    @given(frames=FRAMES)
    def attempt(frames: list[bytes]) -> None:
        check_session(*SESSIONS[state](), frames)

    attempt()


@pytest.mark.slow
@pytest.mark.parametrize("state", SESSIONS)
def test_many_frames_to_a_session(state: str) -> None:
    """The same, more often."""

    @LONG
    @given(frames=FRAMES)
    def attempt(frames: list[bytes]) -> None:
        check_session(*SESSIONS[state](), frames)

    attempt()


@given(frame=st.binary(max_size=200) | golden())
@settings(deadline=None)
def test_the_codec_raises_nothing_but_protocol_errors(frame: bytes) -> None:
    """Whatever the bytes are; and what it reads, it can write."""
    try:
        message = CODEC.decode(frame)
    except ProtocolError:
        return
    CODEC.encode(message)


# --- The coordinator behind a session ---------------------------------------------------------------------------------

FROM_AGENT = st.one_of(*map(any_message, (Report, JobStarted, Tokens, JobDone, JobFailed, JobScored, NextTokens)))
TO_AGENT = st.one_of(*map(any_message, (Submit, ScoreJob, FollowJob, TakeToken, CancelJob)))


class _Ear:
    """An agent's end of a wire that only listens."""

    def heard(self, frame: bytes) -> None:
        CODEC.decode(frame)

    def broke(self) -> None:
        pass


async def to_coordinator(messages: list[Any]) -> None:
    """A coordinator with two requests in progress hears them all and remains consistent, and able to choose."""
    world = World(0)
    coordinator = SimCoordinator(world, max_active=100)
    wire = Wire(world, delay_s=0.0)
    socket = Socket(world, coordinator.hub, wire)
    wire.join(agent=_Ear(), coordinator=socket)
    hello = msgspec.structs.replace(HELLO, protocol_max=PROTOCOL_VERSION, agent_id="agent-1")
    socket.heard(CODEC.encode(hello))
    socket.heard(CODEC.encode(report(expert_report("m"))))
    service = coordinator.service

    def begin(number: int) -> None:
        wanted: Request = request(
            request_id=f"req-{number}",
            model="moe2",
            arrived_s=world.now_s,
            deadline_s=world.now_s + 5.0,
            logprobs=None,
        )
        service.begin(wanted)

    begin(0)
    begin(1)
    for number, message in enumerate(messages, start=2):
        socket.heard(CODEC.encode(message))
        begin(number)
        assert sum(service._in_flight.count.values()) == len(service._jobs)
        msgspec.json.encode(coordinator.table.rows(world.now_s))
        await world.pass_time(0.1)
    # Time ends what nobody answered.
    await world.pass_time(30.0)
    assert service.n_active == 0
    assert not service._jobs
    assert not service._in_flight.count


async def to_agent(messages: list[Any]) -> None:
    """An agent hears them all; when the link is gone, nothing of them is left."""
    world = World(0)
    agent = SimAgent(world, "agent-1", token_s=0.02, books=Books(), connect=lambda _: None)
    agent.start()
    await world.pass_time(5.0)
    assert isinstance(agent.core.experts["m"].section, ModelSection)
    ears = _Ear()
    agent.wire = Wire(world, delay_s=0.0)
    agent.wire.join(agent=agent, coordinator=ears)
    agent._session = agent_session()
    agent.heard(CODEC.encode(WELCOME))
    for message in messages:
        agent.heard(CODEC.encode(message))
        await world.pass_time(0.1)
    agent.broke()
    await world.pass_time(60.0)
    assert agent.core.is_idle


def on_a_virtual_clock(attempt: Callable[[list[Any]], Any], messages: list[Any]) -> None:
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(attempt(messages))


@pytest.mark.usefixtures("quiet_log")
@pytest.mark.parametrize("count", [25, pytest.param(300, marks=pytest.mark.slow)])
def test_any_message_to_the_coordinator(count: int) -> None:
    """Reports, words about jobs that are there, were there, or never were, with values that make no sense."""

    @settings(QUICK, max_examples=count)
    @given(messages=st.lists(FROM_AGENT, max_size=5))
    def attempt(messages: list[Any]) -> None:
        on_a_virtual_clock(to_coordinator, messages)

    attempt()


@pytest.mark.usefixtures("quiet_log")
@pytest.mark.parametrize("count", [25, pytest.param(300, marks=pytest.mark.slow)])
def test_any_message_to_an_agent(count: int) -> None:
    """Jobs with values that make no sense, cancellations and tokens of jobs that never were."""

    @settings(QUICK, max_examples=count)
    @given(messages=st.lists(TO_AGENT, max_size=8))
    def attempt(messages: list[Any]) -> None:
        on_a_virtual_clock(to_agent, messages)

    attempt()
