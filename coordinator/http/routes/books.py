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
from moe2.coordinator.database.books import Contributor, Others, SharedBooks
from moe2.coordinator.database.bulletin import Score, SharedAnswers
from moe2.coordinator.database.postgresql import DatabaseError
from moe2.coordinator.gate.feedback import AlreadyScoredError, Feedback, FeedbackBook, UnknownRequestError
from moe2.coordinator.gate.feedback_file import FeedbackFile
from moe2.coordinator.http.access.auth import PRINCIPAL
from moe2.coordinator.http.access.upload import BODY
from moe2.coordinator.http.body.decode import convert, json_object
from moe2.coordinator.http.body.requests import FeedbackRequest
from moe2.coordinator.http.errors import invalid, refused
from moe2.coordinator.http.paths import FEEDBACK_PATH, LEDGER_PATH
from moe2.coordinator.http.query import whole_number
from moe2.coordinator.keys.keys import ANYBODY, DailyLimits
from moe2.coordinator.ledger.accounts import Accounts, Statement, day_after, day_of, with_others
from moe2.coordinator.ledger.report import (
    Answered,
    By,
    Span,
    StandingRow,
    SumRow,
    answered_in,
    standing_hosts,
    standing_report,
    sums,
    together,
)
from moe2.coordinator.ledger.schema import LedgerError, reading

log = structlog.get_logger()

DAY_S = 86_400
SHIPPED_SOON_S = 1
"""Seconds after which another coordinator's answer is in the shared ledger, if the database is there."""
MAX_DAYS = 36_500


class LedgerRoute:
    """The route that sums up what requests have cost and shows what each key has used today.

    Query parameters: `by` (key, expert, model, day or outcome) and `days` (whole UTC days up to today; 1 is today
    alone). shared: what other coordinators have shipped, where they share a database; limits_of: the limits of a key
    that only they have seen.
    """

    def __init__(
        self,
        path: Path,
        accounts: Accounts,
        *,
        clock: Callable[[], float],
        shared: SharedBooks | None = None,
        limits_of: Callable[[str | None], DailyLimits] | None = None,
    ) -> None:
        self._path = path
        self._accounts = accounts
        self._clock = clock
        self._shared = shared
        self._limits_of = limits_of or (lambda key_id: DailyLimits())

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
        span = Span(since_unix_s=day_after(today).timestamp() - days * DAY_S)
        others, trouble = await self._others(By(by), span, today)
        try:
            # Reading may take as long as the ledger is large.
            rows, hosts, answered = await asyncio.to_thread(_read, self._path, By(by), span)
        except LedgerError as error:
            raise refused(ErrorCode.LEDGER_UNREADABLE, str(error)) from None
        body: dict[str, Any] = {"by": by, "since_unix_s": span.since_unix_s}
        statements = self._accounts.statements(today)
        if others is None:
            body |= {"sums": rows, "standing": standing_report(hosts, (answered,))}
        else:
            body |= {
                "sums": together(rows, others.sums),
                "standing": standing_report(others.hosts, (answered, others.answered)),
            }
            statements = with_others(statements, others.today, today, self._limits_of)
        body["today"] = [_shown(statement) for statement in statements]
        if self._shared is not None:
            own = Contributor(name=self._shared.own, cell=self._shared.cell, is_own=True, complete_s_ago=0.0)
            body["coordinators"] = (own, *(others.contributors if others else ()))
            body["database_error"] = trouble
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")

    async def _others(self, by: By, span: Span, today: str) -> tuple[Others | None, str | None]:
        """What other coordinators have shipped, or why that is not known; neither, where there is no database."""
        if self._shared is None:
            return None, None
        try:
            return await self._shared.sums(by, span, today), None
        except DatabaseError as error:
            return None, str(error)


def _read(path: Path, by: By, span: Span) -> tuple[tuple[SumRow, ...], tuple[StandingRow, ...], Answered]:
    with reading(path) as connection:
        return sums(connection, by, span), standing_hosts(connection, span), answered_in(connection, span)


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

    on_score: called with each score that was kept here. elsewhere: keeps scores of answers that other coordinators
    gave, where they share a database.
    """

    def __init__(
        self,
        book: FeedbackBook,
        file: FeedbackFile,
        on_score: Callable[[Feedback], None],
        elsewhere: SharedAnswers | None = None,
    ) -> None:
        self._book = book
        self._file = file
        self._on_score = on_score
        self._elsewhere = elsewhere

    def add_to(self, app: web.Application) -> None:
        """Registers the route with the application."""
        app.router.add_post(FEEDBACK_PATH, self._feedback)

    async def _feedback(self, http: web.Request) -> web.Response:
        body = await http[BODY].parsed(parse_feedback)
        given = Score(body.request_id, body.score, time.time(), http.get(PRINCIPAL, ANYBODY).key_id)
        try:
            feedback = self._kept_here(given)
        except UnknownRequestError as error:
            if self._elsewhere is None:
                raise refused(ErrorCode.REQUEST_NOT_FOUND, str(error), param="request_id") from None
            feedback = await self._kept_elsewhere(given, self._elsewhere)
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

    async def _kept_elsewhere(self, given: Score, elsewhere: SharedAnswers) -> Feedback:
        """Keeps a score of an answer that this coordinator does not remember: another one's, or before its restart."""
        try:
            return await elsewhere.take(given)
        except UnknownRequestError as error:
            text = f"{error} Where it was answered just now, by another coordinator, it will be there in a moment."
            raise refused(ErrorCode.REQUEST_NOT_FOUND, text, param="request_id", retry_after_s=SHIPPED_SOON_S) from None
        except AlreadyScoredError as error:
            raise refused(ErrorCode.ALREADY_SCORED, str(error), param="request_id") from None
        except DatabaseError as error:
            raise refused(ErrorCode.DATABASE_UNREACHABLE, str(error)) from None

    def _kept_here(self, given: Score) -> Feedback:
        """Keeps a score of an answer that this coordinator gave. Raises UnknownRequestError, and ApiError."""
        try:
            feedback = self._book.feedback(given.request_id, given.score, given.at_unix_s, key_id=given.key_id)
            self._file.append(feedback)
        except AlreadyScoredError as error:
            raise refused(ErrorCode.ALREADY_SCORED, str(error), param="request_id") from None
        except OSError as error:
            log.error("feedback_not_kept", path=str(self._file.path), reason=error.strerror or str(error))
            text = (
                f"The score could not be kept: {error.strerror or error}. It was not counted: send it again once "
                "there is room on the coordinator's disk and feedback.jsonl in its state_dir can be written."
            )
            raise refused(ErrorCode.FEEDBACK_NOT_KEPT, text) from None
        return feedback


def parse_feedback(body: bytes) -> FeedbackRequest:
    """Reads the body of a feedback request. Raises `ApiError` (400), which names the parameter at fault."""
    return convert(json_object(body), FeedbackRequest)
