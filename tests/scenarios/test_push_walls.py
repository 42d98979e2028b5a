"""Strangers and broken agents at the listener for files: each is cut off or refused, and holds nobody up."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from moe2.common.link.supply import FILES_PATH, TICKET_HEADER
from tests.fakes.fleet import Fleet, fleet
from tests.gguf import write_gguf
from tests.scenarios.test_push import OPEN, ended, push, taking
from tests.scenarios.test_slow_clients import SOON_S, connected, everything, trickle
from tests.scenarios.test_supply import TAKES


def url_of(running: Fleet) -> str:
    """The address of the listener for files."""
    return f"http://127.0.0.1:{running.coordinator._supply.pushes.port}"


async def test_a_header_that_does_not_come_ends_the_connection(tmp_path: Path) -> None:
    """A connection that sends its header byte by byte lasts for `agents.handshake_s`."""
    async with (
        fleet(tmp_path, agents=(), push=OPEN, listener={"handshake_s": SOON_S}) as running,
        connected(url_of(running)) as (reader, writer),
    ):
        writer.write(b"GET /v1/files HTTP/1.1\r\nX-A: ")
        assert await trickle(reader, writer, b"a") == b""


async def test_one_address_has_so_many_connections(tmp_path: Path) -> None:
    """A further one gets 429 and is closed."""
    limit = {"max_connections_per_address": 2}
    async with (
        fleet(tmp_path, agents=(), push=OPEN, listener=limit) as running,
        connected(url_of(running)),
        connected(url_of(running)),
        connected(url_of(running)) as (reader, _),
    ):
        assert (await everything(reader)).startswith(b"HTTP/1.1 429")


@pytest.mark.slow
async def test_a_ticket_of_any_bytes_is_refused(tmp_path: Path) -> None:
    """Bytes that are no text open nothing, and are no fault of the coordinator's."""
    source = write_gguf(tmp_path / "big.gguf", body=os.urandom(2_000_000))
    options = {**OPEN, "max_bytes_per_s": 1_500_000}
    async with fleet(tmp_path, push=options, models_from=TAKES) as running:
        await taking(running, "one")
        ids = await push(running, source, "one")
        await running.until_status(lambda status: status.pushes[0].done_bytes > 0)
        pushes, [row] = running.coordinator._supply.pushes, running.coordinator.status().agents
        pushes._tickets.issue("mine", row.agent_id, ids[0], 0, asyncio.get_running_loop().time())
        papers = "".join(f"{name}: {value}\r\n" for name, value in running.agents["one"]._papers.headers().items())
        async with connected(url_of(running)) as (reader, writer):
            head = f"GET {FILES_PATH} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{papers}{TICKET_HEADER}: "
            writer.write(head.encode() + b"\xff\xfe\r\n\r\n")
            assert (await everything(reader)).startswith(b"HTTP/1.1 403")
        assert {one.state for one in await ended(running, ids)} == {"done"}
