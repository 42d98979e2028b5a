"""`GET /metrics` for Prometheus, and the counting of responses."""

from __future__ import annotations

from aiohttp import web

from moe2.coordinator.metrics import CoordinatorMetrics


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
