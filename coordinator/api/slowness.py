"""Slow clients on the API listener: who takes an answer too slowly is cut off, so that it holds nothing."""

from __future__ import annotations

import socket

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

LINGER_S = 1.0
"""How long what is left of a refused body is read and thrown away, so that its sender sees the answer."""


def send_deadline(timeout_s: float) -> Middleware:
    """A middleware that has the kernel cut off a client that takes nothing of its answer for `timeout_s`.

    TCP_USER_TIMEOUT of tcp(7); the connection's end cancels the handler.
    """
    timeout_ms = max(1, round(1000 * timeout_s))

    @web.middleware
    async def limit_sending(request: web.Request, handler: Handler) -> web.StreamResponse:
        connection = request.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        return await handler(request)

    return limit_sending
