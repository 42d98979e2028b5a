"""An answer as server-sent events: it begins at once, and says something again and again as long as it lasts."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Self

from aiohttp import web

HEADERS = {
    "Cache-Control": "no-cache",
    # nginx passes on what it gets, instead of waiting until a buffer is full.
    "X-Accel-Buffering": "no",
}


class EventStream:
    """A response of server-sent events. news: set where there is more to write, and when the silence has been too long.

    comment_s: the longest silence. comment: what is sent where there is nothing to say. content_type: that of other
    streams, whose events are no server-sent ones.

    Used as a context manager, which watches the silence with one timer: to limit each wait for news by itself would
    cost a timer for every token.
    """

    def __init__(
        self,
        http: web.Request,
        news: asyncio.Event,
        *,
        comment_s: float,
        comment: bytes,
        content_type: str = "text/event-stream",
    ) -> None:
        self._http = http
        self._news = news
        self._comment_s = comment_s
        self._comment = comment
        self._content_type = content_type
        self._loop = asyncio.get_running_loop()
        self._response: web.StreamResponse | None = None
        self._spoke_s: float | None = None
        self._began_s = self._loop.time()
        self._timer = self._loop.call_later(comment_s, self._look)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    async def open(self, headers: Mapping[str, str]) -> None:
        """Sends the status line and the headers."""
        self._response = web.StreamResponse(headers={**HEADERS, "Content-Type": self._content_type, **headers})
        await self._response.prepare(self._http)

    async def write(self, events: bytes) -> None:
        """Sends events; the comment in their place where there are none and the silence has been long enough.

        The first call sends one at once, so that nothing on the way holds the headers back.
        """
        if events:
            await self._send(events)
        elif self._spoke_s is None or self._silent_s >= self._comment_s:
            await self._send(self._comment)

    async def close(self, events: bytes) -> web.StreamResponse:
        """Sends the last events and ends the response."""
        await self._send(events)
        assert self._response is not None  # noqa: S101 - it was opened
        await self._response.write_eof()
        return self._response

    async def news_or_silence(self) -> None:
        """Waits for news, but no longer than until something has to be said again."""
        await self._news.wait()
        self._news.clear()

    @property
    def _silent_s(self) -> float:
        """The seconds since something was sent, or since the stream began."""
        return self._loop.time() - (self._began_s if self._spoke_s is None else self._spoke_s)

    def _look(self) -> None:
        """Ends the wait where the silence has been long enough, and looks again when it could next be."""
        left_s = self._comment_s - self._silent_s
        if left_s <= 0:
            self._news.set()
            left_s = self._comment_s
        self._timer = self._loop.call_later(left_s, self._look)

    async def _send(self, content: bytes) -> None:
        assert self._response is not None  # noqa: S101 - it was opened
        await self._response.write(content)
        self._spoke_s = self._loop.time()
