"""The handshake: who speaks first, versions, refusals, its deadline."""

from __future__ import annotations

import msgspec
import pytest

from moe2.common.errors import ProtocolError
from moe2.common.link.messages import (
    PROTOCOL_VERSION,
    CancelJob,
    Fault,
    Goodbye,
    Ping,
    Refused,
    Welcome,
    WireMessage,
)
from moe2.common.link.session import (
    Closed,
    CoordinatorSession,
    NotSent,
    Opened,
    Session,
)
from tests.common.link.sessions import (
    HANDSHAKE_S,
    HELLO,
    INVALID,
    UNKNOWN_OP,
    WELCOME,
    agent_session,
    coordinator_session,
    open_agent,
    say,
    sent,
)


def test_the_agent_speaks_first() -> None:
    """Its hello waits to be sent before anything was received, the coordinator keeps silent."""
    assert sent(agent_session()) == [HELLO]
    assert sent(coordinator_session()) == []


def test_a_hello_is_welcomed_and_opens_both_ends() -> None:
    """Both ends know the version, the coordinator who joined, the agent the rhythm."""
    agent, coordinator = agent_session(), coordinator_session()
    [hello] = agent.take_frames()
    assert coordinator.receive(hello, 0.0) == [Opened(PROTOCOL_VERSION, hello=HELLO)]
    [welcome] = coordinator.take_frames()
    assert agent.receive(welcome, 0.0) == [Opened(PROTOCOL_VERSION, welcome=WELCOME)]
    assert agent.is_open
    assert coordinator.is_open


def test_a_newer_agent_is_spoken_to_in_the_coordinators_version() -> None:
    """An agent that still speaks our version is welcome, whatever else it speaks."""
    coordinator = coordinator_session()
    say(coordinator, msgspec.structs.replace(HELLO, protocol_max=PROTOCOL_VERSION + 5))
    [welcome] = sent(coordinator)
    assert isinstance(welcome, Welcome)
    assert welcome.protocol == PROTOCOL_VERSION


@pytest.mark.parametrize(
    ("least", "most", "older"), [(0, 0, "agent"), (PROTOCOL_VERSION + 1, PROTOCOL_VERSION + 2, "coordinator")]
)
def test_without_a_common_version_the_refusal_names_the_side_to_upgrade(least: int, most: int, older: str) -> None:
    """The remedy is on the older side, and the agent learns it in words."""
    coordinator, agent = coordinator_session(), agent_session()
    [closed] = say(coordinator, msgspec.structs.replace(HELLO, protocol_min=least, protocol_max=most))
    assert isinstance(closed, Closed)
    assert closed.code == "protocol_version"
    assert closed.remedy == f"Upgrade moe2 on the {older}."
    [refusal] = coordinator.take_frames()
    assert agent.receive(refusal, 0.0) == [closed]


def test_a_coordinator_that_chooses_an_unknown_version_is_refused() -> None:
    """The agent does not guess what a later protocol means."""
    agent = agent_session()
    agent.take_frames()
    [closed] = say(agent, msgspec.structs.replace(WELCOME, protocol=PROTOCOL_VERSION + 1))
    assert isinstance(closed, Closed)
    assert closed.code == "protocol_version"
    assert isinstance(sent(agent)[0], Refused)


def test_the_agent_keeps_to_the_smaller_frame_limit() -> None:
    """A message that the coordinator would refuse is not sent."""
    agent = open_agent()
    large = CancelJob(job_id="x" * (WELCOME.max_frame_bytes + 1))
    [event] = agent.send(large)
    assert isinstance(event, NotSent)
    assert event.message is large
    assert "exceeds the limit" in event.reason
    assert agent.send(CancelJob(job_id="x")) == []
    assert sent(agent) == [CancelJob(job_id="x")]


def test_the_handshake_has_a_deadline(shaking: Session) -> None:
    """A peer that connects and says nothing is let go, and told why."""
    assert shaking.next_deadline_s == HANDSHAKE_S
    assert shaking.tick(HANDSHAKE_S - 0.001) == []
    [closed] = shaking.tick(HANDSHAKE_S)
    assert isinstance(closed, Closed)
    assert closed.code == "handshake_timeout"
    [refusal] = sent(shaking)
    assert isinstance(refusal, Refused)
    assert refusal.code == "handshake_timeout"


def test_nothing_can_be_sent_before_the_handshake(shaking: Session) -> None:
    """The caller is told, and no frame leaves."""
    with pytest.raises(ProtocolError) as raised:
        shaking.send(CancelJob(job_id="j"))
    assert raised.value.code == "session_not_open"
    assert shaking.take_frames() == []


@pytest.mark.parametrize("message", [Ping(seq=1), CancelJob(job_id="j"), Fault(code="no", message="No.")])
def test_messages_before_the_handshake_end_the_session(shaking: Session, message: WireMessage) -> None:
    """Who does not introduce itself is refused."""
    [closed] = say(shaking, message)
    assert isinstance(closed, Closed)
    assert closed.code == "unexpected_message"
    assert not shaking.is_open


@pytest.mark.parametrize("frame", [b"\xc1", UNKNOWN_OP, INVALID], ids=["malformed", "unknown op", "invalid"])
def test_unreadable_frames_before_the_handshake_end_the_session(shaking: Session, frame: bytes) -> None:
    """There is no session yet that could go on."""
    [closed] = shaking.receive(frame, 0.0)
    assert isinstance(closed, Closed)
    assert isinstance(sent(shaking)[-1], Refused)


def test_a_second_handshake_ends_the_session(opened: Session) -> None:
    """A peer that starts over is confused."""
    [closed] = say(opened, HELLO if isinstance(opened, CoordinatorSession) else WELCOME)
    assert isinstance(closed, Closed)
    assert closed.code == "unexpected_message"


def test_a_goodbye_during_the_handshake_is_a_goodbye(shaking: Session) -> None:
    """A coordinator that shuts down while an agent connects says so; it is no breach of protocol."""
    assert say(shaking, Goodbye(reason="shutting down")) == [Closed("goodbye", "shutting down")]
    assert shaking.take_frames() == []


def test_the_coordinator_can_refuse_for_reasons_of_its_own() -> None:
    """Code, message and remedy reach the agent."""
    coordinator, agent = coordinator_session(), agent_session()
    closed = coordinator.refuse("revoked", "This agent was removed.", "Enrol it again.")
    assert agent.receive(coordinator.take_frames()[-1], 0.0) == [closed]
