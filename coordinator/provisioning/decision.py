"""Who is to be awake in this hour, and what a joule of waiting is worth. PURE; a clock is given to bound a search.

For one hour's traffic the solver finds the fewest watts at each loss of value: the hour's *options*. One price for all
hours of the week then takes one option of each, `min loss + LATE_COSTS * late + price * watts / rate`: the price at
which the fewest watts are drawn while a week's answers lose no more score and come late no more often than allowed
(Lagrange; Everett 1963). So a night, in which few ask, gives up more than a noon, and the week no more than it may.
Where patience is to be kept in every hour and category, a set that is late more often is no option, unless all are.

`Outlook` remembers the week ahead: the options of its hours, that price, and when an expert will be wanted. One thread
plans and decides while the event loop waits for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moe2.coordinator.planning.awake_search import AwakeSet, least_standing, most_valuable
from moe2.coordinator.planning.proof import Status
from moe2.coordinator.planning.search import Effort
from moe2.coordinator.provisioning.figures import ExpertFigures, Fleet, Readiness
from moe2.coordinator.provisioning.problem import LATE_COSTS, PINNED, Limits, SlowProblem, is_settled, slow_problem
from moe2.coordinator.provisioning.traffic import HOUR_S, Forecast, Traffic, rate_of

LOSSES = (0.0, 0.001, 0.002, 0.004, 0.007, 0.012, 0.02, 0.035, 0.06, 0.1)
"""Value that an option gives up against everybody awake, lateness included."""
_PRICES_PER_J = np.concatenate([[0.0], np.geomspace(1e-9, 1e-3, 121)])
SAME_LATE = 0.01
"""Shares of late answers that differ by less count as equal: one request in a hundred stands for each class."""
SAME_WATTS = 0.05
"""Watts of two sets that differ by a smaller share count as equal: idle power is measured no better than that."""
SAME_LOSS = 0.002
"""Scores of two sets that differ by less count as equal: what is learned of experts moves them by as much."""
THRIFTY_FROM = 0.8
"""Part of a day's tolerance from which on the price falls."""
DAY_S = 86_400.0
_MIN_RATE_PER_S = 1e-7
"""A request in four months: fewer are not told apart from none."""

Clock = Callable[[], float]
PLAN_EVERY_S = 3600.0
SMALL_FLEET = 8
"""Fleets up to this size have every hour of the week planned, larger ones every sixth: the plan shares the processor
with the requests."""
PLAN_HOUR_S = 0.03
"""Seconds that the search for one hour of the week may take."""
DECIDE_S = 0.5
"""Seconds that the search for the present hour may take."""


@dataclass(frozen=True)
class Option:
    """One set of experts that could be awake in an hour."""

    members: tuple[int, ...]
    standing_w: float
    """Watts of waiting above those that are drawn whoever is awake."""
    loss: float
    """Mean score that it gives up against all experts awake."""
    late: float
    """Share of answers whose first token comes late."""
    least_w: float | None
    """No set of such a value draws fewer watts."""
    status: Status


@dataclass(frozen=True)
class HourPlan:
    """The options of one hour with its rate."""

    rate_per_s: float
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Tolerances:
    """What a week's answers may lose for joules of waiting, on average."""

    quality_loss: float = 0.005
    """Mean score given up against all experts awake."""
    late_share: float = 0.05
    """Share of answers whose first token comes late."""


class Leeway:
    """What the last day's answers have lost and how many came late, against what a day's answers may.

    A price rests on a forecast. Where the day loses more than was forecast, the price falls until waiting costs nothing
    and the best experts are awake; the day's tolerance is then kept.
    """

    def __init__(self, tolerances: Tolerances) -> None:
        self.tolerances = tolerances
        self._answers: deque[tuple[float, float, float]] = deque()
        self._loss = 0.0
        self._late = 0.0

    def answered(self, at_s: float, *, loss: float, late: bool) -> None:
        """Notes an answer: the score that it lost against the best expert, and whether its first token came late."""
        self._answers.append((at_s, loss, float(late)))
        self._loss += loss
        self._late += float(late)

    def factor(self, now_s: float, answers_a_day: float) -> float:
        """The part of the price that is left, 1 to 0, from `THRIFTY_FROM` of the day's tolerance on."""
        while self._answers and self._answers[0][0] < now_s - DAY_S:
            _, loss, late = self._answers.popleft()
            self._loss -= loss
            self._late -= late
        day = max(answers_a_day, float(len(self._answers)), 1.0)
        used = max(
            self._loss / (self.tolerances.quality_loss * day) if self.tolerances.quality_loss > 0.0 else 0.0,
            self._late / (self.tolerances.late_share * day) if self.tolerances.late_share > 0.0 else 0.0,
        )
        return min(1.0, max(0.0, (1.0 - used) / (1.0 - THRIFTY_FROM)))


@dataclass(frozen=True)
class Decision:
    """Who is to be awake now, with the proof."""

    members: tuple[str, ...]
    """Keys of the experts to have in memory; empty where nothing is feasible."""
    standing_w: float | None
    """Watts of waiting of the whole fleet with this set, sleeping hosts included; None where nothing is feasible."""
    least_w: float | None
    """Proof: no set of this value draws fewer."""
    value: AwakeSet
    """The set of the largest value, with its bound."""
    loss: float
    late: float
    price_per_j: float
    """Score that a joule of waiting has to bring."""
    rate_per_s: float
    status: Status
    stays: tuple[tuple[str, str], ...] = ()
    """Experts that are left as they are, with the reason."""
    correction: str | None = None
    """Where nothing is feasible: what is wrong, and the cheapest change that mends it."""
    is_measured: bool = True
    """False where the speed or the joules of an expert in `members`, or a host's watts, were never measured: what the
    figures say of watts, loss and lateness is then not known."""
    spare: frozenset[str] = frozenset()
    """Keys of the hosts without which the experts in memory elsewhere carry this traffic and meet every other need."""


def hour_options(slow: SlowProblem, *, effort: Effort | None = None, clock: Clock | None = None) -> tuple[Option, ...]:
    """The sets that draw the fewest watts at each of `LOSSES`, the most valuable first; none where none is feasible."""
    effort = effort or Effort()
    best = most_valuable(slow.problem, effort=effort, clock=clock)
    return _options(slow, best, effort, clock)


def _options(slow: SlowProblem, best: AwakeSet, effort: Effort, clock: Clock | None) -> tuple[Option, ...]:
    if best.value is None:
        return ()
    everyone = slow.quality(range(len(slow.experts)))[0]
    worst_late: list[float] = []
    # The solver's values are means of states over kinds; this many make one point of score.
    scale = LATE_COSTS * len(slow.weight) * float(slow.weight.max(initial=0.0))
    found: list[Option] = []
    for loss in LOSSES:
        floor = best.value - loss / scale if scale > 0.0 else 0.0
        least = least_standing(slow.problem, max(0.0, floor), effort=effort, clock=clock)
        if least.standing_w is None:
            least = best
        if found and found[-1].members == least.members:
            continue
        score, late = slow.quality(least.members)
        worst_late.append(slow.worst_late(least.members))
        found.append(
            Option(least.members, least.standing_w or 0.0, everyone - score, late, least.least_w, least.status)
        )
    # What no set keeps is no reason to keep all awake.
    most_late = max(slow.hourly_late_share, min(worst_late, default=0.0) + SAME_LATE)
    return tuple(option for option, late in zip(found, worst_late, strict=True) if late <= most_late)


def choose(options: Sequence[Option], rate_per_s: float, price_per_j: float) -> Option:
    """The option that loses least, its joules of waiting for each answer counted by their price. options: at least one.

    At no price it is the one that loses least, of those the one of fewest watts.
    """
    for_each = price_per_j / max(rate_per_s, _MIN_RATE_PER_S)
    if np.isinf(for_each):
        return min(options, key=lambda one: (one.standing_w, one.loss))
    return min(options, key=lambda one: (one.loss + LATE_COSTS * one.late + for_each * one.standing_w, one.standing_w))


def week_price(hours: Sequence[HourPlan], tolerances: Tolerances) -> float:
    """The price of a joule of waiting at which the fewest watts are drawn and a week's answers keep the tolerances."""
    hours = [hour for hour in hours if hour.options]
    if not hours:
        return 0.0
    best, least_w = 0.0, np.inf
    weight = np.array([max(hour.rate_per_s, _MIN_RATE_PER_S) for hour in hours])
    weight /= weight.sum()
    # What the best sets themselves come late and lose cannot be helped by keeping more awake.
    for price in _PRICES_PER_J.tolist():
        chosen = [choose(hour.options, hour.rate_per_s, price) for hour in hours]
        loss = float(weight @ np.array([one.loss for one in chosen]))
        late = float(weight @ np.array([one.late for one in chosen]))
        watts = sum(one.standing_w for one in chosen)
        if price > 0.0 and (loss > tolerances.quality_loss or late > tolerances.late_share):
            continue
        if watts < least_w * (1 - 1e-9):
            best, least_w = price, watts
    return best


def week_of(traffic: Traffic, now_unix_s: float, *, step_h: int = 1) -> tuple[Forecast, ...]:
    """The traffic of every `step_h`-th hour of the week that begins now."""
    return tuple(traffic.forecast(now_unix_s + hour * HOUR_S, live=False) for hour in range(0, 168, step_h))


def week_plans(
    fleet: Fleet,
    week: Sequence[Forecast],
    limits: Limits,
    *,
    effort: Effort | None = None,
    clock: Clock | None = None,
) -> tuple[HourPlan, ...]:
    """The options of each hour of a week; none where there is nothing to choose in any of them."""
    if is_settled(fleet, limits):
        return ()
    plans = []
    for forecast in week:
        # Who is awake now says nothing of next week: changes of state are paid off as if everybody were in memory.
        slow = slow_problem(fleet, forecast, replace(limits, stay_s=1e12))
        plans.append(HourPlan(rate_of(forecast), hour_options(slow, effort=effort, clock=clock)))
    return tuple(plans)


def decide(
    fleet: Fleet,
    forecast: Forecast,
    limits: Limits,
    price_per_j: float,
    *,
    effort: Effort | None = None,
    clock: Clock | None = None,
) -> Decision:
    """Who is to be awake while this traffic lasts, at this price of a joule of waiting."""
    effort = effort or Effort()
    slow = slow_problem(fleet, forecast, limits)
    best = most_valuable(slow.problem, effort=effort, clock=clock)
    stays = tuple(sorted(slow.fixed_because.items()))
    rate_per_s = rate_of(forecast)
    # Hosts that stay as they are may draw more by themselves, whoever else is awake.
    is_exceeded = slow.allowed_w is not None and slow.fixed_w > slow.allowed_w
    status = Status.INFEASIBLE if is_exceeded else best.status
    options = () if is_exceeded else _options(slow, best, effort, clock)
    if not options and not is_exceeded and limits.joules_per_answer is not None:
        # So few ask that even the least to keep awake costs more for each: then it is the least that is kept awake.
        return decide(fleet, forecast, replace(limits, joules_per_answer=None), np.inf, effort=effort, clock=clock)
    if not options:
        names = {host.key: host.name for host in fleet.hosts}
        text = correction(slow, names, effort=effort, clock=clock) if status is Status.INFEASIBLE else None
        return Decision((), None, None, best, 0.0, 0.0, price_per_j, rate_per_s, status, stays, text)
    one = _without_waking(slow, choose(options, rate_per_s, price_per_j), price_per_j, effort, clock)
    return Decision(
        members=tuple(slow.experts[n].key for n in one.members),
        standing_w=one.standing_w + slow.fixed_w,
        least_w=None if one.least_w is None else one.least_w + slow.fixed_w,
        value=best,
        loss=one.loss,
        late=one.late,
        price_per_j=price_per_j,
        rate_per_s=rate_per_s,
        status=one.status,
        stays=stays,
        is_measured=_is_measured(fleet, [slow.experts[n] for n in one.members]),
        spare=_spare(slow, fleet),
    )


def _without_waking(slow: SlowProblem, one: Option, price_per_j: float, effort: Effort, clock: Clock | None) -> Option:
    """The best option of the experts in memory where it is about as good as `one`, which takes others; else `one`.

    Of hosts that cost and answer alike the figures of now one, now the other are better by their noise, and every
    exchange would cost a wake.
    """
    away = frozenset(
        n for n, expert in enumerate(slow.experts) if expert.readiness in (Readiness.COLD, Readiness.ASLEEP)
    )
    if not away & set(one.members):
        return one
    here = replace(slow, problem=replace(slow.problem, ruled_out=slow.problem.ruled_out | away))
    if here.problem.ruled_out & here.problem.pinned:
        return one
    best = most_valuable(here.problem, effort=effort, clock=clock)
    options = _options(here, best, effort, clock)
    if not options:
        return one
    stay = choose(options, slow.rate_per_s, price_per_j)
    # What it gives up is counted against everybody, not only against those in memory.
    everyone = slow.quality(range(len(slow.experts)))[0]
    stay = replace(stay, loss=everyone - slow.quality(stay.members)[0])
    more_loss = stay.loss + LATE_COSTS * stay.late - one.loss - LATE_COSTS * one.late
    most_late = max(slow.hourly_late_share, slow.worst_late(one.members) + SAME_LATE)
    is_worse = more_loss > SAME_LOSS or slow.worst_late(stay.members) > most_late
    if is_worse or stay.standing_w > one.standing_w * (1 + SAME_WATTS):
        return one
    least = least_standing(
        slow.problem, slow.problem.worth(slow.problem.mask(stay.members)), effort=effort, clock=clock
    )
    return replace(stay, least_w=least.least_w, status=least.status)


def _is_measured(fleet: Fleet, members: Sequence[ExpertFigures]) -> bool:
    """Whether it is known what these experts take, and what every host draws."""
    known = all(one.latency is not None and one.energy is not None for one in members)
    return known and all(host.awake_w is not None for host in fleet.hosts)


def _spare(slow: SlowProblem, fleet: Fleet) -> frozenset[str]:
    """The hosts without which the experts in memory elsewhere meet every need."""
    problem = slow.problem
    ready = problem.mask(n for n, expert in enumerate(fleet.experts) if expert.readiness is Readiness.READY)
    return frozenset(
        host.key for place, host in enumerate(fleet.hosts) if not problem.unmet(ready & (problem.host != place))
    )


def correction(
    slow: SlowProblem, hosts: Mapping[str, str], *, effort: Effort | None = None, clock: Clock | None = None
) -> str:
    """What contradicts in an infeasible problem, and the cheapest change that mends it, as a sentence.

    hosts: the names of hosts by the ids of their agents.
    """
    problem = slow.problem
    without_limit = replace(problem, most_w=None)
    least = least_standing(without_limit, 0.0, effort=effort, clock=clock)
    if least.standing_w is not None and problem.most_w is not None and slow.allowed_w is not None:
        # Rounded up, so that what is asked for is enough.
        least_w = math.ceil(least.standing_w + slow.fixed_w)
        return (
            f"What has to be awake draws {least_w} W while nobody asks, and {slow.allowed_w:.4g} W are allowed. "
            f"Allow {least_w} W{_unpinning(slow, hosts, effort, clock)}."
        )
    everybody = np.ones(len(problem.names), dtype=np.bool_)
    everybody[list(problem.ruled_out)] = False
    for need in problem.unmet(everybody):
        brought = float(need.share[everybody].sum())
        return f"{need.least:.4g} {need.label} are needed, and the fleet has {brought:.4g}. Ask for {brought:.4g}."
    for room in problem.rooms:
        held = float(room.use[list(problem.pinned)].sum()) if problem.pinned else 0.0
        if held > room.most:
            return (
                f"What is pinned needs {held / 2**30:.1f} GiB of the {room.label}, which has {room.most / 2**30:.1f}. "
                "Unpin the host, or give it fewer models."
            )
    return "The memory of the hosts does not hold the models that have to be there. Ask for fewer hosts for each model."


def _unpinning(slow: SlowProblem, hosts: Mapping[str, str], effort: Effort | None, clock: Clock | None) -> str:
    """The rest of a correction: which hosts could be unpinned instead; empty where that would not do."""
    problem = slow.problem
    # What is drawn whoever is awake is no smaller without pins.
    if not problem.pinned or slow.fixed_w > (slow.allowed_w or 0.0):
        return ""
    least = least_standing(replace(problem, pinned=frozenset()), 0.0, effort=effort, clock=clock)
    if least.standing_w is None:
        return ""
    unpinned = sorted(
        {
            hosts[slow.experts[n].host]
            for n in problem.pinned - set(least.members)
            if slow.fixed_because.get(problem.names[n]) == PINNED
        }
    )
    return f", or unpin {', '.join(unpinned)}" if unpinned else ""


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
