"""The API listener below HTTP: slow clients are cut off, faulty bytes are logged as such."""

from __future__ import annotations

import logging
import socket
from time import monotonic

import structlog
from aiohttp import web
from aiohttp.http import WebSocketReader
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from moe2.common.token_bucket import TokenBucket

LINGER_S = 1.0
"""How long what is left of a refused body is read and thrown away, so that its sender sees the answer."""
READ_BUFFER_BYTES = 8192
"""The HTTP library parses on the loop, and stops after a sixteenth as many chunks until they are taken. With its own
default, 256 kB of one-byte chunks hold the loop for 15 ms, whoever sends them."""


def send_deadline(timeout_s: float) -> Middleware:
    """A middleware that has the kernel cut off a client that takes nothing of its answer for `timeout_s`.

    TCP_USER_TIMEOUT of tcp(7); the connection's end cancels the handler.
    """
    timeout_ms = max(1, round(1000 * timeout_s))

    @web.middleware
    async def limit_sending(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        return await handler(request)

    return limit_sending


@web.middleware
async def leave_rest_unparsed(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A middleware that has the rest of a chunked body thrown away as it comes, where it was not read for the answer.

    Parsing it costs far more than sending it. The connection cannot be used again and ends after `LINGER_S`.
    """
    try:
        return await handler(request)
    finally:
        is_chunked = "Transfer-Encoding" in request.headers
        if is_chunked and not request.content.is_eof() and request.transport is not None:
            request.protocol.set_parser(_Nothing())


class _Nothing(WebSocketReader):
    """Stands where the HTTP library has the parser of a protocol that was switched to; takes bytes, makes nothing."""

    def __init__(self) -> None:
        """There is no queue to feed."""

    def feed_data(self, data: bytes | bytearray | memoryview) -> tuple[bool, bytes]:
        return False, b""

    def feed_eof(self) -> None:
        pass


LOGGED_PER_MINUTE = 60

log = structlog.get_logger()


class _Discreet(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._bucket = TokenBucket(LOGGED_PER_MINUTE, monotonic())

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionError):
            # Whoever asked has left before the answer began: nothing has failed here.
            return False
        if not isinstance(error, HttpProcessingError):
            return True
        if self._bucket.take(monotonic()) == 0:
            log.info("request_malformed", fault=type(error).__name__)
        return False


def protocol_logger() -> logging.Logger:
    """For the server's protocol of a listener: faults of ours are logged as ever."""
    # A logger of its own: the filter counts for this process's listeners only.
    logger = logging.getLogger("moe2.http")
    if not logger.filters:
        logger.addFilter(_Discreet())
    return logger
