"""What the slow level would have done in mode observe, and what that would have saved. PURE."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from moe2.coordinator.provisioning.figures import ExpertFigures, Fleet, Readiness
from moe2.coordinator.provisioning.hysteresis import Change, Transition
from moe2.coordinator.provisioning.steering import Steering, Wishes


class Shadow:
    """What the slow level would have done, had it been allowed to, and what that would have saved.

    Hosts that it would have sent to sleep are taken as asleep until it would have woken them, or until they answered a
    request, which then would have waited for a wake.
    """

    def __init__(self, *, max_changes_per_day: int) -> None:
        self._asleep: dict[str, frozenset[str]] = {}
        """Hosts that would sleep, or have models unloaded: the experts that would be out of memory."""
        self._steering = Steering(max_changes_per_day=max_changes_per_day, wishes=Wishes())
        self._last_s: float | None = None
        self._day: int | None = None
        self.saved_j = 0.0
        """Joules that would have been saved today, those of going and coming taken off."""
        self.waited_j = 0.0
        """Joules of waiting that the hosts which would have slept have drawn today."""
        self.n_returns = 0
        """Wakes and reloads that would have replaced them."""
        self.names: set[str] = set()
        """The experts that would have been out of memory today."""

    def step(
        self,
        fleet: Fleet,
        wanted: Collection[str],
        busy: Mapping[str, int],
        now_s: float,
        day: int,
        *,
        wanted_again_s: Callable[[str], float],
    ) -> tuple[Transition, ...]:
        """Goes on to now; returns what would be done. day: the number of the day, with which the sums begin anew."""
        if day != self._day:
            self._day, self.saved_j, self.waited_j, self.n_returns = day, 0.0, 0.0, 0
            self.names = {one for gone in self._asleep.values() for one in gone}
        elapsed_s = 0.0 if self._last_s is None else max(0.0, min(now_s - self._last_s, 600.0))
        self._last_s = now_s
        for key in list(self._asleep):
            if not fleet.has(key) or busy.get(key, 0):
                self._return(fleet, key)
                continue
            watts = self._saves_w(fleet, key)
            self.saved_j += watts * elapsed_s
            self.waited_j += watts * elapsed_s
        shadowed = replace(fleet, experts=tuple(self._shadowed(one, fleet) for one in fleet.experts))
        self._steering.seen(shadowed, busy, now_s)
        found = self._steering.next_orders(wanted, now_s, wanted_again_s=wanted_again_s)
        for order in found:
            self._would(fleet, order.transition)
        # What would be done is taken as done at once.
        again = replace(fleet, experts=tuple(self._shadowed(one, fleet) for one in fleet.experts))
        self._steering.seen(again, busy, now_s)
        return tuple(order.transition for order in found)

    def _would(self, fleet: Fleet, one: Transition) -> None:
        match one.change:
            case Change.SUSPEND:
                self._asleep[one.host] = frozenset(expert.key for expert in fleet.on(one.host))
            case Change.UNLOAD:
                self._asleep[one.host] = self._asleep.get(one.host, frozenset()) | {one.expert or ""}
            case Change.WAKE | Change.LOAD:
                self._return(fleet, one.host)
                return
        self.names |= self._asleep[one.host]
        self.saved_j -= one.costs_j or 0.0

    def _return(self, fleet: Fleet, key: str) -> None:
        if self._asleep.pop(key, None) is not None:
            self.n_returns += 1

    def _shadowed(self, one: ExpertFigures, fleet: Fleet) -> ExpertFigures:
        gone = self._asleep.get(one.host, frozenset())
        if one.key not in gone or one.readiness not in (Readiness.READY, Readiness.COLD):
            return one
        whole = gone >= {other.key for other in fleet.on(one.host)} and fleet.host(one.host).can_sleep
        return replace(one, readiness=Readiness.ASLEEP if whole else Readiness.COLD)

    def _saves_w(self, fleet: Fleet, key: str) -> float:
        """Watts that a host draws now and would not have drawn."""
        gone, host = self._asleep[key], fleet.host(key)
        awake = [one for one in fleet.on(key) if one.key in gone and one.readiness is Readiness.READY]
        watts = sum(one.ready_w or 0.0 for one in awake)
        whole = gone >= {one.key for one in fleet.on(key)} and host.can_sleep
        if whole and any(one.readiness is not Readiness.ASLEEP for one in fleet.on(key)):
            watts += (host.awake_w or 0.0) - (host.asleep_w or 0.0)
        return watts
