"""The week ahead: the options of its hours, the price of a joule of waiting, and when an expert will be wanted. PURE.

The clock that bounds searches is given. One thread plans and decides while the event loop waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from moe2.coordinator.planning.search import Effort
from moe2.coordinator.provisioning.decision import (
    DAY_S,
    Clock,
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
from moe2.coordinator.provisioning.figures import Fleet
from moe2.coordinator.provisioning.problem import Limits
from moe2.coordinator.provisioning.traffic import HOUR_S, Forecast, Traffic

PLAN_EVERY_S = 3600.0
SMALL_FLEET = 8
"""Fleets up to this size have every hour of the week planned, larger ones every sixth: the plan shares the processor
with the requests."""
PLAN_HOUR_S = 0.03
"""Seconds that the search for one hour of the week may take."""
DECIDE_S = 0.5
"""Seconds that the search for the present hour may take."""


class Outlook:
    """What is remembered of the week ahead. clock: monotonic seconds, for the searches' time limits."""

    def __init__(self, tolerances: Tolerances, clock: Clock) -> None:
        self.leeway = Leeway(tolerances)
        self._clock = clock
        self._plans: tuple[HourPlan, ...] = ()
        self._planned: tuple[str, ...] = ()
        """Keys of the experts that the plans speak of, by place."""
        self._planned_unix_s = 0.0
        self._step_h = 1
        self._standing_price = 0.0

    def expire(self) -> None:
        """Has the week planned again at the next chance, as after other settings."""
        self._planned_unix_s = 0.0

    def is_old(self, keys: tuple[str, ...], now_unix_s: float) -> bool:
        """Whether the week is to be planned again: after an hour, for other experts, or after a clock was set back."""
        age_s = now_unix_s - self._planned_unix_s
        return not 0.0 <= age_s < PLAN_EVERY_S or keys != self._planned

    def week(self, traffic: Traffic, n_experts: int, now_unix_s: float) -> tuple[Forecast, ...]:
        """The traffic of the hours of the week that are to be planned."""
        self._step_h = 1 if n_experts <= SMALL_FLEET else 6
        return week_of(traffic, now_unix_s, step_h=self._step_h)

    def plan(self, fleet: Fleet, week: Sequence[Forecast], limits: Limits, now_unix_s: float) -> None:
        """Plans the hours of `week` and finds the price at which they keep the tolerances."""
        effort = Effort(time_limit_s=PLAN_HOUR_S)
        self._plans = week_plans(fleet, week, limits, effort=effort, clock=self._clock)
        self._planned = tuple(expert.key for expert in fleet.experts)
        self._planned_unix_s = now_unix_s
        self._standing_price = week_price(self._plans, self.leeway.tolerances)

    def decide(self, fleet: Fleet, forecast: Forecast, limits: Limits, now_unix_s: float) -> Decision:
        """Who is to be awake while this traffic lasts, at the week's price less what the day has lost already."""
        answers_a_day = sum(plan.rate_per_s for plan in self._plans) / max(1, len(self._plans)) * DAY_S
        price_per_j = self._standing_price * self.leeway.factor(now_unix_s, answers_a_day)
        return decide(fleet, forecast, limits, price_per_j, effort=Effort(time_limit_s=DECIDE_S), clock=self._clock)

    def wanted_again(self, now_unix_s: float) -> Callable[[str], float]:
        """For each expert, the seconds until the plan of the week wants it; inf for one that it does not."""
        again: dict[str, float] = {}
        for place, plan in enumerate(self._plans):
            starts_s = self._planned_unix_s + place * self._step_h * HOUR_S - now_unix_s
            if plan.options and starts_s > -self._step_h * HOUR_S:
                for n in choose(plan.options, plan.rate_per_s, self._standing_price).members:
                    again.setdefault(self._planned[n], max(0.0, starts_s))
        return lambda key: again.get(key, math.inf)
