"""Slow clients on the API listener: who sends or takes bytes too slowly is cut off, so that it holds nothing."""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from moe2.coordinator.api.errors import refused
from moe2.coordinator.errors import ErrorCode

LINGER_S = 1.0
"""How long what is left of a refused body is read and thrown away, so that its sender sees the answer."""


def body_deadline(body_timeout_s: float, send_timeout_s: float) -> Middleware:
    """A middleware that has the whole body read within `body_timeout_s`, or answers 408 and ends the connection.

    The handler finds the body already there. A client that takes nothing of its answer for `send_timeout_s` is cut off
    by the kernel (TCP_USER_TIMEOUT, tcp(7)), which cancels the handler.
    """
    send_timeout_ms = max(1, round(1000 * send_timeout_s))

    @web.middleware
    async def read_in_time(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, send_timeout_ms)
        if request.body_exists:
            try:
                async with asyncio.timeout(body_timeout_s):
                    await request.read()
            except TimeoutError:
                text = f"The body did not come within {body_timeout_s:g} s (api.body_timeout_s)."
                raise refused(ErrorCode.REQUEST_TIMEOUT, text) from None
        return await handler(request)

    return read_in_time
