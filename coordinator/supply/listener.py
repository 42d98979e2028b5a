"""The listener for files: agents fetch models here by ranges, with their credential and a ticket."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from io import FileIO

import structlog
from aiohttp import web

from moe2.common.errors import Moe2Error
from moe2.common.link.supply import FILES_PATH, TICKET_HEADER
from moe2.common.token_bucket import TokenBucket
from moe2.coordinator.fleet.doorkeeper import Doorkeeper
from moe2.coordinator.fleet.register import AgentRefusedError
from moe2.coordinator.supply.pushes import Pushes
from moe2.coordinator.supply.settings import PushSection
from moe2.coordinator.supply.tickets import TicketFault

log = structlog.get_logger()

CHUNK_BYTES = 1 << 19
SEND_S = 60.0
"""A chunk that an agent does not take within this time ends the connection; the agent then asks for the rest."""
REFUSALS_LOGGED_PER_MINUTE = 60.0
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


class FileListener:
    """Answers agents' requests for files."""

    def __init__(self, pushes: Pushes, doorkeeper: Doorkeeper, settings: PushSection) -> None:
        self._pushes = pushes
        self._doorkeeper = doorkeeper
        self._pace = Pace(settings.max_bytes_per_s)
        self._refusals_logged = TokenBucket(REFUSALS_LOGGED_PER_MINUTE, 0.0)

    def app(self) -> web.Application:
        """Returns the application of the listener."""
        app = web.Application()
        app.router.add_get(FILES_PATH, self._give, allow_head=False)
        return app

    async def _give(self, request: web.Request) -> web.StreamResponse:
        if "Origin" in request.headers or request.body_exists:
            raise web.HTTPForbidden(text="Agents fetch models here, and nobody else.")
        try:
            identity = await self._doorkeeper.admit(request.headers)
        except AgentRefusedError as error:
            raise web.HTTPUnauthorized(text="This is no agent's credential.") from error
        except Moe2Error as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error
        now_s = asyncio.get_running_loop().time()
        agent_id = identity.agent_id or ""
        found = self._pushes.admit(request.headers.get(TICKET_HEADER, ""), agent_id, now_s)
        if isinstance(found, TicketFault):
            if self._refusals_logged.take(now_s) == 0.0:
                log.warning("ticket_refused", reason=found.value, agent_id=agent_id, peer=request.remote)
            raise web.HTTPForbidden(text=f"The ticket opens nothing: {found.value}.")
        push, part = found
        path, whole = push.parcel.paths[part], push.parcel.parts[part].size_bytes
        try:
            start = _start_of(request.headers.get("Range"), whole)
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
                await self._stream(answer, file, start, whole, lambda done: self._pushes.sent(push, part, done))
                return answer
        finally:
            self._pushes.hung_up(push)

    async def _stream(
        self, answer: web.StreamResponse, file: FileIO, start: int, whole: int, on_sent: Callable[[int], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        position = start
        file.seek(start)
        while position < whole:
            chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, whole - position))
            if not chunk:
                return
            async with asyncio.timeout(SEND_S):
                await answer.write(chunk)
            position += len(chunk)
            on_sent(position)
            if (wait_s := self._pace.wait_s(len(chunk), loop.time())) > 0:
                await asyncio.sleep(wait_s)
        await answer.write_eof()


def _start_of(header: str | None, whole: int) -> int:
    """Where the wanted range begins; ranges reach to the end. Raises a 416 for any other."""
    found = _RANGE.fullmatch(header or "bytes=0-")
    if found is None or not 0 <= int(found[1]) <= max(0, whole - 1):
        raise web.HTTPRequestRangeNotSatisfiable(headers={"Content-Range": f"bytes */{whole}"})
    return int(found[1])
