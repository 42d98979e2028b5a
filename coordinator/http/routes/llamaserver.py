"""llama-server's own routes that a fleet has an answer to: editors' plugins know no others."""

from __future__ import annotations

from aiohttp import web

from moe2.coordinator.choosing.selector import ANY_MODEL
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.faces.face import Asked, Incoming
from moe2.coordinator.http.faces.llamaserver import completion_face, infill_face
from moe2.coordinator.http.paths import COMPLETION_PATH, INFILL_PATH
from moe2.coordinator.http.routes.answering import Answering
from moe2.coordinator.http.routes.models import reports_of


class LlamaServerRoutes:
    """The routes that continue a text and fill a gap in one. What concerns one process and its slots has no answer
    here."""

    def __init__(self, answering: Answering, table: CapabilityTable) -> None:
        self._answering = answering
        self._table = table

    def add_to(self, app: web.Application) -> None:
        """Registers the routes with the application."""
        app.router.add_post(COMPLETION_PATH, self._answering.through(completion_face))
        app.router.add_post(INFILL_PATH, self._answering.through(self._infill))

    def _infill(self, incoming: Incoming) -> Asked:
        return infill_face(incoming, self._context_of)

    def _context_of(self, model: str) -> int | None:
        """Returns the largest context of those that fill gaps. It may be asked in any thread."""
        able = reports_of(self._table.reports_by_model(), model.strip() or ANY_MODEL[0])
        return max((report.context_tokens for report in able if report.supports_infill), default=None)
