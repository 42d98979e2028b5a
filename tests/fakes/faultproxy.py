"""A TCP proxy between agents and coordinator that understands WebSocket frames just enough to spoil them.

Each connection has two directions, `up` (agent to coordinator) and `down`. A test sets what becomes of frames, and
waits for it; nothing here sleeps. Frames are RFC 6455's: two bytes, a longer length where needed, a mask upwards.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import msgpack

READ_BYTES = 65_536
BINARY = 0x82
"""Final frame, opcode 2."""

Spoil = Callable[["Frame"], "list[bytes]"]
"""What is sent in place of a frame."""


@dataclass(frozen=True)
class Frame:
    """raw: as it came. payload: unmasked."""

    raw: bytes
    first_byte: int
    payload: bytes
    masked: bool

    @property
    def op(self) -> str | None:
        """What kind of message it carries; None if that cannot be read."""
        try:
            content = msgpack.unpackb(self.payload, raw=False, strict_map_key=False)
        except Exception:
            return None
        return content.get("op") if isinstance(content, dict) else None


@dataclass
class _Rule:
    op: str | None
    spoil: Spoil
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Direction:
    """One way of one connection."""

    def __init__(self, writer: asyncio.StreamWriter, *, masked: bool) -> None:
        self._writer = writer
        self._masked = masked
        self._rules: list[_Rule] = []
        self._open = asyncio.Event()
        self._open.set()
        self._is_silent = False
        self._cut = False
        self.passed: asyncio.Queue[str | None] = asyncio.Queue()
        """The kind of each message that came to the proxy."""
        self.on_sent: Callable[[Frame], None] | None = None
        """Called with each frame that was sent on as it came."""

    # --- What a test can do -------------------------------------------------------------------------------------------

    def hold(self) -> None:
        """Delay: frames wait in the proxy until `release`."""
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    def drop(self) -> None:
        """A blackhole: everything is read and nothing is passed on, for good."""
        self._is_silent = True
        self._open.set()

    def next(self, op: str | None, spoil: Spoil) -> asyncio.Event:
        """Spoil the next frame with such a message (any frame if None). The event is set when that has happened."""
        rule = _Rule(op, spoil)
        self._rules.append(rule)
        return rule.done

    def say(self, data: bytes) -> None:
        """Put bytes into the stream."""
        self._writer.write(data)

    def frame(self, payload: bytes) -> bytes:
        """A frame of this direction."""
        return encoded(payload, masked=self._masked)

    def half_close(self) -> None:
        """FIN to the receiver; the other direction goes on. Nothing of this one is passed on any more."""
        self._cut = True
        self._open.set()
        with suppress(OSError):
            self._writer.write_eof()

    # --- The proxy's part ---------------------------------------------------------------------------------------------

    async def pass_on(self, reader: asyncio.StreamReader) -> None:
        """The upgrade's header as it is, then frame by frame."""
        self._writer.write(await reader.readuntil(b"\r\n\r\n"))
        while True:
            frame = await _read_frame(reader)
            self.passed.put_nowait(frame.op)
            out = self._spoilt(frame)
            await self._open.wait()
            if self._cut:
                continue
            if not self._is_silent:
                for data in out:
                    self._writer.write(data)
                if self.on_sent is not None and out == [frame.raw]:
                    self.on_sent(frame)
                await self._writer.drain()

    def _spoilt(self, frame: Frame) -> list[bytes]:
        for rule in self._rules:
            if rule.op is None or rule.op == frame.op:
                self._rules.remove(rule)
                out = rule.spoil(frame)
                asyncio.get_running_loop().call_soon(rule.done.set)
                return out
        return [frame.raw]


@dataclass(eq=False)
class Connection:
    up: Direction
    down: Direction
    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def reset(self) -> None:
        """RST to both sides: what is in flight is lost."""
        for writer in self.writers:
            connection: socket.socket | None = writer.get_extra_info("socket")
            if connection is not None and connection.fileno() >= 0:  # else it is closed already
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class FaultProxy:
    """url: for agents. connections: all so far, oldest first. on_connected: called with each new one."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self.url = ""
        self.connections: list[Connection] = []
        self.on_connected: Callable[[Connection], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._is_closed = False

    @property
    def latest(self) -> Connection:
        return self.connections[-1]

    @property
    def n_open(self) -> int:
        return sum(not connection.over.is_set() for connection in self.connections)

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Called as soon as there is a connection, by the server itself: a task might begin only after `close`."""
        if self._is_closed:
            writer.transport.abort()
            return
        self._writers.append(writer)
        task = asyncio.create_task(self._join(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._upstream)
        except OSError:
            writer.close()
            return
        self._writers.append(upstream_writer)
        connection = Connection(
            Direction(upstream_writer, masked=True), Direction(writer, masked=False), (writer, upstream_writer)
        )
        self.connections.append(connection)
        if self.on_connected is not None:
            self.on_connected(connection)
        ways = (
            asyncio.create_task(connection.up.pass_on(reader)),
            asyncio.create_task(connection.down.pass_on(upstream_reader)),
        )
        try:
            # The first side that ends, ends both, as the kernel would, unless the test has cut them apart.
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            if connection.up._cut or connection.down._cut:
                await asyncio.wait(ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            upstream_writer.close()
            writer.close()
            connection.over.set()

    async def close(self) -> None:
        """End every connection; one that was only just accepted is ended as soon as it is there."""
        self._is_closed = True
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def fault_proxy(upstream_url: str) -> AsyncIterator[FaultProxy]:
    """A proxy in front of a coordinator's agents listener (`ws://HOST:PORT`)."""
    host, _, port = upstream_url.removeprefix("ws://").rpartition(":")
    proxy = FaultProxy(host, int(port))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()


# --- Spoiling ---------------------------------------------------------------------------------------------------------


def swallowed(_: Frame) -> list[bytes]:
    return []


def doubled(frame: Frame) -> list[bytes]:
    return [frame.raw, frame.raw]


def truncated(frame: Frame) -> list[bytes]:
    """Half of it. What follows is then read as its other half, or the connection is closed in mid-frame."""
    return [frame.raw[: len(frame.raw) // 2]]


def corrupted(frame: Frame) -> list[bytes]:
    """Every byte of the payload turned over: msgpack's reserved byte comes first."""
    return [encoded(b"\xc1" + bytes(byte ^ 0xFF for byte in frame.payload[1:]), masked=frame.masked)]


def misshapen(_: Frame) -> list[bytes]:
    """Reserved bits that no extension gave a meaning: no WebSocket frame at all."""
    return [b"\xf2\x00"]


def oversized(payload_bytes: int) -> Spoil:
    """A frame of so many bytes of payload goes before it."""

    def spoil(frame: Frame) -> list[bytes]:
        return [encoded(bytes(payload_bytes), masked=frame.masked), frame.raw]

    return spoil


def swapped() -> tuple[Spoil, Spoil]:
    """For two rules: the first frame is kept back and sent after the second."""
    kept: list[bytes] = []

    def first(frame: Frame) -> list[bytes]:
        kept.append(frame.raw)
        return []

    def second(frame: Frame) -> list[bytes]:
        return [frame.raw, *kept]

    return first, second


# --- RFC 6455 ---------------------------------------------------------------------------------------------------------


def encoded(payload: bytes, *, masked: bool) -> bytes:
    """A binary frame."""
    flag = 0x80 if masked else 0
    match len(payload):
        case n if n < 126:
            head = struct.pack(">BB", BINARY, flag | n)
        case n if n < 65_536:
            head = struct.pack(">BBH", BINARY, flag | 126, n)
        case n:
            head = struct.pack(">BBQ", BINARY, flag | 127, n)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + _masked(payload, mask)


async def _read_frame(reader: asyncio.StreamReader) -> Frame:
    """Raises `IncompleteReadError` at the end of the stream."""
    head = await reader.readexactly(2)
    masked, length = bool(head[1] & 0x80), head[1] & 0x7F
    more = b""
    if length >= 126:
        more = await reader.readexactly(2 if length == 126 else 8)
        length = int.from_bytes(more)
    mask = await reader.readexactly(4) if masked else b""
    body = await reader.readexactly(length)
    payload = _masked(body, mask) if masked else body
    return Frame(head + more + mask + body, head[0], payload, masked)


def _masked(payload: bytes, mask: bytes) -> bytes:
    whole = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(whole)).to_bytes(len(payload))
