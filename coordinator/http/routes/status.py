"""The routes that tell how it goes and what there is: the fleet's status, accuracy of predictions, metrics, the API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from moe2.common.localclient import STATUS_ROUTE
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.fleet.bounds import MAX_NAME_CHARACTERS
from moe2.coordinator.http.access.auth import OPEN, ROUTES
from moe2.coordinator.http.errors import invalid, quoted
from moe2.coordinator.http.paths import (
    CALIBRATION_PATH,
    FLEET_PATH,
    HEALTH_PATH,
    METRICS_PATH,
    OPENAPI_PATH,
    READINESS_PATH,
)
from moe2.coordinator.http.query import whole_number
from moe2.coordinator.observing.accuracy import WINDOW, CalibrationWindow
from moe2.coordinator.observing.fleet_view import MAX_HOSTS, AgentState, FleetQuery, page_of
from moe2.coordinator.observing.metrics import CoordinatorMetrics

NAMES = ("limit", "offset", "q", "state", "model")
MAX_LAST = 1_000_000_000
"""The largest accepted `last`, far above the number of requests that are kept."""


def fleet_query(parameters: Mapping[str, str], *, limit: int | None = None) -> FleetQuery:
    """Returns the hosts that are asked for; `limit` holds where the request says nothing.

    Raises `ApiError` for a parameter with a value that means nothing; others are none of its business.
    """
    state = parameters.get("state") or None
    if state is not None and state not in tuple(AgentState):
        raise invalid(f"'state' must be one of {', '.join(AgentState)}, not {quoted(state)}.", param="state")
    for name in ("q", "model"):
        if len(parameters.get(name, "")) > MAX_NAME_CHARACTERS:
            raise invalid(f"'{name}' must not be longer than {MAX_NAME_CHARACTERS} characters.", param=name)
    return FleetQuery(
        limit=_number(parameters, "limit", limit),
        offset=_number(parameters, "offset", 0) or 0,
        text=parameters.get("q", ""),
        state=None if state is None else AgentState(state),
        model=parameters.get("model") or None,
    )


def _number(parameters: Mapping[str, str], name: str, otherwise: int | None) -> int | None:
    text = parameters.get(name)
    if not text:
        return otherwise
    found = whole_number(text, 0, MAX_HOSTS)
    if found is None:
        raise invalid(f"'{name}' must be a whole number of hosts, from 0 to {MAX_HOSTS}.", param=name)
    return found


class CalibrationRoute:
    """The local route that reports how accurate the predictions of recent requests were, computed when it is asked."""

    def __init__(self, window: CalibrationWindow) -> None:
        self._window = window

    def add_to(self, app: web.Application) -> None:
        """Registers the route with the application."""
        app.router.add_get(CALIBRATION_PATH, self._report)

    async def _report(self, http: web.Request) -> web.Response:
        last = whole_number(http.query.get("last", str(WINDOW)), 1, MAX_LAST)
        if last is None:
            raise invalid(f"'last' must be a whole number of requests, from 1 to {MAX_LAST}.", param="last")
        report = self._window.report(last)
        return web.Response(body=msgspec.json.encode(report), content_type="application/json")


class FleetRoutes:
    """The routes that report health and the fleet's status.

    status: returns the present status. why_not_ready: returns the reason why no request could be answered now, or None.
    is_preferred: whether a balancer should prefer this coordinator to others of the same fleet.
    """

    def __init__(
        self,
        status: Callable[[], CoordinatorStatus],
        why_not_ready: Callable[[], str | None],
        is_preferred: Callable[[], bool] = lambda: True,
    ) -> None:
        self._status = status
        self._why_not_ready = why_not_ready
        self._is_preferred = is_preferred

    def add_to(self, app: web.Application) -> None:
        """Registers the routes of the API listener with the application."""
        app.router.add_get(HEALTH_PATH, self._healthz)
        app.router.add_get(READINESS_PATH, self._readyz)
        app.router.add_get(FLEET_PATH, self._fleet)

    def add_to_local(self, app: web.Application) -> None:
        """Registers the routes of the local socket with the application."""
        app.router.add_get(STATUS_ROUTE, self._fleet)

    async def _healthz(self, _: web.Request) -> web.Response:
        """Answers 200 as long as the process lives and its loop turns."""
        return web.json_response({"status": "ok"})

    async def _readyz(self, http: web.Request) -> web.Response:
        """Answers 200 if a request sent now would find an expert, otherwise 503.

        Where it is asked for with `?preferred`, that holds only for the coordinator that a balancer should prefer.
        """
        reason, is_preferred = self._why_not_ready(), self._is_preferred()
        if reason is None and "preferred" in http.query and not is_preferred:
            reason = "another coordinator is to be preferred"
        if reason is None:
            return web.json_response({"status": "ready", "preferred": is_preferred})
        return web.json_response({"status": "not ready", "reason": reason}, status=503, headers={"Retry-After": "5"})

    async def _fleet(self, http: web.Request) -> web.Response:
        shown = page_of(self._status(), fleet_query(http.query))
        return web.Response(body=msgspec.json.encode(shown), content_type="application/json")


class MetricsRoute:
    """The route that Prometheus scrapes; it also counts the responses of every route."""

    def __init__(self, metrics: CoordinatorMetrics) -> None:
        self._metrics = metrics

    def add_to(self, app: web.Application) -> None:
        """Registers the route and the counting of responses with the application."""
        app.router.add_get(METRICS_PATH, self._scrape)
        app.on_response_prepare.append(self._count)

    async def _scrape(self, request: web.Request) -> web.Response:
        body, content_type = self._metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _count(self, request: web.Request, response: web.StreamResponse) -> None:
        # The route's pattern, not the path: a client must not be able to make new label values.
        resource = request.match_info.route.resource
        self._metrics.response_begun("unmatched" if resource is None else resource.canonical, response.status)


class OpenApiRoute:
    """The route that serves the API's description as an OpenAPI document.

    describe: makes it, given the paths that need no key. It is encoded once.
    """

    def __init__(self, describe: Callable[[frozenset[str]], dict[str, Any]]) -> None:
        self._describe = describe
        self._encoded: bytes | None = None

    def add_to(self, app: web.Application) -> None:
        """Registers the route with the application."""
        app.router.add_get(OPENAPI_PATH, self._document)

    async def _document(self, _: web.Request) -> web.Response:
        if self._encoded is None:
            # It takes tens of milliseconds.
            self._encoded = await asyncio.to_thread(self._encode)
        return web.Response(body=self._encoded, content_type="application/json")

    def _encode(self) -> bytes:
        return msgspec.json.encode(self._describe(frozenset(path for path, scopes in ROUTES.items() if scopes == OPEN)))
