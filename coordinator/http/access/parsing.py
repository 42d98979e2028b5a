"""Parsing of request bodies: long ones off the event loop, one at a time, so that nobody is held up by another's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakValueDictionary

from aiohttp import web

T = TypeVar("T")

MAX_ON_LOOP_BYTES = 32_768
"""The longest body that is parsed on the event loop; the worst of this length takes a few milliseconds."""


class ParsingThread:
    """A thread that parses long bodies. Clients take turns: each has one body in line, its others wait for that."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="parse")
        self._lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def close(self) -> None:
        """Ends the thread once it has parsed what it has begun."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def run(self, client: str, parse: Callable[[bytes], T], content: bytes) -> T:
        """Returns what `parse` makes of a client's body, and raises what it raises."""
        line = self._lines.setdefault(client, asyncio.Lock())
        async with line:
            return await asyncio.get_running_loop().run_in_executor(self._thread, parse, content)


class Body:
    """The body of a POST request, whole and unpacked.

    client: the name under which a client's bodies count together. on_parsed: called once the body is not needed.
    """

    def __init__(self, content: bytes, client: str, thread: ParsingThread, on_parsed: Callable[[], None]) -> None:
        self._content = content
        self._client = client
        self._thread = thread
        self._on_parsed = on_parsed

    @property
    def content(self) -> bytes:
        """The bytes; none once they have been parsed."""
        return self._content

    async def parsed(self, parse: Callable[[bytes], T]) -> T:
        """Returns what `parse` makes of the body, and raises what it raises. It may be called once.

        A long body is parsed in a thread: `parse` must change nothing that the event loop reads, and may not count on
        what the event loop changes.
        """
        if len(self._content) <= MAX_ON_LOOP_BYTES:
            made = parse(self._content)
        else:
            made = await self._thread.run(self._client, parse, self._content)
        self._content = b""
        self._on_parsed()
        return made


BODY = web.RequestKey("body", Body)
"""The body of a POST request."""
