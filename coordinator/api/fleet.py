"""Health and fleet: for load balancers, operators and pages. Liveness and readiness are two questions."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from aiohttp import web

from moe2.common.localsocket import STATUS_ROUTE
from moe2.common.status import CoordinatorStatus


class FleetRoutes:
    """Answers from a status snapshot and a readiness check, both given."""

    def __init__(self, status: Callable[[], CoordinatorStatus], why_not_ready: Callable[[], str | None]) -> None:
        self._status = status
        self._why_not_ready = why_not_ready

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/v1/moe2/fleet", self._fleet)

    def add_to_local(self, app: web.Application) -> None:
        """What the local socket serves."""
        app.router.add_get(STATUS_ROUTE, self._fleet)

    async def _healthz(self, _: web.Request) -> web.Response:
        """The process lives and its loop turns."""
        return web.json_response({"status": "ok"})

    async def _readyz(self, _: web.Request) -> web.Response:
        """A request sent now would find an expert."""
        reason = self._why_not_ready()
        if reason is None:
            return web.json_response({"status": "ready"})
        return web.json_response({"status": "not ready", "reason": reason}, status=503, headers={"Retry-After": "5"})

    async def _fleet(self, _: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self._status()), content_type="application/json")
