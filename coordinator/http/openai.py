"""The routes of OpenAI's API: chat completions, text completions and models."""

from __future__ import annotations

import time

import msgspec
from aiohttp import web

from moe2.coordinator.choosing.selector import ANY_MODEL
from moe2.coordinator.fleet.table import CapabilityTable
from moe2.coordinator.http.answering import Answering, check_model
from moe2.coordinator.http.completions import chat_face, text_face
from moe2.coordinator.http.paths import CHAT_PATH, COMPLETIONS_PATH, MODELS_PATH


class OpenAiRoutes:
    """The routes of OpenAI's API."""

    def __init__(self, answering: Answering, table: CapabilityTable) -> None:
        self._answering = answering
        self._table = table
        self._started_unix_s = int(time.time())

    def add_to(self, app: web.Application) -> None:
        """Registers the routes with the application."""
        app.router.add_post(CHAT_PATH, self._answering.through(chat_face))
        app.router.add_post(COMPLETIONS_PATH, self._answering.through(text_face))
        app.router.add_get(MODELS_PATH, self._models)
        app.router.add_get(MODELS_PATH + "/{model:.+}", self._model)

    async def _models(self, _: web.Request) -> web.Response:
        names = (ANY_MODEL[0], *self._table.models())
        body = {"object": "list", "data": [self._model_object(name) for name in names]}
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        check_model(self._table, name)
        return web.Response(body=msgspec.json.encode(self._model_object(name)), content_type="application/json")

    def _model_object(self, name: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._started_unix_s, "owned_by": "moe2"}
