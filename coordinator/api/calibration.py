"""`GET /calibration` on the local socket: how good the predictions of recent requests were; `?last=N` of the last N."""

from __future__ import annotations

import msgspec
from aiohttp import web

from moe2.coordinator.api.decode import whole_number
from moe2.coordinator.api.errors import invalid
from moe2.coordinator.calibration import WINDOW, CalibrationWindow

CALIBRATION_ROUTE = "/calibration"
MAX_LAST = 1_000_000_000
"""Above any number of requests that is kept."""


class CalibrationRoute:
    """Answers from the window, computed when asked."""

    def __init__(self, window: CalibrationWindow) -> None:
        self._window = window

    def add_to(self, app: web.Application) -> None:
        app.router.add_get(CALIBRATION_ROUTE, self._report)

    async def _report(self, http: web.Request) -> web.Response:
        last = whole_number(http.query.get("last", str(WINDOW)), 1, MAX_LAST)
        if last is None:
            raise invalid(f"'last' must be a whole number of requests, from 1 to {MAX_LAST}.", param="last")
        report = self._window.report(last)
        return web.Response(body=msgspec.json.encode(report), content_type="application/json")
