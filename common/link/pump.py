"""Moves frames between a WebSocket and a session. The one place where both sides of the link do I/O."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import struct
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from types import TracebackType

from aiohttp import ClientWebSocketResponse, WSMsgType, web

from moe2.common.errors import LinkCode
from moe2.common.link.session import JobMessage, Opened, Session, SessionEvent

WebSocket = ClientWebSocketResponse | web.WebSocketResponse

# Unsent bytes in the kernel beyond which the link counts as slow, and messages wait (tokens are merged meanwhile).
# A few frames of one token each: what already waits in the kernel cannot be merged any more. Nothing stands idle, as
# only bytes that the network does not take yet are counted, not those in flight.
NOT_SENT_LOW_WATER_BYTES = 256
LAST_WORDS_S = 5.0
READ_S = 0.01
"""The time in which the event loop reads what has arrived."""
_ENDS = (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED)
DEAF = frozenset({LinkCode.SILENT, LinkCode.UNREAD})
"""Codes of sessions whose peer does not hear why they end."""
_BYTES_ACKED = struct.Struct("Q")
_BYTES_ACKED_AT = 120
"""In Linux's `tcp_info`: bytes that the peer's kernel has confirmed."""


class Pump:
    """Serves one session over one WebSocket.

    next_message: hands out the next queued message, or None; only called while the session is open and the link
    has room, so a queue behind it can merge what waits.
    on_event: called for every session event, on the event loop.
    """

    def __init__(
        self,
        session: Session,
        *,
        next_message: Callable[[], JobMessage | None],
        on_event: Callable[[SessionEvent], None],
    ) -> None:
        self._clock = asyncio.get_running_loop().time
        self._session = session
        self._next_message = next_message
        self._on_event = on_event
        self._wake = asyncio.Event()
        self._closing: str | None = None
        self._is_sending = False
        self._writability: _Writability | None = None
        self._alarm: asyncio.Handle | None = None
        """What looks at the session's deadlines next, as long as the pump runs and the session is open."""
        self._receiving: asyncio.Timeout | None = None
        """What ends the receiving."""
        self._taken, self._since_s = 0, self._clock()
        self._defect: Exception | None = None

    def wake(self) -> None:
        """Have the pump send what the session has to say now."""
        self._wake.set()

    def reschedule(self) -> None:
        """The session's next deadline has changed, and there may be something to send."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = asyncio.get_running_loop().call_soon(self._look)
        self._wake.set()

    def close(self, reason: str) -> None:
        """Say goodbye once everything queued has been sent; `run` then returns."""
        self._closing = reason
        self._wake.set()

    async def run(self, websocket: WebSocket) -> None:
        """Pump until the session is closed or the connection is gone. `session.closed` tells which."""
        connection = websocket.get_extra_info("socket")
        if connection is None or connection.fileno() < 0:
            return  # Gone before we began.
        with _Writability(connection) as writability:
            self._writability = writability
            self._look()
            sender = asyncio.create_task(self._send(websocket, writability))
            sender.add_done_callback(lambda _: self._stop_receiving())
            try:
                await self._receive_until_the_end(websocket)
                if self._session.closed and self._session.closed.code not in DEAF and not sender.done():
                    # The peer is still to hear why.
                    await asyncio.wait((sender,), timeout=LAST_WORDS_S)
            finally:
                if self._alarm is not None:
                    self._alarm.cancel()
                self._alarm = None
                sender.cancel()
                (result,) = await asyncio.gather(sender, return_exceptions=True)
        for defect in (result, self._defect):
            if isinstance(defect, Exception) and not isinstance(defect, ConnectionError):
                raise defect

    async def _receive_until_the_end(self, websocket: WebSocket) -> None:
        """Receive until the connection ends, the session is closed, or `_stop_receiving` is called."""
        if self._session.closed or self._defect:
            return
        try:
            # A task for the receiving alone would cost a coordinator of a thousand agents megabytes.
            async with asyncio.timeout(None) as receiving:
                self._receiving = receiving
                await self._receive(websocket)
        except ConnectionError:
            return
        except TimeoutError:
            if not receiving.expired():
                raise
        finally:
            self._receiving = None

    def _stop_receiving(self) -> None:
        if self._receiving is not None:
            self._receiving.reschedule(0.0)
            self._receiving = None

    async def _receive(self, websocket: WebSocket) -> None:
        while True:
            # `async for` would take one more coroutine for each frame.
            frame = await websocket.receive()
            if frame.type is not WSMsgType.BINARY:
                if frame.type in _ENDS:
                    return
                # Not logged either: a peer may send them without end.
                continue
            for event in self._session.receive(frame.data, self._clock()):
                self._on_event(event)
                if isinstance(event, Opened):
                    self.reschedule()
            if self._session.has_frames or self._session.closed:
                self._wake.set()
            if self._session.closed:
                return

    def _look(self, has_read: bool = False) -> None:
        """Act on the session's deadlines that have passed, and look again at the next one.

        A timer does it, not the sender: that may wait for a link which a vanished peer left full. A peer that does not
        read is noticed here, too.
        """
        self._alarm = None
        session, now_s = self._session, self._clock()
        if not has_read and self._seems_gone(now_s):
            # This process was held up, not the peer: after a pause all timers come before what has arrived meanwhile.
            self._alarm = asyncio.get_running_loop().call_later(READ_S, self._let_read)
            return
        try:
            for event in session.tick(now_s):
                self._on_event(event)
            for event in session.left_unread(self._unread_since_s(now_s), now_s):
                self._on_event(event)
        except Exception as error:
            self._defect = error
            self._stop_receiving()
            return
        if session.has_frames or session.closed:
            self._wake.set()
        deadline_s = session.next_deadline_s
        if deadline_s is None:
            self._stop_receiving()
        else:
            self._alarm = asyncio.get_running_loop().call_at(deadline_s, self._look)

    def _seems_gone(self, now_s: float) -> bool:
        """Whether the peer is to be given up now although some of its words wait to be read."""
        is_due = self._session.closed is None and now_s >= self._session.gives_up_at_s
        return is_due and self._writability is not None and self._writability.has_unread()

    def _let_read(self) -> None:
        """Looks again once what has been read has reached the session, too."""
        self._alarm = asyncio.get_running_loop().call_soon(self._look, True)

    def _unread_since_s(self, now_s: float) -> float:
        """Since when the peer has taken nothing of what is being sent to it, as seen at the session's deadlines."""
        if not self._is_sending or self._writability is None:
            self._since_s = now_s
        elif (taken := self._writability.bytes_taken()) != self._taken:
            self._taken, self._since_s = taken, now_s
        return self._since_s

    async def _send(self, websocket: WebSocket, writability: _Writability) -> None:
        session = self._session
        while True:
            self._wake.clear()
            self._is_sending = True
            while True:
                for frame in session.take_frames():
                    await websocket.send_bytes(frame)
                if not session.is_open:
                    break
                await writability.wait()
                message = self._next_message() if session.is_open else None
                if message is None:
                    break
                for event in session.send(message, self._clock()):
                    self._on_event(event)
            if self._closing is not None and session.closed is None:
                session.close(self._closing)
                continue
            if session.closed:
                for frame in session.take_frames():
                    await websocket.send_bytes(frame)
                return
            self._is_sending = False
            await self._wake.wait()


class _Writability:
    """Waits until the kernel has little unsent data on a socket, which it reports through TCP_NOTSENT_LOWAT, tcp(7).

    aiohttp itself only waits after hundreds of kilobytes: at tens of bytes a token, seconds of backlog on a slow link.
    The descriptor is duplicated because event loops refuse to watch one that a transport owns.
    """

    def __init__(self, connection: TransportSocket) -> None:
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_LOW_WATER_BYTES)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLOUT)

    def __enter__(self) -> _Writability:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def bytes_taken(self) -> int:
        """Bytes that the peer's kernel has confirmed; it confirms none that nobody there makes room for."""
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED_AT + _BYTES_ACKED.size)
        (taken,) = _BYTES_ACKED.unpack_from(info, _BYTES_ACKED_AT)
        return int(taken)

    def has_unread(self) -> bool:
        """Whether bytes of the peer have come that nobody has read yet."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(0))

    async def wait(self) -> None:
        if self._poll.poll(0):
            return
        loop = asyncio.get_running_loop()
        writable = asyncio.Event()
        loop.add_writer(self._socket, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(self._socket)
