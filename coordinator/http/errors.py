"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moe2.common.error_codes import ErrorCode
from moe2.common.terminal.figures import shortened
from moe2.coordinator.choosing.explain import offers_of
from moe2.coordinator.choosing.result import NoExpert
from moe2.coordinator.serving.effects import Failed
from moe2.coordinator.serving.receipt import Receipt
from moe2.coordinator.serving.waiting_room import whole_seconds

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


def refused(
    code: ErrorCode,
    message: str,
    *,
    param: str | None = None,
    retry_after_s: int | None = None,
    receipt: Receipt | None = None,
    offers: dict[str, Any] | None = None,
) -> ApiError:
    """An error with the status and type of its code. retry_after_s: None leaves what is usual for the code."""
    return ApiError(
        code.status,
        message,
        kind=code.kind,
        param=param,
        code=code.shown,
        retry_after_s=code.retry_after_s if retry_after_s is None else retry_after_s,
        receipt=receipt,
        offers=offers,
    )


def invalid(message: str, *, param: str | None = None) -> ApiError:
    """A parameter that cannot be what it is."""
    return ApiError(400, message, param=param)


def unsupported(param: str, *, hint: str = "") -> ApiError:
    """A parameter that moe2 does not implement is refused, never silently dropped."""
    text = f"Unsupported parameter: {quoted(param)}.{' ' + hint if hint else ''}"
    return refused(ErrorCode.UNSUPPORTED_PARAMETER, text, param=param)


def error_of(
    failed: Failed, receipt: Receipt, no_expert: NoExpert | None = None, *, retry_after_s: float | None = None
) -> ApiError:
    """What a failed request is answered with.

    no_expert: why nobody could take it, where that is so. retry_after_s: as predicted for this one; None leaves what is
    usual for the code.
    """
    if no_expert and no_expert.code == failed.code and no_expert.retry_after_s is not None:
        retry_after_s = no_expert.retry_after_s
    return refused(
        ErrorCode.of(failed.code),
        failed.message,
        retry_after_s=None if retry_after_s is None else whole_seconds(retry_after_s),
        receipt=receipt,
        offers=offers_of(no_expert) if no_expert else None,
    )
