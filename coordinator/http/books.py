"""The routes of the ledger and of feedback: `GET /v1/moe2/ledger` and `POST /v1/moe2/feedback`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog
from aiohttp import web

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.gate.feedback import AlreadyScoredError, Feedback, FeedbackBook, UnknownRequestError
from moe2.coordinator.gate.feedback_file import FeedbackFile
from moe2.coordinator.http.auth import BODY, PRINCIPAL
from moe2.coordinator.http.body.decode import convert, json_object, whole_number
from moe2.coordinator.http.body.requests import FeedbackRequest
from moe2.coordinator.http.errors import invalid, refused
from moe2.coordinator.http.paths import FEEDBACK_PATH, LEDGER_PATH
from moe2.coordinator.keys.keys import ANYBODY
from moe2.coordinator.ledger.accounts import Accounts, Statement, day_after, day_of
from moe2.coordinator.ledger.report import By, Span, StandingReport, SumRow, standing, sums
from moe2.coordinator.ledger.schema import LedgerError, reading

log = structlog.get_logger()

DAY_S = 86_400
MAX_DAYS = 36_500


class LedgerRoute:
    """The route that sums up what requests have cost and shows what each key has used today.

    Query parameters: `by` (key, expert, model, day or outcome) and `days` (whole UTC days up to today; 1 is today
    alone).
    """

    def __init__(self, path: Path, accounts: Accounts, *, clock: Callable[[], float]) -> None:
        self._path = path
        self._accounts = accounts
        self._clock = clock

    def add_to(self, app: web.Application) -> None:
        """Registers the route with the application."""
        app.router.add_get(LEDGER_PATH, self._ledger)

    async def _ledger(self, http: web.Request) -> web.Response:
        by, days = http.query.get("by", By.KEY), whole_number(http.query.get("days", "1"), 1, MAX_DAYS)
        if by not in set(By):
            raise invalid(f"'by' must be one of {', '.join(By)}.", param="by")
        if days is None:
            raise invalid(f"'days' must be a whole number of days, from 1 to {MAX_DAYS}.", param="days")
        today = day_of(self._clock())
        since_unix_s = day_after(today).timestamp() - days * DAY_S
        try:
            # Reading may take as long as the ledger is large.
            rows, standing_joules = await asyncio.to_thread(_read, self._path, By(by), Span(since_unix_s=since_unix_s))
        except LedgerError as error:
            raise refused(ErrorCode.LEDGER_UNREADABLE, str(error)) from None
        body = {
            "by": by,
            "since_unix_s": since_unix_s,
            "sums": rows,
            "standing": standing_joules,
            "today": [_shown(statement) for statement in self._accounts.statements(today)],
        }
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def _read(path: Path, by: By, span: Span) -> tuple[tuple[SumRow, ...], StandingReport]:
    with reading(path) as connection:
        return sums(connection, by, span), standing(connection, span)


def _shown(statement: Statement) -> dict[str, Any]:
    """Describes one key's day as JSON. `energy_j` includes what stays reserved for unmeasured requests (`held_j`)."""
    spent = statement.spent
    return {
        "key": spent.key_name,
        "day": statement.day,
        "n_requests": spent.n_requests,
        "n_unmeasured": spent.n_unmeasured,
        "n_crash_suspected": spent.n_crash_suspected,
        "energy_j": spent.known_j,
        "held_j": spent.held_j,
        "reserved_j": statement.reserved_j,
        "energy_limit_j": statement.limits.energy_j,
        "energy_left_j": statement.left.energy_j,
        "tokens": spent.tokens,
        "reserved_tokens": statement.reserved_tokens,
        "token_limit": statement.limits.tokens,
        "tokens_left": statement.left.tokens,
        "resets_at_unix_s": day_after(statement.day).timestamp(),
    }


class FeedbackAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a score: the expert that it counts for, and the mean score of that expert's model so far."""

    request_id: str
    expert: str
    model: str
    score: float
    model_mean: float
    model_count: int


class FeedbackRoutes:
    """The route that takes a score of an answer, as {"request_id", "score"}, and keeps it.

    on_score: called with each score that was kept.
    """

    def __init__(self, book: FeedbackBook, file: FeedbackFile, on_score: Callable[[Feedback], None]) -> None:
        self._book = book
        self._file = file
        self._on_score = on_score

    def add_to(self, app: web.Application) -> None:
        """Registers the route with the application."""
        app.router.add_post(FEEDBACK_PATH, self._feedback)

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
    """Reads the body of a feedback request. Raises `ApiError` (400), which names the parameter at fault."""
    return convert(json_object(body), FeedbackRequest)
