"""The bodies of requests: read within bounds, unpacked, and parsed so that nobody is held up by another's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

from aiohttp import HttpVersion11, web

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.http.access.auth import PRINCIPAL
from moe2.coordinator.http.access.encodings import Encoding, Unpacker, encoding_of, too_large
from moe2.coordinator.http.errors import refused

T = TypeVar("T")

MAX_ON_LOOP_BYTES = 32_768
"""The longest body that is parsed on the event loop; the worst of this length takes a few milliseconds."""
MIN_MEAN_CHUNK_BYTES = 16
"""The smallest mean size of chunks in a chunked body that has more than `FREE_CHUNKS` of them.

Each chunk costs aiohttp some microseconds, however small it is: 4 MiB in chunks of one byte would cost 10 s.
"""
FREE_CHUNKS = 256
"""The number of chunks from which on their mean size counts."""
BODIES_IN_MEMORY = 32
"""The number of bodies of the largest size that may be on their way at once."""


class ParsingThread:
    """A thread that parses long bodies. Clients take turns: each has one body in line, its others wait for that."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parse")
        self._lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def close(self) -> None:
        """Ends the thread once it has parsed what it has begun."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def run(self, client: str, parse: Callable[[bytes], T], content: bytes) -> T:
        """Returns what `parse` makes of a client's body, and raises what it raises."""
        line = self._lines.setdefault(client, asyncio.Lock())
        async with line:
            return await asyncio.get_running_loop().run_in_executor(self._thread, parse, content)


class Body:
    """The body of a POST request, whole and unpacked.

    client: the name under which a client's bodies count together. on_parsed: called once the body is not needed.
    """

    def __init__(self, content: bytes, client: str, thread: ParsingThread, on_parsed: Callable[[], None]) -> None:
        self._content = content
        self._client = client
        self._thread = thread
        self._on_parsed = on_parsed

    @property
    def content(self) -> bytes:
        """The bytes; none once they have been parsed."""
        return self._content

    async def parsed(self, parse: Callable[[bytes], T]) -> T:
        """Returns what `parse` makes of the body, and raises what it raises. It may be called once.

        A long body is parsed in a thread: `parse` must change nothing that the event loop reads, and may not count on
        what the event loop changes.
        """
        if len(self._content) <= MAX_ON_LOOP_BYTES:
            made = parse(self._content)
        else:
            made = await self._thread.run(self._client, parse, self._content)
        self.end()
        return made

    def end(self) -> None:
        """Lets go of the bytes. It may be called again."""
        self._content = b""
        self._on_parsed()


BODY = web.RequestKey("body", Body)
"""The body of a POST request."""


class BodyMemory:
    """The memory of `max_bytes` that clients share for bodies that come, or wait to be parsed.

    A client that is alone may use all of it. When it is full, each of n clients may still use an nth of it, so that
    nobody is kept out by whoever came first; so n clients can hold at most 1 + 1/2 + ... + 1/n times as much.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes: dict[str, int] = {}
        self._total_bytes = 0

    @property
    def held_bytes(self) -> int:
        """Bytes that all clients together hold."""
        return self._total_bytes

    def take(self, client: str, n_bytes: int) -> bool:
        """Holds so many more bytes for a client. Returns False, and holds nothing, where they exceed its share."""
        if not n_bytes:
            return True
        held_bytes = self._held_bytes.get(client, 0) + n_bytes
        n_clients = len(self._held_bytes.keys() | {client})
        if self._total_bytes + n_bytes > self._max_bytes and held_bytes > self._max_bytes / n_clients:
            return False
        self._held_bytes[client] = held_bytes
        self._total_bytes += n_bytes
        return True

    def give_back(self, client: str, n_bytes: int) -> None:
        """Releases a client's bytes, once its body is parsed or given up."""
        if not n_bytes:
            return
        self._total_bytes -= n_bytes
        self._held_bytes[client] -= n_bytes
        if not self._held_bytes[client]:
            del self._held_bytes[client]


class BodyReader:
    """The reader of POST requests' bodies.

    max_bytes: the largest body, packed and unpacked. timeout_s: the time within which a body must have come whole.
    """

    def __init__(self, *, max_bytes: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._memory = BodyMemory(BODIES_IN_MEMORY * max_bytes)
        # One thread: it takes its turn with the loop's own, however many bodies wait for it.
        self._unpacking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="unpack")
        self._parsing = ParsingThread()

    def add_to(self, app: web.Application) -> None:
        """Prepares the application's routes for reading, and ends the reader with the application.

        It must be called after all routes have been registered.
        """
        for route in app.router.routes():
            # The HTTP library would ask for the body before any middleware has seen who sends it.
            route._expect_handler = _say_nothing_yet
        app.on_cleanup.append(self._close)

    async def _close(self, _: web.Application) -> None:
        self._unpacking.shutdown(wait=False)
        self._parsing.close()

    async def read(self, request: web.Request) -> Body:
        """Returns a request's body. Raises `ApiError` if it is too large, too slow, or packed in an unknown way."""
        holding = _Holding(self._memory, _client(request))
        try:
            content = await self._content(request, holding)
        except BaseException:
            holding.end()
            raise
        return Body(content, holding.client, self._parsing, holding.end)

    async def _content(self, request: web.Request, holding: _Holding) -> bytes:
        encoding = None
        if "Content-Encoding" in request.headers:
            encoding = encoding_of(request.headers.getall("Content-Encoding"))
        n_bytes = request.content_length
        if n_bytes is not None and n_bytes > self._max_bytes:
            raise too_large()
        if "Expect" in request.headers:
            await _ask_for_body(request)
        if not request.body_exists:
            return b""
        if n_bytes is not None and request.content.is_eof():
            # It has come with the header, as short ones do.
            packed = request.content.read_nowait()
        else:
            packed = await self._read(request, holding)
        return packed if encoding is None else await self._unpack(encoding, packed, holding)

    async def _read(self, request: web.Request, holding: _Holding) -> bytes:
        body, n_chunks = bytearray(), 0
        try:
            async with asyncio.timeout(self._timeout_s):
                while not request.content.at_eof():
                    part, is_end_of_chunk = await request.content.readchunk()
                    body += part
                    n_chunks += is_end_of_chunk
                    if len(body) > self._max_bytes:
                        raise too_large()
                    if n_chunks > FREE_CHUNKS + len(body) / MIN_MEAN_CHUNK_BYTES:
                        raise refused(
                            ErrorCode.INVALID_BODY, "The chunks of the body are too small; send fewer and larger ones."
                        )
                    holding.take(len(part))
        except TimeoutError:
            text = f"The body did not come within {self._timeout_s:g} s (api.body_timeout_s)."
            raise refused(ErrorCode.REQUEST_TIMEOUT, text) from None
        return bytes(body)

    async def _unpack(self, encoding: Encoding, packed: bytes, holding: _Holding) -> bytes:
        """Unpacks a body: the first step on the loop, as most bodies need no other, all others in the thread."""
        unpacker = Unpacker(encoding, packed, max_bytes=self._max_bytes)
        holding.take(unpacker.step())
        loop = asyncio.get_running_loop()
        while not unpacker.is_whole:
            holding.take(await loop.run_in_executor(self._unpacking, unpacker.step))
        return unpacker.body


class _Holding:
    """The bytes that one body holds of the shared memory, until it has been parsed."""

    def __init__(self, memory: BodyMemory, client: str) -> None:
        self._memory = memory
        self.client = client
        self._n_bytes = 0

    def take(self, n_bytes: int) -> None:
        """Holds more bytes. Raises `ApiError` (429) where there is no memory for them."""
        if not self._memory.take(self.client, n_bytes):
            raise refused(
                ErrorCode.OVERLOADED,
                "Too many bodies are being received at once; send fewer at a time, or send them faster.",
            )
        self._n_bytes += n_bytes

    def end(self) -> None:
        """Releases all of the body's bytes."""
        if self._n_bytes:
            self._memory.give_back(self.client, self._n_bytes)
            self._n_bytes = 0


async def _say_nothing_yet(_: web.Request) -> None:
    """Sends nothing to a client that waits for "100 Continue" until its headers have been checked."""


async def _ask_for_body(request: web.Request) -> None:
    """Sends "100 Continue" where that is expected.

    Raises `ApiError` (417) for any other expectation (RFC 9110, section 10.1.1).
    """
    expected = request.headers.get("Expect")
    if expected is None or request.version < HttpVersion11:
        return
    if expected.lower() != "100-continue":
        raise refused(ErrorCode.EXPECTATION_FAILED, "The only supported expectation is 100-continue.")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # It does not count as part of the answer, which has not begun.
    request.writer.output_size = 0


def _client(request: web.Request) -> str:
    """Returns the name under which a client's bodies count together.

    It is the id of its key, or its address where there are no keys.
    """
    principal = request.get(PRINCIPAL)
    return (principal and principal.key_id) or request.remote or ""
