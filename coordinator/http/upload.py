"""Bodies of requests: read in bounded steps, within the memory that all unfinished ones share."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Handler, Middleware

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.http.auth import BODY, PRINCIPAL
from moe2.coordinator.http.encodings import Encoding, Unpacker, encoding_of, too_large
from moe2.coordinator.http.errors import refused


class BodyRoom:
    """Shares `max_bytes` among the clients whose bodies are not whole yet.

    One that is alone may have it all. When it is full, each of n clients may still have an nth of it, so that who came
    first keeps nobody out; so n of them can hold at most 1 + 1/2 + ... + 1/n times as much.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held_bytes: dict[str, int] = {}
        self._total_bytes = 0

    @property
    def held_bytes(self) -> int:
        """What all clients hold."""
        return self._total_bytes

    def take(self, client: str, n_bytes: int) -> bool:
        """Hold so many bytes more for a client. False, and nothing is held, if they are beyond its share."""
        held_bytes = self._held_bytes.get(client, 0) + n_bytes
        n_clients = len(self._held_bytes.keys() | {client})
        if self._total_bytes + n_bytes > self._max_bytes and held_bytes > self._max_bytes / n_clients:
            return False
        self._held_bytes[client] = held_bytes
        self._total_bytes += n_bytes
        return True

    def give_back(self, client: str, n_bytes: int) -> None:
        """The client's body is whole, or given up."""
        if not n_bytes:
            return
        self._total_bytes -= n_bytes
        self._held_bytes[client] -= n_bytes
        if not self._held_bytes[client]:
            del self._held_bytes[client]


MIN_MEAN_CHUNK_BYTES = 16
"""Of a body that comes in chunks, once it has more than `FREE_CHUNKS`. Each chunk costs the HTTP library some
microseconds, however small it is: 4 MiB in chunks of one byte would cost 10 s."""
FREE_CHUNKS = 256
BODIES_IN_MEMORY = 32
"""So many bodies of the largest size may be on their way at once."""


class BodyReader:
    """Reads the bodies of POST requests; their handlers find them in `BODY`. Nobody else's are read.

    max_bytes: of a body, packed and unpacked. timeout_s: by then it must have come whole.
    """

    def __init__(self, *, max_bytes: int, timeout_s: float) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._room = BodyRoom(BODIES_IN_MEMORY * max_bytes)
        # One thread: it takes its turn with the loop's own, however many bodies wait for it.
        self._unpacking = ThreadPoolExecutor(max_workers=1, thread_name_prefix="unpack")

    def add_to(self, app: web.Application) -> None:
        """Take what clients expect, and end with the application. After all routes are there."""
        for route in app.router.routes():
            # The HTTP library would ask for the body before any middleware has seen who sends it.
            route._expect_handler = _say_nothing_yet
        app.on_cleanup.append(self._close)

    async def _close(self, _: web.Application) -> None:
        self._unpacking.shutdown(wait=False)

    @property
    def middleware(self) -> Middleware:
        @web.middleware
        async def read_body(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.method == "POST" and request.match_info.http_exception is None:
                request[BODY] = await self._body(request)
            return await handler(request)

        return read_body

    async def _body(self, request: web.Request) -> bytes:
        """Raises `ApiError`."""
        encoding = encoding_of(request.headers.getall("Content-Encoding", ()))
        if (request.content_length or 0) > self._max_bytes:
            raise too_large()
        await _ask_for_body(request)
        if not request.body_exists:
            return b""
        holding = _Holding(self._room, _client(request))
        try:
            packed = await self._read(request, holding)
            return packed if encoding is None else await self._unpack(encoding, packed, holding)
        finally:
            holding.end()

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
                        raise refused(ErrorCode.INVALID_BODY, "The chunks of the body are too small.")
                    holding.take(len(part))
        except TimeoutError:
            text = f"The body did not come within {self._timeout_s:g} s (api.body_timeout_s)."
            raise refused(ErrorCode.REQUEST_TIMEOUT, text) from None
        return bytes(body)

    async def _unpack(self, encoding: Encoding, packed: bytes, holding: _Holding) -> bytes:
        """The first step here, as most bodies need no other; then bodies take turns in the thread, step by step."""
        unpacker = Unpacker(encoding, packed, max_bytes=self._max_bytes)
        holding.take(unpacker.step())
        loop = asyncio.get_running_loop()
        while not unpacker.is_whole:
            holding.take(await loop.run_in_executor(self._unpacking, unpacker.step))
        return unpacker.body


class _Holding:
    """What one body takes of the room."""

    def __init__(self, room: BodyRoom, client: str) -> None:
        self._room = room
        self._client = client
        self._n_bytes = 0

    def take(self, n_bytes: int) -> None:
        """Raises `ApiError` (429) where there is no room for it."""
        if not self._room.take(self._client, n_bytes):
            raise refused(ErrorCode.OVERLOADED, "Too many bodies are on their way at once; send fewer, or faster.")
        self._n_bytes += n_bytes

    def end(self) -> None:
        self._room.give_back(self._client, self._n_bytes)
        self._n_bytes = 0


async def _say_nothing_yet(_: web.Request) -> None:
    """A client that waits for "100 Continue" gets it, or a refusal, once its headers have been checked."""


async def _ask_for_body(request: web.Request) -> None:
    """Raises `ApiError` (417) for an expectation that is unknown, RFC 9110 section 10.1.1."""
    expected = request.headers.get("Expect")
    if expected is None or request.version < HttpVersion11:
        return
    if expected.lower() != "100-continue":
        raise refused(ErrorCode.EXPECTATION_FAILED, "The only expectation that is met is 100-continue.")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # It does not count as part of the answer, which has not begun.
    request.writer.output_size = 0


def _client(request: web.Request) -> str:
    """Whose bodies count together: a key's, or those from one address where there are no keys."""
    principal = request.get(PRINCIPAL)
    return (principal and principal.key_id) or request.remote or ""
