"""Asks a daemon over its local socket, with the standard library's HTTP client.

For a command that a person waits for: aiohttp alone takes longer to import than all else that `status` needs.
"""

from __future__ import annotations

import http.client
import socket
from http import HTTPStatus
from pathlib import Path

from moe2.common.errors import Moe2Error

# Where every daemon answers with its status as JSON.
STATUS_ROUTE = "/status"


class NotRunningError(Moe2Error):
    """Nobody answers at this path."""


class RefusedError(Moe2Error):
    """The daemon found fault with the request."""


def fetch(path: Path, route: str, *, body: bytes | None = None, timeout_s: float = 5.0) -> bytes:
    """Returns what the daemon at `path` answers to a GET of `route`, or to a POST of `body` to it. Blocks.

    timeout_s: for which it may be silent. Raises `NotRunningError`, `PermissionError`, and `RefusedError` with what the
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
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
