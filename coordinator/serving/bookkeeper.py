"""Keeps the books of the requests in progress: daily limits at the choice, the ledger at the end.

The ledger knows entries only; here they are made of lives and receipts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from moe2.common.cost import Quantiles
from moe2.common.energy import Energy, Quality
from moe2.common.error_codes import ErrorCode
from moe2.common.link.messages import JobUsage
from moe2.coordinator.choosing.fine_level import enough_per_j, is_cheapest, saving_j
from moe2.coordinator.choosing.request import SelectionRequest
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.database.lender import Lender
from moe2.coordinator.keys.keys import Principal
from moe2.coordinator.ledger.accounts import Accounts, Amount, Remaining, charge, day_of
from moe2.coordinator.ledger.daily_limit import (
    Select,
    is_limited,
    member_p95_of,
    p95_of,
    select_within_limits,
    tokens_of,
    with_elsewhere,
)
from moe2.coordinator.ledger.entry import AttemptEntry, AttemptState, RequestEntry, ReservationEntry
from moe2.coordinator.ledger.store import Ledger, Recorded
from moe2.coordinator.provisioning.price_book import Averages, PriceBook, Spending
from moe2.coordinator.serving.attempt import Attempt
from moe2.coordinator.serving.effects import Completed, said_of
from moe2.coordinator.serving.life import Lifecycle
from moe2.coordinator.serving.receipt import ExpertLine, Receipt, receipt_of
from moe2.coordinator.serving.suspicion import has_downed_an_engine


class Bookkeeper:
    """Keeps daily limits, reservations and ledger entries of the requests in progress.

    clock: wall time in seconds since the epoch. prices: of a joule; by default there are no average budgets. lender: of
    daily limits that several coordinators share; by default this coordinator is alone. What the
    service tells it of each request, in this order: `choose` for every attempt, `dispatched` for every job, `concluded`
    if the outcome comes before all is known, `retired`.
    """

    def __init__(
        self,
        accounts: Accounts,
        ledger: Ledger,
        *,
        clock: Callable[[], float],
        prices: PriceBook | None = None,
        lender: Lender | None = None,
    ) -> None:
        self.accounts = accounts
        self._lender = lender
        self.prices = prices or PriceBook(Averages())
        self._ledger = ledger
        self._clock = clock

    def choose(self, life: Lifecycle, asked: SelectionRequest, select: Select) -> Selection | NoExpert:
        """What `select` decides within the daily limits of the request's key."""
        request = life.request
        asked = self._priced(request.principal, asked)
        if not is_limited(request.principal):
            return select(asked)
        return self._admit(request.principal, asked, select, besides=request.request_id, burnt_j=burnt_j(life))

    def plan(self, principal: Principal, asked: SelectionRequest, select: Select) -> Selection | NoExpert:
        """What `choose` would answer to a request of `principal` that came now. Reserves nothing."""
        asked = self._priced(principal, asked)
        if not is_limited(principal):
            return select(asked)
        return self._admit(principal, asked, select, besides=None, burnt_j=0.0, is_plan=True)

    def dispatched(self, life: Lifecycle) -> None:
        """Reserve what the request may come to now that a job was sent out."""
        request = life.request
        if not is_limited(request.principal):
            return
        amount = reservation_of(life)
        at_unix_s = self._arrived_unix_s(life)
        day = day_of(at_unix_s)
        self.accounts.reserve(request.principal, day, request.request_id, amount)
        # Not waited for: it is for the books after a crash, and nobody is told of it.
        self._ledger.record(reservation_entry(life, amount, at_unix_s=at_unix_s, day=day))

    def concluded(self, life: Lifecycle) -> Recorded:
        """Enter what is known of a request whose outcome came before all its costs, so that it is not lost."""
        reserved = reservation_of(life) if is_limited(life.request.principal) else None
        receipt = receipt_of(life)
        charged = charge(reserved, used(life, receipt), known_j=known_j(life))
        at_unix_s = self._arrived_unix_s(life)
        return self._record(life, receipt, charged, at_unix_s, day_of(at_unix_s))

    def retired(self, life: Lifecycle, receipt: Receipt) -> Recorded:
        """Charge and enter a request of which everything is known."""
        principal, at_unix_s, measured_j = life.request.principal, self._arrived_unix_s(life), known_j(life)
        day, is_answer = day_of(at_unix_s), isinstance(life.outcome, Completed)
        charged = self.accounts.settle(
            principal,
            day,
            life.request.request_id,
            used(life, receipt),
            known_j=measured_j,
            crash_suspected=not is_answer and has_downed_an_engine(life.attempts),
        )
        if life.attempts and self.prices.concerns(principal):
            selection = life.attempts[-1].selection
            spending = Spending(
                category=selection.category,
                joules=receipt.energy.joules,
                known_j=measured_j,
                charged_j=charged.energy_j,
                arrived_unix_s=at_unix_s,
                is_answer=is_answer,
                is_cheapest=is_cheapest(selection),
                saving_j=saving_j(selection),
                enough_per_j=enough_per_j(selection),
                is_simulated=receipt.energy.quality is Quality.SIMULATED,
            )
            now_unix_s = self._clock()
            left_j = self._left_j(principal, now_unix_s)
            self.prices.settle(principal, spending, left_j=left_j, now_unix_s=now_unix_s)
        return self._record(life, receipt, charged, at_unix_s, day)

    def _priced(self, principal: Principal, asked: SelectionRequest) -> SelectionRequest:
        """The request with the prices of the average budgets that it stands under."""
        now_unix_s = self._clock()
        left_j = self._left_j(principal, now_unix_s)
        return self.prices.priced(asked, principal, left_j=left_j, now_unix_s=now_unix_s)

    def _left_j(self, principal: Principal, now_unix_s: float) -> float | None:
        """What is left of a key's daily limit; None where it has none."""
        if principal.daily.energy_j is None:
            return None
        return self._left(principal, self.accounts.day(principal, day_of(now_unix_s)), besides=None).energy_j

    def _left(self, principal: Principal, day: str, *, besides: str | None) -> Remaining:
        if self._lender is None:
            return self.accounts.left(principal, day, besides=besides)
        return self._lender.left(principal, day, self.accounts.used(principal, day, besides=besides))

    def _admit(
        self,
        principal: Principal,
        asked: SelectionRequest,
        select: Select,
        *,
        besides: str | None,
        burnt_j: float,
        is_plan: bool = False,
    ) -> Selection | NoExpert:
        now_unix_s = self._clock()
        today = self.accounts.day(principal, day_of(now_unix_s))
        statement = self.accounts.statement(principal, today)
        if self._lender is not None:
            statement = with_elsewhere(statement, self._lender.elsewhere(principal, today))
        chosen = select_within_limits(
            asked,
            select,
            principal,
            self._left(principal, today, besides=besides),
            statement,
            burnt_j=burnt_j,
            now=datetime.fromtimestamp(now_unix_s, UTC),
        )
        if self._lender is None or is_plan:
            return chosen
        if isinstance(chosen, NoExpert):
            # What others hold may have come back since it was last heard of.
            is_final = chosen.code != ErrorCode.BUDGET_EXHAUSTED
            return chosen if is_final else self._lender.refused(principal, today) or chosen
        needed_j = p95_of(chosen)
        tokens = tokens_of(asked.demand, (member.prediction for member in chosen.members))
        need = Amount(None if needed_j is None else needed_j + burnt_j, tokens)
        used = self.accounts.used(principal, today, besides=besides)
        return self._lender.covers(principal, today, used, need) or chosen

    def _record(self, life: Lifecycle, receipt: Receipt, charged: Amount, at_unix_s: float, day: str) -> Recorded:
        was_reserved = bool(life.attempts) and is_limited(life.request.principal)
        entry = request_entry(life, receipt, charged, at_unix_s=at_unix_s, day=day, was_reserved=was_reserved)
        return self._ledger.record(entry)

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


def reservation_of(life: Lifecycle) -> Amount:
    """What a request may come to with the attempts that it has: the p95 of those that run, and what the others took.

    energy_j None: nobody can say.
    """
    parts = [attempt_j(attempt) for attempt in life.attempts]
    energy_j = sum(part for part in parts if part is not None) if None not in parts else None
    return Amount(energy_j, tokens_of(life.request.demand, (one.member.prediction for one in life.attempts)))


def burnt_j(life: Lifecycle) -> float:
    """What the attempts so far may have taken; unknown ones count as nothing."""
    return sum(attempt_j(attempt) or 0.0 for attempt in life.attempts)


def attempt_j(attempt: Attempt) -> float | None:
    """Joules of an attempt: measured, or its predicted p95 while it runs or where nobody measured."""
    if attempt.usage is not None and attempt.usage.energy.joules is not None:
        return attempt.usage.energy.joules
    if attempt.usage is None and attempt.state is AttemptState.FAILED:
        return 0.0
    return member_p95_of(attempt.member)


def known_j(life: Lifecycle) -> float:
    """Joules that were measured so far."""
    spent_j = [attempt.usage.energy.joules for attempt in life.attempts if attempt.usage]
    return sum([joules for joules in spent_j if joules is not None])


MAX_CHARACTERS = 200
"""Characters that are kept of a text that somebody else chose."""


def request_entry(
    life: Lifecycle, receipt: Receipt, charged: Amount, *, at_unix_s: float, day: str, was_reserved: bool
) -> RequestEntry:
    """The ledger's entry of a request as it stands; final once it has retired."""
    request = life.request
    outcome, code, _ = said_of(life.outcome)
    return RequestEntry(
        request_id=request.request_id,
        at_unix_s=at_unix_s,
        day=day,
        key_id=request.principal.key_id,
        key_name=_text(request.principal.name),
        mode=receipt.mode,
        category=_category(life),
        model=_text(request.model),
        outcome=outcome,
        code=None if code is None else _text(code),
        prompt_tokens=receipt.tokens.prompt,
        cached_tokens=receipt.tokens.cached,
        decoded_tokens=receipt.tokens.decoded,
        ttft_s=receipt.seconds.ttft,
        total_s=receipt.seconds.total,
        joules=receipt.energy.joules,
        quality=_quality_said(receipt.energy),
        charged_j=charged.energy_j,
        charged_tokens=charged.tokens,
        was_reserved=was_reserved,
        attempts=tuple(
            [
                _attempt_entry(request.request_id, place, attempt, line)
                for place, (attempt, line) in enumerate(zip(life.attempts, receipt.experts, strict=True))
            ]
        ),
    )


def reservation_entry(life: Lifecycle, amount: Amount, *, at_unix_s: float, day: str) -> ReservationEntry:
    """The ledger's entry of what is reserved for a request now."""
    request = life.request
    return ReservationEntry(
        request_id=request.request_id,
        at_unix_s=at_unix_s,
        day=day,
        key_id=request.principal.key_id,
        key_name=_text(request.principal.name),
        model=_text(request.model),
        energy_j=amount.energy_j,
        tokens=amount.tokens,
    )


def _attempt_entry(request_id: str, place: int, attempt: Attempt, line: ExpertLine) -> AttemptEntry:
    usage, prediction, sha256 = attempt.usage, attempt.prediction, attempt.expert.report.file_sha256
    predicted_j, predicted_s = prediction.energy_j, prediction.total_s
    return AttemptEntry(
        request_id=request_id,
        place=place,
        expert=_text(line.expert),
        agent=_text(line.agent),
        model=_text(line.model),
        outcome=str(line.outcome),
        prompt_tokens=usage.prompt_tokens if usage else None,
        cached_tokens=usage.cached_tokens if usage else None,
        decoded_tokens=line.decoded_tokens,
        seconds=_seconds(usage),
        joules=line.energy.joules,
        quality=_quality_said(line.energy),
        predicted_j_p50=_p50_of(predicted_j),
        predicted_j_p95=_p95_of(predicted_j),
        predicted_s_p50=_p50_of(predicted_s),
        predicted_s_p95=_p95_of(predicted_s),
        file_sha256=None if sha256 is None else _text(sha256),
    )


def _category(life: Lifecycle) -> str | None:
    category = life.attempts[-1].selection.category if life.attempts else life.request.wish.category
    return None if category is None else _text(category)


def _quality_said(energy: Energy) -> str:
    return str(energy.quality if energy.joules is not None else Quality.UNMEASURED)


def _seconds(usage: JobUsage | None) -> float | None:
    if usage is None:
        return None
    phases = [seconds for seconds in (usage.queue_s, usage.prefill_s, usage.decode_s) if seconds is not None]
    return sum(phases) if phases else None


def _p50_of(quantiles: Quantiles | None) -> float | None:
    return quantiles.p50 if quantiles else None


def _p95_of(quantiles: Quantiles | None) -> float | None:
    return quantiles.p95 if quantiles else None


def _text(text: str) -> str:
    """A text as a database takes it: without lone surrogates, and not too long."""
    if len(text) <= MAX_CHARACTERS and text.isascii():
        return text
    return text[:MAX_CHARACTERS].encode("utf-8", "replace").decode()
