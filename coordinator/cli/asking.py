"""How commands ask the running coordinator over its local socket."""

from __future__ import annotations

from pathlib import Path

import msgspec

from moe2.common.errors import Moe2Error
from moe2.common.localclient import NotRunningError, RefusedError, fetch

ANSWER_S = 30.0


def asked(socket: Path, route: str, body: bytes | None, *, timeout_s: float = ANSWER_S) -> bytes:
    """What the coordinator answers. Raises `Moe2Error` with its words where it refuses, or where it does not run."""
    try:
        return fetch(socket, route, body=body, timeout_s=timeout_s)
    except NotRunningError as error:
        raise Moe2Error(
            f"The coordinator does not run: {error}", remedy="Start it: systemctl start moe2-coordinator."
        ) from error
    except RefusedError as error:
        raise Moe2Error(_message(error.message)) from error


def _message(text: str) -> str:
    """The sentence in an error's JSON; the text itself where it is none."""
    try:
        return str(msgspec.json.decode(text)["error"]["message"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return text
