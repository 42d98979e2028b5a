"""The agent's local socket: its status as JSON."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web

from moe2.common.localsocket import STATUS_ROUTE
from moe2.common.status import AgentStatus


def local_app(status: Callable[[], AgentStatus]) -> web.Application:
    async def get_status(_: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(status()), content_type="application/json")

    app = web.Application()
    app.router.add_get(STATUS_ROUTE, get_status)
    return app
