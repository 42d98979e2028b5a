"""`POST /v1/moe2/feedback`: a user's score for an answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
import structlog
from aiohttp import web

from moe2.coordinator.access.principal import ANYBODY
from moe2.coordinator.api.errors import invalid, refused, unsupported
from moe2.coordinator.api.requestfacts import PRINCIPAL
from moe2.coordinator.errors import ErrorCode
from moe2.coordinator.feedback import AlreadyScoredError, Feedback, FeedbackBook, UnknownRequestError
from moe2.coordinator.feedbackfile import FeedbackFile

FEEDBACK_ROUTE = "/v1/moe2/feedback"

log = structlog.get_logger()


class FeedbackAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the score was counted for. model_mean, model_count: of all scores of the model so far."""

    request_id: str
    expert: str
    model: str
    score: float
    model_mean: float
    model_count: int


class FeedbackRoutes:
    """Takes {"request_id", "score"}. on_score: told of each score that was kept."""

    def __init__(self, book: FeedbackBook, file: FeedbackFile, on_score: Callable[[Feedback], None]) -> None:
        self._book = book
        self._file = file
        self._on_score = on_score

    def add_to(self, app: web.Application) -> None:
        app.router.add_post(FEEDBACK_ROUTE, self._feedback)

    async def _feedback(self, http: web.Request) -> web.Response:
        request_id, score = parse_feedback(await http.read())
        try:
            key_id = http.get(PRINCIPAL, ANYBODY).key_id
            feedback = self._book.feedback(request_id, score, time.time(), key_id=key_id)
            self._file.append(feedback)
        except UnknownRequestError as error:
            raise refused(ErrorCode.REQUEST_NOT_FOUND, str(error), param="request_id") from None
        except AlreadyScoredError as error:
            raise refused(ErrorCode.ALREADY_SCORED, str(error), param="request_id") from None
        except OSError as error:
            log.exception("feedback_not_kept", path=str(self._file.path))
            text = (
                f"The score could not be kept: {error.strerror or error}. It was not counted: send it again once "
                "there is room on the coordinator's disk and feedback.jsonl in its state_dir can be written."
            )
            raise refused(ErrorCode.FEEDBACK_NOT_KEPT, text) from None
        tally = self._book.accept(feedback)
        self._on_score(feedback)
        answer = FeedbackAnswer(
            request_id=request_id,
            expert=feedback.expert,
            model=feedback.model,
            score=score,
            model_mean=tally.total / tally.count,
            model_count=tally.count,
        )
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


def parse_feedback(body: bytes) -> tuple[str, float]:
    """Request id and score. Raises `ApiError` (400) naming the parameter."""
    try:
        fields: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise refused(ErrorCode.INVALID_JSON, f"The body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise refused(ErrorCode.INVALID_JSON, "The body must be a JSON object.")
    for name in fields:
        if name not in ("request_id", "score"):
            raise unsupported(name, hint="Known: request_id, score.")
    request_id, score = fields.get("request_id"), fields.get("score")
    if not isinstance(request_id, str) or not request_id:
        raise invalid("'request_id' is required: the x-request-id of an answer.", param="request_id")
    if not isinstance(score, int | float) or isinstance(score, bool) or not 0 <= score <= 1:
        raise invalid("'score' must be a number from 0 to 1.", param="score")
    return request_id, float(score)
