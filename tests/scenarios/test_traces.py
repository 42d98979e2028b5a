"""A whole request, traced over OTLP/HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.fakes.fleet import fleet


async def test_a_requests_spans_reach_the_collector(tmp_path: Path) -> None:
    """At the latest when the coordinator stops; the request's id finds them."""
    arrived: asyncio.Queue[bytes] = asyncio.Queue()

    async def take(request: web.Request) -> web.Response:
        arrived.put_nowait(await request.read())
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
        async with fleet(tmp_path, traces={"endpoint": endpoint}) as running:
            async with await running.chat("a b", max_tokens=2) as answer:
                request_id = answer.headers["x-request-id"]
            await running.quiet()
        exported = ExportTraceServiceRequest.FromString(arrived.get_nowait())
    finally:
        await runner.cleanup()
    spans = [span for resource in exported.resource_spans for scope in resource.scope_spans for span in scope.spans]
    (request,) = [span for span in spans if span.name == "moe2.request"]
    assert request_id in {attribute.value.string_value for attribute in request.attributes}
