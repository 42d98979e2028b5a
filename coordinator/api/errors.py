"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moe2.common.errors import JobErrorCode
from moe2.common.figures import shortened
from moe2.coordinator.admission import whole_seconds
from moe2.coordinator.choice import INFEASIBLE, INFEASIBLE_NOW, NoExpert
from moe2.coordinator.decision import offers_of
from moe2.coordinator.dispatch import BUDGET_EXCEEDED, Failed
from moe2.coordinator.ledger.admission import BUDGET_EXHAUSTED
from moe2.coordinator.powercap import FLEET_CAP_INFEASIBLE, FLEET_CAPPED
from moe2.coordinator.receipt import Receipt

MAX_QUOTED_CHARACTERS = 80
MAX_PARAM_CHARACTERS = 200
MAX_MESSAGE_CHARACTERS = 2_000


@dataclass(eq=False)
class ApiError(Exception):
    """An answer that is an error. `retry_after_s` becomes a Retry-After header, `receipt` the body's `moe2`.

    Whatever it repeats of the request, message and parameter stay short: see `body`.
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None
    receipt: Receipt | None = None
    offers: dict[str, Any] | None = None
    """What budgets would do, where the request's own rule everybody out."""

    def body(self) -> dict[str, Any]:
        error: dict[str, Any] = {
            "message": shortened(self.message, MAX_MESSAGE_CHARACTERS),
            "type": self.kind,
            "param": None if self.param is None else shortened(self.param, MAX_PARAM_CHARACTERS),
            "code": self.code,
        }
        if self.offers is not None:
            error["offers"] = self.offers
        return {"error": error} if self.receipt is None else {"error": error, "moe2": self.receipt}


def quoted(value: object) -> str:
    """A part of the request as an error repeats it: as Python writes it, and short."""
    return shortened(repr(value), MAX_QUOTED_CHARACTERS)


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, *, hint: str = "") -> ApiError:
    """A parameter that moe2 does not implement is refused, never silently dropped."""
    text = f"Unsupported parameter: {quoted(param)}.{' ' + hint if hint else ''}"
    return ApiError(400, text, param=param, code="unsupported_parameter")


_STATUS = {
    # code: (HTTP status, OpenAI's error type, code towards the client, seconds after which a retry makes sense)
    JobErrorCode.CONTEXT_EXCEEDED: (400, "invalid_request_error", "context_length_exceeded", None),
    JobErrorCode.INVALID_REQUEST: (400, "invalid_request_error", "invalid_request", None),
    JobErrorCode.INVALID_GRAMMAR: (400, "invalid_request_error", "invalid_grammar", None),
    JobErrorCode.DEADLINE_EXCEEDED: (504, "timeout_error", "deadline_exceeded", None),
    BUDGET_EXCEEDED: (504, "timeout_error", BUDGET_EXCEEDED, None),
    JobErrorCode.QUEUE_FULL: (429, "rate_limit_error", "overloaded", 1),
    JobErrorCode.INTERNAL: (500, "server_error", "internal", None),
    "overloaded": (429, "rate_limit_error", "overloaded", 1),
    "no_chat_template": (400, "invalid_request_error", "no_chat_template", None),
    "no_tools": (400, "invalid_request_error", "no_tools", None),
    "mode_unavailable": (422, "invalid_request_error", "mode_unavailable", None),
    INFEASIBLE: (422, "invalid_request_error", "infeasible_budget", None),
    INFEASIBLE_NOW: (503, "server_error", INFEASIBLE_NOW, 1),
    BUDGET_EXHAUSTED: (429, "insufficient_quota", BUDGET_EXHAUSTED, None),
    FLEET_CAPPED: (503, "server_error", FLEET_CAPPED, 5),
    FLEET_CAP_INFEASIBLE: (503, "server_error", FLEET_CAP_INFEASIBLE, None),
    "no_live_expert": (503, "server_error", "no_live_expert", 5),
    "stopping": (503, "server_error", "stopping", 5),
}


def error_of(
    failed: Failed, receipt: Receipt, refused: NoExpert | None = None, *, retry_after_s: float | None = None
) -> ApiError:
    """What a failed request is answered with. An unlisted code is a fault of the fleet that a retry may get past.

    retry_after_s: as predicted for this one; None leaves what is usual for the code.
    """
    status, kind, code, usual_s = _STATUS.get(failed.code, (502, "server_error", failed.code, 1))
    offers = offers_of(refused) if refused else None
    if refused and refused.code == failed.code and refused.retry_after_s is not None:
        retry_after_s = refused.retry_after_s
    return ApiError(
        status,
        failed.message,
        kind=kind,
        code=code,
        retry_after_s=usual_s if retry_after_s is None else whole_seconds(retry_after_s),
        receipt=receipt,
        offers=offers,
    )
