"""An answer as server-sent events: it begins at once, and says something again and again as long as it lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web

COMMENT = b": moe2 is working on it\n\n"
"""What is sent where there is nothing to say: a comment, which clients pass over (WHATWG HTML, section 9.2.6)."""
HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
    # nginx passes on what it gets, instead of waiting until a buffer is full.
    "X-Accel-Buffering": "no",
}


class EventStream:
    """A response of server-sent events. comment_s: the longest silence."""

    def __init__(self, http: web.Request, *, comment_s: float) -> None:
        self._http = http
        self._comment_s = comment_s
        self._response: web.StreamResponse | None = None
        self._spoke_s: float | None = None

    async def open(self, headers: Mapping[str, str]) -> None:
        """Sends the status line and the headers."""
        self._response = web.StreamResponse(headers={**HEADERS, **headers})
        await self._response.prepare(self._http)

    async def write(self, events: bytes) -> None:
        """Sends events; a comment in their place where there are none and the silence has been long enough.

        The first call sends one at once, so that nothing on the way holds the headers back.
        """
        if events:
            await self._send(events)
        elif self._silent_s is None or self._silent_s >= self._comment_s:
            await self._send(COMMENT)

    async def close(self, events: bytes) -> web.StreamResponse:
        """Sends the last events and ends the response."""
        await self._send(events)
        assert self._response is not None  # noqa: S101 - it was opened
        await self._response.write_eof()
        return self._response

    async def news_or_silence(self, news: asyncio.Event) -> None:
        """Waits for news, but no longer than until something has to be said again."""
        if news.is_set():
            news.clear()
            return
        try:
            async with asyncio.timeout(max(0.0, self._comment_s - (self._silent_s or 0.0))):
                await news.wait()
        except TimeoutError:
            return
        news.clear()

    @property
    def _silent_s(self) -> float | None:
        """The seconds since something was sent; None where nothing was."""
        return None if self._spoke_s is None else asyncio.get_running_loop().time() - self._spoke_s

    async def _send(self, content: bytes) -> None:
        assert self._response is not None  # noqa: S101 - it was opened
        await self._response.write(content)
        self._spoke_s = asyncio.get_running_loop().time()
