"""What the agent answers over HTTP: its status as JSON and its metrics, on the local socket or a listener."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
from aiohttp import web

from moe2.agent.observing.metrics import AgentMetrics
from moe2.common.listening import CONNECTIONS_PER_ADDRESS, HEADER_S, SEND_S, Listening, OpenConnections, listen
from moe2.common.localclient import STATUS_ROUTE
from moe2.common.status import AgentStatus

METRICS_ROUTE = "/metrics"


def local_app(status: Callable[[], AgentStatus], metrics: AgentMetrics) -> web.Application:
    """Returns the HTTP application of the agent's local socket: its status as JSON, and its metrics."""

    async def get_status(_: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(status()), content_type="application/json")

    app = metrics_app(metrics)
    app.router.add_get(STATUS_ROUTE, get_status)
    return app


def metrics_app(metrics: AgentMetrics) -> web.Application:
    """Returns the application of the metrics port, which serves nothing else."""

    async def get_metrics(request: web.Request) -> web.Response:
        body, content_type = metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get(METRICS_ROUTE, get_metrics)
    return app


@asynccontextmanager
async def listening(app: web.Application, host: str, port: int | None) -> AsyncIterator[int | None]:
    """Serves `app` on TCP for the length of the block, and yields the port. Without a port nothing is opened.

    Raises `Moe2Error` if the address cannot be had.
    """
    if port is None:
        yield None
        return
    where = Listening("metrics.", host, port, HEADER_S, None, SEND_S)
    async with AsyncExitStack() as stack:
        yield (await listen(stack, app, where, OpenConnections(CONNECTIONS_PER_ADDRESS))).port
