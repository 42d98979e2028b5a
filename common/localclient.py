"""Asks a daemon over its local socket, with the standard library's HTTP client.

For a command that a person waits for: aiohttp alone takes longer to import than all else that `status` needs.
"""

from __future__ import annotations

import http.client
import socket
from http import HTTPStatus
from pathlib import Path
from time import monotonic
from typing import Any

from moe2.common.errors import Moe2Error

# Where every daemon answers with its status as JSON.
STATUS_ROUTE = "/status"


class NotRunningError(Moe2Error):
    """Nobody answers at this path."""


class RefusedError(Moe2Error):
    """The daemon found fault with the request."""


def fetch(path: Path, route: str, *, body: bytes | None = None, timeout_s: float = 5.0) -> bytes:
    """Returns what the daemon at `path` answers to a GET of `route`, or to a POST of `body` to it. Blocks.

    timeout_s: for all of it. Raises `NotRunningError`, `PermissionError`, and `RefusedError` with what the
    daemon had to say against the request.
    """
    connection = _Connection(path, timeout_s)
    try:
        connection.request("GET" if body is None else "POST", route, body)
        response = connection.getresponse()
        content = response.read()
    except PermissionError as error:
        raise PermissionError(f"No permission to use {path}.") from error
    except (OSError, http.client.HTTPException) as error:
        raise NotRunningError(f"Nothing answers at {path}.") from error
    finally:
        connection.close()
    if response.status == HTTPStatus.BAD_REQUEST:
        raise RefusedError(content.decode("utf-8", "replace"))
    if response.status >= HTTPStatus.BAD_REQUEST:
        raise NotRunningError(f"Nothing answers at {path}.")
    return content


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket, with a time limit for everything together."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost")
        self._path = path
        self._ends_s = monotonic() + timeout_s

    def connect(self) -> None:
        self.sock = _Socket(self._ends_s)
        self.sock.connect(str(self._path))


class _Socket(socket.socket):
    """A Unix socket that gives up at a moment, in monotonic seconds: `settimeout` is for each read anew."""

    def __init__(self, ends_s: float) -> None:
        super().__init__(socket.AF_UNIX)
        self._ends_s = ends_s
        self._limit()

    def recv_into(self, *args: Any, **details: Any) -> int:
        self._limit()
        return super().recv_into(*args, **details)

    def _limit(self) -> None:
        left_s = self._ends_s - monotonic()
        if left_s <= 0.0:
            raise TimeoutError
        self.settimeout(left_s)
