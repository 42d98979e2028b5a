"""Clients that send or take bytes slowly, on real sockets: each is cut off, and nobody else is held up."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import structlog
from aiohttp import web

from moe2.common.listening import Listening, OpenConnections, listen
from moe2.coordinator.daemon import CoordinatorDaemon
from moe2.coordinator.runtime import EventLoop
from moe2.coordinator.settings import CoordinatorSettings
from tests.fakes.fleet import Fleet, fleet

SOON_S = 0.1
"""The configured limits of these tests; the connection must end by itself, however long that takes."""
PATIENCE_S = 60.0
CUT_OFF = web.AppKey("cut_off", asyncio.Event)
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection to a listener."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield reader, writer
    finally:
        writer.close()


async def everything(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the connection ends, orderly or not."""
    said = b""
    with suppress(ConnectionResetError):
        while part := await reader.read(65_536):
            said += part
    return said


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, byte: bytes) -> bytes:
    """Send a byte now and then until the other side has had enough; returns what it said."""
    ended = asyncio.ensure_future(everything(reader))
    while not ended.done():
        writer.write(byte)
        await asyncio.wait([ended], timeout=SOON_S / 10)
    return await ended


async def is_alive(running: Fleet) -> bool:
    async with running.http.get("/healthz") as health:
        return health.status == 200


@pytest.mark.parametrize("began", [b"", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nX-A: "])
async def test_a_header_that_does_not_come_ends_the_connection(tmp_path: Path, began: bytes) -> None:
    """Nothing sent, or not all of it."""
    async with fleet(tmp_path, agents=(), api={"header_timeout_s": SOON_S}) as running:
        async with connected(running.coordinator.api_url) as (reader, writer):
            writer.write(began)
            assert await everything(reader) == b""
        assert await is_alive(running)


async def test_a_header_that_trickles_in_ends_the_connection(tmp_path: Path) -> None:
    """Bytes that come now and then do not put the end off."""
    async with fleet(tmp_path, agents=(), api={"header_timeout_s": SOON_S}) as running:
        async with connected(running.coordinator.api_url) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\nX-A: ")
            assert await trickle(reader, writer, b"a") == b""


async def test_a_second_request_has_its_own_time(tmp_path: Path) -> None:
    """A connection is kept for the next request, and ends when none comes."""
    async with fleet(tmp_path, agents=(), api={"header_timeout_s": 5 * SOON_S}) as running:
        async with connected(running.coordinator.api_url) as (reader, writer):
            writer.write(2 * b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await everything(reader)).count(b'"ok"}') == 2


@pytest.mark.slow
async def test_a_body_that_trickles_in_is_answered_with_408(tmp_path: Path) -> None:
    """In OpenAI's shape, naming the setting; then the connection ends."""
    async with fleet(tmp_path, agents=(), api={"body_timeout_s": SOON_S}) as running:
        async with connected(running.coordinator.api_url) as (reader, writer):
            writer.write(POST + b"Content-Length: 1000000\r\n\r\n{")
            said = await trickle(reader, writer, b" ")
        head, body = said.split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 408")
        assert b"connection: close" in head.lower()
        assert "api.body_timeout_s" in json.loads(body)["error"]["message"]
        assert await is_alive(running)


@pytest.mark.slow
async def test_a_chunked_body_without_end_is_refused(tmp_path: Path) -> None:
    """`api.max_body_bytes` holds where no length was given, too."""
    async with fleet(tmp_path, agents=(), api={"max_body_bytes": 2048}) as running:
        async with connected(running.coordinator.api_url) as (reader, writer):
            writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n" + b"x" * 1024 + b"\r\n")
            chunk = b"400\r\n" + b"x" * 1024 + b"\r\n"
            assert (await trickle(reader, writer, chunk)).startswith(b"HTTP/1.1 413")


async def test_a_body_is_not_read_for_a_stranger(tmp_path: Path) -> None:
    """401 before any of it has come."""
    async with fleet(tmp_path, agents=(), api={"keys": "required"}) as running:
        async with connected(running.coordinator.api_url) as (reader, writer):
            writer.write(POST + b"Content-Length: 1000000\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    "header", [b"X-A: " + b"a" * 20_000, b"\r\n".join(b"X-%d: a" % number for number in range(500))]
)
async def test_too_large_a_header_is_refused(tmp_path: Path, header: bytes) -> None:
    """One long line, or too many."""
    async with fleet(tmp_path, agents=()) as running:
        async with connected(running.coordinator.api_url) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n")
            assert b" 400 " in await reader.readline()
        assert await is_alive(running)


async def test_the_bytes_of_a_broken_request_are_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A key in a faulty line, as when a script sends it with a line break, stays out of the log."""
    with structlog.testing.capture_logs() as logged:
        async with fleet(tmp_path, agents=()) as running:
            async with connected(running.coordinator.api_url) as (reader, writer):
                writer.write(b"GET / HTTP/1.1\r\nAuthorization: Bearer moe2_0_secret\x00\r\n\r\n")
                assert b" 400 " in await reader.readline()
    assert "request_malformed" in [entry["event"] for entry in logged]
    assert "secret" not in f"{logged} {caplog.text}"


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, EventLoop])
def test_who_takes_no_answer_is_cut_off(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Once the buffers are full and nothing is taken any more, the handler is cancelled; on the daemon's loop, too."""

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(65_536))
        finally:
            request.app[CUT_OFF].set()

    async def scenario() -> None:
        app = web.Application()
        cut_off = app[CUT_OFF] = asyncio.Event()
        app.router.add_get("/", endless)
        where = Listening("api.", "127.0.0.1", 0, PATIENCE_S, None, send_timeout_s=SOON_S)
        async with AsyncExitStack() as stack:
            port = (await listen(stack, app, where, OpenConnections(1))).port
            with socket.socket() as client:
                client.setblocking(False)
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
                await asyncio.get_running_loop().sock_sendall(client, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                async with asyncio.timeout(PATIENCE_S):
                    await cut_off.wait()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(scenario())


async def test_the_rest_of_a_chunked_body_that_is_not_needed_is_not_parsed() -> None:
    """Nobody looks at what follows the answer, so that a request behind the body's end is none."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text="enough")

    app = web.Application()
    app.router.add_post("/", answer)
    where = Listening("api.", "127.0.0.1", 0, PATIENCE_S, None)
    async with AsyncExitStack() as stack:
        port = (await listen(stack, app, where, OpenConnections(1))).port
        async with connected(f"http://127.0.0.1:{port}") as (reader, writer):
            begun = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
            writer.write(begun)
            said = await reader.readuntil(b"enough")
            writer.write(b"0\r\n\r\n" + begun)
            said += await everything(reader)
    assert said.count(b"HTTP/1.1 ") == 1


async def test_the_agents_listener_ends_slow_headers_too(tmp_path: Path) -> None:
    """An upgrade that does not come within the handshake's time."""
    (tmp_path / "token").write_text("a-test-token")
    settings = CoordinatorSettings.model_validate(
        {
            "coordinator": {"state_dir": tmp_path, "socket": tmp_path / "coordinator.sock"},
            "api": {"port": 0},
            "agents": {"port": 0, "token_file": tmp_path / "token", "handshake_s": SOON_S},
        }
    )
    coordinator = CoordinatorDaemon(settings, environment={})
    running = asyncio.create_task(coordinator.run())
    await coordinator.listening.wait()
    try:
        async with connected(coordinator.agents_url) as (reader, writer):
            writer.write(b"GET /v1/agents HTTP/1.1\r\nX-A: ")
            assert await trickle(reader, writer, b"a") == b""
    finally:
        coordinator.stop()
        await running


@pytest.mark.parametrize("listener", ["api", "agents"])
async def test_one_address_has_so_many_connections_and_others_are_answered(tmp_path: Path, listener: str) -> None:
    """One more is told so and closed; other addresses connect; one that has ended makes room."""
    bound = {"max_connections_per_address": 3}
    async with fleet(tmp_path, agents=(), **{"api" if listener == "api" else "listener": bound}) as running:
        url = running.coordinator.api_url if listener == "api" else running.coordinator.agents_url
        address = urlsplit(url)

        async def opened() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection(address.hostname, address.port, local_addr=("127.0.0.2", 0))

        async def answer_to(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
            async with asyncio.timeout(PATIENCE_S):
                with suppress(ConnectionError):
                    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                said = await everything(reader)
            writer.close()
            return said

        held = [await opened() for _ in range(3)]
        reader, writer = await opened()
        head, body = (await everything(reader)).split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429")
        assert json.loads(body)["error"]["code"] == "too_many_connections"
        async with connected(url) as other:
            assert b"too_many_connections" not in await answer_to(*other)
        assert b"too_many_connections" not in await answer_to(*held[0])
        async with asyncio.timeout(PATIENCE_S):
            while b"too_many_connections" in await answer_to(*await opened()):
                pass
        for _, each in (*held, (reader, writer)):
            each.close()


async def test_a_reload_changes_how_many_connections_an_address_may_have(tmp_path: Path) -> None:
    """The new bound holds for the next connection, without a restart."""
    async with fleet(tmp_path, agents=()) as running:
        running.configuration["api"]["max_connections_per_address"] = 1
        async with await running.http.get("/healthz"):
            running.coordinator.reload()
            async with connected(running.coordinator.api_url) as (reader, _):
                assert (await everything(reader)).startswith(b"HTTP/1.1 429")
