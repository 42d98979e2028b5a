"""The TCP listeners of both daemons: slow clients are cut off, and each client has so many connections."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address, ip_network
from time import monotonic
from typing import Any, cast

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage, WebSocketReader
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler
from aiohttp.web_server import Server

from moe2.common.error_codes import ErrorCode
from moe2.common.errors import Moe2Error
from moe2.common.terminal.figures import shortened
from moe2.common.tls.contexts import ServerTls
from moe2.common.token_bucket import TokenBucket

log = structlog.get_logger()

GOODBYE_S = 2.0
"""The time that requests in progress have to end when a listener is closed."""
ARRIVED_S = 0.5
"""The time in which a request that has arrived begins, with its body."""
LINGER_S = 1.0
"""The time for which the rest of a refused body is read and thrown away, so that its sender sees the answer."""
READ_BUFFER_BYTES = 8192
"""The size of aiohttp's read buffer for each connection.

aiohttp parses on the event loop, and stops after a sixteenth as many chunks until they are taken. With its own default
size, 256 kB of one-byte chunks hold the loop for 15 ms.
"""
LOGGED_PER_MINUTE = 60
"""The number of malformed requests, and of refused connections, that are logged per minute."""
MAX_FAULT_CHARACTERS = 500
"""The most characters that are told of the fault in a malformed request; the HTTP library repeats all of it."""
HEADER_S = 10.0
"""The time for a request's header at an agent's listeners; whoever takes longer is cut off."""
CONNECTIONS_PER_ADDRESS = 64
"""The most connections that one address may have open at each of an agent's listeners."""
MOST_PENDING = 4096
"""Connections that the kernel keeps until they are accepted, as far as it allows (net.core.somaxconn). Of thousands of
agents that come together, those beyond it would ask again after one, three and seven seconds."""
SEND_S = 60.0
"""A client that takes nothing of an agent's answer for so long is cut off."""
TOO_MANY = "This address has too many connections open. Close some, or use one for several requests."


@dataclass(frozen=True)
class ErrorShape:
    """The form of the errors that a listener writes by itself. body: makes one of an HTTP status and a text."""

    content_type: str
    body: Callable[[int, str], bytes]


PLAIN = ErrorShape("text/plain", lambda _, text: f"{text}\n".encode())


def _too_many_connections(shape: ErrorShape) -> bytes:
    """Returns the refusal as a whole HTTP response, for a connection on which nothing is read."""
    code = ErrorCode.TOO_MANY_CONNECTIONS
    body = shape.body(code.status, TOO_MANY)
    head = (
        f"HTTP/1.1 {code.status} {HTTPStatus(code.status).phrase}\r\nServer: moe2\r\n"
        f"Content-Type: {shape.content_type}\r\nContent-Length: {len(body)}\r\nRetry-After: {code.retry_after_s}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body


def _cut_off_after(transport: asyncio.BaseTransport, timeout_s: float) -> None:
    """Has the kernel end a connection whose peer takes nothing of what is sent to it for so long.

    It is TCP_USER_TIMEOUT of tcp(7). The end of the connection cancels the handler.
    """
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(1000 * timeout_s)))


class OpenConnections:
    """The number of connections that each client of one listener has open. most: of one client; it may be replaced."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._open: dict[str, int] = {}
        self._refusals = TokenBucket(LOGGED_PER_MINUTE, monotonic())

    def take(self, client: str) -> bool:
        """Counts one more. Returns False, and counts nothing, where the client has as many as it may have."""
        n_open = self._open.get(client, 0)
        if n_open >= self.most:
            if self._refusals.take(monotonic()) == 0:
                log.warning("connection_refused", client=client, open=n_open)
            return False
        self._open[client] = n_open + 1
        return True

    def give_back(self, client: str) -> None:
        """Counts one less."""
        self._open[client] -= 1
        if not self._open[client]:
            del self._open[client]


def client_of(peer: Any) -> str:
    """Returns by what a connection's client is known: its IPv4 address, or the network (/64) of its IPv6 address.

    peer: the socket's peer name. Whoever has one address of an IPv6 network usually has all of them.
    """
    try:
        address = ip_address(peer[0].partition("%")[0])
    except (TypeError, ValueError, IndexError, AttributeError):
        return "unknown"
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or ip_network((address.packed[:8] + bytes(8), 64)))
    return str(address)


class Listener(web.AppRunner):
    """An application's runner that bounds each client's connections.

    errors: the shape of its own errors; the HTTP library answers malformed HTTP itself, before any middleware.
    connections: counts those that are open. meant_path: returns the path that a request's path stands for; it is asked
    before the route is looked up. send_timeout_s: a client that takes nothing of an answer for so long is cut off; None
    for never.
    """

    __slots__ = ("_connections", "_errors", "_meant_path", "_send_timeout_s")

    def __init__(
        self,
        app: web.Application,
        *,
        connections: OpenConnections,
        errors: ErrorShape = PLAIN,
        meant_path: Callable[[str], str] | None = None,
        send_timeout_s: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(app, **options)
        self._connections = connections
        self._errors = errors
        self._meant_path = meant_path
        self._send_timeout_s = send_timeout_s

    @property
    def port(self) -> int:
        """The port that it listens on, once it does."""
        port: int = self.addresses[0][1]
        return port

    async def take_no_more(self) -> None:
        """Ends listening, so that who connects now goes elsewhere. Requests go on; idle connections are closed.

        Returns once requests that had arrived by then have begun.
        """
        for site in tuple(self.sites):
            await site.stop()
        if self.server is not None:
            self.server.pre_shutdown()
            await asyncio.sleep(ARRIVED_S)

    async def _make_server(self) -> Server:
        made = await super()._make_server()
        return _Server(made, self._connections, self._errors, self._meant_path, self._send_timeout_s)


class _Server(Server):
    """The library's server of the same application, with the connections of this module."""

    def __init__(
        self,
        made: Server,
        open_ones: OpenConnections,
        errors: ErrorShape,
        meant_path: Callable[[str], str] | None,
        send_timeout_s: float | None,
    ) -> None:
        """Leaves out the parent's set-up, as `made` has it."""
        self.__dict__.update(made.__dict__)
        self.open_ones = open_ones
        self.errors = errors
        self.send_timeout_s = send_timeout_s
        if meant_path is not None:
            make_request = self.request_factory

            def make_meant(message: RawRequestMessage, *others: Any) -> web.BaseRequest:
                path = message.url.raw_path
                if (meant := meant_path(path)) != path:
                    url = message.url.with_path(meant, encoded=True, keep_query=True)
                    message = message._replace(url=url, path=str(url))
                return make_request(message, *others)

            self.request_factory = make_meant

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(RequestHandler):
    """A connection that counts among its client's, and on which errors have its listener's shape."""

    __slots__ = ("_counted_as", "_errors", "_open_ones", "_send_timeout_s")

    def __init__(self, manager: _Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._open_ones = manager.open_ones
        self._errors = manager.errors
        self._send_timeout_s = manager.send_timeout_s
        self._counted_as: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins to read, or refuses a client that has too many connections, which costs it its connection alone."""
        super().connection_made(transport)
        if self._send_timeout_s is not None:
            _cut_off_after(transport, self._send_timeout_s)
        client = client_of(transport.get_extra_info("peername"))
        if self._open_ones.take(client):
            self._counted_as = client
        else:
            # uvloop's transports are of a class of their own.
            cast("asyncio.Transport", transport).write(_too_many_connections(self._errors))
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Makes room for another connection of the same client."""
        super().connection_lost(exc)
        if self._counted_as is not None:
            self._open_ones.give_back(self._counted_as)
            self._counted_as = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Returns the answer to a request that could not be read, or whose handler could not answer."""
        found = super().handle_error(request, status, exc, message)
        text = message.strip() if message else HTTPStatus(status).phrase
        text = f"The request is not valid HTTP: {shortened(text, MAX_FAULT_CHARACTERS)}" if status < 500 else text
        answer = web.Response(
            status=found.status,
            body=self._errors.body(found.status, text),
            content_type=self._errors.content_type,
            headers={"Server": "moe2"},
        )
        answer.force_close()
        return answer

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Sends the answer, and throws away the rest of a chunked body that it did not need, without parsing it.

        Parsing it costs far more than sending it. The connection cannot be used again and ends after `LINGER_S`.
        """
        is_chunked = "Transfer-Encoding" in request.headers
        if is_chunked and not request.content.is_eof() and request.transport is not None:
            self.set_parser(_Discard())
        return super().finish_response(request, resp, start_time)


class _Discard(WebSocketReader):
    """A parser that takes bytes and makes nothing of them; aiohttp has a place for one after a change of protocol."""

    def __init__(self) -> None:
        """Leaves out the parent's set-up, as there is no queue to feed."""

    def feed_data(self, data: bytes | bytearray | memoryview) -> tuple[bool, bytes]:
        return False, b""

    def feed_eof(self) -> None:
        pass


class _ShortFaults(logging.Filter):
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
    """Returns the logger for aiohttp's protocol: malformed requests are logged in short and at a limited rate.

    Faults of the coordinator itself are logged in full.
    """
    # A logger of its own: the filter counts for this process's listeners only.
    logger = logging.getLogger("moe2.http")
    if not logger.filters:
        logger.addFilter(_ShortFaults())
    return logger


@dataclass(frozen=True)
class Listening:
    """Where a listener is opened. prefix: of its settings `host` and `port`, such as `api.`. tls: None for plain
    connections. send_timeout_s: a client that takes nothing of an answer for so long is cut off; None for never.
    """

    prefix: str
    host: str
    port: int
    header_timeout_s: float
    tls: ServerTls | ssl.SSLContext | None
    send_timeout_s: float | None = None


async def listen(
    stack: AsyncExitStack,
    app: web.Application,
    where: Listening,
    connections: OpenConnections,
    *,
    errors: ErrorShape = PLAIN,
    meant_path: Callable[[str], str] | None = None,
) -> Listener:
    """Opens a TCP listener for the length of the stack. Raises `Moe2Error` where it cannot.

    handler_cancellation: a client that disconnects cancels its handler, which stops its decoders. keepalive_timeout:
    aiohttp counts it from the connection, or the last answer, to the end of a request's header. auto_decompress:
    aiohttp would unpack as bytes come, on the loop, whoever sends them.
    """
    runner = Listener(
        app,
        connections=connections,
        errors=errors,
        meant_path=meant_path,
        send_timeout_s=where.send_timeout_s,
        access_log=None,
        handle_signals=False,
        handler_cancellation=True,
        shutdown_timeout=GOODBYE_S,
        keepalive_timeout=where.header_timeout_s,
        lingering_time=LINGER_S,
        read_bufsize=READ_BUFFER_BYTES,
        auto_decompress=False,
        logger=protocol_logger(),
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await _open(runner, where)
    return runner


async def _open(runner: web.AppRunner, where: Listening) -> None:
    """Listens until the runner is cleaned up. Raises `Moe2Error` if it cannot."""
    context = where.tls.context if isinstance(where.tls, ServerTls) else where.tls
    try:
        await web.TCPSite(
            runner, where.host, where.port, backlog=MOST_PENDING, reuse_address=True, ssl_context=context
        ).start()
    except OSError as error:
        raise Moe2Error(
            f"Cannot listen on {where.host}:{where.port}: {error.strerror or error}.",
            remedy=f"Stop what uses it, or set {where.prefix}host and {where.prefix}port.",
        ) from error
