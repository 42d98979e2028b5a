"""`GET /v1/openapi.json`: what this API is, for tools that generate clients and tests."""

from __future__ import annotations

from functools import cache

import msgspec
from aiohttp import web

from moe2.coordinator.api.guard import OPEN, ROUTES
from moe2.coordinator.api.openapi import OPENAPI_PATH, document


class OpenApiRoute:
    def add_to(self, app: web.Application) -> None:
        app.router.add_get(OPENAPI_PATH, self._document)

    async def _document(self, _: web.Request) -> web.Response:
        return web.Response(body=_encoded(), content_type="application/json")


@cache
def _encoded() -> bytes:
    return msgspec.json.encode(document(frozenset(path for path, scopes in ROUTES.items() if scopes == OPEN)))
