"""Who may ask what on the API listener: the key of every request is checked before anything else is done for it.

The middleware leaves what it found out on the request, for its handler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from moe2.common.error_codes import ErrorCode
from moe2.common.token_bucket import TokenBucket
from moe2.coordinator.http.errors import ApiError, refused
from moe2.coordinator.http.paths import ASSETS_PATH, EVENTS_PATH, FEEDBACK_PATH, LEDGER_PATH, OPENAPI_PATH, PLAN_PATH
from moe2.coordinator.keys.keys import ANYBODY, KeyRecord, Principal, Refusal, Scope
from moe2.coordinator.keys.store import KeyRing

OPEN: frozenset[Scope] = frozenset()
EITHER = frozenset(Scope)
INFER = frozenset({Scope.INFER})
OBSERVE = frozenset({Scope.OBSERVE})

ROUTES: dict[str, frozenset[Scope]] = {
    # A route's pattern, and the scopes of which a key must have one. OPEN: no key is asked for.
    "/": OPEN,
    ASSETS_PATH + "{name}": OPEN,
    "/healthz": OPEN,
    "/readyz": OPEN,
    OPENAPI_PATH: OPEN,
    "/v1/chat/completions": INFER,
    "/v1/completions": INFER,
    PLAN_PATH: INFER,
    FEEDBACK_PATH: INFER,
    "/v1/models": EITHER,
    "/v1/models/{model}": EITHER,
    "/v1/moe2/fleet": OBSERVE,
    LEDGER_PATH: OBSERVE,
    EVENTS_PATH: OBSERVE,
    "/metrics": OBSERVE,
}

REFUSALS_LOGGED_PER_MINUTE = 60

log = structlog.get_logger()


class Guard:
    """Lets a request through to its handler with `PRINCIPAL` set, or answers 401, 403 or 429.

    keys: None where none are required; then only what a browser marks as another site's is refused.
    clock: monotonic seconds.
    """

    def __init__(self, keys: KeyRing | None, *, clock: Callable[[], float] = monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._buckets: dict[tuple[str, float], TokenBucket] = {}
        # Whoever floods the listener with wrong keys must not flood the log as well.
        self._refusals = TokenBucket(REFUSALS_LOGGED_PER_MINUTE, clock())

    @property
    def middleware(self) -> Middleware:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._admit(request)
            return await handler(request)

        return guard

    def _admit(self, request: web.Request) -> None:
        """Raises `ApiError`."""
        scopes = _scopes_of(request)
        if scopes == OPEN:
            return
        if self._keys is None:
            _refuse_other_sites(request)
            request[PRINCIPAL] = ANYBODY
            return
        record = self._record(request, self._keys)
        principal = record.principal
        if not scopes & principal.scopes:
            wanted = " or ".join(sorted(scopes))
            text = f"This key may not do that: it lacks the scope {wanted}."
            raise refused(ErrorCode.INSUFFICIENT_SCOPE, text)
        self._take(principal)
        request[PRINCIPAL] = principal
        keys, key_id = self._keys, record.id
        request[STILL_WELCOME] = lambda: keys.is_active(key_id)

    def _record(self, request: web.Request, keys: KeyRing) -> KeyRecord:
        scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not presented.strip():
            raise _unauthorized("An API key is needed: 'Authorization: Bearer KEY'.")
        found = keys.check(presented.strip())
        if isinstance(found, KeyRecord):
            return found
        if self._refusals.take(self._clock()) == 0:
            log.warning("key_refused", reason=found.value, peer=request.remote)
        match found:
            case Refusal.EXPIRED:
                raise _unauthorized("This API key has expired.")
            case Refusal.REVOKED:
                raise _unauthorized("This API key was revoked.")
            case Refusal.CLOCK_WRONG:
                raise _unauthorized(
                    "This API key expires, and the coordinator's clock is wrong: it cannot tell whether it has. Set "
                    "the clock of the coordinator's host."
                )
            case Refusal.UNKNOWN:
                raise _unauthorized("The API key is wrong.")

    def _take(self, principal: Principal) -> None:
        per_minute, now_s = principal.requests_per_minute, self._clock()
        if per_minute is None or principal.key_id is None:
            return
        place = principal.key_id, per_minute
        bucket = self._buckets.get(place)
        if bucket is None:
            bucket = self._buckets[place] = TokenBucket(per_minute, now_s)
        wait_s = bucket.take(now_s)
        if wait_s:
            raise refused(
                ErrorCode.RATE_LIMIT_EXCEEDED,
                f"This key may send {per_minute:g} requests per minute; the next one in {wait_s:.1f} s.",
                retry_after_s=math.ceil(wait_s),
            )


def _scopes_of(request: web.Request) -> frozenset[Scope]:
    """Any key may learn that there is no such route; one that the table does not know is nobody's."""
    resource = request.match_info.route.resource
    if resource is None:
        return EITHER
    scopes = ROUTES.get(resource.canonical)
    if scopes is None:
        raise refused(ErrorCode.INSUFFICIENT_SCOPE, "No key opens this route.")
    return scopes


def _refuse_other_sites(request: web.Request) -> None:
    """Without keys, being able to connect is the right to ask; a page from elsewhere must not borrow it.

    Sec-Fetch-Site is set by browsers and out of reach of scripts, https://www.w3.org/TR/fetch-metadata/.
    """
    if "Origin" in request.headers:
        return  # `Browsers` has let it in.
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        text = "Another site's page may not use this coordinator; if it should, add that site to api.origins."
        raise refused(ErrorCode.CROSS_SITE, text)


def _unauthorized(text: str) -> ApiError:
    return refused(ErrorCode.INVALID_API_KEY, text)


PRINCIPAL = web.RequestKey("principal", Principal)
"""Whom the request is charged to."""
STILL_WELCOME: web.RequestKey[Callable[[], bool]] = web.RequestKey("still_welcome")
"""Whether its key would still be accepted. Not set where no key is asked for."""
BODY = web.RequestKey("body", bytes)
"""Of a POST request: its body, whole and unpacked."""
