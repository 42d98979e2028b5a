"""Protection against foreign web pages: unknown hosts and origins are refused, allowed origins get CORS headers."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from aiohttp import web

from moe2.common.error_codes import ErrorCode
from moe2.common.hosts import Authority, Origin, is_ip_address, is_loopback
from moe2.coordinator.http.errors import refused
from moe2.coordinator.http.settings import ApiSection

MAX_SHOWN_CHARACTERS = 100
PREFLIGHT_VALID_S = 600
HOSTS_REMEMBERED = 64
"""Host headers that are not looked at again, as the listener answers to them."""
EXPOSED_HEADERS = (
    "Retry-After, x-moe2-agent, x-moe2-expert, x-moe2-ignored, x-moe2-overhead-ms, x-request-id, x-should-retry"
)
_ALLOWED_ORIGIN = web.RequestKey("allowed_origin", str)


@dataclass(frozen=True)
class Sites:
    """The host names and the origins of pages that a listener accepts."""

    hosts: frozenset[str] = frozenset()
    """Names that the listener answers to, beside IP addresses and localhost."""
    origins: frozenset[Origin] = frozenset()
    """Sites whose pages may use the API, beside the listener's own page."""
    any_host: bool = False
    """True where the listener answers to every name."""

    def check_host(self, host: str | None) -> None:
        """Raises `ApiError` (403) if the Host header names another host than this listener.

        host: None where the request has none, as in HTTP/1.0, which no browser speaks.
        """
        if host is None or self.any_host:
            return
        authority = Authority.parse(host)
        if authority and (
            authority.host == "localhost" or is_ip_address(authority.host) or authority.host in self.hosts
        ):
            return
        text = f"This coordinator does not answer to the name {_shown(host)}; if it has that name, add it to api.hosts."
        raise refused(ErrorCode.UNKNOWN_HOST, text)

    def check_origin(self, origin: str, host: str | None) -> bool:
        """Returns True for a page of a configured site, False for the listener's own page.

        Raises `ApiError` (403) for all others.
        """
        site = Origin.parse(origin)
        if site in self.origins:
            return True
        authority = Authority.parse(host or "")
        if site and authority and site.is_at(authority):
            return False
        text = f"Pages of {_shown(origin)} may not use this coordinator; if they should, add it to api.origins."
        raise refused(ErrorCode.CROSS_SITE, text)


def accepted_sites(
    *,
    hosts: Collection[str],
    origins: Collection[str],
    listens_at: str,
    own_names: Collection[str],
    is_loopback: bool,
    needs_keys: bool,
) -> Sites:
    """Derives the accepted host names and origins from the settings of a listener.

    Where the listener can be reached from other machines, keys are required and no names are configured, every name is
    accepted: a page that rebinds a name has no key. On loopback a foreign name is never accepted unless it is
    configured.
    """
    known = {name.lower() for name in (*hosts, listens_at, *own_names)}
    return Sites(
        hosts=frozenset(known),
        origins=frozenset(site for site in map(Origin.parse, origins) if site),
        any_host=needs_keys and not hosts and not is_loopback,
    )


def allowing(origin: str) -> dict[str, str]:
    """Returns the headers that let a page of `origin` read an answer.

    Source: https://fetch.spec.whatwg.org/#http-cors-protocol.
    """
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED_HEADERS}


def preflight_answer(wanted_headers: str | None, *, wants_private_network: bool) -> dict[str, str]:
    """Returns the headers that let a page of an allowed origin send its request.

    All headers that the page wants are allowed: what a request may do rests on its key, and no cookies are used.
    """
    headers = {
        "Access-Control-Allow-Methods": "GET, POST",
        "Access-Control-Max-Age": str(PREFLIGHT_VALID_S),
        "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    }
    if wanted_headers:
        headers["Access-Control-Allow-Headers"] = wanted_headers
    if wants_private_network:
        headers["Access-Control-Allow-Private-Network"] = "true"
    return headers


def _shown(text: str) -> str:
    """Returns a stranger's text shortened and without control characters, fit for an error message."""
    return ascii(text[:MAX_SHOWN_CHARACTERS])


class Browsers:
    """The check of every request's Host and Origin, and the answers to preflight requests."""

    def __init__(self, settings: ApiSection) -> None:
        self.use(settings)

    def use(self, settings: ApiSection) -> None:
        """Replaces the settings; they hold from the next request on."""
        self._sites = _sites(settings)
        # A client asks for the same host each time. What is refused is an exception, which is not remembered.
        self._check_host = lru_cache(HOSTS_REMEMBERED)(self._sites.check_host)

    def check(self, request: web.Request) -> web.Response | None:
        """Returns the answer to a preflight request, and None to any other. Raises `ApiError` (403)."""
        host, origin = _asked_host(request), request.headers.get("Origin")
        self._check_host(host)
        if origin is not None and self._sites.check_origin(origin, host):
            request[_ALLOWED_ORIGIN] = origin
            if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
                return _preflight(request)
        return None

    def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Adds the headers that let an allowed page read an answer, be it an error or a stream."""
        if not self._sites.origins:
            return
        if "Vary" not in response.headers:
            # Also without an Origin: a cache must not give that answer to a page.
            response.headers["Vary"] = "Origin"
        if origin := request.get(_ALLOWED_ORIGIN):
            response.headers.update(allowing(origin))


def _asked_host(request: web.Request) -> str | None:
    """Returns the host and port that a request is meant for: its target, if that is a URL (RFC 9112, 3.2.2)."""
    target = request.raw_path
    if not target.startswith("/"):
        scheme, is_whole, rest = target.partition("://")
        if is_whole and scheme.isalpha():
            return re.split(r"[/?#]", rest, maxsplit=1)[0]
    return request.headers.get("Host")


def _preflight(request: web.Request) -> web.Response:
    """Answers a browser's preflight request, which carries no key."""
    headers = preflight_answer(
        request.headers.get("Access-Control-Request-Headers"),
        wants_private_network="Access-Control-Request-Private-Network" in request.headers,
    )
    return web.Response(status=204, headers=headers)


def _sites(settings: ApiSection) -> Sites:
    name = socket.gethostname().lower()
    short = name.partition(".")[0]
    return accepted_sites(
        hosts=settings.hosts,
        origins=settings.origins,
        listens_at=settings.host,
        # As other machines of the local network find this one, RFC 6762 section 3.
        own_names=(name, short, f"{short}.local"),
        is_loopback=is_loopback(settings.host),
        needs_keys=settings.keys == "required",
    )
