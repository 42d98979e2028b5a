"""Browsers at the API listener: pages of foreign sites are refused, those of configured ones get CORS."""

from __future__ import annotations

import socket

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from moe2.common.hosts import is_loopback
from moe2.coordinator.api.sites import Sites, allowing, preflight_answer, sites_of
from moe2.coordinator.settings import ApiSection

_ALLOWED_ORIGIN = web.RequestKey("allowed_origin", str)


class Browsers:
    """Checks Host and Origin of every request. `settings` may be replaced while running."""

    def __init__(self, settings: ApiSection) -> None:
        self._sites = _sites(settings)

    def use(self, settings: ApiSection) -> None:
        """Go on with other settings."""
        self._sites = _sites(settings)

    def add_to(self, app: web.Application) -> None:
        """Send the headers that let an allowed page read an answer with every answer, errors and streams included."""
        app.on_response_prepare.append(self._add_headers)

    @property
    def middleware(self) -> Middleware:
        @web.middleware
        async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
            host, origin = request.headers.get("Host"), request.headers.get("Origin")
            self._sites.check_host(host)
            if origin is not None and self._sites.check_origin(origin, host):
                request[_ALLOWED_ORIGIN] = origin
                if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
                    return _preflight(request)
            return await handler(request)

        return check

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._sites.origins and "Vary" not in response.headers:
            # Also without an Origin: a cache must not give that answer to a page.
            response.headers["Vary"] = "Origin"
        if origin := request.get(_ALLOWED_ORIGIN):
            response.headers.update(allowing(origin))


def _preflight(request: web.Request) -> web.Response:
    """What a browser asks before it sends a page's request; it has no key with it."""
    headers = preflight_answer(
        request.headers.get("Access-Control-Request-Headers"),
        wants_private_network="Access-Control-Request-Private-Network" in request.headers,
    )
    return web.Response(status=204, headers=headers)


def _sites(settings: ApiSection) -> Sites:
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return sites_of(
        hosts=settings.hosts,
        origins=settings.origins,
        listens_at=settings.host,
        # As other machines of the local network find this one, RFC 6762 section 3.
        own_names=(name, short, f"{short}.local"),
        is_loopback=is_loopback(settings.host),
        needs_keys=settings.keys == "required",
    )
