"""`GET /calibration` on the local socket: how good the predictions of recent requests were."""

from __future__ import annotations

import msgspec
from aiohttp import web

from moe2.coordinator.calibration import CalibrationWindow

CALIBRATION_ROUTE = "/calibration"


class CalibrationRoute:
    """Answers from the window, computed when asked."""

    def __init__(self, window: CalibrationWindow) -> None:
        self._window = window

    def add_to(self, app: web.Application) -> None:
        app.router.add_get(CALIBRATION_ROUTE, self._report)

    async def _report(self, _: web.Request) -> web.Response:
        return web.Response(body=msgspec.json.encode(self._window.report()), content_type="application/json")
