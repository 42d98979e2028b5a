"""Keeps the books of the requests in progress: daily limits at the choice, the ledger at the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from moe2.coordinator.access.principal import Principal
from moe2.coordinator.choice import NoExpert, Selection, SelectionRequest
from moe2.coordinator.dispatch import Completed, Lifecycle
from moe2.coordinator.dispatch.suspicion import has_downed_an_engine
from moe2.coordinator.ledger.accounts import Accounts, Amount, charge, day_of
from moe2.coordinator.ledger.admission import Select, admit, burnt_j, is_limited, known_j, reservation_of
from moe2.coordinator.ledger.entry import RequestEntry, request_entry, reservation_entry
from moe2.coordinator.ledger.ledger import Ledger, Recorded
from moe2.coordinator.receipt import Receipt, receipt_of


class Bookkeeper:
    """clock: wall time, s since the epoch.

    What the service tells it of each request, in this order: `choose` for every attempt, `dispatched` for every job,
    `concluded` if the outcome comes before all is known, `retired`.
    """

    def __init__(self, accounts: Accounts, ledger: Ledger, *, clock: Callable[[], float]) -> None:
        self.accounts = accounts
        self._ledger = ledger
        self._clock = clock

    def choose(self, life: Lifecycle, asked: SelectionRequest, select: Select) -> Selection | NoExpert:
        """What `select` decides within the daily limits of the request's key."""
        request = life.request
        if not is_limited(request.principal):
            return select(asked)
        return self._admit(request.principal, asked, select, besides=request.request_id, burnt_j=burnt_j(life))

    def plan(self, principal: Principal, asked: SelectionRequest, select: Select) -> Selection | NoExpert:
        """What `choose` would answer to a request of `principal` that came now. Reserves nothing."""
        if not is_limited(principal):
            return select(asked)
        return self._admit(principal, asked, select, besides=None, burnt_j=0.0)

    def dispatched(self, life: Lifecycle) -> None:
        """A job was sent out: reserve what the request may come to now."""
        request = life.request
        if not is_limited(request.principal):
            return
        amount = reservation_of(life)
        at_unix_s = self._arrived_unix_s(life)
        self.accounts.reserve(request.principal, day_of(at_unix_s), request.request_id, amount)
        # Not waited for: it is for the books after a crash, and nobody is told of it.
        self._ledger.record(reservation_entry(life, amount, at_unix_s=at_unix_s, day=day_of(at_unix_s)))

    def concluded(self, life: Lifecycle) -> Recorded:
        """The outcome is known, but not everything that was spent: enter what is known, so that it is not lost."""
        reserved = reservation_of(life) if is_limited(life.request.principal) else None
        receipt = receipt_of(life)
        charged = charge(reserved, used(life, receipt), known_j=known_j(life))
        return self._ledger.record(self._entry(life, receipt, charged))

    def retired(self, life: Lifecycle, receipt: Receipt) -> Recorded:
        """Everything is known: charge it and enter it."""
        request = life.request
        charged = self.accounts.settle(
            request.principal,
            day_of(self._arrived_unix_s(life)),
            request.request_id,
            used(life, receipt),
            known_j=known_j(life),
            crash_suspected=has_downed_an_engine(life.attempts) and not isinstance(life.outcome, Completed),
        )
        return self._ledger.record(self._entry(life, receipt, charged))

    def _admit(
        self, principal: Principal, asked: SelectionRequest, select: Select, *, besides: str | None, burnt_j: float
    ) -> Selection | NoExpert:
        now_unix_s = self._clock()
        today = day_of(now_unix_s)
        return admit(
            asked,
            select,
            principal,
            self.accounts.left(principal, today, besides=besides),
            self.accounts.statement(principal, today),
            burnt_j=burnt_j,
            now=datetime.fromtimestamp(now_unix_s, UTC),
        )

    def _entry(self, life: Lifecycle, receipt: Receipt, charged: Amount) -> RequestEntry:
        at_unix_s = self._arrived_unix_s(life)
        was_reserved = is_limited(life.request.principal) and bool(life.attempts)
        return request_entry(
            life, receipt, charged, at_unix_s=at_unix_s, day=day_of(at_unix_s), was_reserved=was_reserved
        )

    def _arrived_unix_s(self, life: Lifecycle) -> float:
        return self._clock() - (asyncio.get_running_loop().time() - life.request.arrived_s)


def used(life: Lifecycle, receipt: Receipt) -> Amount:
    """What a request is known to have used: joules of all attempts, and the tokens that its client is told of.

    tokens None: an expert worked and nobody can say how much.
    """
    joules = receipt.energy.joules
    prompt, decoded = receipt.tokens.prompt, receipt.tokens.decoded
    if prompt is not None:
        return Amount(joules, prompt + (decoded or 0))
    # An expert that refused has no usage, and used no tokens; one that was lost may have used all.
    return Amount(joules, None if joules is None else 0)
