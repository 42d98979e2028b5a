"""The routes of OpenAI's Responses API: a new response, and what is kept of those that were made."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.http.access.auth import PRINCIPAL
from moe2.coordinator.http.errors import ApiError, quoted, refused, unsupported
from moe2.coordinator.http.faces.response_memory import KeptResponse, ResponseMemory
from moe2.coordinator.http.faces.responses import ResponsesFace
from moe2.coordinator.http.paths import RESPONSE_ITEMS_PATH, RESPONSE_PATH, RESPONSES_PATH
from moe2.coordinator.http.routes.answering import Answering
from moe2.coordinator.keys.keys import ANYBODY


class ResponsesRoutes:
    """The routes that make, return and forget responses. Each key sees its own."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._memory = ResponseMemory()

    def add_to(self, app: web.Application) -> None:
        """Registers the routes with the application."""
        app.router.add_post(RESPONSES_PATH, self._answering.through(ResponsesFace(self._memory)))
        app.router.add_get(RESPONSE_PATH, self._response)
        app.router.add_delete(RESPONSE_PATH, self._delete)
        app.router.add_get(RESPONSE_ITEMS_PATH, self._items)

    async def _response(self, http: web.Request) -> web.Response:
        if http.query.get("stream", "false") != "false":
            raise unsupported("stream", hint="A response that has been made is returned whole.")
        return _json(self._kept(http).body)

    async def _items(self, http: web.Request) -> web.Response:
        kept = self._kept(http)
        items = [
            msgspec.to_builtins(item) | {"id": f"in_{kept.id.removeprefix('resp_')}_{index}"}
            for index, item in enumerate(kept.input)
        ]
        # As OpenAI's, the latest item comes first unless the client asks otherwise.
        items = items if http.query.get("order") == "asc" else items[::-1]
        ids = [item["id"] for item in items]
        body = {"object": "list", "data": items, "first_id": ids[0], "last_id": ids[-1], "has_more": False}
        return _json(body)

    async def _delete(self, http: web.Request) -> web.Response:
        response_id = http.match_info["response_id"]
        if not self._memory.delete(response_id, http.get(PRINCIPAL, ANYBODY).key_id):
            raise _absent(response_id)
        return _json({"id": response_id, "object": "response", "deleted": True})

    def _kept(self, http: web.Request) -> KeptResponse:
        response_id = http.match_info["response_id"]
        kept = self._memory.get(response_id, http.get(PRINCIPAL, ANYBODY).key_id)
        if kept is None:
            raise _absent(response_id)
        return kept


def _absent(response_id: str) -> ApiError:
    text = f"No response {quoted(response_id)} is kept here (any more)."
    return refused(ErrorCode.RESPONSE_NOT_FOUND, text, param="response_id")


def _json(body: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
