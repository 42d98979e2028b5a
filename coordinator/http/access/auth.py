"""Access control of the API listener: which key may use which route, and how often.

The key of a request is checked before anything else is done for it. What was found is stored on the request,
where the handler reads it (`PRINCIPAL`, `IS_KEY_ACTIVE`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from time import monotonic

import structlog
from aiohttp import web

from moe2.common.error_codes import ErrorCode
from moe2.common.token_bucket import TokenBucket
from moe2.coordinator.database.rates import SharedRates
from moe2.coordinator.http import paths
from moe2.coordinator.http.errors import ApiError, refused
from moe2.coordinator.keys.keys import ANYBODY, KeyRecord, Principal, Refusal, Scope
from moe2.coordinator.keys.store import KeyRing

log = structlog.get_logger()

PRINCIPAL = web.RequestKey("principal", Principal)
"""The key, or the anonymous user, that a request is charged to."""
IS_KEY_ACTIVE: web.RequestKey[Callable[[], bool]] = web.RequestKey("is_key_active")
"""A function that tells whether the request's key would still be accepted. It is not set where no key is asked for."""

OPEN: frozenset[Scope] = frozenset()
ANY_KEY = frozenset(Scope)
INFER = frozenset({Scope.INFER})
OBSERVE = frozenset({Scope.OBSERVE})
OPERATE = frozenset({Scope.OPERATE})

ROUTES: dict[str, frozenset[Scope]] = {
    paths.INDEX_PATH: OPEN,
    paths.ASSETS_PATH + "{name}": OPEN,
    paths.HEALTH_PATH: OPEN,
    paths.READINESS_PATH: OPEN,
    paths.OPENAPI_PATH: OPEN,
    paths.CHAT_PATH: INFER,
    paths.COMPLETIONS_PATH: INFER,
    paths.EMBEDDINGS_PATH: INFER,
    paths.RESPONSES_PATH: INFER,
    paths.RESPONSE_PATH: INFER,
    paths.RESPONSE_ITEMS_PATH: INFER,
    paths.MESSAGES_PATH: INFER,
    paths.COUNT_PATH: INFER,
    paths.OLLAMA_CHAT_PATH: INFER,
    paths.OLLAMA_GENERATE_PATH: INFER,
    paths.OLLAMA_EMBED_PATH: INFER,
    paths.OLLAMA_EMBEDDINGS_PATH: INFER,
    paths.COMPLETION_PATH: INFER,
    paths.INFILL_PATH: INFER,
    paths.PLAN_PATH: INFER,
    paths.FEEDBACK_PATH: INFER,
    paths.MODELS_PATH: ANY_KEY,
    paths.MODEL_PATH: ANY_KEY,
    paths.OLLAMA_TAGS_PATH: ANY_KEY,
    paths.OLLAMA_PS_PATH: ANY_KEY,
    paths.OLLAMA_SHOW_PATH: ANY_KEY,
    paths.OLLAMA_PULL_PATH: ANY_KEY,
    paths.OLLAMA_VERSION_PATH: ANY_KEY,
    paths.FLEET_PATH: OBSERVE,
    paths.LEDGER_PATH: OBSERVE,
    paths.EVENTS_PATH: OBSERVE,
    paths.METRICS_PATH: OBSERVE,
    paths.ORDERS_PATH: OPERATE,
    paths.PUSHES_PATH: OPERATE,
    paths.PULLS_PATH: OPERATE,
}
"""The scopes of which a key must have one, by the route's pattern. `OPEN`: no key is asked for."""

REFUSALS_LOGGED_PER_MINUTE = 60


class Guard:
    """The check of a request's key, which lets it through with `PRINCIPAL` set, or refuses it.

    keys: the keys in force; None where no keys are required: then only requests that a browser marks as another site's
    are refused. rates: of requests, where several coordinators share them. clock: monotonic seconds.
    """

    def __init__(
        self, keys: KeyRing | None, *, rates: SharedRates | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        self._keys = keys
        self._rates = rates
        self._clock = clock
        self._buckets: dict[tuple[str, float], TokenBucket] = {}
        # Whoever floods the listener with wrong keys must not flood the log as well.
        self._refusals = TokenBucket(REFUSALS_LOGGED_PER_MINUTE, clock())

    async def admit(self, request: web.Request) -> None:
        """Lets the request pass, or raises `ApiError` (401, 403 or 429)."""
        self._check(request)
        if self._rates is not None and (principal := request.get(PRINCIPAL)) is not None:
            self._within_rate(principal, await self._rates.take(principal))

    def _check(self, request: web.Request) -> None:
        """Finds whom the request is charged to, or raises `ApiError`."""
        scopes = _scopes_of(request)
        if scopes == OPEN:
            return
        if self._keys is None:
            if scopes == OPERATE:
                # Where nobody shows a key, nobody can be told from an operator; the local socket knows its users.
                text = "Over the network, hosts are operated only where keys are required, with a key that may."
                raise refused(ErrorCode.INSUFFICIENT_SCOPE, text)
            _refuse_other_sites(request)
            request[PRINCIPAL] = ANYBODY
            return
        record = self._record(request, self._keys)
        principal = record.principal
        if not scopes & principal.scopes:
            wanted = " or ".join(sorted(scopes))
            text = f"This key may not do that: it lacks the scope {wanted}."
            raise refused(ErrorCode.INSUFFICIENT_SCOPE, text)
        self._limit_rate(principal)
        request[PRINCIPAL] = principal
        keys, key_id = self._keys, record.id
        request[IS_KEY_ACTIVE] = lambda: keys.is_active(key_id)

    def _record(self, request: web.Request, keys: KeyRing) -> KeyRecord:
        """Returns the record of the key that the request presents. Raises `ApiError` (401) where none is accepted."""
        presented = presented_key(request.headers)
        if presented is None:
            raise _unauthorized("An API key is needed: 'Authorization: Bearer KEY', or 'x-api-key: KEY'.")
        found = keys.check(presented)
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
            case Refusal.COPY_TOO_OLD:
                text = "No key can be checked: the database that keeps the keys has not been reached for too long."
                raise refused(ErrorCode.DATABASE_UNREACHABLE, text)
            case Refusal.UNKNOWN:
                raise _unauthorized("The API key is wrong.")

    def _limit_rate(self, principal: Principal) -> None:
        """Counts the request against its key's rate. Raises `ApiError` (429) if the key sends too many per minute."""
        per_minute, now_s = principal.requests_per_minute, self._clock()
        if per_minute is None or principal.key_id is None or self._rates is not None:
            return
        place = principal.key_id, per_minute
        bucket = self._buckets.get(place)
        if bucket is None:
            bucket = self._buckets[place] = TokenBucket(per_minute, now_s)
        self._within_rate(principal, bucket.take(now_s))

    @staticmethod
    def _within_rate(principal: Principal, wait_s: float | None) -> None:
        """Raises `ApiError` where a request has to wait: 429, or 503 where nobody can say how long (None)."""
        if wait_s is None:
            text = "This key's requests per minute cannot be counted: the database that counts them is away."
            raise refused(ErrorCode.DATABASE_UNREACHABLE, text)
        if wait_s:
            raise refused(
                ErrorCode.RATE_LIMIT_EXCEEDED,
                f"This key may send {principal.requests_per_minute:g} requests per minute; the next one in "
                f"{wait_s:.1f} s.",
                retry_after_s=math.ceil(wait_s),
            )


def presented_key(headers: Mapping[str, str]) -> str | None:
    """Returns the API key in a request's headers, OpenAI's, Anthropic's or Azure's; None where there is none."""
    scheme, _, presented = headers.get("Authorization", "").partition(" ")
    bearer = presented if scheme.lower() == "bearer" else ""
    found = (bearer, headers.get("x-api-key", ""), headers.get("api-key", ""))
    return next((key.strip() for key in found if key.strip()), None)


def _scopes_of(request: web.Request) -> frozenset[Scope]:
    """Returns the scopes of which a key needs one for this route.

    Any key may learn that a path does not exist. Raises `ApiError` (403) for a route that has no scopes listed.
    """
    resource = request.match_info.route.resource
    if resource is None:
        return ANY_KEY
    scopes = ROUTES.get(resource.canonical)
    if scopes is None:
        raise refused(ErrorCode.INSUFFICIENT_SCOPE, "No API key gives access to this route.")
    return scopes


def _refuse_other_sites(request: web.Request) -> None:
    """Raises `ApiError` (403) for a request that a browser marks as coming from another site's page.

    Without keys, whoever can connect may ask; a page from elsewhere must not borrow that right. Browsers set
    Sec-Fetch-Site out of reach of scripts: https://www.w3.org/TR/fetch-metadata/.
    """
    if "Origin" in request.headers:
        return  # `Browsers` has let it in.
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        text = "Another site's page may not use this coordinator; if it should, add that site to api.origins."
        raise refused(ErrorCode.CROSS_SITE, text)


def _unauthorized(text: str) -> ApiError:
    return refused(ErrorCode.INVALID_API_KEY, text)
