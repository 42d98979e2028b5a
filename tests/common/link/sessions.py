"""Sessions of both sides for tests, at the start of the handshake or opened, and what they say."""

from __future__ import annotations

import msgpack
import msgspec

from moe2.common.link.messages import (
    PROTOCOL_VERSION,
    Report,
    WireMessage,
)
from moe2.common.link.reports import HostFacts
from moe2.common.link.session import (
    AgentSession,
    CoordinatorSession,
    Session,
    SessionEvent,
)
from moe2.common.link.wire import wire_codec
from tests.common import samples

HELLO = msgspec.structs.replace(samples.HELLO, protocol_max=PROTOCOL_VERSION)
WELCOME = msgspec.structs.replace(samples.WELCOME, protocol=PROTOCOL_VERSION)
HANDSHAKE_S = 10.0
HEARTBEAT_S = WELCOME.heartbeat_s
REPORT = Report(seq=1, host=HostFacts(hostname="h", system="s", architecture="a"), experts=())
CODEC = wire_codec()
UNKNOWN_OP: bytes = msgpack.packb({"op": "teleport"})
INVALID: bytes = msgpack.packb({"op": "cancel"})


def agent_session(now_s: float = 0.0) -> AgentSession:
    return AgentSession(HELLO, now_s=now_s, handshake_s=HANDSHAKE_S, max_frame_bytes=1_000_000)


def coordinator_session(now_s: float = 0.0) -> CoordinatorSession:
    return CoordinatorSession(WELCOME, now_s=now_s, handshake_s=HANDSHAKE_S)


def sent(session: Session) -> list[WireMessage]:
    return [CODEC.decode(frame) for frame in session.take_frames()]


def say(session: Session, message: WireMessage, now_s: float = 0.0) -> list[SessionEvent]:
    return session.receive(CODEC.encode(message), now_s)


def open_agent(now_s: float = 0.0) -> AgentSession:
    session = agent_session(now_s)
    say(session, WELCOME, now_s)
    session.take_frames()
    return session


def open_coordinator(now_s: float = 0.0) -> CoordinatorSession:
    session = coordinator_session(now_s)
    say(session, HELLO, now_s)
    session.take_frames()
    return session


def joined() -> tuple[AgentSession, CoordinatorSession]:
    """Both ends of one open session."""
    agent, coordinator = agent_session(), coordinator_session()
    for _ in range(2):
        for frame in agent.take_frames():
            coordinator.receive(frame, 0.0)
        for frame in coordinator.take_frames():
            agent.receive(frame, 0.0)
    return agent, coordinator
