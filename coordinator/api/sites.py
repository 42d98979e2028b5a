"""Which names this listener answers to, and which sites' pages may use it: the headers Host and Origin. PURE.

A browser says in Origin whose page makes it ask, and in Host by which name it found this listener; scripts can set
neither. A page that has its own name resolved to this listener's address (DNS rebinding) is of the same origin for the
browser, and is told by its Host alone. An IP address as Host needs no name, so there is nothing to rebind.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from moe2.common.hosts import Authority, Origin, is_ip_address
from moe2.coordinator.api.errors import refused
from moe2.coordinator.errors import ErrorCode

MAX_SHOWN_CHARACTERS = 100
PREFLIGHT_VALID_S = 600
EXPOSED_HEADERS = "Retry-After, x-moe2-agent, x-moe2-expert, x-moe2-overhead-ms, x-request-id, x-should-retry"


@dataclass(frozen=True)
class Sites:
    """hosts: names that the listener answers to, beside IP addresses and localhost. any_host: all of them.

    origins: sites whose pages may use the API, beside the listener's own page.
    """

    hosts: frozenset[str] = frozenset()
    origins: frozenset[Origin] = frozenset()
    any_host: bool = False

    def check_host(self, host: str | None) -> None:
        """Raises `ApiError` (403) for a name that is not this listener's. None: HTTP/1.0, which no browser speaks."""
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
        """True for a configured site, False for the listener's own page; raises `ApiError` (403) for all others."""
        site = Origin.parse(origin)
        if site in self.origins:
            return True
        authority = Authority.parse(host or "")
        if site and authority and site.is_at(authority):
            return False
        text = f"Pages of {_shown(origin)} may not use this coordinator; if they should, add it to api.origins."
        raise refused(ErrorCode.CROSS_SITE, text)


def sites_of(
    *,
    hosts: Collection[str],
    origins: Collection[str],
    listens_at: str,
    own_names: Collection[str],
    is_loopback: bool,
    needs_keys: bool,
) -> Sites:
    """What is allowed by the settings of a listener.

    Where it can be reached from other machines, keys are required and no names are configured, every name is: a page
    that rebinds one has no key. On loopback a foreign name is never right by itself.
    """
    known = {name.lower() for name in (*hosts, listens_at, *own_names)}
    return Sites(
        hosts=frozenset(known),
        origins=frozenset(site for site in map(Origin.parse, origins) if site),
        any_host=needs_keys and not hosts and not is_loopback,
    )


def allowing(origin: str) -> dict[str, str]:
    """The headers that let a page of `origin` read an answer, https://fetch.spec.whatwg.org/#http-cors-protocol."""
    return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED_HEADERS}


def preflight_answer(wanted_headers: str | None, *, wants_private_network: bool) -> dict[str, str]:
    """The headers that let a page of an allowed origin send its request.

    All headers that it wants are allowed: what a request may do rests on its key, and no cookies are used.
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
    """Short, and without control characters: it comes from a stranger."""
    return ascii(text[:MAX_SHOWN_CHARACTERS])
