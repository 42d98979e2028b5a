"""A daemon's local socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from moe2.common.errors import Moe2Error
from moe2.common.localclient import NotRunningError, fetch
from moe2.common.localsocket import MAX_PATH_BYTES, SocketInUseError, serving

UNPRIVILEGED_UID = 65_534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "daemon.sock"


@pytest.fixture
def precious(tmp_path: Path) -> str:
    (tmp_path / "precious").write_text("content")
    return str(tmp_path / "precious")


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that every user may enter; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def is_there(path: Path) -> bool:
    return path.exists()


def is_same(path: Path, other: str) -> bool:
    return path.samefile(other)


def app(text: str = "here") -> web.Application:
    async def status(_: web.Request) -> web.Response:
        return web.Response(text=text)

    built = web.Application()
    built.router.add_get("/status", status)
    return built


@asynccontextmanager
async def unprivileged() -> AsyncIterator[None]:
    """Root may do everything, so give up being root for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(UNPRIVILEGED_UID)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_client_gets_what_the_daemon_answers(path: Path) -> None:
    """HTTP over the socket."""
    async with serving(app(), path):
        assert await asyncio.to_thread(fetch, path, "/status") == b"here"


async def test_owner_and_group_may_use_it_and_nobody_else(path: Path) -> None:
    """Mode 0660."""
    async with serving(app(), path):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660


async def test_the_file_goes_with_the_daemon(path: Path) -> None:
    """What answers nobody is not left lying about."""
    async with serving(app(), path):
        assert is_there(path)
    assert not is_there(path)


async def test_missing_directories_are_made(tmp_path: Path) -> None:
    """A run directory may not survive a boot."""
    path = tmp_path / "a" / "b" / "daemon.sock"
    async with serving(app(), path):
        assert await asyncio.to_thread(fetch, path, "/status") == b"here"


async def test_a_stale_file_is_replaced(path: Path) -> None:
    """A daemon that was killed leaves its socket; the next one starts all the same."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(app("new"), path):
        assert await asyncio.to_thread(fetch, path, "/status") == b"new"


async def test_a_live_socket_is_not_taken_over(path: Path) -> None:
    """The second daemon is refused with a remedy; the first goes on."""
    async with serving(app("first"), path):
        with pytest.raises(SocketInUseError, match="Stop it, or set another socket"):
            async with serving(app("second"), path):
                pass
        assert await asyncio.to_thread(fetch, path, "/status") == b"first"


async def test_a_live_socket_too_busy_to_answer_is_not_taken_over(path: Path) -> None:
    """A full backlog is a sign of life."""
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(SocketInUseError):
            async with serving(app(), path):
                pass
        assert is_there(path)


async def test_a_file_that_is_no_socket_is_left_alone(path: Path, precious: str) -> None:
    """A path set by mistake must not cost a file."""
    os.link(precious, path)
    with pytest.raises(Moe2Error, match="not a socket"):
        async with serving(app(), path):
            pass
    assert is_same(path, precious)


async def test_a_path_too_long_for_the_kernel_is_refused_in_words(tmp_path: Path) -> None:
    """unix(7) allows 107 bytes."""
    path = tmp_path / ("x" * MAX_PATH_BYTES)
    with pytest.raises(Moe2Error, match=r"longer than 107 bytes\. Choose a shorter one"):
        async with serving(app(), path):
            pass


async def test_a_directory_without_permission_is_refused_in_words(reachable: Path) -> None:
    """The error names the path and what to do."""
    os.chmod(reachable, 0o555)
    async with unprivileged():
        with pytest.raises(Moe2Error, match=r"cannot be used: .*Make its directory writable"):
            async with serving(app(), reachable / "daemon.sock"):
                pass
    os.chmod(reachable, 0o755)


async def test_nobody_there_is_not_running(path: Path) -> None:
    """No file at all."""
    with pytest.raises(NotRunningError, match=str(path)):
        await asyncio.to_thread(fetch, path, "/status")


async def test_a_stale_file_is_not_running(path: Path) -> None:
    """A file that nobody listens at."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotRunningError):
        await asyncio.to_thread(fetch, path, "/status")


async def test_a_daemon_that_does_not_answer_is_not_running(path: Path) -> None:
    """Connecting is not enough; the wait is bounded."""
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(path))
        mute.listen()
        with pytest.raises(NotRunningError):
            await asyncio.to_thread(fetch, path, "/status", timeout_s=0.01)


@pytest.mark.timeout(30)
async def test_a_daemon_that_never_comes_to_an_end_is_not_running(path: Path) -> None:
    """The wait is for the whole answer, however steadily it comes."""
    ended = asyncio.Event()

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            while True:
                writer.write(b".")
                await writer.drain()
                await asyncio.sleep(0.01)
        ended.set()

    async with await asyncio.start_unix_server(drip, path):
        with pytest.raises(NotRunningError):
            await asyncio.to_thread(fetch, path, "/status", timeout_s=0.2)
        await ended.wait()


async def test_no_permission_is_told_apart_from_not_running(reachable: Path) -> None:
    """The remedy is another one: join the group, not start the daemon."""
    path = reachable / "daemon.sock"
    async with serving(app(), path):
        os.chmod(path, 0)
        async with unprivileged():
            with pytest.raises(PermissionError):
                await asyncio.to_thread(fetch, path, "/status")


async def test_curl_can_ask_as_well(path: Path) -> None:
    """An unknown route is a plain HTTP 404 of a running daemon."""
    async with (
        serving(app(), path),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(path))) as session,
        session.get("http://localhost/nothing") as response,
    ):
        assert response.status == 404
