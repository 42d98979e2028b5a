"""What each key has used up today, what its running requests may still use, and what is left. PURE.

A day is a UTC day; a request belongs to the day in which it arrived. A reservation counts like something
spent until its request is settled, so that requests that run at the same time cannot overdraw a limit together.

Where a request's joules are not known at the end, what was reserved for it stays charged, or what is known of it if
that is more: nobody gets energy for free because a sensor failed. Without a reservation there is nothing to charge, and
the day's sum is a lower bound; `n_unmeasured` says for how many requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from moe2.coordinator.keys.keys import DailyLimits, Principal


@dataclass(frozen=True)
class Amount:
    """Energy and tokens of one request. energy_j None: not known."""

    energy_j: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Left:
    """What a key may still reserve today; never below 0. None: no limit."""

    energy_j: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class DaySum:
    """A key's day as the ledger has kept it.

    energy_j: charged so far; held_j: the part of it that was reserved, for requests whose joules nobody knows.
    n_crash_suspected: requests that ended unanswered after an engine had died or hung while it worked on them.
    """

    key_id: str | None
    key_name: str
    energy_j: float = 0.0
    held_j: float = 0.0
    tokens: int = 0
    n_requests: int = 0
    n_unmeasured: int = 0
    n_crash_suspected: int = 0

    @property
    def known_j(self) -> float | None:
        """`energy_j`, or None where nothing is known: of those that cost anything none was measured or reserved."""
        return None if self.n_unmeasured and not self.energy_j else self.energy_j


@dataclass(frozen=True)
class Statement:
    """One key's day. reserved_*: for requests in progress. left: None where there is no limit."""

    day: str
    spent: DaySum
    limits: DailyLimits
    reserved_j: float
    reserved_tokens: int
    left: Left


@dataclass
class _Book:
    day: str
    spent: DaySum
    limits: DailyLimits = field(default_factory=DailyLimits)
    reserved: dict[str, Amount] = field(default_factory=dict)
    overnight: dict[str, Amount] = field(default_factory=dict)
    """Reserved on a former day, whose limit they were held against."""

    @property
    def reserved_j(self) -> float:
        return sum(amount.energy_j or 0.0 for amount in self.reserved.values())

    @property
    def reserved_tokens(self) -> int:
        return sum(amount.tokens or 0 for amount in self.reserved.values())


class Accounts:
    """The books of all keys for the present day. Books of former days are in the ledger only."""

    def __init__(self) -> None:
        self._books: dict[str | None, _Book] = {}

    def restore(self, day: str, sums: Iterable[DaySum]) -> None:
        """Begin with what the ledger knows of the day."""
        self._books = {known.key_id: _Book(day, known) for known in sums}

    def left(self, principal: Principal, day: str, *, besides: str | None = None) -> Left:
        """What is neither spent nor reserved. besides: a request whose own reservation does not count.

        Reading changes nothing.
        """
        limits, book = principal.daily, self._read(principal, day)
        own = book.reserved.get(besides, Amount()) if besides is not None else Amount()
        return _left(
            limits, book.spent, book.reserved_j - (own.energy_j or 0.0), book.reserved_tokens - (own.tokens or 0)
        )

    def reserve(self, principal: Principal, day: str, request_id: str, amount: Amount) -> None:
        """Set what a request may still come to, in place of what was reserved for it before."""
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
        """Charge what a request has used up, and give back the rest of its reservation; returns the charge.

        known_j: the part of its joules that is known, where `used` leaves them open. crash_suspected: it ended
        unanswered after an engine had died or hung while it worked on it.
        """
        book = self._open(principal, day)
        if request_id in book.overnight:
            # The ledger has it under its day; today's limit has nothing to do with it.
            return charge(book.overnight.pop(request_id), used, known_j=known_j)
        reserved = book.reserved.pop(request_id, None)
        charged = charge(reserved, used, known_j=known_j)
        if reserved is not None or day == book.day:
            book.spent = _plus(book.spent, used, charged, crash_suspected=crash_suspected)
        return charged

    def statement(self, principal: Principal, day: str) -> Statement:
        """How a key stands. Reading changes nothing: the day of a key begins with its first request."""
        return _statement(self._read(principal, day))

    def statements(self, day: str) -> tuple[Statement, ...]:
        """Every key that was used today, by name."""
        current = (book for book in self._books.values() if book.day >= day)
        return tuple(sorted(map(_statement, current), key=lambda statement: statement.spent.key_name))

    def _open(self, principal: Principal, day: str) -> _Book:
        """The key's book, to write into it."""
        book = self._books[principal.key_id] = self._read(principal, day)
        return book

    def _read(self, principal: Principal, day: str) -> _Book:
        """The key's book, or what it would be if it were opened now.

        The day never goes back: a clock that is set back must not forgive what was spent.
        """
        book = self._books.get(principal.key_id)
        if book is not None and day <= book.day:
            return replace(book, limits=principal.daily)
        overnight = {} if book is None else book.overnight | book.reserved
        return _Book(day, DaySum(principal.key_id, principal.name), principal.daily, overnight=overnight)


def charge(reserved: Amount | None, used: Amount, *, known_j: float = 0.0) -> Amount:
    """What a request is charged: what it used, and what was reserved for it where that is not known."""
    reserved = reserved or Amount()
    energy_j = used.energy_j
    if energy_j is None and (reserved.energy_j is not None or known_j > 0):
        energy_j = max(reserved.energy_j or 0.0, known_j)
    return Amount(energy_j, reserved.tokens if used.tokens is None else used.tokens)


def day_of(at_unix_s: float) -> str:
    """The UTC day of a moment, as 2026-01-31."""
    return datetime.fromtimestamp(at_unix_s, UTC).date().isoformat()


def day_after(day: str) -> datetime:
    """When a day's limits hold no longer: the next midnight, UTC."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC) + timedelta(days=1)


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


def _left(limits: DailyLimits, spent: DaySum, reserved_j: float, reserved_tokens: int) -> Left:
    return Left(
        energy_j=None if limits.energy_j is None else max(0.0, limits.energy_j - spent.energy_j - reserved_j),
        tokens=None if limits.tokens is None else max(0, limits.tokens - spent.tokens - reserved_tokens),
    )


def _statement(book: _Book) -> Statement:
    return Statement(
        day=book.day,
        spent=book.spent,
        limits=book.limits,
        reserved_j=book.reserved_j,
        reserved_tokens=book.reserved_tokens,
        left=_left(book.limits, book.spent, book.reserved_j, book.reserved_tokens),
    )
