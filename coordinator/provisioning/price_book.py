"""The prices of all average budgets: of the fleet, of categories, of keys, and of keys' days. PURE.

A request stands under several averages at once, and pays the sum of their prices: each is the multiplier of its own
budget. What it spends counts for each of them. A key's daily limit is paced like an average, whose target is what is
left of the day divided by the requests that are still expected, so that it is not spent by noon.

Coordinators learn one price together: each adds what it has learned since the last time to what all have (`merged`). A
step of the price depends on the answer that it was learned from and little on the price itself, so that the steps of
several coordinators add up, in whatever order they come.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import msgspec

from moe2.common.status import AverageRow
from moe2.coordinator.choosing.request import DEFAULT_CATEGORY, ScopePrice, SelectionRequest
from moe2.coordinator.keys.keys import Principal
from moe2.coordinator.provisioning.pacer import (
    Price,
    next_day,
    retargeted,
    settled,
    settled_of_day,
    unmeasured,
)
from moe2.coordinator.provisioning.pacer import is_sound as price_is_sound
from moe2.coordinator.provisioning.rhythm import DAY_S, Rhythm, came, requests_left, requests_today
from moe2.coordinator.provisioning.rhythm import is_sound as rhythm_is_sound

MAX_SCOPES = 20_000
"""Most scopes that are remembered, the latest used ones; a key has two at most."""
FLEET = "fleet"
_ADDED = (
    "price_per_j",
    "usual_price_per_j",
    "late_j",
    "slack",
    "variance_j2",
    "n_answers",
    "n_unmeasured",
    "spent_j",
    "recent_j",
    "recent_answers",
)


@dataclass(frozen=True)
class Averages:
    """The averages that the configuration sets, in joules per answer; keys have their own in their records."""

    fleet_j: float | None = None
    by_category_j: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Spending:
    """What a request has spent, of which everything is known that will ever be."""

    category: str | None
    """The category that it was served in; None where it ended before it had one."""
    joules: float | None
    """Joules of all its attempts; None where some of them are not known."""
    known_j: float
    """Joules that were measured, of some of its attempts at least."""
    charged_j: float | None
    """Joules that its key was charged for: what it spent, or what was reserved where that is not known."""
    arrived_unix_s: float
    is_answer: bool
    """True where it was answered."""
    is_cheapest: bool = False
    """True where no expert within its limits could have answered for less."""
    saving_j: float | None = None
    """Joules between the dearest and the cheapest expert within its limits; None where unknown."""
    enough_per_j: float | None = None
    """Price at which the cheapest expert within its limits would have answered; None where unknown."""
    is_simulated: bool = False
    """True where some of the joules are a simulated host's."""


class SavedPrice(Price, frozen=True, kw_only=True):
    """The price of one scope as it is kept."""

    target_j: float
    """The average that it was learned for."""
    day: int | None = None
    """The day that a daily limit's price is of, in days since the epoch; None under other averages."""
    is_simulated: bool = False
    """True where the latest joules that it learned from are a simulated host's."""


class SavedPrices(msgspec.Struct, frozen=True, kw_only=True):
    """All that outlives a restart, by scope and by key; the content of the state file."""

    version: int = 1
    prices: dict[str, SavedPrice] = {}
    rhythms: dict[str, Rhythm] = {}


@dataclass(frozen=True)
class _Scope:
    """One average budget."""

    id: str
    """Its name in the state file."""
    label: str
    """Its name in words."""
    target_j: float
    day: _Day | None = None
    """What it is measured by where it is what a daily limit leaves each answer; None for a fixed average."""


@dataclass(frozen=True)
class _Day:
    """A key's day."""

    number: int
    """Days since the epoch."""
    usual_j: float
    """The day's limit for each of its answers."""


class PriceBook:
    """Learns and tells the price of a joule for every average budget. One writer: the coordinator's event loop."""

    def __init__(self, averages: Averages, saved: SavedPrices | None = None) -> None:
        saved = saved or SavedPrices()
        self._prices: OrderedDict[str, SavedPrice] = OrderedDict(
            (scope_id, price)
            for scope_id, price in saved.prices.items()
            if price_is_sound(price) and price.target_j >= 0.0
        )
        self._rhythms: OrderedDict[str, Rhythm] = OrderedDict(
            (key_id, rhythm) for key_id, rhythm in saved.rhythms.items() if rhythm_is_sound(rhythm)
        )
        self._labels: dict[str, str] = {}
        """Names in words of the scopes that are in force, by id."""
        self.n_settled = 0
        """Requests that were learned from since the start: while it stays the same, there is nothing new to keep."""
        self.reconfigure(averages)

    def reconfigure(self, averages: Averages) -> None:
        """Aim at other averages from now on. A price goes on from where it was, without what was owed before."""
        self._averages = averages
        kept = {scope_id: label for scope_id, label in self._labels.items() if scope_id.startswith(("key:", "day:"))}
        self._labels = kept
        for scope in self._configured():
            self._open(scope)

    def priced(
        self, asked: SelectionRequest, principal: Principal, *, left_j: float | None, now_unix_s: float
    ) -> SelectionRequest:
        """The request with the prices of all averages that it may stand under. Changes nothing.

        left_j: what is left of the key's daily limit in joules; None where there is none.
        """
        if not self.concerns(principal):
            return asked
        fleet, keys = self._fleet(), self._of_key(principal, left_j, now_unix_s)
        by_category = {name: self._priced(scope) for name, scope in self._by_category().items()}
        scopes = tuple(self._priced(scope) for scope in (*fleet, *keys))
        return msgspec.structs.replace(asked, scope_prices=scopes, category_prices=by_category)

    def concerns(self, principal: Principal) -> bool:
        """True where a request of this key may stand under an average, so that its spending has to be settled."""
        averages = self._averages
        has_common = averages.fleet_j is not None or bool(averages.by_category_j)
        return has_common or principal.average_energy_j is not None or principal.daily.energy_j is not None

    def settle(self, principal: Principal, spending: Spending, *, left_j: float | None, now_unix_s: float) -> None:
        """Learn from what a request has spent, in every scope that it stood under.

        left_j: what is left of the key's daily limit now that the request is charged; None where there is none.
        """
        if left_j is not None and principal.key_id is not None and spending.is_answer:
            rhythm = self._rhythms.get(principal.key_id, Rhythm())
            self._rhythms[principal.key_id] = came(rhythm, spending.arrived_unix_s)
            self._rhythms.move_to_end(principal.key_id)
        by_category = self._by_category()
        own = by_category.get(spending.category or DEFAULT_CATEGORY, by_category.get(DEFAULT_CATEGORY))
        keys = self._of_key(principal, left_j, now_unix_s)
        scopes = (*self._fleet(), *((own,) if own else ()), *keys)
        for scope in scopes:
            self._settle(scope, spending)
        self._forget_oldest()
        self.n_settled += bool(scopes)

    def rows(self, now_unix_s: float) -> tuple[AverageRow, ...]:
        """Every average in force with its price, as shown: the fleet's, the categories', then those of keys in use.

        What a daily limit left on a day that is over is in force no more.
        """
        rows, today = [], int(now_unix_s // DAY_S)
        for scope_id, label in self._labels.items():
            price = self._prices.get(scope_id)
            if price is not None and price.day in (None, today):
                rows.append(
                    AverageRow(
                        scope=label,
                        average_energy_j=price.target_j,
                        price_per_j=price.price_per_j,
                        mean_j=price.mean_j,
                        n_answers=price.n_answers,
                        n_unmeasured=price.n_unmeasured,
                        saturated=price.is_saturated,
                        simulated=price.is_simulated,
                        of_day=price.day is not None,
                    )
                )
        order = ("fleet", "category", "key", "day")
        return tuple(sorted(rows, key=lambda row: (order.index(row.scope.split(" ")[0]), row.scope)))

    def saved(self) -> SavedPrices:
        """What a restarted coordinator has to know."""
        return SavedPrices(prices=dict(self._prices), rhythms=dict(self._rhythms))

    def adopt(self, prices: Mapping[str, SavedPrice]) -> None:
        """Goes on with prices that several coordinators have learned together, by scope."""
        for scope_id, price in prices.items():
            if scope_id in self._prices:
                self._prices[scope_id] = price

    # --- Scopes -------------------------------------------------------------------------------------------------------

    def _configured(self) -> tuple[_Scope, ...]:
        return (*self._fleet(), *self._by_category().values())

    def _fleet(self) -> tuple[_Scope, ...]:
        target_j = self._averages.fleet_j
        return () if target_j is None else (_Scope(FLEET, FLEET, target_j),)

    def _by_category(self) -> dict[str, _Scope]:
        return {
            name: _Scope(f"category:{name}", f"category {name}", target_j)
            for name, target_j in self._averages.by_category_j.items()
        }

    def _of_key(self, principal: Principal, left_j: float | None, now_unix_s: float) -> tuple[_Scope, ...]:
        """The averages of a request's key: its own, and what its daily limit allows each answer now."""
        key_id, scopes = principal.key_id, []
        if key_id is not None and principal.average_energy_j is not None:
            scopes.append(_Scope(f"key:{key_id}", f"key {principal.name}", principal.average_energy_j))
        limit_j = principal.daily.energy_j
        if key_id is not None and limit_j is not None and left_j is not None:
            rhythm = self._rhythms.get(key_id, Rhythm())
            target_j = left_j / requests_left(rhythm, now_unix_s)
            day = _Day(int(now_unix_s // DAY_S), limit_j / requests_today(rhythm, now_unix_s))
            scopes.append(_Scope(f"day:{key_id}", f"day of key {principal.name}", target_j, day))
        return tuple(scopes)

    # --- Prices -------------------------------------------------------------------------------------------------------

    def _priced(self, scope: _Scope) -> ScopePrice:
        return ScopePrice(scope.label, scope.target_j, self._of(scope).price_per_j)

    def _of(self, scope: _Scope) -> SavedPrice:
        """The scope's price under its present target. Changes nothing."""
        price = self._prices.get(scope.id)
        day = scope.day.number if scope.day else None
        if price is None:
            return SavedPrice(target_j=scope.target_j, day=day)
        if scope.day is None:
            return price if price.target_j == scope.target_j else _kept(retargeted(price), scope.target_j, None)
        return _kept(next_day(price) if price.day != day else price, scope.target_j, day)

    def _open(self, scope: _Scope) -> SavedPrice:
        """The scope's price under its present target, from now on in force."""
        self._labels[scope.id] = scope.label
        price = self._prices[scope.id] = self._of(scope)
        self._prices.move_to_end(scope.id)
        return price

    def _settle(self, scope: _Scope, spending: Spending) -> None:
        price = self._open(scope)
        joules = spending.joules if scope.day is None else spending.charged_j
        # What is known of a sum whose rest is unknown can be too much already.
        if joules is None and spending.known_j > scope.target_j:
            joules = spending.known_j
        learn = settled if scope.day is None else partial(settled_of_day, usual_j=scope.day.usual_j)
        changed = (
            unmeasured(price)
            if joules is None
            else learn(
                price,
                joules,
                scope.target_j,
                is_answer=spending.is_answer,
                is_cheapest=spending.is_cheapest,
                saving_j=spending.saving_j,
                enough_per_j=spending.enough_per_j,
            )
        )
        is_simulated = price.is_simulated if joules is None else spending.is_simulated
        kept = _kept(changed, scope.target_j, price.day)
        self._prices[scope.id] = msgspec.structs.replace(kept, is_simulated=is_simulated)

    def _forget_oldest(self) -> None:
        while len(self._prices) > MAX_SCOPES:
            scope_id, _ = self._prices.popitem(last=False)
            self._labels.pop(scope_id, None)
        while len(self._rhythms) > MAX_SCOPES:
            self._rhythms.popitem(last=False)


def _kept(price: Price, target_j: float, day: int | None) -> SavedPrice:
    return SavedPrice(**{**msgspec.structs.asdict(price), "target_j": target_j, "day": day})


def merged(before: SavedPrice | None, own: SavedPrice, shared: SavedPrice | None) -> SavedPrice:
    """Returns the price that all coordinators go on with.

    before: what all had when this coordinator last took it over; None where it never has. own: what it has now. shared:
    what all have now; None where nobody has shared anything yet. A price of another target, or of another day, is left
    alone: that of the coordinator which has settled last counts.
    """
    if shared is None or not price_is_sound(shared) or _is_other(own, shared):
        return own
    if before is None or _is_other(own, before):
        return shared
    changes = {name: getattr(shared, name) + (getattr(own, name) - getattr(before, name)) for name in _ADDED}
    changes = {name: max(0, value) for name, value in changes.items()}
    is_news = own != before
    return msgspec.structs.replace(
        shared,
        **changes,
        owed_j=shared.owed_j + (own.owed_j - before.owed_j),
        saving_j=_mean(own.saving_j, shared.saving_j) if is_news else shared.saving_j,
        enough_per_j=own.enough_per_j if is_news else shared.enough_per_j,
        n_saturated=own.n_saturated if is_news else shared.n_saturated,
        target_j=own.target_j if is_news else shared.target_j,
        is_simulated=own.is_simulated if is_news else shared.is_simulated,
    )


def _is_other(one: SavedPrice, other: SavedPrice) -> bool:
    """Whether two prices are not of the same budget: another fixed target, or another day."""
    return one.day != other.day or (one.day is None and one.target_j != other.target_j)


def _mean(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return (one + other) / 2
