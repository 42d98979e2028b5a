"""`GET /calibration` on the local socket: how good the predictions of recent requests were; `?last=N` of the last N."""

from __future__ import annotations

import msgspec
from aiohttp import web

from moe2.coordinator.api.errors import ApiError
from moe2.coordinator.calibration import WINDOW, CalibrationWindow

CALIBRATION_ROUTE = "/calibration"


class CalibrationRoute:
    """Answers from the window, computed when asked."""

    def __init__(self, window: CalibrationWindow) -> None:
        self._window = window

    def add_to(self, app: web.Application) -> None:
        app.router.add_get(CALIBRATION_ROUTE, self._report)

    async def _report(self, http: web.Request) -> web.Response:
        last = http.query.get("last", str(WINDOW))
        if not last.isascii() or not last.isdigit() or int(last) < 1:
            raise ApiError(400, f"last is {last!r}, but must be a number of requests, at least 1.", param="last")
        report = self._window.report(int(last))
        return web.Response(body=msgspec.json.encode(report), content_type="application/json")
