"""The web page at the coordinator's root: static files from the package, which use the API like any client."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

from aiohttp import web

from moe2.coordinator.http.paths import ASSETS_PATH, INDEX_PATH

_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Nothing from anywhere else, no inline code: what a model answers can never become a script.
_SECURITY = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class _Asset:
    body: bytes
    content_type: str
    etag: str


class PageRoute:
    """The routes that serve the page's files. They are read once, at the start; any other name is answered with 404."""

    def __init__(self) -> None:
        self._assets = _load_assets()

    def add_to(self, app: web.Application) -> None:
        """Registers the routes with the application."""
        app.router.add_get(INDEX_PATH, self._index)
        app.router.add_get(ASSETS_PATH + "{name}", self._asset)

    async def _index(self, request: web.Request) -> web.Response:
        return self._answer(request, "index.html")

    async def _asset(self, request: web.Request) -> web.Response:
        return self._answer(request, request.match_info["name"])

    def _answer(self, request: web.Request, name: str) -> web.Response:
        asset = self._assets.get(name)
        if asset is None:
            raise web.HTTPNotFound
        # no-cache: kept by the browser, but asked for after an upgrade.
        headers = {**_SECURITY, "Cache-Control": "no-cache", "ETag": f'"{asset.etag}"'}
        known = request.if_none_match or ()
        if any(etag.value in (asset.etag, "*") for etag in known):
            return web.Response(status=304, headers=headers)
        return web.Response(body=asset.body, content_type=asset.content_type, charset="utf-8", headers=headers)


def _load_assets() -> dict[str, _Asset]:
    assets = {}
    for file in resources.files("moe2.coordinator").joinpath("page").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in _TYPES:
            body = file.read_bytes()
            assets[file.name] = _Asset(body, _TYPES[suffix], hashlib.sha256(body).hexdigest()[:32])
    return assets
