"""Joules that belong to no request, from agents' counters to entries of the ledger. PURE.

Agents count up since their start and draw a new epoch at each; the ledger keeps the counters that it has booked. So
neither a restart of the coordinator nor one of an agent loses joules or books them twice.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import asdict, replace

from moe2.common.energy import Quality, worst_quality
from moe2.common.standby import Cause, StandingEnergy
from moe2.common.status import EnergyBalance
from moe2.coordinator.ledger.entry import StandingEntry

BOOK_EVERY_S = 15.0
"""How often an agent's joules are booked; it reports them more often."""
MAX_BOOKED_PER_S = 20.0
"""Agents that are booked each second, all together: those of larger fleets have their turn more seldom. Nothing is lost
by that, as they count up themselves."""
MAX_UNSEEN_S = 900.0
"""Counters of an agent that the ledger has never seen are booked if they count no longer than this: older ones were
another coordinator's to book."""
HOUR_S = 3600
_COUNTERS = ("idle_j", "loading_j", "waking_j", "other_j", "requests_j")


class StandingBook:
    """Books each agent's counters. booked: the counters that the ledger has, by agent; since_unix_s: of the balance."""

    def __init__(self, since_unix_s: float) -> None:
        self._booked: dict[str, StandingEnergy] = {}
        self._booked_at: dict[str, float] = {}
        self._since_unix_s = since_unix_s
        self._by_cause = dict.fromkeys(Cause, 0.0)
        self._requests_j = 0.0
        self._qualities: set[Quality] = set()

    def restore(self, booked: Mapping[str, StandingEnergy]) -> None:
        """Takes in the counters that the ledger has, by agent."""
        self._booked = dict(booked)

    def reported(self, agent: str, agent_name: str, energy: StandingEnergy, at_unix_s: float) -> StandingEntry | None:
        """Returns what to enter for an agent's report; None where nothing is new, or it is too soon."""
        last = self._booked.get(agent)
        since_s = at_unix_s - self._booked_at.get(agent, -BOOK_EVERY_S)
        # A wall clock that was set back must not end the booking.
        pause_s = max(BOOK_EVERY_S, len(self._booked) / MAX_BOOKED_PER_S)
        if 0 <= since_s < pause_s and last is not None and last.epoch == energy.epoch:
            return None
        if last is None and energy.measured_s > MAX_UNSEEN_S:
            spent = StandingEnergy(epoch=energy.epoch)
            counters = energy
        elif last is None or last.epoch != energy.epoch:
            spent = counters = energy
        else:
            # A counter that falls is nobody's: what it has been stays booked, and it counts again beyond that.
            spent = _difference(energy, last)
            counters = _highest(energy, last)
        self._booked[agent], self._booked_at[agent] = counters, at_unix_s
        by_cause = {cause: joules for cause, joules in spent.by_cause().items() if joules > 0}
        if not by_cause and not spent.requests_j and last is not None:
            return None
        for cause, joules in by_cause.items():
            self._by_cause[cause] += joules
        self._requests_j += spent.requests_j
        if by_cause or spent.requests_j:
            # A first report can come before its host has read a sensor.
            self._qualities.add(energy.quality)
        return StandingEntry(
            agent=agent,
            agent_name=agent_name,
            hour_unix_s=int(at_unix_s // HOUR_S) * HOUR_S,
            by_cause=tuple((cause.value, joules) for cause, joules in by_cause.items()),
            quality=energy.quality.value,
            counters=counters,
        )

    def balance(self, n_answers: int, n_unmeasured: int) -> EnergyBalance:
        """Returns the joules booked since the coordinator's start.

        n_answers: requests answered since then. n_unmeasured: requests whose joules nobody knows.
        """
        waiting_j = sum(self._by_cause.values())
        known = bool(self._qualities)
        return EnergyBalance(
            since_unix_s=self._since_unix_s,
            answers=n_answers,
            unmeasured=n_unmeasured,
            requests_j=self._requests_j if known else None,
            idle_j=self._by_cause[Cause.IDLE] if known else None,
            loading_j=self._by_cause[Cause.LOADING] if known else None,
            waking_j=self._by_cause[Cause.WAKING] if known else None,
            other_j=self._by_cause[Cause.OTHER] if known else None,
            j_per_answer=(self._requests_j + waiting_j) / n_answers if known and n_answers else None,
            quality=worst_quality(self._qualities),
        )


def _difference(now: StandingEnergy, before: StandingEnergy) -> StandingEnergy:
    joules = {name: max(0.0, getattr(now, name) - getattr(before, name)) for name in _COUNTERS}
    return StandingEnergy(epoch=now.epoch, **joules)


def _highest(now: StandingEnergy, before: StandingEnergy) -> StandingEnergy:
    fields = asdict(before)
    return replace(now, **{name: max(getattr(now, name), fields[name]) for name in _COUNTERS})
