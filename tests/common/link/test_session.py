"""The session without a socket or a clock."""

from __future__ import annotations

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moe2.common.errors import ProtocolError
from moe2.common.link.messages import (
    PROTOCOL_VERSION,
    CancelJob,
    Fault,
    Goodbye,
    JobFailed,
    Ping,
    Pong,
    Refused,
    Report,
    Welcome,
    WireMessage,
)
from moe2.common.link.reports import HostFacts
from moe2.common.link.session import (
    LATER,
    MAX_FAULTS,
    RTT_HEARTBEATS,
    SILENT_HEARTBEATS,
    AgentSession,
    Closed,
    CoordinatorSession,
    MessageReceived,
    NotSent,
    Opened,
    PeerFaulted,
    PeerUnreadable,
    RttMeasured,
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


@pytest.fixture(params=[open_agent, open_coordinator], ids=["agent", "coordinator"])
def opened(request: pytest.FixtureRequest) -> Session:
    session: Session = request.param()
    return session


@pytest.fixture(params=[agent_session, coordinator_session], ids=["agent", "coordinator"])
def shaking(request: pytest.FixtureRequest) -> Session:
    session: Session = request.param()
    session.take_frames()
    return session


# --- Handshake --------------------------------------------------------------------------------------------------------


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


# --- Heartbeats -------------------------------------------------------------------------------------------------------


def quiet_s(session: Session) -> float:
    """The seconds after which this end asks a quiet peer: two heartbeats where the peer reports each, else one."""
    return (session.quiet_heartbeats + LATER) * HEARTBEAT_S


def test_a_session_pings_at_once_and_then_when_the_peer_is_quiet(opened: Session) -> None:
    """The first ping gives a first round trip, later ones keep the link alive, a little later than a report comes."""
    assert opened.next_deadline_s == 0.0
    assert opened.tick(0.0) == []
    assert sent(opened) == [Ping(seq=1)]
    assert opened.next_deadline_s == quiet_s(opened)
    opened.tick(quiet_s(opened) - 0.001)
    assert sent(opened) == []
    opened.tick(quiet_s(opened))
    assert sent(opened) == [Ping(seq=2)]


def test_a_peer_that_talks_is_asked_seldom(opened: Session) -> None:
    """Each word puts the next ping off, but no further than to the fourth heartbeat: the round trip changes."""
    last_s = (RTT_HEARTBEATS + LATER) * HEARTBEAT_S
    opened.tick(0.0)
    opened.take_frames()
    opened.receive(UNKNOWN_OP, 0.6 * HEARTBEAT_S)
    opened.take_frames()
    assert opened.next_deadline_s == 0.6 * HEARTBEAT_S + quiet_s(opened)
    for heartbeats in (1.5, 2.5, 3.5):
        opened.receive(UNKNOWN_OP, heartbeats * HEARTBEAT_S)
        opened.take_frames()
    opened.tick(last_s - 0.001)
    assert sent(opened) == []
    opened.tick(last_s)
    assert sent(opened) == [Ping(seq=2)]


def test_a_question_goes_with_a_report_and_with_an_answer() -> None:
    """Each host wakes once for both, in place of twice; who was asked or heard just now is not asked."""
    agent = open_agent()
    agent.tick(0.0)
    agent.take_frames()
    agent.send(REPORT, 0.4 * HEARTBEAT_S)
    assert sent(agent) == [REPORT]
    agent.send(REPORT, HEARTBEAT_S)
    assert sent(agent) == [REPORT, Ping(seq=2)]
    assert agent.next_deadline_s == HEARTBEAT_S + quiet_s(agent)
    say(agent, Pong(seq=2), HEARTBEAT_S)
    say(agent, Ping(seq=1), 1.5 * HEARTBEAT_S)
    assert sent(agent) == [Pong(seq=1)]
    say(agent, Ping(seq=2), 5 * HEARTBEAT_S)
    assert sent(agent) == [Pong(seq=2), Ping(seq=3)]


def test_an_idle_agent_asks_with_its_reports_alone() -> None:
    """Reports that come once a heartbeat, a little late each time, leave nothing for the timer to ask."""
    agent, coordinator = joined()
    n_wakes = 0
    for number in range(20):
        now_s = number * 1.01 * HEARTBEAT_S
        for end in (agent, coordinator):
            while (due_s := end.next_deadline_s) is not None and due_s <= now_s:
                end.tick(due_s)
                n_wakes += end.has_frames
        agent.send(REPORT, now_s)
        while agent.has_frames or coordinator.has_frames:
            for one, other in ((agent, coordinator), (coordinator, agent)):
                for frame in one.take_frames():
                    other.receive(frame, now_s)
    assert n_wakes == 2, "only what both ask at the beginning, for the first round trip, wakes them apart"


def test_a_probe_asks_a_peer_that_has_just_talked(opened: Session) -> None:
    """Whoever has to know whether the peer is alive does not wait for a heartbeat."""
    opened.tick(0.0)
    opened.receive(UNKNOWN_OP, 1.0)
    opened.take_frames()
    opened.probe(1.0)
    opened.tick(1.0)
    assert sent(opened) == [Ping(seq=2)]


def test_a_ping_is_answered_with_its_number(opened: Session) -> None:
    """The peer measures its own round trip by it."""
    assert say(opened, Ping(seq=42)) == []
    assert sent(opened) == [Pong(seq=42)]


def test_a_pong_measures_the_round_trip_once(opened: Session) -> None:
    """From the ping's departure to its pong; a second pong of the same number says nothing."""
    opened.tick(1.0)
    assert say(opened, Pong(seq=1), 1.25) == [RttMeasured(0.25)]
    assert say(opened, Pong(seq=1), 1.5) == []


def test_a_pong_nobody_asked_for_is_ignored(opened: Session) -> None:
    """A late pong of an earlier ping would give a wrong round trip."""
    opened.tick(0.0)
    opened.tick(quiet_s(opened))
    assert say(opened, Pong(seq=1), quiet_s(opened)) == []


def test_a_silent_peer_is_given_up(opened: Session) -> None:
    """After three heartbeats without a word the session is over, and not before."""
    silence_s = SILENT_HEARTBEATS * HEARTBEAT_S
    assert opened.tick(silence_s - 0.001) == []
    [closed] = opened.tick(silence_s)
    assert isinstance(closed, Closed)
    assert closed.code == "silent"
    assert opened.next_deadline_s is None


@given(heard_s=st.floats(0, 1e6))
def test_a_deadline_that_is_reached_has_passed(heard_s: float) -> None:
    """Rounding cannot make a session miss its own deadline, and its shell spin."""
    session = coordinator_session()
    say(session, HELLO)
    session.tick(0.0)
    session.receive(UNKNOWN_OP, heard_s)
    session.tick(heard_s)
    while (deadline_s := session.next_deadline_s) is not None:
        assert session.tick(deadline_s) or session.next_deadline_s != deadline_s


def test_any_word_breaks_the_silence(opened: Session) -> None:
    """Even one that could not be read: the peer is there."""
    silence_s = SILENT_HEARTBEATS * HEARTBEAT_S
    opened.receive(UNKNOWN_OP, 1.0)
    assert opened.tick(silence_s) == []
    [closed] = opened.tick(1.0 + silence_s)
    assert isinstance(closed, Closed)


# --- Messages and faults ----------------------------------------------------------------------------------------------


def test_job_messages_are_handed_on(opened: Session) -> None:
    """The session has no opinion on jobs."""
    assert say(opened, CancelJob(job_id="j")) == [MessageReceived(CancelJob(job_id="j"))]


@pytest.mark.parametrize(
    ("frame", "code", "op"), [(UNKNOWN_OP, "unknown_op", "teleport"), (INVALID, "invalid_message", "cancel")]
)
def test_an_unreadable_message_is_answered_and_the_session_goes_on(
    opened: Session, frame: bytes, code: str, op: str
) -> None:
    """A newer peer learns what we do not understand; only a message that its op does not allow is an event."""
    assert [type(event) for event in opened.receive(frame, 0.0)] == [PeerUnreadable] * (code == "invalid_message")
    [fault] = sent(opened)
    assert isinstance(fault, Fault)
    assert (fault.code, fault.in_reply_to) == (code, op)
    assert opened.is_open


@pytest.mark.parametrize("job_id", ["j", "j" * 60_000])
def test_a_job_that_an_agent_cannot_read_has_failed(job_id: str) -> None:
    """Nobody waits for it; an id of no sane length is not sent back."""
    agent = open_agent()
    order = {"op": "submit", "job_id": job_id, "request_id": "r", "model": "m", "max_tokens": -1}
    agent.receive(msgpack.packb({**order, "prompt": {"kind": "text", "text": ""}}), 0.0)
    fault, *failed = sent(agent)
    assert isinstance(fault, Fault)
    assert [(said.job_id, said.code) for said in failed if isinstance(said, JobFailed)] == (
        [("j", "invalid_request")] if job_id == "j" else []
    )


def test_an_unreadable_message_of_any_size_can_be_answered(opened: Session) -> None:
    """The answer fits the frame limit, whatever the peer sent."""
    huge = msgpack.packb(
        {"op": "submit", "job_id": "j", "request_id": "r", "model": "m", "prompt": {"kind": "x" * 65_300}}
    )
    [event] = opened.receive(huge, 0.0)
    assert isinstance(event, PeerUnreadable)
    assert (event.op, event.job_id) == ("submit", "j")
    assert opened.is_open


def test_a_malformed_frame_ends_the_session(opened: Session) -> None:
    """After it nothing on this link can be trusted; the peer is told why."""
    [closed] = opened.receive(b"\xc1", 0.0)
    assert isinstance(closed, Closed)
    assert closed.code == "malformed_frame"
    [refusal] = sent(opened)
    assert isinstance(refusal, Refused)


def test_too_many_unreadable_messages_end_the_session(opened: Session) -> None:
    """A peer that is never understood is broken."""
    for _ in range(MAX_FAULTS):
        assert opened.receive(UNKNOWN_OP, 0.0) == []
    [closed] = opened.receive(UNKNOWN_OP, 0.0)
    assert isinstance(closed, Closed)
    assert closed.code == "too_many_faults"


def test_a_fault_is_reported_and_not_answered(opened: Session) -> None:
    """Two ends that do not understand each other must not argue for ever."""
    assert say(opened, Fault(code="unknown_op", message="What?")) == [PeerFaulted("unknown_op", "What?")]
    assert opened.take_frames() == []


def test_goodbye_ends_both_ends_once() -> None:
    """The reason travels; a second close changes nothing."""
    agent, coordinator = joined()
    assert agent.close("draining") == Closed("goodbye", "draining")
    assert agent.close("again") == Closed("goodbye", "draining")
    [goodbye] = agent.take_frames()
    assert coordinator.receive(goodbye, 0.0) == [Closed("goodbye", "draining")]


@pytest.mark.parametrize("places", [(0, 0, 1), (1, 2), (1, 0, 2)], ids=["doubled", "lost", "swapped"])
def test_frames_out_of_order_end_the_session(places: tuple[int, ...]) -> None:
    """An answer with tokens missing or doubled must not look whole; a new session begins from a known state."""
    agent, coordinator = joined()
    for number in range(3):
        coordinator.send(CancelJob(job_id=str(number)))
    frames = coordinator.take_frames()
    heard = [event for place in places for event in agent.receive(frames[place], 0.0)]
    in_order = [event.message for event in heard if isinstance(event, MessageReceived)]
    assert in_order == [CancelJob(job_id="0")][: len(in_order)]
    assert isinstance(heard[-1], Closed)
    assert heard[-1].code == "frame_out_of_order"


def test_a_frame_that_cannot_be_read_keeps_its_place() -> None:
    """A newer peer's unknown words do not look like lost frames."""
    agent, coordinator = joined()
    frames = [msgpack.packb({"op": "teleport", "number": 1}), CODEC.encode(CancelJob(job_id="j"), number=2)]
    del coordinator
    assert [event for frame in frames for event in agent.receive(frame, 0.0)] == [
        MessageReceived(CancelJob(job_id="j"))
    ]


def test_a_closed_session_is_deaf_and_dumb(opened: Session) -> None:
    """No input after the end has an effect."""
    opened.close("done")
    opened.take_frames()
    assert say(opened, Ping(seq=1)) == []
    assert opened.receive(b"\xc1", 0.0) == []
    assert opened.tick(1e9) == []
    with pytest.raises(ProtocolError):
        opened.send(CancelJob(job_id="j"))
    assert opened.take_frames() == []


def test_frames_are_handed_out_once_and_in_order(opened: Session) -> None:
    """What was taken is the caller's to send."""
    opened.send(CancelJob(job_id="1"))
    opened.send(CancelJob(job_id="2"))
    assert sent(opened) == [CancelJob(job_id="1"), CancelJob(job_id="2")]
    assert opened.take_frames() == []


# --- Two sessions back to back ----------------------------------------------------------------------------------------


SIDES = st.sampled_from([0, 1])


class BackToBack(RuleBasedStateMachine):
    """An agent's and a coordinator's session, joined by two ordered queues of frames that may be slow.

    Whatever happens, no call raises, both see the same handshake and the same messages, and in the end agree that the
    session is open, or that it is over.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.ends: tuple[Session, Session] = (agent_session(), coordinator_session())
        self.in_transit: tuple[list[bytes], list[bytes]] = ([], [])
        self.sent: tuple[list[str], list[str]] = ([], [])
        self.received: tuple[list[str], list[str]] = ([], [])
        self.opened: tuple[list[int], list[int]] = ([], [])
        self.closed_events = [0, 0]

    def note(self, side: int, events: list[SessionEvent]) -> None:
        for event in events:
            match event:
                case Opened(protocol=protocol):
                    self.opened[side].append(protocol)
                case MessageReceived(message=CancelJob(job_id=job_id)):
                    self.received[side].append(job_id)
                case RttMeasured(rtt_s=rtt_s):
                    assert rtt_s >= 0
                case Closed():
                    self.closed_events[side] += 1
        self.in_transit[side].extend(self.ends[side].take_frames())

    @rule(side=SIDES)
    def deliver(self, side: int) -> None:
        """The oldest frame on its way to `side` arrives."""
        self.note(1 - side, [])
        if self.in_transit[1 - side]:
            self.note(side, self.ends[side].receive(self.in_transit[1 - side].pop(0), self.now_s))

    @rule(side=SIDES)
    def reach_deadline(self, side: int) -> None:
        deadline_s = self.ends[side].next_deadline_s
        if deadline_s is not None:
            self.now_s = max(self.now_s, deadline_s)
            self.note(side, self.ends[side].tick(self.now_s))

    @rule(seconds=st.floats(0, 6))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(side=SIDES)
    def send(self, side: int) -> None:
        if self.ends[side].is_open:
            job_id = str(len(self.sent[side]))
            self.ends[side].send(CancelJob(job_id=job_id))
            self.sent[side].append(job_id)
            self.note(side, [])

    @rule(side=SIDES)
    @precondition(lambda self: max(len(self.sent[0]), len(self.sent[1])) > 0)
    def close(self, side: int) -> None:
        self.ends[side].close("enough")
        self.note(side, [])

    @rule(side=SIDES, frame=st.sampled_from([UNKNOWN_OP, INVALID, b"\xc1", b""]))
    @precondition(lambda self: max(len(self.sent[0]), len(self.sent[1])) > 0)
    def corrupt(self, side: int, frame: bytes) -> None:
        """The peer of `side` sends something that it should not."""
        self.in_transit[1 - side].append(frame)

    @invariant()
    def has_a_deadline_until_closed(self) -> None:
        for end in self.ends:
            assert (end.next_deadline_s is None) == (end.closed is not None)

    @invariant()
    def sees_one_handshake_at_most(self) -> None:
        assert all(len(opened) <= 1 for opened in self.opened)
        assert all(number <= 1 for number in self.closed_events)

    @invariant()
    def messages_arrive_in_order(self) -> None:
        for side in (0, 1):
            received = self.received[side]
            assert received == self.sent[1 - side][: len(received)]

    def teardown(self) -> None:
        self.note(0, [])
        self.note(1, [])
        while self.in_transit[0] or self.in_transit[1]:
            self.deliver(0)
            self.deliver(1)
        agent, coordinator = self.ends
        if agent.closed is None and coordinator.closed is None:
            assert self.opened == ([PROTOCOL_VERSION], [PROTOCOL_VERSION])
            assert self.received == (self.sent[1], self.sent[0])
            return
        # Who was not told finds out by the silence.
        for side in (0, 1):
            while self.ends[side].closed is None:
                self.reach_deadline(side)
        assert agent.closed is not None
        assert coordinator.closed is not None


TestBackToBack = BackToBack.TestCase
TestBackToBack.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
