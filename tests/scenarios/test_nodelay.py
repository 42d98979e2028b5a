"""No hop waits for a fuller packet: Nagle's algorithm is off on every TCP socket of a running fleet."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop

from tests.fakes.fleet import fleet

Run = Callable[[Coroutine[Any, Any, None]], None]
# The daemons run on uvloop, most tests on asyncio's own loop; each sets the options of its sockets by itself.
on_both_loops = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@on_both_loops
def test_both_ends_of_the_agent_link_have_nodelay(run: Run, tmp_path: Path) -> None:
    """The coordinator's and the agent's socket of a link both send small frames at once."""

    async def scenario() -> None:
        async with fleet(tmp_path) as built:
            port = _port(built.coordinator.agents_url)
            coordinator_ends = [option for local, _, option in _tcp_connections() if local == port]
            agent_ends = [option for _, remote, option in _tcp_connections() if remote == port]
        assert coordinator_ends == [True]
        assert agent_ends == [True]

    run(scenario())


@on_both_loops
def test_the_api_socket_has_nodelay_while_it_streams(run: Run, tmp_path: Path) -> None:
    """The socket that carries a client's token stream sends each chunk at once."""

    async def scenario() -> None:
        async with fleet(tmp_path) as built:
            port = _port(built.coordinator.api_url)
            response = await built.chat("one two three", stream=True, max_tokens=8)
            await response.content.readline()
            api_ends = [option for local, _, option in _tcp_connections() if local == port]
            await response.read()
        assert api_ends == [True]

    run(scenario())


def _port(url: str) -> int:
    port = urlsplit(url).port
    assert port
    return port


def _tcp_connections() -> list[tuple[int, int, bool]]:
    """Local port, remote port and TCP_NODELAY of each TCP connection that this process has open, duplicates removed.

    Read from the kernel, not from the code that is tested: the process's descriptors are looked at one by one.
    """
    found: dict[int, tuple[int, int, bool]] = {}
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            link = os.readlink(f"/proc/self/fd/{descriptor}")
            duplicate = socket.socket(fileno=os.dup(descriptor)) if link.startswith("socket:") else None
        except OSError:
            continue  # the descriptor of the listing itself
        if duplicate is None:
            continue
        with duplicate:
            if duplicate.family is not socket.AF_INET or duplicate.type is not socket.SOCK_STREAM:
                continue
            try:
                remote = duplicate.getpeername()[1]
            except OSError:
                continue  # a listener
            nodelay = bool(duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            # A descriptor may have copies; they are one socket with one inode.
            found[os.fstat(duplicate.fileno()).st_ino] = (duplicate.getsockname()[1], remote, nodelay)
    return list(found.values())
