"""Downloads from a real server on loopback."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from moe2.agent.models.download import PIECE_BYTES, DownloadError, Place, look, pieces, session

SMALL_BYTES = 10_000


@asynccontextmanager
async def answered(content: bytes, *, whole_bytes: int) -> AsyncIterator[aiohttp.ClientResponse]:
    """An answer that says it has so many bytes, and brings this content in small pieces."""

    async def give(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.content_length = whole_bytes
        await answer.prepare(request)
        for start in range(0, len(content), SMALL_BYTES):
            await answer.write(content[start : start + SMALL_BYTES])
        if len(content) < whole_bytes and request.transport is not None:
            request.transport.close()
        return answer

    app = web.Application()
    app.router.add_get("/", give)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with session() as http, http.get(f"http://127.0.0.1:{runner.addresses[0][1]}/") as answer:
            yield answer
    finally:
        await runner.cleanup()


async def test_what_comes_in_small_pieces_is_written_in_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the last have a mebibyte at least, and together they are what was sent."""
    monkeypatch.setattr("moe2.agent.models.download.PIECE_S", 1e9)
    content = os.urandom(3 * PIECE_BYTES + 5)
    async with answered(content, whole_bytes=len(content)) as answer:
        found = [piece async for piece in pieces(answer)]
    assert b"".join(found) == content
    assert all(len(piece) >= PIECE_BYTES for piece in found[:-1])


async def test_a_slow_connection_is_not_waited_for() -> None:
    """A piece is what has come, however small, once its time is over."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("moe2.agent.models.download.PIECE_S", 0.0)
        content = os.urandom(5 * SMALL_BYTES)
        async with answered(content, whole_bytes=len(content)) as answer:
            sizes = [len(piece) async for piece in pieces(answer)]
    assert sum(sizes) == len(content)
    assert max(sizes) < PIECE_BYTES


async def test_what_came_before_a_connection_broke_is_kept() -> None:
    """It is yielded first, and then the error is raised."""
    content = os.urandom(PIECE_BYTES // 2)
    found = bytearray()

    async def take(answer: aiohttp.ClientResponse) -> None:
        async for piece in pieces(answer):
            found.extend(piece)

    async with answered(content, whole_bytes=len(content) + 1) as answer:
        with pytest.raises(aiohttp.ClientPayloadError):
            await take(answer)
    assert found == content


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"SSH-2.0-hush_9.6\r\n", "what comes from there is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"hush" * 50_000 + b"\r\n\r\n", "what comes from there is not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: hush\r\n" * 50_000 + b"\r\n", "what comes from there is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: hush\r\n\r\n", "what comes from there is not HTTP"),
        (b"HTTP/1.1 404 hush\r\nContent-Length: 0\r\n\r\n", "answers 404 Not Found."),
        (b"HTTP/1.1 599 hush\r\nContent-Length: 0\r\n\r\n", "answers 599."),
    ],
)
async def test_nothing_of_what_a_server_says_is_shown(said: bytes, told: str) -> None:
    """Whoever orders a pull must not read by its error what listens at an address that only the host reaches."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, session() as http:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/a.gguf"
        with pytest.raises(DownloadError) as raised:
            await look(http, Place(url, "the source"), 16)
    assert told in str(raised.value)
    assert "hush" not in str(raised.value)
