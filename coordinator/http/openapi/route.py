"""The route of the OpenAPI document, which is encoded once."""

from __future__ import annotations

import asyncio
from functools import cache

import msgspec
from aiohttp import web

from moe2.coordinator.http.access.auth import OPEN, ROUTES
from moe2.coordinator.http.openapi.document import document
from moe2.coordinator.http.paths import OPENAPI_PATH


class OpenApiRoute:
    """The route that serves the API's description as an OpenAPI document."""

    def add_to(self, app: web.Application) -> None:
        """Registers the route with the application."""
        app.router.add_get(OPENAPI_PATH, self._document)

    async def _document(self, _: web.Request) -> web.Response:
        # The first takes tens of milliseconds.
        return web.Response(body=await asyncio.to_thread(_encoded), content_type="application/json")


@cache
def _encoded() -> bytes:
    return msgspec.json.encode(document(frozenset(path for path, scopes in ROUTES.items() if scopes == OPEN)))
