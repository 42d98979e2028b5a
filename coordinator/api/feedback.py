"""`POST /v1/moe2/feedback`: a user's score for an answer."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import structlog
from aiohttp import web

from moe2.coordinator.access.principal import ANYBODY
from moe2.coordinator.api.body import FeedbackRequest
from moe2.coordinator.api.decode import convert, json_object
from moe2.coordinator.api.errors import refused
from moe2.coordinator.api.requestfacts import BODY, PRINCIPAL
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
        body = parse_feedback(http[BODY])
        try:
            key_id = http.get(PRINCIPAL, ANYBODY).key_id
            feedback = self._book.feedback(body.request_id, body.score, time.time(), key_id=key_id)
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
            request_id=body.request_id,
            expert=feedback.expert,
            model=feedback.model,
            score=body.score,
            model_mean=tally.total / tally.count,
            model_count=tally.count,
        )
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


def parse_feedback(body: bytes) -> FeedbackRequest:
    """Raises `ApiError` (400) naming the parameter."""
    return convert(json_object(body), FeedbackRequest)
