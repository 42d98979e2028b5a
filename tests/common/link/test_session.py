"""The session without a socket or a clock."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moe2.common.errors import ProtocolError
from moe2.common.link.messages import (
    PROTOCOL_VERSION,
    CancelJob,
    Fault,
    JobFailed,
    Ping,
    Refused,
)
from moe2.common.link.session import (
    MAX_FAULTS,
    Closed,
    MessageReceived,
    Opened,
    PeerFaulted,
    PeerUnreadable,
    RttMeasured,
    Session,
    SessionEvent,
)
from tests.common.link.sessions import (
    CODEC,
    INVALID,
    UNKNOWN_OP,
    agent_session,
    coordinator_session,
    joined,
    open_agent,
    say,
    sent,
)

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
