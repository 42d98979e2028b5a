"""The routes that make text: each is a path and the face in whose shape it is asked and answered."""

from __future__ import annotations

from aiohttp import web

from moe2.coordinator.http.faces.completions import chat_face, text_face
from moe2.coordinator.http.faces.messages import count_face, messages_face
from moe2.coordinator.http.paths import CHAT_PATH, COMPLETIONS_PATH, COUNT_PATH, MESSAGES_PATH
from moe2.coordinator.http.routes.answering import Answering

_FACES = {
    CHAT_PATH: chat_face,
    COMPLETIONS_PATH: text_face,
    MESSAGES_PATH: messages_face,
    COUNT_PATH: count_face,
}


class GenerationRoutes:
    """Chat and text completions of OpenAI's API, messages of Anthropic's; responses have routes of their own."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def add_to(self, app: web.Application) -> None:
        """Registers the routes with the application."""
        for path, face in _FACES.items():
            app.router.add_post(path, self._answering.through(face))
