"""Every error code that a client, the ledger or a metric can see, with its HTTP status and what to do about it. PURE.

Codes of jobs come from agents (`moe2.common.errors.JobErrorCode`); each of them is here, too. The table in docs/api.md
is held equal to this list by a test.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

_INVALID = "invalid_request_error"
_PERMISSION = "permission_error"
_RATE = "rate_limit_error"
_SERVER = "server_error"
_TIMEOUT = "timeout_error"
_AGAIN = "send it again: the other experts have been tried already"
_WAIT = "wait as long as `Retry-After` says"


class ErrorCode(StrEnum):
    """An error code with what a client needs to know of it.

    status: HTTP's. kind: OpenAI's error type. remedy: for the client, as in docs/api.md. retry_after_s: after which a
    retry usually makes sense; None where it does not, or where only the request's own figures tell. shown: the code
    towards the client, where OpenAI has a name of its own or two causes look the same from there.
    """

    status: int
    kind: str
    remedy: str
    retry_after_s: int | None
    shown: str

    def __new__(
        cls,
        value: str,
        status: int,
        kind: str,
        remedy: str,
        retry_after_s: int | None = None,
        shown: str | None = None,
    ) -> Self:
        code = str.__new__(cls, value)
        code._value_ = value
        code.status, code.kind, code.remedy, code.retry_after_s = status, kind, remedy, retry_after_s
        code.shown = value if shown is None else shown
        return code

    # The request.
    INVALID_JSON = "invalid_json", 400, _INVALID, "send a JSON object"
    UNSUPPORTED_PARAMETER = "unsupported_parameter", 400, _INVALID, "leave out what `error.param` names"
    INVALID_REQUEST = "invalid_request", 400, _INVALID, "correct the request"
    INVALID_GRAMMAR = "invalid_grammar", 400, _INVALID, "correct the grammar or schema that `error.param` names"
    CONTEXT_EXCEEDED = (
        "context_exceeded",
        400,
        _INVALID,
        "shorten the prompt, or use an expert with a larger context",
        None,
        "context_length_exceeded",
    )
    NO_CHAT_TEMPLATE = "no_chat_template", 400, _INVALID, "use `/v1/completions`, or another model"
    NO_TOOLS = "no_tools", 400, _INVALID, "use another model, or no tools"
    NO_INFILL = "no_infill", 400, _INVALID, "leave out `suffix`, or use a model for code that fills gaps"
    NO_VECTORS = "no_vectors", 400, _INVALID, "use an embedding model"
    ONLY_VECTORS = "only_vectors", 400, _INVALID, "use `/v1/embeddings`, or a model that writes text"
    MODEL_NOT_FOUND = "model_not_found", 404, _INVALID, "use one of `GET /v1/models`"
    REQUEST_NOT_FOUND = "request_not_found", 404, _INVALID, "score a recent request by its `x-request-id`"
    PREVIOUS_RESPONSE_NOT_FOUND = (
        "previous_response_not_found",
        400,
        _INVALID,
        "send the whole conversation as `input`: responses are kept in memory only, the latest ones",
    )
    RESPONSE_NOT_FOUND = "response_not_found", 404, _INVALID, "ask for a recent response that was made with this key"
    REQUEST_TIMEOUT = "request_timeout", 408, _INVALID, "send the whole body within `api.body_timeout_s`"
    INVALID_BODY = "invalid_body", 400, _INVALID, "send larger chunks, or a `Content-Length`"
    INVALID_ENCODING = "invalid_encoding", 400, _INVALID, "pack the whole body as `Content-Encoding` says"
    BODY_TOO_LARGE = "body_too_large", 413, _INVALID, "send less, or raise `api.max_body_bytes`"
    UNSUPPORTED_ENCODING = (
        "unsupported_encoding",
        415,
        _INVALID,
        "pack the body once, with `gzip` or `deflate`, or not at all",
    )
    EXPECTATION_FAILED = "expectation_failed", 417, _INVALID, "send `Expect: 100-continue`, or no `Expect` at all"
    ALREADY_SCORED = "already_scored", 409, _INVALID, "nothing: the first score counts"

    # Who asks.
    INVALID_API_KEY = "invalid_api_key", 401, _INVALID, "use another key"
    INSUFFICIENT_SCOPE = "insufficient_scope", 403, _PERMISSION, "use a key with the scope that the message names"
    CROSS_SITE = "cross_site", 403, _PERMISSION, "a page of another site asked: add that site to `api.origins`"
    UNKNOWN_HOST = (
        "unknown_host",
        403,
        _PERMISSION,
        "the request names the coordinator by a name that it does not know: add that name to `api.hosts`",
    )
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded", 429, _RATE, _WAIT
    BUDGET_EXHAUSTED = (
        "budget_exhausted",
        429,
        "insufficient_quota",
        "the key's daily limit is used up: `Retry-After` says until when",
    )

    # The fleet, as it is.
    INFEASIBLE = (
        "infeasible",
        422,
        _INVALID,
        "raise the budgets: `error.offers` has the cheapest and the fastest expert and what each needs",
        None,
        "infeasible_budget",
    )
    # No status that clients send again by themselves: each time it would cost an engine.
    CRASH_SUSPECTED = (
        "crash_suspected",
        422,
        _INVALID,
        "two engines died or hung while they worked on it (one is enough where it has its own grammar, schema or "
        "tools): change it before you send it again",
    )
    MODE_UNAVAILABLE = "mode_unavailable", 422, _INVALID, "the fleet cannot work in this mode; the message says why"
    OVERLOADED = "overloaded", 429, _RATE, _WAIT, 1
    TOO_MANY_CONNECTIONS = (
        "too_many_connections",
        429,
        _RATE,
        "use one connection for several requests, or raise `max_connections_per_address`",
        1,
    )
    QUEUE_FULL = "queue_full", 429, _RATE, _WAIT, 1, "overloaded"
    INFEASIBLE_NOW = (
        "infeasible_now",
        503,
        _SERVER,
        "the experts are too busy to keep the budgets, which an idle one could: wait as long as `Retry-After` says, or "
        "take one of `error.offers`",
        1,
    )
    FLEET_CAPPED = (
        "fleet_capped",
        503,
        _SERVER,
        "other requests take all the watts that the fleet may draw: wait as long as `Retry-After` says",
        5,
    )
    FLEET_CAP_INFEASIBLE = (
        "fleet_cap_infeasible",
        503,
        _SERVER,
        "no expert fits the fleet's cap even when nothing else runs; the message says what one would add",
    )
    NO_LIVE_EXPERT = "no_live_expert", 503, _SERVER, _WAIT, 5
    MODEL_AWAY = "model_away", 503, _SERVER, _WAIT, 5
    MODEL_LOADING = "model_loading", 503, _SERVER, _WAIT, 5
    STOPPING = "stopping", 503, _SERVER, _WAIT, 5

    # What went wrong.
    INTERNAL = "internal", 500, _SERVER, "report the defect, with the request's id"
    FEEDBACK_NOT_KEPT = "feedback_not_kept", 500, _SERVER, "make room on the coordinator's disk, and send it again"
    BUDGET_PENDING = "budget_pending", 503, _SERVER, _WAIT, 1
    DATABASE_UNREACHABLE = "database_unreachable", 503, _SERVER, _WAIT, 5
    LEDGER_UNREADABLE = "ledger_unreadable", 503, _SERVER, _WAIT, 5
    ENGINE_CRASHED = "engine_crashed", 502, _SERVER, _AGAIN, 1
    OUT_OF_MEMORY = "out_of_memory", 502, _SERVER, _AGAIN, 1
    AGENT_LOST = "agent_lost", 502, _SERVER, _AGAIN, 1
    AGENT_BROKE_RULES = "agent_broke_rules", 502, _SERVER, _AGAIN, 1
    UNKNOWN_EXPERT = "unknown_expert", 502, _SERVER, _AGAIN, 1
    DRAINING = "draining", 502, _SERVER, _AGAIN, 1
    NOT_READY = "not_ready", 502, _SERVER, _AGAIN, 1
    EXHAUSTED = "exhausted", 502, _SERVER, _AGAIN, 1
    DEADLINE_EXCEEDED = "deadline_exceeded", 504, _TIMEOUT, "ask for less, or raise `api.request_timeout_s`"
    BUDGET_EXCEEDED = (
        "budget_exceeded",
        504,
        _TIMEOUT,
        "the latency budget ended before the first token, or a `strict` one before the whole answer: raise it",
    )

    @staticmethod
    def of(code: str) -> ErrorCode:
        """The member of this value; `INTERNAL` for a word that nobody should have said."""
        return _BY_VALUE.get(code, ErrorCode.INTERNAL)


_BY_VALUE = {code.value: code for code in ErrorCode}
PASSING = frozenset(
    {
        ErrorCode.OVERLOADED,
        ErrorCode.INFEASIBLE_NOW,
        ErrorCode.FLEET_CAPPED,
        ErrorCode.MODEL_LOADING,
        ErrorCode.BUDGET_PENDING,
    }
)
"""Refusals that may pass by themselves: the request waits for that."""
