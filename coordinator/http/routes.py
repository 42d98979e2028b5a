"""The small routes: health, the fleet, the accuracy of predictions, metrics, and the API described for tools."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import msgspec
from aiohttp import web

from moe2.common.localsocket import STATUS_ROUTE
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.http.auth import OPEN, ROUTES
from moe2.coordinator.http.body.decode import whole_number
from moe2.coordinator.http.errors import invalid
from moe2.coordinator.http.openapi import document
from moe2.coordinator.http.paths import CALIBRATION_PATH, OPENAPI_PATH
from moe2.coordinator.observing.accuracy import WINDOW, CalibrationWindow
from moe2.coordinator.observing.metrics import CoordinatorMetrics

MAX_LAST = 1_000_000_000
"""Above any number of requests that is kept."""


class CalibrationRoute:
    """Answers from the window, computed when asked."""

    def __init__(self, window: CalibrationWindow) -> None:
        self._window = window

    def add_to(self, app: web.Application) -> None:
        app.router.add_get(CALIBRATION_PATH, self._report)

    async def _report(self, http: web.Request) -> web.Response:
        last = whole_number(http.query.get("last", str(WINDOW)), 1, MAX_LAST)
        if last is None:
            raise invalid(f"'last' must be a whole number of requests, from 1 to {MAX_LAST}.", param="last")
        report = self._window.report(last)
        return web.Response(body=msgspec.json.encode(report), content_type="application/json")


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


class MetricsRoute:
    def __init__(self, metrics: CoordinatorMetrics) -> None:
        self._metrics = metrics

    def add_to(self, app: web.Application) -> None:
        app.router.add_get("/metrics", self._scrape)
        app.on_response_prepare.append(self._count)

    async def _scrape(self, request: web.Request) -> web.Response:
        body, content_type = self._metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _count(self, request: web.Request, response: web.StreamResponse) -> None:
        # The route's pattern, not the path: a client must not be able to make new label values.
        resource = request.match_info.route.resource
        self._metrics.response_begun("unmatched" if resource is None else resource.canonical, response.status)


class OpenApiRoute:
    def add_to(self, app: web.Application) -> None:
        app.router.add_get(OPENAPI_PATH, self._document)

    async def _document(self, _: web.Request) -> web.Response:
        return web.Response(body=_encoded(), content_type="application/json")


@cache
def _encoded() -> bytes:
    return msgspec.json.encode(document(frozenset(path for path, scopes in ROUTES.items() if scopes == OPEN)))
