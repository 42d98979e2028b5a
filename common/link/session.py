"""The link's session, sans-IO: bytes and `now` in; events, bytes and the next deadline out.

Nothing here touches a socket or a clock. The shells (`agent.link`, `coordinator.hub`) feed frames and the monotonic
time, send what `take_frames()` yields, and call `tick(now_s)` at `next_deadline_s`. A session is over once `closed` is
set; it then ignores further input.
"""

from __future__ import annotations

from typing import cast, get_args

import msgspec

from moe2.common.errors import JobErrorCode, LinkCode, ProtocolError
from moe2.common.link.earlier import Unspeakable, spoken
from moe2.common.link.messages import (
    OLDEST_PROTOCOL_VERSION,
    PROTOCOL_VERSION,
    CommandAnswer,
    Fault,
    FromAgent,
    Goodbye,
    Hello,
    Job,
    JobFailed,
    Ping,
    Pong,
    Refused,
    Report,
    SessionMessage,
    ToAgent,
    Welcome,
    WireMessage,
)
from moe2.common.link.supply import TicketWanted
from moe2.common.link.wire import FrameTooLargeError, UnreadableMessage, wire_codec

RTT_HEARTBEATS = 4
"""A peer that keeps talking is asked for a sign of life only to measure the round trip, after this many heartbeats."""
LATER = 0.25
"""Heartbeats for which a question waits for something that is sent anyway: both hosts then wake once, not twice."""
MAX_FAULTS = 20
"""A peer whose messages keep being unreadable is cut off: it is not merely newer, it is broken."""

JobMessage = Report | ToAgent | FromAgent | CommandAnswer | TicketWanted
_ORDERS = frozenset(str(kind.__struct_config__.tag) for kind in get_args(Job))
_OF_THE_SESSION = frozenset(get_args(SessionMessage))


class Opened(msgspec.Struct, frozen=True):
    """The handshake is done. `hello` is set on the coordinator's side, `welcome` on the agent's."""

    protocol: int
    hello: Hello | None = None
    welcome: Welcome | None = None


class Greeted(msgspec.Struct, frozen=True):
    """The agent has said hello and waits for `welcome` or `refuse`; on the coordinator's side, where it decides."""

    hello: Hello
    protocol: int


class MessageReceived(msgspec.Struct, frozen=True):
    message: JobMessage


class RttMeasured(msgspec.Struct, frozen=True):
    rtt_s: float


class PeerFaulted(msgspec.Struct, frozen=True):
    """The peer did not understand one of our messages."""

    code: str
    message: str


class PeerUnreadable(msgspec.Struct, frozen=True):
    """A message of the peer was no sound one of its op; the peer was told, and the session goes on.

    job_id: of the job that it was about; None where it names none, or several.
    """

    op: str
    job_id: str | None
    reason: str


class NotSent(msgspec.Struct, frozen=True):
    """A message was not sent: it exceeds the frame limit, or the peer speaks too early a protocol for it.

    The session goes on without it. code: a `JobErrorCode`, for the job that it costs.
    """

    message: JobMessage
    reason: str
    code: str


class Closed(msgspec.Struct, frozen=True):
    """The session is over. `code` is a `LinkCode`, or a `moe2.common.link.enrolment.Refusal`."""

    code: str
    reason: str
    remedy: str | None = None


SessionEvent = Opened | Greeted | MessageReceived | RttMeasured | PeerFaulted | PeerUnreadable | NotSent | Closed


class Session:
    """What both ends share: frames, heartbeats, faults. Use `AgentSession` or `CoordinatorSession`."""

    quiet_heartbeats = 2
    """Heartbeats after which a quiet peer is asked whether it is there.

    Whoever reports each heartbeat need not be asked. A coordinator that an idle agent asked each time would spend as
    much on its answers as on the reports.
    """
    silent_heartbeats = 3
    """A peer that was silent for this many heartbeats is gone."""

    def __init__(self, *, now_s: float, handshake_s: float, heartbeat_s: float, max_frame_bytes: int) -> None:
        self._codec = wire_codec(max_frame_bytes=max_frame_bytes)
        self._frames: list[bytes] = []
        self._heartbeat_s = heartbeat_s
        self._handshake_deadline_s: float | None = now_s + handshake_s
        self.unread_s = handshake_s
        """How long a peer that is heard may leave what it is sent unread."""
        self._last_heard_s = now_s
        self._next_ping_s = self._ask_by_s = now_s + heartbeat_s
        self._asked_s = now_s
        self._ping: tuple[int, float] | None = None
        self._ping_seq = 0
        self._faults = 0
        self._n_sent = 0
        self._n_heard = 0
        self.protocol = PROTOCOL_VERSION
        """The version that is spoken, once the session is open."""
        self.closed: Closed | None = None

    @property
    def is_open(self) -> bool:
        return self._handshake_deadline_s is None and self.closed is None

    @property
    def last_heard_s(self) -> float:
        """The moment at which the peer's last frame came."""
        return self._last_heard_s

    def probe(self, now_s: float) -> None:
        """Ask at the next `tick` whether the peer is alive, not only at the next heartbeat."""
        self._next_ping_s = self._ask_by_s = now_s

    @property
    def next_deadline_s(self) -> float | None:
        """The moment at which `tick` is due; None once the session is closed."""
        if self.closed:
            return None
        if self._handshake_deadline_s is not None:
            return self._handshake_deadline_s
        return min(self._ping_due_s, self._silent_at_s)

    @property
    def gives_up_at_s(self) -> float:
        """The moment at which a peer that says nothing more is given up."""
        return self._silent_at_s if self._handshake_deadline_s is None else self._handshake_deadline_s

    @property
    def _ping_due_s(self) -> float:
        # Who has just been heard need not be asked whether it is there.
        return min(self._ask_by_s, max(self._next_ping_s, self._last_heard_s + self._most_quiet_s))

    @property
    def _most_quiet_s(self) -> float:
        """How long the peer may be quiet before it is asked whether it is there."""
        # Reports come about once a heartbeat, and the next one shall still come in time.
        return (self.quiet_heartbeats + LATER) * self._heartbeat_s

    @property
    def _silent_at_s(self) -> float:
        # One sum for the deadline and for whether it has passed: a difference may round the other way.
        return self._last_heard_s + self.silent_heartbeats * self._heartbeat_s

    @property
    def has_frames(self) -> bool:
        """True where there is something to send now."""
        return bool(self._frames)

    def take_frames(self) -> list[bytes]:
        """Frames to send now, oldest first; each is handed out once."""
        frames, self._frames = self._frames, []
        return frames

    def send(self, message: JobMessage, now_s: float | None = None) -> list[SessionEvent]:
        """Queue a message, in the peer's protocol. Raises `ProtocolError` if the session is not open.

        One that cannot be sent is told of by a `NotSent`. now_s: with a report goes the question whether the peer is
        there, if that is to be asked before long; None where no question shall go along.
        """
        if not self.is_open:
            raise ProtocolError("The session is not open.", code=LinkCode.SESSION_NOT_OPEN)
        told = spoken(message, self.protocol)
        if isinstance(told, Unspeakable):
            reason = f"This needs protocol {told.since}, the peer speaks {self.protocol}. Upgrade moe2 there."
            return [NotSent(message, reason, JobErrorCode.INTERNAL)]
        try:
            self._queue(told)
        except FrameTooLargeError as error:
            return [NotSent(message, str(error), JobErrorCode.INVALID_REQUEST)]
        if now_s is not None and isinstance(message, Report) and self._is_soon_to_ask(now_s):
            self._ask(now_s)
        return []

    def close(self, reason: str) -> Closed:
        """Say goodbye; the caller sends the last frames and closes the socket."""
        if self.closed is None:
            self._queue(Goodbye(reason=reason))
            self.closed = Closed(LinkCode.GOODBYE, reason)
        return self.closed

    def receive(self, frame: bytes, now_s: float) -> list[SessionEvent]:
        """Take in one frame."""
        if self.closed:
            return []
        self._last_heard_s = now_s
        try:
            number = self._codec.number_of(frame)
            # TCP loses, doubles and swaps nothing, a broken middlebox may: tokens would be missing from an answer, or
            # be there twice. A peer that sends no numbers (of an older version) is believed.
            if number is not None:
                if number != self._n_heard:
                    reason = f"Expected frame {self._n_heard}, got frame {number}."
                    return [self._fail(LinkCode.FRAME_OUT_OF_ORDER, reason)]
                self._n_heard += 1
            message = self._codec.decode(frame)
        except UnreadableMessage as error:
            return self._answer_unreadable(error)
        except ProtocolError as error:
            return [self._fail(error.code, error.message)]
        if self._handshake_deadline_s is None:
            if type(message) not in _OF_THE_SESSION:
                return [MessageReceived(cast("JobMessage", message))]
        # A peer may leave, and say why, at any time.
        elif not isinstance(message, Goodbye | Refused):
            return self._handshake(message, now_s)
        return self._dispatch(cast("SessionMessage", message), now_s)

    def tick(self, now_s: float) -> list[SessionEvent]:
        """Act on deadlines that have passed."""
        if self.closed:
            return []
        if self._handshake_deadline_s is not None:
            if now_s >= self._handshake_deadline_s:
                return [self._fail(LinkCode.HANDSHAKE_TIMEOUT, "The peer did not finish the handshake in time.")]
            return []
        if now_s >= self._silent_at_s:
            self.closed = Closed(LinkCode.SILENT, f"The peer was silent for {now_s - self._last_heard_s:.1f} s.")
            return [self.closed]
        if now_s >= self._ping_due_s:
            self._ask(now_s)
        return []

    def _is_soon_to_ask(self, now_s: float) -> bool:
        return now_s - max(self._asked_s, self._last_heard_s) >= (self.quiet_heartbeats - 0.5) * self._heartbeat_s

    def _ask(self, now_s: float) -> None:
        self._ping_seq += 1
        self._ping = (self._ping_seq, now_s)
        self._asked_s = now_s
        self._next_ping_s = now_s + self._most_quiet_s
        self._ask_by_s = now_s + (RTT_HEARTBEATS + LATER) * self._heartbeat_s
        self._queue(Ping(seq=self._ping_seq))

    def left_unread(self, since_s: float, now_s: float) -> list[SessionEvent]:
        """The peer has taken no byte of what is being sent to it since `since_s`.

        It is given up where it was heard meanwhile: it lives, and does not read. One that is not heard is silent, which
        a host on a bad network may be for longer.
        """
        is_heard = self._last_heard_s - since_s >= self.unread_s / 2
        if self.closed or now_s - since_s < self.unread_s or not is_heard:
            return []
        self.closed = Closed(LinkCode.UNREAD, f"The peer has read nothing for {now_s - since_s:.1f} s.")
        return [self.closed]

    def _handshake(self, message: WireMessage, now_s: float) -> list[SessionEvent]:
        raise NotImplementedError

    def _established(self, now_s: float, protocol: int, *, heartbeat_s: float | None = None) -> None:
        self.protocol = protocol
        if heartbeat_s is not None:
            self._heartbeat_s = heartbeat_s
        self._handshake_deadline_s = None
        self._next_ping_s = self._ask_by_s = now_s

    def _dispatch(self, message: SessionMessage, now_s: float) -> list[SessionEvent]:
        match message:
            case Ping(seq=seq):
                self._queue(Pong(seq=seq))
                if now_s - self._asked_s >= (RTT_HEARTBEATS - LATER) * self._heartbeat_s:
                    self._ask(now_s)
                return []
            case Pong(seq=seq):
                if self._ping is None or self._ping[0] != seq:
                    return []
                sent_at_s, self._ping = self._ping[1], None
                return [RttMeasured(now_s - sent_at_s)]
            case Fault(code=code, message=text):
                return [PeerFaulted(code, text)]
            case Goodbye(reason=reason):
                self.closed = Closed(LinkCode.GOODBYE, reason)
                return [self.closed]
            case Refused(code=code, message=text, remedy=remedy):
                self.closed = Closed(code, text, remedy)
                return [self.closed]
            case Hello() | Welcome():
                return [self._fail(LinkCode.UNEXPECTED_MESSAGE, "The handshake was already done.")]

    def _answer_unreadable(self, error: UnreadableMessage) -> list[SessionEvent]:
        if self._handshake_deadline_s is not None:
            return [self._fail(error.code, error.message)]
        if closed := self.complain(error.code, error.message, in_reply_to=error.op):
            return [closed]
        # A newer peer may know more ops than we do: that breaks no rule.
        is_newer = error.code == LinkCode.UNKNOWN_OP
        return [] if is_newer else [PeerUnreadable(error.op, error.job_id, error.message)]

    def complain(self, code: str, message: str, *, in_reply_to: str, counts: bool = True) -> Closed | None:
        """Tell the peer what is wrong with what it said, and end the session where that `counts` once too often."""
        self._faults += counts
        if self.closed:
            return self.closed
        if self._faults > MAX_FAULTS:
            return self._fail(LinkCode.TOO_MANY_FAULTS, f"More than {MAX_FAULTS} faulty messages; the last: {message}")
        self._queue(Fault(code=code, message=message, in_reply_to=in_reply_to))
        return None

    def _fail(self, code: str, message: str, remedy: str | None = None) -> Closed:
        """End the session through the peer's fault, and tell it why."""
        self._queue(Refused(code=code, message=message, remedy=remedy))
        self.closed = Closed(code, message, remedy)
        return self.closed

    def _queue(self, message: SessionMessage | JobMessage) -> None:
        self._frames.append(self._codec.encode(message, number=self._n_sent))
        self._n_sent += 1


class AgentSession(Session):
    """The agent's end: says hello, waits to be welcomed."""

    # It hears nothing but the answers to what it asks: a coordinator may be late with one for two heartbeats.
    silent_heartbeats = 4

    def __init__(self, hello: Hello, *, now_s: float, handshake_s: float, max_frame_bytes: int) -> None:
        super().__init__(now_s=now_s, handshake_s=handshake_s, heartbeat_s=handshake_s, max_frame_bytes=max_frame_bytes)
        self._queue(hello)

    def _answer_unreadable(self, error: UnreadableMessage) -> list[SessionEvent]:
        events = super()._answer_unreadable(error)
        # Nobody shall wait for a job that could not even be read, such as one with a parameter out of bounds.
        if self.closed is None and error.op in _ORDERS and error.job_id is not None:
            self._queue(JobFailed(job_id=error.job_id, code=JobErrorCode.INVALID_REQUEST, message=error.message))
        return events

    def _handshake(self, message: WireMessage, now_s: float) -> list[SessionEvent]:
        match message:
            case Welcome(protocol=protocol):
                if not OLDEST_PROTOCOL_VERSION <= protocol <= PROTOCOL_VERSION:
                    return [
                        self._fail(
                            LinkCode.PROTOCOL_VERSION, f"The coordinator chose protocol {protocol}, unknown here."
                        )
                    ]
                self._codec.max_frame_bytes = min(self._codec.max_frame_bytes, message.max_frame_bytes)
                self._established(now_s, protocol, heartbeat_s=message.heartbeat_s)
                return [Opened(protocol, welcome=message)]
            case _:
                return [self._fail(LinkCode.UNEXPECTED_MESSAGE, "Expected a welcome.")]


class CoordinatorSession(Session):
    """The coordinator's end: waits for a hello, negotiates the version, welcomes or refuses.

    welcome: its `protocol` is the newest that is spoken. asks_first: a hello is not welcomed at once, but told of by a
    `Greeted`; the caller then calls `welcome` or `refuse` before the handshake's deadline.
    """

    def __init__(self, welcome: Welcome, *, now_s: float, handshake_s: float, asks_first: bool = False) -> None:
        super().__init__(
            now_s=now_s,
            handshake_s=handshake_s,
            heartbeat_s=welcome.heartbeat_s,
            max_frame_bytes=welcome.max_frame_bytes,
        )
        self._welcome = welcome
        self._asks_first = asks_first
        self._greeted: Greeted | None = None

    def _handshake(self, message: WireMessage, now_s: float) -> list[SessionEvent]:
        if not isinstance(message, Hello) or self._greeted is not None:
            reason = "Expected one hello, and nothing else before the welcome."
            return [self._fail(LinkCode.UNEXPECTED_MESSAGE, reason)]
        protocol = min(message.protocol_max, self._welcome.protocol)
        if protocol < max(message.protocol_min, OLDEST_PROTOCOL_VERSION):
            older = "agent" if message.protocol_max < OLDEST_PROTOCOL_VERSION else "coordinator"
            return [
                self._fail(
                    LinkCode.PROTOCOL_VERSION,
                    f"The agent speaks protocol {message.protocol_min} to {message.protocol_max}, the coordinator "
                    f"{OLDEST_PROTOCOL_VERSION} to {self._welcome.protocol}.",
                    f"Upgrade moe2 on the {older}.",
                )
            ]
        self._greeted = Greeted(message, protocol)
        return [self._greeted if self._asks_first else self.welcome(now_s)]

    def welcome(self, now_s: float) -> Opened:
        """Welcome the agent that has said hello. Raises `ProtocolError` if none has, or the session is closed."""
        if self._greeted is None or self.closed:
            raise ProtocolError("No agent waits to be welcomed.", code=LinkCode.SESSION_NOT_OPEN)
        protocol = self._greeted.protocol
        self._queue(msgspec.structs.replace(self._welcome, protocol=protocol))
        self._established(now_s, protocol)
        return Opened(protocol, hello=self._greeted.hello)

    def refuse(self, code: str, message: str, remedy: str | None = None) -> Closed:
        """Turn the agent away for a reason that only the caller knows, such as an identity that is already online."""
        return self._fail(code, message, remedy)
