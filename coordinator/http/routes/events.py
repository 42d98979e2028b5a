"""The live feed `GET /v1/moe2/events`: the fleet and its requests as server-sent events.

The event `hello` comes once, with the coordinator's features, the recent requests (those after the number `after`,
for a viewer that knows the earlier ones) and the energy history. Each event
`tick` that follows has those of the keys `fleet` (the status), `running`, `power`, `bin` and `requests` (newly ended
ones) that have changed. `fleet` is of a part of the hosts (the parameters of `GET /v1/moe2/fleet`), and has those of
its fields that have changed. The feed polls a few times a second, so that a busy fleet costs its requests nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import msgspec
from aiohttp import web

from moe2.common.status import CoordinatorStatus
from moe2.coordinator.fleet.table import FleetPower
from moe2.coordinator.http.access.auth import IS_KEY_ACTIVE, PRINCIPAL
from moe2.coordinator.http.errors import ApiError
from moe2.coordinator.http.paths import EVENTS_PATH, PLAN_PATH
from moe2.coordinator.http.query import whole_number
from moe2.coordinator.http.routes.status import fleet_query
from moe2.coordinator.keys.keys import Scope
from moe2.coordinator.observing.fleet_view import FleetFeed
from moe2.coordinator.observing.history import RecentPast, running
from moe2.coordinator.serving.life import Lifecycle

LOOK_EVERY_S = 0.25
LOOKS_PER_STATUS = 4
MAX_VIEWERS = 32
MAX_REQUESTS_PER_TICK = 50
MAX_RUNNING = 50
USUAL_HOSTS = 50
"""Hosts that a viewer is shown who does not say how many."""
# A viewer that takes no bytes for this long is gone, or will be better served by connecting again.
STUCK_S = 30.0


class EventsRoute:
    """The route of the live feed, for at most `MAX_VIEWERS` viewers at a time.

    status: returns the fleet's present status. power: returns what its hosts draw now. lives: returns the requests in
    progress, oldest first.
    """

    def __init__(
        self,
        past: RecentPast,
        *,
        status: Callable[[], CoordinatorStatus],
        power: Callable[[], FleetPower],
        lives: Callable[[], tuple[Lifecycle, ...]],
    ) -> None:
        self._past = past
        self._status = status
        self._power = power
        self._lives = lives
        self._n_viewers = 0
        self._latest: tuple[float, CoordinatorStatus] | None = None
        """The status that viewers were shown last, and when it was made: all of them share it."""
        self._closing = asyncio.Event()

    def add_to(self, app: web.Application) -> None:
        """Registers the route with the application."""
        app.router.add_get(EVENTS_PATH, self._serve)
        app.on_shutdown.append(self._close)

    async def _close(self, _: web.Application) -> None:
        self._closing.set()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        query = fleet_query(request.query, limit=USUAL_HOSTS)
        after = self._known_seq(request.query.get("after", ""))
        if self._n_viewers >= MAX_VIEWERS:
            raise ApiError(503, f"All {MAX_VIEWERS} live feeds are in use.", kind="server_error", retry_after_s=10)
        self._n_viewers += 1
        try:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
            await response.prepare(request)
            with suppress(TimeoutError):
                await self._feed(
                    response,
                    FleetFeed(query),
                    after=after,
                    features={"plan": _has_route(request.app, PLAN_PATH), "operate": _may_operate(request)},
                    is_key_active=request.get(IS_KEY_ACTIVE, lambda: True),
                )
            return response
        finally:
            self._n_viewers -= 1

    async def _feed(
        self,
        response: web.StreamResponse,
        fleet: FleetFeed,
        *,
        after: int,
        features: dict[str, bool],
        is_key_active: Callable[[], bool],
    ) -> None:
        seq = self._past.requests.last_seq
        await _write(response, "hello", self._hello(after, features))
        looks = 0
        # A key that is revoked or expires takes the feed along.
        while not self._closing.is_set() and is_key_active():
            tick: dict[str, Any] = {}
            if looks % LOOKS_PER_STATUS == 0:
                tick |= self._present(fleet)
            if ended := self._past.requests.since(seq, most=MAX_REQUESTS_PER_TICK):
                tick |= {"requests": [one.json for one in ended], "n_skipped": ended[0].seq - seq - 1}
                seq = ended[-1].seq
            if tick:
                await _write(response, "tick", tick)
            looks += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._closing.wait()

    def _known_seq(self, text: str) -> int:
        """The number of the last request that a viewer knows; 0 where it says none, or one that never was."""
        return whole_number(text, 0, self._past.requests.last_seq) or 0

    def _hello(self, after: int, features: dict[str, bool]) -> dict[str, Any]:
        energy = self._past.energy
        return {
            "features": features,
            "after": after,
            "requests": [one.json for one in self._past.requests.since(after)],
            "energy": {"bin_s": energy.bin_s, "bins": energy.bins()},
        }

    def _present(self, fleet: FleetFeed) -> dict[str, Any]:
        now_s = monotonic()
        return {
            "fleet": fleet.news(self._shared_status(now_s)),
            "power": self._power(),
            "running": running(self._lives(), now_s, most=MAX_RUNNING),
            "bin": self._past.energy.latest(),
        }

    def _shared_status(self, now_s: float) -> CoordinatorStatus:
        if self._latest is None or now_s - self._latest[0] >= LOOK_EVERY_S:
            self._latest = now_s, self._status()
        return self._latest[1]


async def _write(response: web.StreamResponse, event: str, data: dict[str, Any]) -> None:
    """Sends one event. Raises TimeoutError if the viewer does not read for `STUCK_S`."""
    async with asyncio.timeout(STUCK_S):
        await response.write(b"event: " + event.encode() + b"\ndata: " + msgspec.json.encode(data) + b"\n\n")


def _may_operate(request: web.Request) -> bool:
    """Whether the viewer's key may say what hosts serve; nobody may where no keys are asked for."""
    return IS_KEY_ACTIVE in request and Scope.OPERATE in request[PRINCIPAL].scopes


def _has_route(app: web.Application, path: str) -> bool:
    return any(resource.canonical == path for resource in app.router.resources())
