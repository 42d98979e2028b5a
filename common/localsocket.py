"""A daemon's local socket: HTTP on a Unix socket, so that `curl --unix-socket` works as well as our own commands.

Who may ask is the file's group and mode (0660). A stale file of a dead daemon is replaced, a live one is not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from aiohttp import web

from moe2.common.errors import Moe2Error

# sockaddr_un.sun_path holds 108 bytes with its terminator on Linux, unix(7).
MAX_PATH_BYTES = 107


class SocketInUseError(Moe2Error):
    """Another live daemon already answers at this path."""


@contextlib.asynccontextmanager
async def serving(app: web.Application, path: Path) -> AsyncIterator[None]:
    """Serve `app` at `path` for the length of the block. Raises `SocketInUseError`, or `Moe2Error` for a bad path."""
    _claim(path)
    runner = web.AppRunner(app, access_log=None, handle_signals=False, auto_decompress=False)
    await runner.setup()
    try:
        with _explained(path):
            await web.UnixSite(runner, path).start()
            os.chmod(path, 0o660)
        yield
    finally:
        await runner.cleanup()
        _release(path)


def _claim(path: Path) -> None:
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise Moe2Error(
            f"The socket path {path} is longer than {MAX_PATH_BYTES} bytes.", remedy="Choose a shorter one."
        )
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if _is_stale(path):
            path.unlink(missing_ok=True)


def _is_stale(path: Path) -> bool:
    """True for the socket of a dead daemon, False if there is nothing. Raises `Moe2Error` for anything else."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(mode):
        raise Moe2Error(f"{path} exists and is not a socket.", remedy="Remove it, or set another socket.")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except BlockingIOError:
            pass  # Its backlog is full, so somebody is there.
    raise SocketInUseError(f"Another daemon already answers at {path}.", remedy="Stop it, or set another socket.")


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Moe2Error(
            f"The socket path {path} cannot be used: {error.strerror or error}.",
            remedy="Make its directory writable for the daemon's user, or set another socket.",
        ) from error


def _release(path: Path) -> None:
    path.unlink(missing_ok=True)
