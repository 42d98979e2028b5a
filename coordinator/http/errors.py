"""Errors in the shape of OpenAI's API: {"error": {"message", "type", "param", "code"}}. PURE."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
MAX_LISTED_CHARACTERS = 1_000
_NOT_PLAIN = re.compile(r"[^A-Za-z0-9_.\[\]-]")


@dataclass(eq=False)
class ApiError(Exception):
    """An error that is answered to a client, with its HTTP status.

    Whatever the message and the parameter repeat of the request is kept short (`quoted`).
    """

    status: int
    message: str
    kind: str = "invalid_request_error"
    """OpenAI's `type` of the error."""
    param: str | None = None
    """The request parameter at fault; None if no single one is."""
    code: str | None = None
    """OpenAI's `code` of the error; None where it has none."""
    retry_after_s: int | None = None
    """Seconds for the Retry-After header; None for no such header."""
    receipt: Receipt | None = None
    """The receipt of what the request had spent, as the body's `moe2`; None where nothing was begun."""
    offers: dict[str, Any] | None = None
    """Which budgets would be met, where the request's own budgets exclude every expert; None otherwise."""

    def body(self) -> dict[str, Any]:
        """The error's JSON body, in OpenAI's shape."""
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
    """Returns a value of the request as an error message repeats it: as Python writes it, and shortened."""
    return shortened(repr(value), MAX_QUOTED_CHARACTERS)


def listed_in_header(names: Sequence[str]) -> str:
    """Returns names that a client made up as a header's value: a bounded list of plain characters."""
    listed = ", ".join(_NOT_PLAIN.sub("?", name) for name in names)
    return listed if len(listed) <= MAX_LISTED_CHARACTERS else f"{listed[:MAX_LISTED_CHARACTERS]}..."


def refused(
    code: ErrorCode,
    message: str,
    *,
    param: str | None = None,
    retry_after_s: int | None = None,
    receipt: Receipt | None = None,
    offers: dict[str, Any] | None = None,
) -> ApiError:
    """Returns an error with the status and the type that belong to its code.

    retry_after_s: None stands for the usual time of the code.
    """
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
    """Returns the error (400) for a parameter with a value that it cannot have."""
    return ApiError(400, message, param=param)


def unsupported(param: str, *, hint: str = "") -> ApiError:
    """Returns the error (400) for a parameter that moe2 does not implement and therefore never silently drops."""
    text = f"Unsupported parameter: {quoted(param)}.{' ' + hint if hint else ''}"
    return refused(ErrorCode.UNSUPPORTED_PARAMETER, text, param=param)


def renamed(error: ApiError, names: Mapping[str, str]) -> ApiError:
    """Returns an error with its parameter called as a face calls it. names: longer names first; places in lists go."""
    for name, other in names.items():
        if error.param is not None and re.match(re.escape(name) + r"(?![^.\[])", error.param):
            rest = re.sub(r"^\[\d+\]", "", error.param[len(name) :])
            message = error.message.replace(error.param, other + rest)
            return replace(error, param=other + rest, message=message)
    return error


def explained(failed: Failed, context_tokens: int | None) -> Failed:
    """Returns a failure in the words by which clients tell that a context was too small.

    LiteLLM and LangChain look for phrases in the message, and so do coding agents, before they shorten a conversation.
    context_tokens: of the largest expert that was tried.
    """
    if failed.code != ErrorCode.CONTEXT_EXCEEDED or context_tokens is None:
        return failed
    text = (
        f"The prompt is too long: this model's maximum context length is {context_tokens} tokens, and the prompt "
        f"exceeds the context window. {failed.message}"
    )
    return Failed(failed.code, text)


def error_of(
    failed: Failed, receipt: Receipt, no_expert: NoExpert | None = None, *, retry_after_s: float | None = None
) -> ApiError:
    """Returns the error that a failed request is answered with.

    no_expert: why no expert could take the request, where that is the reason. retry_after_s: predicted for this
    request; None stands for the usual time of the code.
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
