"""Leases of a key's daily budget: how several coordinators share one limit and never exceed it. PURE.

The database keeps, for each budget, how much each coordinator has drawn. What a coordinator may reserve is what it has
drawn and not used; it draws before it reserves, so that the sum of all that is drawn bounds the sum of all that is
used. Far from the limit it draws for many requests at once; near it for one request at a time, so that no coordinator
holds more than one request's worth that another one could use. Amounts are whole numbers of the resource's unit, so
that sums are exact: microjoules, tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

LEASE_S = 30.0
"""The time for which a coordinator may use what it has drawn, by its own clock. It gives back the rest then."""
FRESH_S = 1.0
"""The age up to which the database's answer is taken as what others hold now."""
MAX_SHARE = 20
"""No draw is larger than this part of the limit, unless one request needs more."""
CAUTION = 4
"""No draw is larger than this part of a coordinator's share of what is left, unless one request needs more."""
UJ_PER_J = 1_000_000
MAX_AMOUNT = 2**62
"""The largest amount that is counted; limits beyond it are no limits."""


class Resource(StrEnum):
    """The resources that keys have daily limits of."""

    ENERGY = "energy_uj"
    TOKENS = "tokens"


@dataclass(frozen=True)
class Ask:
    """A question to the database. keep: what the coordinator keeps of what it has drawn; it gives back the rest.

    want: what it would like to have beyond that. least: what it needs of that; where so much is not left it gets none.
    Until the answer comes it may use no more than it keeps.
    """

    keep: int
    want: int = 0
    least: int = 0


@dataclass(frozen=True)
class Answer:
    """The database's answer. drawn: by this coordinator, all in all today; elsewhere: by all others."""

    drawn: int
    elsewhere: int


@dataclass(frozen=True)
class Lease:
    """One coordinator's part of one key's budget for a day."""

    limit: int
    drawn: int = 0
    until_s: float = -math.inf
    elsewhere: int | None = None
    """What others had drawn at the last answer; None before the first one."""
    asked_s: float = -math.inf
    """When the last answer came."""
    largest: int = 0
    """The largest need of a request of late: one request's worth."""

    def free(self, used: int, now_s: float) -> int:
        """Returns what may be reserved now, beyond what is used and reserved."""
        return max(0, self.drawn - used) if now_s < self.until_s else 0

    def left(self, used: int) -> int:
        """Returns what is left of the whole budget, as far as is known: what may be drawn, and what has been."""
        return max(0, self.limit - used - (self.elsewhere or 0))

    def is_fresh(self, now_s: float) -> bool:
        """Whether it is known what others hold now."""
        return now_s - self.asked_s < FRESH_S

    def needs(self, amount: int) -> Lease:
        """Returns the lease with one more request's need noted."""
        return replace(self, largest=max(amount, self.largest * 15 // 16))

    def took(self, answer: Answer, now_s: float) -> Lease:
        """Returns the lease after the database's answer."""
        return replace(self, drawn=answer.drawn, elsewhere=answer.elsewhere, until_s=now_s + LEASE_S, asked_s=now_s)

    def asked(self, ask: Ask) -> Lease:
        """Returns the lease while a question is under way: what is being given back is not used any more."""
        return replace(self, drawn=min(self.drawn, ask.keep))

    def draw(self, used: int, need: int, now_s: float, n_coordinators: int) -> Ask:
        """Returns what to ask for so that a request that needs so much can be reserved for."""
        free = self.free(used, now_s)
        lack = max(0, need - free)
        return Ask(used + free, max(lack, self._chunk(used, n_coordinators)), lack)

    def renewal(self, used: int, now_s: float, n_coordinators: int) -> Ask | None:
        """Returns what to ask for before anybody has to wait: at half of what was drawn, and at half of the time.

        None where nothing is to be asked. Where the limit is near, what exceeds one request's worth is given back.
        """
        chunk, free = self._chunk(used, n_coordinators), self.free(used, now_s)
        if now_s >= self.until_s:
            return Ask(used) if self.drawn > used else None
        if chunk <= self.largest:
            return self.surplus(used, now_s)
        is_half_used = 2 * free < chunk
        is_half_over = 2 * (self.until_s - now_s) < LEASE_S and self.largest > 0
        return Ask(used + free, max(0, chunk - free)) if is_half_used or is_half_over else None

    def surplus(self, used: int, now_s: float) -> Ask | None:
        """Returns what to ask for so that no more than one request's worth is held; None where no more is."""
        return Ask(used + self.largest) if self.free(used, now_s) > self.largest else None

    def _chunk(self, used: int, n_coordinators: int) -> int:
        return min(self.left(used) // (CAUTION * n_coordinators), self.limit // MAX_SHARE)


def lend(drawn: Mapping[str, int], coordinator: str, limit: int, ask: Ask) -> tuple[dict[str, int], Answer]:
    """Returns what everybody has drawn after a coordinator has asked, and its answer.

    It is what the one UPDATE in `moe2.coordinator.database.lender` does. What is used stays drawn even beyond the
    limit, as it cannot be unspent; nothing more is lent then.
    """
    elsewhere = sum(amount for name, amount in drawn.items() if name != coordinator)
    available = limit - elsewhere - ask.keep
    lent = min(ask.want, available) if available >= ask.least else 0
    mine = ask.keep + max(0, lent)
    return {**drawn, coordinator: mine}, Answer(mine, elsewhere)


def microjoules(joules: float) -> int:
    """Returns joules as whole microjoules, rounded up, as what is charged must not be too little."""
    return min(MAX_AMOUNT, math.ceil(round(joules * UJ_PER_J, 3)))


def limit_uj(joules: float) -> int:
    """Returns a limit in joules as whole microjoules, rounded down."""
    return min(MAX_AMOUNT, math.floor(round(joules * UJ_PER_J, 3)))
