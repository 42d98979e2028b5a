"""The routes of Anthropic's API."""

from __future__ import annotations

from aiohttp import web

from moe2.coordinator.http.answering import Answering
from moe2.coordinator.http.messages import count_face, messages_face
from moe2.coordinator.http.paths import COUNT_PATH, MESSAGES_PATH


class MessagesRoutes:
    """The routes that answer in the shape of Anthropic's API."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def add_to(self, app: web.Application) -> None:
        """Registers the routes with the application."""
        app.router.add_post(MESSAGES_PATH, self._answering.through(messages_face))
        app.router.add_post(COUNT_PATH, self._answering.through(count_face))
