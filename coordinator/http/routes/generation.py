"""The routes that make text and vectors: each is a path, and the face in whose shape it is asked and answered."""

from __future__ import annotations

from aiohttp import web

from moe2.coordinator.choosing.selector import ANY_MODEL
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.faces.completions import chat_face, text_face
from moe2.coordinator.http.faces.face import Asked, Incoming
from moe2.coordinator.http.faces.llamaserver import completion_face, infill_face
from moe2.coordinator.http.faces.messages import count_face, messages_face
from moe2.coordinator.http.faces.vectors import embeddings_face
from moe2.coordinator.http.paths import (
    CHAT_PATH,
    COMPLETION_PATH,
    COMPLETIONS_PATH,
    COUNT_PATH,
    EMBEDDINGS_PATH,
    INFILL_PATH,
    MESSAGES_PATH,
)
from moe2.coordinator.http.routes.answering import Answering
from moe2.coordinator.http.routes.models import reports_of


class GenerationRoutes:
    """OpenAI's completions and embeddings, Anthropic's messages, and llama-server's own routes.

    Of the last there are those that a fleet has an answer to, which editors' plugins need: they know no others. What
    concerns one process and its slots has no answer here. Responses and Ollama's API have routes of their own.
    """

    def __init__(self, answering: Answering, table: CapabilityTable) -> None:
        self._answering = answering
        self._table = table

    def add_to(self, app: web.Application) -> None:
        """Registers the routes with the application."""
        faces = {
            CHAT_PATH: chat_face,
            COMPLETIONS_PATH: text_face,
            MESSAGES_PATH: messages_face,
            COUNT_PATH: count_face,
            EMBEDDINGS_PATH: self._embeddings,
            COMPLETION_PATH: completion_face,
            INFILL_PATH: self._infill,
        }
        for path, face in faces.items():
            app.router.add_post(path, self._answering.through(face))

    def _embeddings(self, incoming: Incoming) -> Asked:
        return embeddings_face(incoming, self._table)

    def _infill(self, incoming: Incoming) -> Asked:
        return infill_face(incoming, self._context_of)

    def _context_of(self, model: str) -> int | None:
        """Returns the largest context of those that fill gaps. It may be asked in any thread."""
        able = reports_of(self._table.reports_by_model(), model.strip() or ANY_MODEL[0])
        return max((report.context_tokens for report in able if report.supports_infill), default=None)
