"""Strangers at the listeners of an agent, for Prometheus and for neighbours: each is cut off or refused."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import structlog

from moe2.agent.observing import local_api
from moe2.agent.observing.local_api import listening, metrics_app
from moe2.agent.supply import sharing
from tests.agent.observing.test_metrics import metrics_of
from tests.fakes.fleet import fleet
from tests.scenarios.test_neighbours import SHARES
from tests.scenarios.test_push import OPEN, taking
from tests.scenarios.test_slow_clients import SOON_S, connected, everything, trickle

LISTENERS = ("metrics", "neighbours")
ASKED = {"metrics": "GET /metrics", "neighbours": "GET /v1/files"}


@asynccontextmanager
async def opened(root: Path, listener: str) -> AsyncIterator[str]:
    """The URL of one of an agent's two listeners."""
    async with AsyncExitStack() as stack:
        if listener == "metrics":
            port = await stack.enter_async_context(listening(metrics_app(metrics_of()), "127.0.0.1", 0))
        else:
            running = await stack.enter_async_context(fleet(root, push=OPEN, models_from=SHARES))
            await taking(running, "one")
            port = running.agents["one"]._supply.sharing.port
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("listener", LISTENERS)
async def test_a_header_that_does_not_come_ends_the_connection(
    tmp_path: Path, listener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that sends its header byte by byte lasts for `HEADER_S`."""
    for module in (local_api, sharing):
        monkeypatch.setattr(module, "HEADER_S", SOON_S)
    async with opened(tmp_path, listener) as url, connected(url) as (reader, writer):
        writer.write(f"{ASKED[listener]} HTTP/1.1\r\nX-A: ".encode())
        assert await trickle(reader, writer, b"a") == b""


@pytest.mark.parametrize("listener", LISTENERS)
async def test_one_address_has_so_many_connections(
    tmp_path: Path, listener: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A further one gets 429 as plain text and is closed."""
    for module in (local_api, sharing):
        monkeypatch.setattr(module, "CONNECTIONS_PER_ADDRESS", 2)
    async with (
        opened(tmp_path, listener) as url,
        connected(url),
        connected(url),
        connected(url) as (reader, _),
    ):
        head, _, text = (await everything(reader)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429")
        assert b"text/plain" in head
        assert text.startswith(b"This address has too many connections open.")


@pytest.mark.parametrize("listener", LISTENERS)
async def test_a_packed_body_is_not_unpacked(tmp_path: Path, listener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb that nobody asked for is refused by its method, and its bytes are thrown away packed."""

    def unpacked(*_: object, **__: object) -> None:
        raise AssertionError("the HTTP library unpacks a body")

    monkeypatch.setattr("aiohttp.http_parser.ZLibDecompressor", unpacked)
    packed = gzip.compress(bytes(1_000_000))
    path = ASKED[listener].split()[1]
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n"
    async with opened(tmp_path, listener) as url, connected(url) as (reader, writer):
        writer.write(head.encode() + packed)
        assert (await reader.readline()).startswith(b"HTTP/1.1 405")


async def test_an_error_repeats_little_of_what_is_no_request(tmp_path: Path) -> None:
    """A megabyte that is no HTTP is answered with a short text."""
    async with opened(tmp_path, "metrics") as url, connected(url) as (reader, writer):
        writer.write(b"A" * 1_000_000)
        answer = await everything(reader)
        assert b" 400 " in answer.partition(b"\r\n")[0]
        assert len(answer) < 1_000


@pytest.mark.parametrize("listener", LISTENERS)
async def test_bytes_that_are_no_request_are_not_logged(tmp_path: Path, listener: str) -> None:
    """The log says that a request was malformed, and not what it held."""
    with structlog.testing.capture_logs() as logged:
        async with opened(tmp_path, listener) as url, connected(url) as (reader, writer):
            writer.write(f"{ASKED[listener]} HTTP/1.1\r\nAuthorization: secret\x00\r\n\r\n".encode())
            assert b" 400 " in await reader.readline()
    assert "request_malformed" in [entry["event"] for entry in logged]
    assert "secret" not in str(logged)
