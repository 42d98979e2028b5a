"""Policies of who is awake: everybody, a fixed time, and ours, which is the product's cores in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import process_time

from benchmarks.provisioning_fleet import AGX_ORIN, RTX_4090, Arrival, Kind, fleet
from benchmarks.provisioning_sim import PATIENCE_S, Day, Doing, Host, best_ready
from moe2.coordinator.planning.search import Effort
from moe2.coordinator.provisioning.decision import (
    Decision,
    HourPlan,
    Leeway,
    Tolerances,
    choose,
    decide,
    week_of,
    week_plans,
    week_price,
)
from moe2.coordinator.provisioning.figures import Readiness
from moe2.coordinator.provisioning.hysteresis import Activity, Change, Rules, transitions
from moe2.coordinator.provisioning.problem import Limits
from moe2.coordinator.provisioning.traffic import HOUR_S, Traffic

MAX_TRANSITIONS = 24
LEAD_S = 60.0
"""The traffic is looked up this far ahead, so that who is wanted then is awake by then."""


class AlwaysOn:
    """Everybody is awake with the model in memory."""

    name = "always on"

    def arrived(self, day: Day, asked: Arrival, now_s: float) -> Host:
        """The host of the most value, and of equals the first."""
        host = best_ready(day, asked, now_s)
        return host if host is not None else day.hosts[0]

    def tick(self, day: Day, now_s: float) -> None:
        """Does nothing."""


class FixedTime:
    """A host is unloaded and suspended after a fixed time without a request, and woken when one needs it.

    first: the kind of host that is woken where none is awake.
    """

    def __init__(self, idle_s: float, first: Kind) -> None:
        self.name = f"sleep after {idle_s / 60:g} min, {first.name} first"
        self._idle_s, self._first = idle_s, first

    def arrived(self, day: Day, asked: Arrival, now_s: float) -> Host:
        """The best host in memory, else the first of the kind that is woken, one on its way before one asleep."""
        host = best_ready(day, asked, now_s)
        if host is not None:
            return host
        own = [host for host in day.hosts if host.kind is self._first]
        return max(own, key=lambda host: (host.doing is Doing.WAKING, -host.place))

    def tick(self, day: Day, now_s: float) -> None:
        """Suspends who has been idle for long enough."""
        for host in day.hosts:
            if host.doing is Doing.READY and now_s - host.idle_since_s >= self._idle_s:
                day.suspend(host, now_s)


@dataclass
class Ours:
    """The product's slow level: traffic, problem, solver, prices and hysteresis, once a minute."""

    traffic: Traffic
    tolerances: Tolerances
    limits: Limits = field(default_factory=Limits)
    name: str = "moe2"
    solve_ms: list[float] = field(default_factory=list)
    last: Decision | None = None
    _plans: tuple[HourPlan, ...] = ()
    _price: float = 0.0
    _planned_s: float = 0.0

    def __post_init__(self) -> None:
        self._leeway = Leeway(self.tolerances)

    def arrived(self, day: Day, asked: Arrival, now_s: float) -> Host:
        """The best host in memory; where none is, the one that is ready first."""
        self.traffic.note(asked)
        host = best_ready(day, asked, now_s) or min(
            day.hosts, key=lambda one: (day.first_token_s(one, asked, now_s), one.place)
        )
        category = asked.category
        scores = [one.kind.scores.get(category, one.kind.scores[""]) for one in day.hosts]
        self._leeway.answered(
            now_s, loss=max(scores) - scores[host.place], late=day.first_token_s(host, asked, now_s) > PATIENCE_S
        )
        return host

    def tick(self, day: Day, now_s: float) -> None:
        """Decides, and has those changes made that pay now."""
        self.traffic.passed(now_s)
        states = fleet(tuple(host.readiness for host in day.hosts))
        if not self._plans or now_s - self._planned_s >= 24 * HOUR_S:
            self._plans = week_plans(states, week_of(self.traffic, now_s), self.limits)
            self._price = week_price(self._plans, self.tolerances)
            self._planned_s = now_s
        began_s = process_time()
        forecast = self.traffic.forecast(now_s + LEAD_S)
        answers_a_day = sum(plan.rate_per_s for plan in self._plans[:24]) * HOUR_S
        factor = self._leeway.factor(now_s, answers_a_day)
        self.last = decide(
            states, forecast, self.limits, self._price * factor, effort=Effort(time_limit_s=1.0), clock=process_time
        )
        activity = {
            expert.host: Activity(
                busy=int(host.busy_until_s > now_s),
                idle_since_s=host.idle_since_s,
                changed_s=tuple(host.changes_s),
                is_changing=host.doing in (Doing.WAKING, Doing.SUSPENDING),
            )
            for expert, host in zip(states.experts, day.hosts, strict=True)
        }
        found = transitions(
            states,
            self.last.members,
            activity,
            now_s,
            wanted_again_s=self._wanted_again(states.experts, now_s),
            rules=Rules(max_changes_per_day=MAX_TRANSITIONS),
        )
        self.solve_ms.append(1000.0 * (process_time() - began_s))
        for one in found:
            host = day.hosts[[expert.host for expert in states.experts].index(one.host)]
            if one.change is Change.WAKE:
                day.wake(host, now_s)
            elif one.change is Change.SUSPEND:
                day.suspend(host, now_s)

    def _wanted_again(self, experts: Sequence[object], now_s: float) -> Callable[[str], float]:
        """For each expert, the seconds until the plan of the week wants it."""
        keys = [getattr(expert, "key") for expert in experts]  # noqa: B009
        again: dict[str, float] = {}
        for hour, plan in enumerate(self._plans):
            starts_s = self._planned_s + hour * HOUR_S - now_s
            if plan.options and starts_s > -HOUR_S:
                for n in choose(plan.options, plan.rate_per_s, self._price).members:
                    again.setdefault(keys[n], max(0.0, starts_s))
        return lambda key: again.get(key, float("inf"))


def fixed_times() -> list[FixedTime]:
    """The fixed times that are compared, with either kind of host first."""
    minutes = (1, 2, 3, 5, 8, 12, 20, 30, 45, 60, 90, 120, 180, 300)
    return [FixedTime(60.0 * minute, kind) for minute in minutes for kind in (RTX_4090, AGX_ORIN)]


__all__ = ["AlwaysOn", "FixedTime", "Ours", "Readiness", "fixed_times"]
