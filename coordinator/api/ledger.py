"""`GET /v1/moe2/ledger`: what requests have cost, and how each key stands today."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from moe2.coordinator.api.decode import whole_number
from moe2.coordinator.api.errors import invalid, refused
from moe2.coordinator.errors import ErrorCode
from moe2.coordinator.ledger.accounts import Accounts, Statement, day_after, day_of
from moe2.coordinator.ledger.report import By, Span, SumRow, sums
from moe2.coordinator.ledger.schema import LedgerError, reading

LEDGER_ROUTE = "/v1/moe2/ledger"
DAY_S = 86_400
MAX_DAYS = 36_500


class LedgerRoute:
    """Takes `by` (key, expert, model, day, outcome) and `days` (whole UTC days up to today; 1 is today alone)."""

    def __init__(self, path: Path, accounts: Accounts, *, clock: Callable[[], float]) -> None:
        self._path = path
        self._accounts = accounts
        self._clock = clock

    def add_to(self, app: web.Application) -> None:
        app.router.add_get(LEDGER_ROUTE, self._ledger)

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
            rows = await asyncio.to_thread(_sums, self._path, By(by), Span(since_unix_s=since_unix_s))
        except LedgerError as error:
            raise refused(ErrorCode.LEDGER_UNREADABLE, str(error)) from None
        body = {
            "by": by,
            "since_unix_s": since_unix_s,
            "sums": rows,
            "today": [_shown(statement) for statement in self._accounts.statements(today)],
        }
        return web.Response(body=msgspec.json.encode(body), content_type="application/json")


def _sums(path: Path, by: By, span: Span) -> tuple[SumRow, ...]:
    with reading(path) as connection:
        return sums(connection, by, span)


def _shown(statement: Statement) -> dict[str, Any]:
    """One key's day. Where requests are unmeasured, `energy_j` counts what was reserved for them (`held_j`)."""
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
