"""The page in a browser for tests: keys, made-up plans and fleets, and a coordinator that serves them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from moe2.common.status import CoordinatorStatus
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.paths import PLAN_PATH
from moe2.coordinator.http.routes.events import EventsRoute
from moe2.coordinator.http.routes.page import PageRoute
from moe2.coordinator.observing.history import RecentPast
from tests.coordinator.receipts import agent_row, status

CONTROL = "\ue009"
ENTER = "\ue007"
TAB = "\ue004"
ARROW_LEFT = "\ue012"
ANSWERED = "document.querySelector('#answer .receipt') !== null"
PLAN = {
    "chosen": "id-1/tiny",
    "prompt_tokens": 12,
    "answer_tokens": 128,
    "decision": {
        "mode": "route",
        "category": "default",
        "kind": None,
        "budgets": {"energy_budget_j": 20.0},
        "experts": [
            {"expert": "id-1/tiny", "agent": "orin", "model": "tiny", "score": 0.7, "score_source": "gate",
             "energy_j": {"p50": 10.0, "p95": 12.5}, "energy_quality": "simulated", "ttft_s": None,
             "total_s": {"p50": 1.0, "p95": 1.5}, "candidate": True, "chosen": True, "reason": None},
            {"expert": "id-2/big", "agent": "desk", "model": "big", "score": 0.9, "score_source": "prior",
             "energy_j": None, "energy_quality": None, "ttft_s": None, "total_s": None, "candidate": False,
             "chosen": False, "reason": "needs more energy than the budget"},
        ],
        "certificate": {"method": "branch", "status": "optimal", "value": 0.7, "upper_bound": 0.7, "gap": 0.0,
                        "nodes": 3, "elapsed_s": 0.0004},
    },
    "refusal": None,
    "offers": None,
    "frontier": [{"energy_budget_j": 12.5, "value": 0.7, "experts": ["id-1/tiny"]},
                 {"energy_budget_j": 40.0, "value": 0.9, "experts": ["id-1/tiny", "id-2/big"]}],
}  # fmt: skip


async def visit(check: Callable[[], None]) -> None:
    """Run what a person does, while the fleet goes on in this thread's loop."""
    await asyncio.to_thread(check)


class FakeCoordinator:
    """The page and its feed over a made-up fleet; what a planner would answer is given."""

    def __init__(self, plan: dict[str, Any] | None, key: str | None, fleet_status: CoordinatorStatus) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._plan = plan
        self._key = key
        self._feed = EventsRoute(
            RecentPast(),
            status=lambda: fleet_status,
            power=CapabilityTable(stale_s=1.0, evict_s=1.0).fleet_power,
            lives=lambda: (),
        )

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        PageRoute().add_to(app)
        self._feed.add_to(app)
        if self._plan is not None:
            app.router.add_post(PLAN_PATH, self._answer)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        wanted = f"Bearer {self._key}"
        if self._key and request.path.startswith("/v1/") and request.headers.get("Authorization") != wanted:
            return web.json_response({"error": {"message": "A key is needed."}}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def _answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.json())
        return web.json_response(self._plan)


@asynccontextmanager
async def fake_coordinator(
    *,
    plan: dict[str, Any] | None = None,
    key: str | None = None,
    port: int | None = None,
    fleet_status: CoordinatorStatus | None = None,
) -> AsyncIterator[tuple[str, FakeCoordinator]]:
    fake = FakeCoordinator(plan, key, fleet_status or status(agent_row()))
    async with TestServer(fake.app(), port=port) as server:
        yield str(server.make_url("/")), fake
