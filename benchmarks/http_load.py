"""A light HTTP client for load generation: it shares the machine with what it measures.

Requests are formatted beforehand; answers are parsed just as far as it takes to find their end.
"""

from __future__ import annotations

import asyncio
import json
import socket
from time import perf_counter
from typing import cast

END_OF_HEADERS = b"\r\n\r\n"
LAST_EVENT = b"data: [DONE]\n\n"


class LoadError(Exception):
    """The server did not answer as the load generator needs it."""


def chat_request(*, model: str, max_tokens: int, stream: bool) -> bytes:
    """A whole HTTP/1.1 request, ready to write."""
    body = json.dumps(
        {
            "model": model,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant. Answer briefly and to the point."},
                {"role": "user", "content": "What does a coordinator of edge language models do all day long?"},
            ],
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": stream,
        }
    ).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer none\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # uvloop's transports are asyncio's by behaviour, not by inheritance.
        self.transport = cast(asyncio.Transport, transport)


class KeepAliveConnection(_Connection):
    """One request after the other; answers must carry a Content-Length."""

    def __init__(self) -> None:
        self._received = b""
        self._end = 0
        self._answer: asyncio.Future[bytes] | None = None

    async def request(self, request: bytes) -> bytes:
        """The answer's body. Raises `LoadError` unless it is a 200."""
        self._received, self._end = b"", 0
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._end:
            head, separator, _ = self._received.partition(END_OF_HEADERS)
            if not separator:
                return
            self._end = len(head) + len(separator) + _content_length(head)
        if len(self._received) < self._end or self._answer is None:
            return
        answer, self._answer = self._answer, None
        head, _, body = self._received.partition(END_OF_HEADERS)
        if b" 200 " in head[:16]:
            answer.set_result(body)
        else:
            answer.set_exception(LoadError(self._received.decode(errors="replace")))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer:
            self._answer.set_exception(LoadError(f"The connection broke: {error}"))


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise LoadError(f"No Content-Length in {head.decode(errors='replace')}")


class EventStream(_Connection):
    """One streamed answer: when its data came, and whether it was whole.

    largest_gap_s: the longest silence between two arrivals of data, from the first data on.
    finished: set once the answer has ended; its result is the whole answer as received.
    """

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._parts: list[bytes] = []
        self._last_s: float | None = None
        self.largest_gap_s = 0.0
        self.finished: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_s = perf_counter()
        if self._last_s is not None and now_s - self._last_s > self.largest_gap_s:
            self.largest_gap_s = now_s - self._last_s
        self._last_s = now_s
        self._parts.append(data)
        if len(self._parts) == 1 and b" 200 " not in data[:16]:
            # A refusal is no stream, and its connection stays open.
            self.transport.close()
            self.finished.set_exception(LoadError(data.decode(errors="replace")))
        elif LAST_EVENT in data:
            self.transport.close()
            self.finished.set_result(b"".join(self._parts))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.finished.done():
            answer = b"".join(self._parts).decode(errors="replace")
            self.finished.set_exception(LoadError(f"The stream broke ({error}) after: {answer[-500:]}"))
