"""Answers requests for files by ranges: where a range begins, how fast the bytes go out, and the bytes themselves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from io import FileIO
from pathlib import Path

from aiohttp import web

from moe2.common.courtesy import PacedLine

CHUNK_BYTES = 1 << 19
SEND_S = 60.0
"""A chunk that a peer does not take within this time ends the connection; the peer then asks for the rest."""
_RANGE = re.compile(r"bytes=([0-9]{1,18})-")


@dataclass
class Pace:
    """The rate that all connections share. PURE. per_s: bytes; None for no limit."""

    per_s: int | None
    free_at_s: float = 0.0

    def wait_s(self, n_bytes: int, now_s: float) -> float:
        """Takes room for so many bytes; returns the seconds to wait before the next ones."""
        if self.per_s is None:
            return 0.0
        self.free_at_s = max(self.free_at_s, now_s) + n_bytes / self.per_s
        return self.free_at_s - now_s


def check_plain(request: web.Request) -> None:
    """Raises a 403 for a request that no agent makes: one with a body, or from a page in a browser."""
    if "Origin" in request.headers or request.body_exists:
        raise web.HTTPForbidden(text="Agents fetch models here, and nobody else.")


async def send_file(
    request: web.Request, path: Path, whole: int, pace: Pace, on_sent: Callable[[int], None]
) -> web.StreamResponse:
    """Answers with the file from the wanted place to its end. Raises a 410 where it cannot be read, a 416 for a range.

    whole: the file's size in bytes. on_sent: told how far it is.
    """
    start = start_of(request.headers.get("Range"), whole)
    try:
        file = await asyncio.to_thread(FileIO, path, "r")
    except OSError as error:
        raise web.HTTPGone(text=f"The file cannot be read any more: {error.strerror}.") from error
    with file:
        answer = web.StreamResponse(
            status=HTTPStatus.PARTIAL_CONTENT, headers={"Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
        )
        answer.content_length = whole - start
        await answer.prepare(request)
        await _stream(request, answer, file, start, whole, pace, on_sent)
        return answer


async def _stream(
    request: web.Request,
    answer: web.StreamResponse,
    file: FileIO,
    start: int,
    whole: int,
    pace: Pace,
    on_sent: Callable[[int], None],
) -> None:
    loop = asyncio.get_running_loop()
    position = start
    line = PacedLine(request.transport)
    file.seek(start)
    while position < whole:
        chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, whole - position))
        if not chunk:
            return
        async with asyncio.timeout(SEND_S):
            await answer.write(chunk)
        position += len(chunk)
        on_sent(position)
        line.look(loop.time())
        if (wait_s := pace.wait_s(len(chunk), loop.time())) > 0:
            await asyncio.sleep(wait_s)
    await answer.write_eof()


def start_of(header: str | None, whole: int) -> int:
    """Where the wanted range begins; ranges reach to the end. Raises a 416 for any other."""
    found = _RANGE.fullmatch(header or "bytes=0-")
    if found is None or not 0 <= int(found[1]) <= max(0, whole - 1):
        raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{whole}"})
    return int(found[1])
