"""Accounts of the API keys: what each has used up today, what its running requests may still use, what is left. PURE.

A day is a UTC day; a request belongs to the day in which it arrived. A reservation counts like something spent until
its request is settled, so that requests that run at the same time cannot overdraw a limit together.

Where a request's joules are not known at the end, what was reserved for it stays charged, or what is known of it if
that is more: nobody gets energy for free because a sensor failed. Without a reservation there is nothing to charge, and
the day's sum is a lower bound; `n_unmeasured` says for how many requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache

import msgspec

from moe2.coordinator.keys.keys import DailyLimits, Principal

MAX_FORMER_DAYS = 3
"""Days whose sums an account keeps beside its own, for a clock that jumps there and back."""


class Amount(msgspec.Struct, frozen=True):
    """The energy and the tokens of one request. energy_j is None where it is not known."""

    energy_j: float | None = None
    tokens: int | None = None


class Remaining(msgspec.Struct, frozen=True):
    """The energy and the tokens that a key may still reserve today, never below 0. None: no limit."""

    energy_j: float | None = None
    tokens: int | None = None


class DaySum(msgspec.Struct, frozen=True):
    """The sum of a key's day, as the ledger has kept it."""

    key_id: str | None
    key_name: str
    energy_j: float = 0.0
    """Joules that were charged so far."""
    held_j: float = 0.0
    """The part of `energy_j` that was reserved for requests whose joules nobody knows."""
    tokens: int = 0
    n_requests: int = 0
    n_unmeasured: int = 0
    n_crash_suspected: int = 0
    """Requests that ended unanswered after an engine had died or hung while it worked on them."""

    @property
    def known_j(self) -> float | None:
        """The charged joules, or None if none of the requests that cost anything was measured or reserved for."""
        return None if self.n_unmeasured and not self.energy_j else self.energy_j


@dataclass(frozen=True)
class Statement:
    """The statement of one key's day: its limits, and what is spent, reserved and left of them."""

    day: str
    spent: DaySum
    limits: DailyLimits
    reserved_j: float
    """Joules that are reserved for requests in progress."""
    reserved_tokens: int
    left: Remaining
    """The energy and tokens that the key may still reserve."""


@dataclass
class _Account:
    day: str
    spent: DaySum
    limits: DailyLimits = field(default_factory=DailyLimits)
    reserved: dict[str, Amount] = field(default_factory=dict)
    overnight: dict[str, Amount] = field(default_factory=dict)
    """Reservations made on a former day, whose limit they count against."""
    former: dict[str, DaySum] = field(default_factory=dict)
    """What was spent on the other days that were seen last."""

    @property
    def reserved_j(self) -> float:
        """Joules that are reserved for requests in progress."""
        return sum(amount.energy_j or 0.0 for amount in self.reserved.values())

    @property
    def reserved_tokens(self) -> int:
        """Tokens that are reserved for requests in progress."""
        return sum(amount.tokens or 0 for amount in self.reserved.values())


class Accounts:
    """The accounts of all keys for the present day. Accounts of former days are in the ledger only."""

    def __init__(self) -> None:
        self._accounts: dict[str | None, _Account] = {}

    def restore(self, day: str, sums: Mapping[str, Iterable[DaySum]]) -> None:
        """Begins with what the ledger knows of the day, and of others, as the clock may be wrong at the start.

        sums: by their day.
        """
        self._accounts = {}
        # Up to the day in order, so that an account begins at the last one; days after it may never come.
        for of_day in sorted(sums, key=lambda of_day: (of_day <= day, of_day)):
            for one in sums[of_day]:
                former = self._accounts[one.key_id].former if one.key_id in self._accounts else {}
                account = _Account(day, DaySum(one.key_id, one.key_name), former=former | {of_day: one})
                if of_day <= day:
                    account = replace(account, day=of_day, spent=one)
                self._accounts[one.key_id] = account

    def day(self, principal: Principal, day: str) -> str:
        """Returns the day that a request of the key is charged to: the one after `day` where a clock was set back."""
        return self._read(principal, day).day

    def left(self, principal: Principal, day: str, *, besides: str | None = None) -> Remaining:
        """Returns what the key has neither spent nor reserved; reading changes nothing.

        besides: a request whose reservation is left out.
        """
        limits, account = principal.daily, self._read(principal, day)
        own = account.reserved.get(besides, Amount()) if besides is not None else Amount()
        return _left(
            limits,
            account.spent,
            account.reserved_j - (own.energy_j or 0.0),
            account.reserved_tokens - (own.tokens or 0),
        )

    def used(self, principal: Principal, day: str, *, besides: str | None = None) -> Amount:
        """Returns what the key has spent and reserved on this coordinator; reading changes nothing.

        besides: a request whose reservation is left out.
        """
        account = self._read(principal, day)
        own = account.reserved.get(besides, Amount()) if besides is not None else Amount()
        return Amount(
            account.spent.energy_j + account.reserved_j - (own.energy_j or 0.0),
            account.spent.tokens + account.reserved_tokens - (own.tokens or 0),
        )

    def reserve(self, principal: Principal, day: str, request_id: str, amount: Amount) -> None:
        """Reserves what a request may still come to, in the place of what was reserved for it before."""
        self._open(principal, day).reserved[request_id] = amount

    def settle(
        self,
        principal: Principal,
        day: str,
        request_id: str,
        used: Amount,
        *,
        known_j: float = 0.0,
        crash_suspected: bool = False,
    ) -> Amount:
        """Charges what a request has used up, releases the rest of its reservation, and returns the charge.

        known_j: the known part of the request's joules, where `used` has none. crash_suspected: the request ended
        unanswered after an engine had died or hung while it worked on it.
        """
        account = self._accounts.get(principal.key_id)
        if account is None or day > account.day:
            account = self._open(principal, day)
        account.limits = principal.daily
        if request_id in account.overnight:
            # The ledger has it under its day; today's limit has nothing to do with it.
            return charge(account.overnight.pop(request_id), used, known_j=known_j)
        reserved = account.reserved.pop(request_id, None)
        charged = charge(reserved, used, known_j=known_j)
        if reserved is not None or day == account.day:
            account.spent = _plus(account.spent, used, charged, crash_suspected=crash_suspected)
        return charged

    def statement(self, principal: Principal, day: str) -> Statement:
        """Returns the statement of one key's day; reading changes nothing, and begins no day."""
        return _statement(self._read(principal, day))

    def statements(self, day: str) -> tuple[Statement, ...]:
        """Returns the statements of every key that was used today, sorted by name; reading changes nothing."""
        current = (_on(account, day, account.limits) for account in self._accounts.values())
        used = (_statement(account) for account in current if account.spent.n_requests or account.reserved)
        return tuple(sorted(used, key=lambda statement: statement.spent.key_name))

    def _open(self, principal: Principal, day: str) -> _Account:
        """Returns the key's account of the day, to write into it."""
        account = self._accounts[principal.key_id] = self._read(principal, day)
        return account

    def _read(self, principal: Principal, day: str) -> _Account:
        """Returns the key's account of the day, or the one that would be opened now."""
        account = self._accounts.get(principal.key_id)
        if account is None:
            return _Account(day, DaySum(principal.key_id, principal.name), principal.daily)
        return _on(account, day, principal.daily)


def _on(account: _Account, day: str, limits: DailyLimits) -> _Account:
    """The account as it is on a day.

    Setting the clock back forgives nothing. The day stays where it goes back by one; a clock that was further ahead
    was wrong, and would leave a key without its limit for years: then the day goes back with all that was spent.
    """
    if day == account.day or (day < account.day and day_after(day) >= _midnight(account.day)):
        return replace(account, limits=limits)
    spent = account.former.get(day, DaySum(account.spent.key_id, account.spent.key_name))
    former = {account.day: account.spent} | {
        other: known for other, known in account.former.items() if other not in (day, account.day)
    }
    return _Account(
        day,
        spent if day > account.day else _sum(spent, account.spent),
        limits,
        overnight=account.overnight | account.reserved,
        former=dict(list(former.items())[:MAX_FORMER_DAYS]),
    )


def with_others(
    statements: Iterable[Statement], others: Iterable[DaySum], day: str, limits_of: Callable[[str | None], DailyLimits]
) -> tuple[Statement, ...]:
    """Returns the statements of a day with what other coordinators have charged the same keys, sorted by name.

    others: sums of that day. limits_of: the limits of a key by its id, where only others have seen it.
    """
    whole = {statement.spent.key_id: statement for statement in statements}
    for theirs in others:
        own = whole.get(theirs.key_id)
        if own is None:
            own = _statement(_Account(day, DaySum(theirs.key_id, theirs.key_name), limits_of(theirs.key_id)))
        spent = _sum(own.spent, theirs)
        left = _left(own.limits, spent, own.reserved_j, own.reserved_tokens)
        whole[theirs.key_id] = replace(own, spent=spent, left=left)
    return tuple(sorted(whole.values(), key=lambda statement: statement.spent.key_name))


def charge(reserved: Amount | None, used: Amount, *, known_j: float = 0.0) -> Amount:
    """Returns what a request is charged: what it used, and what was reserved for it where that is not known."""
    reserved = reserved or Amount()
    energy_j = used.energy_j
    if energy_j is None and (reserved.energy_j is not None or known_j > 0):
        energy_j = max(reserved.energy_j or 0.0, known_j)
    return Amount(energy_j, reserved.tokens if used.tokens is None else used.tokens)


def day_of(at_unix_s: float) -> str:
    """Returns the UTC day of a moment, such as 2026-01-31."""
    return _day(int(at_unix_s // 86_400))


@lru_cache(maxsize=16)
def _day(n_days: int) -> str:
    """The day that is so many days after 1970-01-01. Every request asks for the same one."""
    return (date(1970, 1, 1) + timedelta(n_days)).isoformat()


def day_after(day: str) -> datetime:
    """Returns the moment at which a day's limits end: the next midnight, UTC."""
    return _midnight(day) + timedelta(days=1)


def _midnight(day: str) -> datetime:
    return datetime.fromisoformat(day).replace(tzinfo=UTC)


def _sum(one: DaySum, other: DaySum) -> DaySum:
    return msgspec.structs.replace(
        one,
        energy_j=one.energy_j + other.energy_j,
        held_j=one.held_j + other.held_j,
        tokens=one.tokens + other.tokens,
        n_requests=one.n_requests + other.n_requests,
        n_unmeasured=one.n_unmeasured + other.n_unmeasured,
        n_crash_suspected=one.n_crash_suspected + other.n_crash_suspected,
    )


def _plus(spent: DaySum, used: Amount, charged: Amount, *, crash_suspected: bool) -> DaySum:
    energy_j = charged.energy_j or 0.0
    return DaySum(
        key_id=spent.key_id,
        key_name=spent.key_name,
        energy_j=spent.energy_j + energy_j,
        held_j=spent.held_j + (energy_j if used.energy_j is None else 0.0),
        tokens=spent.tokens + (charged.tokens or 0),
        n_requests=spent.n_requests + 1,
        n_unmeasured=spent.n_unmeasured + (used.energy_j is None),
        n_crash_suspected=spent.n_crash_suspected + crash_suspected,
    )


def _left(limits: DailyLimits, spent: DaySum, reserved_j: float, reserved_tokens: int) -> Remaining:
    return Remaining(
        energy_j=None if limits.energy_j is None else max(0.0, limits.energy_j - spent.energy_j - reserved_j),
        tokens=None if limits.tokens is None else max(0, limits.tokens - spent.tokens - reserved_tokens),
    )


def _statement(account: _Account) -> Statement:
    return Statement(
        day=account.day,
        spent=account.spent,
        limits=account.limits,
        reserved_j=account.reserved_j,
        reserved_tokens=account.reserved_tokens,
        left=_left(account.limits, account.spent, account.reserved_j, account.reserved_tokens),
    )
