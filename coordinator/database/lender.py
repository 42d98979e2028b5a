"""Leases of keys' daily budgets, drawn from the shared database: the shell around `moe2.coordinator.ledger.leases`.

The event loop asks whether a lease covers a request; where it does not, a thread draws, and the request waits for it as
it would for an expert with room. One atomic UPDATE draws; it is what `lend` computes.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import ParamSpec, TypeVar

import structlog

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.choosing.result import NoExpert
from moe2.coordinator.database.postgresql import DatabaseError, Session
from moe2.coordinator.keys.keys import DailyLimits, Principal
from moe2.coordinator.ledger.accounts import Accounts, Amount, Remaining, day_of
from moe2.coordinator.ledger.leases import (
    FRESH_S,
    UJ_PER_J,
    Answer,
    Ask,
    Lease,
    Resource,
    limit_uj,
    microjoules,
)

RENEW_EVERY_S = 0.5
RETRY_S = 1.0
"""After a draw that failed no other is tried for so long."""
CLOSE_S = 2.0
DRAW_TIMEOUT_S = 2.0
"""The time after which a request is not kept waiting for a database that does not answer."""
RECALL_S = 0.1
"""The time that others get to give back what they hold beyond one request's worth."""
RECALL = "recall "
"""The beginning of a notification that asks to give back what is held of a key's budget."""

log = structlog.get_logger()
P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class _Budget:
    """What this coordinator holds of one key's day."""

    principal: Principal
    day: str
    leases: dict[Resource, Lease]
    drawing: asyncio.Task[None] | None = None
    failed_s: float = -math.inf
    """When a draw last failed."""
    recalled_s: float = -math.inf
    """When it was last heard what others hold after they had been asked to give it back."""
    must_recall: bool = False
    """Whether others are to be asked before the next draw."""
    is_unsure: bool = False
    """Whether a draw failed that the database may have carried out: it may hold more as drawn than is known here."""
    wanted: dict[Resource, int] = field(default_factory=dict)
    """The largest needs of requests that wait."""


class Lender:
    """Holds this coordinator's leases. One writer: the event loop; the database is asked in a thread.

    name: this coordinator's. accounts: what this coordinator has spent and reserved. on_news: called when waiting
    requests may look again. wall_clock: seconds since the epoch that all coordinators agree on.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        *,
        accounts: Accounts,
        n_coordinators: int,
        on_news: Callable[[], None],
        clock: Callable[[], float] = monotonic,
        wall_clock: Callable[[], float],
    ) -> None:
        self._wall_clock = wall_clock
        self._session = session
        self._name = name
        self._accounts = accounts
        self._n_coordinators = n_coordinators
        self._on_news = on_news
        self._clock = clock
        self._budgets: dict[tuple[str, str], _Budget] = {}
        # One thread: answers come in the order of the questions.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="budget-lender")

    # --- What the books ask -------------------------------------------------------------------------------------------

    def left(self, principal: Principal, day: str, used: Amount) -> Remaining:
        """Returns what is left of a key's limits with what other coordinators hold taken off, as far as is known."""
        budget = self._budget(principal, day)
        energy, tokens = (budget.leases.get(resource) for resource in (Resource.ENERGY, Resource.TOKENS))
        return Remaining(
            None if energy is None else energy.left(_amount(used, Resource.ENERGY)) / UJ_PER_J,
            None if tokens is None else tokens.left(_amount(used, Resource.TOKENS)),
        )

    def elsewhere(self, principal: Principal, day: str) -> Amount:
        """Returns what other coordinators have drawn, as far as is known."""
        leases = self._budget(principal, day).leases
        energy, tokens = (
            (leases[resource].elsewhere or 0 if resource in leases else 0)
            for resource in (Resource.ENERGY, Resource.TOKENS)
        )
        return Amount(energy / UJ_PER_J, tokens)

    def covers(self, principal: Principal, day: str, used: Amount, need: Amount) -> NoExpert | None:
        """Returns None where the leases cover a request; else why it has to wait or to come again, after a draw began.

        used: by others than this request. need: None where the key has no such limit.
        """
        budget, now_s = self._budget(principal, day), self._clock()
        needs = {resource: _amount(need, resource) for resource in budget.leases}
        for resource, amount in needs.items():
            budget.leases[resource] = budget.leases[resource].needs(amount)
        lacks = [
            resource
            for resource, lease in budget.leases.items()
            if lease.free(_amount(used, resource), now_s) < needs[resource]
        ]
        return self._wait_for(budget, {resource: needs[resource] for resource in lacks}) if lacks else None

    def refused(self, principal: Principal, day: str) -> NoExpert | None:
        """Returns None where a refusal for lack of budget is final; as `covers`, where others may hold less by now."""
        budget, now_s = self._budget(principal, day), self._clock()
        leases = budget.leases.values()
        holds_nothing = all(lease.is_fresh(now_s) and not lease.elsewhere for lease in leases)
        if holds_nothing or now_s - budget.recalled_s < FRESH_S:
            return None
        budget.must_recall = True
        return self._wait_for(budget, dict.fromkeys(budget.leases, 0))

    # --- Running ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Gives back what was drawn before the start, then renews leases, until it is cancelled."""
        # The day is that of the first moments, and another one once a clock that was wrong has been set.
        released_day = ""
        while True:
            day = day_of(self._wall_clock())
            if day != released_day:
                with suppress(DatabaseError):
                    await self._in_thread(self._release_all, day, self._held(day))
                    released_day = day
            await asyncio.sleep(RENEW_EVERY_S)
            self._renew(self._budgets.values())

    def recalled(self, key_id: str) -> None:
        """Gives back what is held of a key's budget beyond one request's worth, as another coordinator has none."""
        for budget in self._budgets.values():
            if budget.principal.key_id == key_id and budget.drawing is None:
                asks = {
                    resource: lease.surplus(self._used(budget, resource), self._clock())
                    for resource, lease in budget.leases.items()
                }
                self._draw(budget, {resource: ask for resource, ask in asks.items() if ask is not None})

    async def close(self) -> None:
        """Gives everything back, where the database is there, and ends the thread."""
        self._budgets.clear()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._in_thread(self._release_all, day_of(self._wall_clock()), frozenset())
        except (DatabaseError, TimeoutError) as error:
            log.warning("leases_not_returned", reason=str(error) or "the database does not answer")
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._session.close()

    def _held(self, day: str) -> frozenset[str]:
        """Returns the keys of which something has been drawn of a day since the start."""
        return frozenset(budget.principal.key_id or "" for budget in self._budgets.values() if budget.day == day)

    # --- Draws --------------------------------------------------------------------------------------------------------

    def _budget(self, principal: Principal, day: str) -> _Budget:
        """Returns what is held of a key's day, under the key's present limits."""
        place = principal.key_id or "", day
        budget = self._budgets.get(place)
        if budget is None:
            self._forget_former_days(day)
            budget = self._budgets[place] = _Budget(principal, day, {})
        if budget.principal.daily != principal.daily or not budget.leases:
            budget.leases = {
                resource: _with_limit(budget.leases.get(resource), limit)
                for resource, limit in _limits(principal.daily).items()
            }
        budget.principal = principal
        return budget

    def _forget_former_days(self, day: str) -> None:
        for place in [place for place, budget in self._budgets.items() if budget.day < day and not budget.drawing]:
            del self._budgets[place]

    def _wait_for(self, budget: _Budget, needs: dict[Resource, int]) -> NoExpert:
        name = budget.principal.name
        if self._clock() - budget.failed_s < RETRY_S:
            return NoExpert(
                ErrorCode.DATABASE_UNREACHABLE,
                f"The daily limit of key {name!r} cannot be checked: the database that keeps it cannot be reached.",
                retry_after_s=ErrorCode.DATABASE_UNREACHABLE.retry_after_s,
            )
        for resource, need in needs.items():
            budget.wanted[resource] = max(need, budget.wanted.get(resource, 0))
        if budget.drawing is None:
            self._draw_wanted(budget)
        text = f"How much is left of the daily limit of key {name!r} is being asked for."
        return NoExpert(ErrorCode.BUDGET_PENDING, text, waits_s=math.inf)

    def _draw_wanted(self, budget: _Budget) -> None:
        wanted, budget.wanted = budget.wanted, {}
        self._draw(
            budget,
            {
                resource: self._draw_for(budget, resource, need)
                for resource, need in wanted.items()
                if resource in budget.leases
            },
        )

    def _draw_for(self, budget: _Budget, resource: Resource, need: int) -> Ask:
        used = self._used(budget, resource)
        return budget.leases[resource].draw(used, need, self._clock(), self._n_coordinators)

    def _renew(self, budgets: Iterable[_Budget]) -> None:
        for budget in tuple(budgets):
            if budget.drawing is not None or self._clock() - budget.failed_s < RETRY_S:
                continue
            asks: dict[Resource, Ask] = {}
            for resource, lease in budget.leases.items():
                ask = lease.renewal(self._used(budget, resource), self._clock(), self._n_coordinators)
                if ask is None and budget.is_unsure:
                    used = self._used(budget, resource)
                    ask = Ask(used + lease.free(used, self._clock()))
                if ask is not None:
                    asks[resource] = ask
            self._draw(budget, asks)

    def _draw(self, budget: _Budget, asks: dict[Resource, Ask]) -> None:
        if asks:
            for resource, ask in asks.items():
                budget.leases[resource] = budget.leases[resource].asked(ask)
            budget.drawing = asyncio.get_running_loop().create_task(self._drawn(budget, asks))

    async def _drawn(self, budget: _Budget, asks: dict[Resource, Ask]) -> None:
        recalls, budget.must_recall = budget.must_recall, False
        try:
            async with asyncio.timeout(DRAW_TIMEOUT_S):
                answers = {} if recalls else await self._in_thread(self._ask, budget, asks)
                if recalls or any(answers[resource].drawn - ask.keep < ask.least for resource, ask in asks.items()):
                    # Others may hold more than they need.
                    recalls = True
                    await self._in_thread(self._recall, budget.principal.key_id or "")
                    await asyncio.sleep(RECALL_S)
                    answers = await self._in_thread(self._ask, budget, asks)
        except Exception as error:
            if not budget.is_unsure:
                is_foreseen = isinstance(error, DatabaseError | TimeoutError)
                reason = str(error) or "the database does not answer"
                log.warning(
                    "budget_not_drawn",
                    key=budget.principal.name,
                    reason=reason,
                    exc_info=None if is_foreseen else error,
                )
            budget.failed_s, budget.is_unsure = self._clock(), True
        else:
            budget.failed_s, budget.is_unsure = -math.inf, False
            if recalls:
                budget.recalled_s = self._clock()
            for resource, answer in answers.items():
                if resource in budget.leases:
                    budget.leases[resource] = budget.leases[resource].took(answer, self._clock())
        finally:
            budget.drawing = None
        if budget.wanted:
            self._draw_wanted(budget)
        self._on_news()

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, partial(work, *args, **kwargs))

    def _used(self, budget: _Budget, resource: Resource) -> int:
        return _amount(self._accounts.used(budget.principal, budget.day), resource)

    # --- The thread ---------------------------------------------------------------------------------------------------

    def _release_all(self, day: str, but: frozenset[str]) -> None:
        """Gives back what this coordinator has drawn and not used of a day, except of some keys."""
        with self._session.transaction() as cursor:
            cursor.execute(_HELD, [day, self._name])
            held = [(key_id, Resource(resource)) for key_id, resource in cursor.fetchall() if key_id not in but]
        for key_id, resource in held:
            used = _amount(self._accounts.used(Principal(key_id=key_id), day), resource)
            self._ask_one(key_id, day, resource, 0, Ask(used))

    def _ask(self, budget: _Budget, asks: dict[Resource, Ask]) -> dict[Resource, Answer]:
        key_id, limits = budget.principal.key_id or "", _limits(budget.principal.daily)
        return {
            resource: self._ask_one(key_id, budget.day, resource, limits[resource], ask)
            for resource, ask in sorted(asks.items())
            if resource in limits
        }

    def _recall(self, key_id: str) -> None:
        with self._session.transaction() as cursor:
            cursor.execute("SELECT pg_notify('moe2', %s)", [RECALL + key_id])

    def _ask_one(self, key_id: str, day: str, resource: Resource, limit: int, ask: Ask) -> Answer:
        values = {
            "name": self._name,
            "limit": limit,
            "keep": ask.keep,
            "want": ask.want,
            "least": ask.least,
            "key": key_id,
            "day": day,
            "resource": resource.value,
        }
        with self._session.transaction() as cursor:
            cursor.execute(_LEND, values)
            if (found := cursor.fetchone()) is None:
                cursor.execute(_OPEN, values)
                cursor.execute(_LEND, values)
                found = cursor.fetchone()
        if found is None:
            raise DatabaseError(f"The budget of key {key_id} is gone from the database.")
        return Answer(*found)


def write_off(session: Session, coordinator: str, day: str) -> int:
    """Gives back what a coordinator that will not return has drawn today, but for what its shipped requests took.

    Returns how many budgets were changed. Raises `DatabaseError`.
    """
    with session.transaction() as cursor:
        cursor.execute(_WRITE_OFF, {"name": coordinator, "day": day})
        return cursor.rowcount


def _limits(daily: DailyLimits) -> dict[Resource, int]:
    limits: dict[Resource, int] = {}
    if daily.energy_j is not None:
        limits[Resource.ENERGY] = limit_uj(daily.energy_j)
    if daily.tokens is not None:
        limits[Resource.TOKENS] = daily.tokens
    return limits


def _with_limit(lease: Lease | None, limit: int) -> Lease:
    if lease is None:
        return Lease(limit)
    return Lease(limit, lease.drawn, lease.until_s, lease.elsewhere, lease.asked_s, lease.largest)


def _amount(amount: Amount, resource: Resource) -> int:
    if resource is Resource.ENERGY:
        return microjoules(amount.energy_j or 0.0)
    return amount.tokens or 0


_LEND = """
    UPDATE budgets SET drawn = drawn || jsonb_build_object(%(name)s::text, %(keep)s::bigint + CASE
        WHEN %(limit)s::bigint - elsewhere(drawn, %(name)s) - %(keep)s::bigint >= %(least)s::bigint
        THEN greatest(0, least(%(want)s::bigint, %(limit)s::bigint - elsewhere(drawn, %(name)s) - %(keep)s::bigint))
        ELSE 0 END)
    WHERE key_id = %(key)s AND day = %(day)s AND resource = %(resource)s
    RETURNING (drawn ->> %(name)s)::bigint, elsewhere(drawn, %(name)s)
"""
_OPEN = """
    INSERT INTO budgets (key_id, day, resource, drawn)
    VALUES (%(key)s, %(day)s, %(resource)s, shipped(%(key)s, %(day)s, %(resource)s)) ON CONFLICT DO NOTHING
"""
_HELD = "SELECT key_id, resource FROM budgets WHERE day = %s AND jsonb_exists(drawn, %s) ORDER BY 1, 2"
_WRITE_OFF = """
    UPDATE budgets SET drawn = drawn
        || jsonb_build_object(%(name)s::text, coalesce((shipped(key_id, day, resource) ->> %(name)s)::bigint, 0))
    WHERE day = %(day)s AND jsonb_exists(drawn, %(name)s)
"""
