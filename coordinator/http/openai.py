"""The routes of OpenAI's API that moe2 has had from the beginning: chat completions and text completions."""

from __future__ import annotations

from aiohttp import web

from moe2.coordinator.http.answering import Answering
from moe2.coordinator.http.completions import chat_face, text_face
from moe2.coordinator.http.paths import CHAT_PATH, COMPLETIONS_PATH


class OpenAiRoutes:
    """The routes of chat completions and text completions."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def add_to(self, app: web.Application) -> None:
        """Registers the routes with the application."""
        app.router.add_post(CHAT_PATH, self._answering.through(chat_face))
        app.router.add_post(COMPLETIONS_PATH, self._answering.through(text_face))
