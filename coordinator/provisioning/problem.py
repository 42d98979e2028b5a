"""The slow level's problem as arrays: what sets of experts are worth to this traffic, draw, and can carry. PURE.

    F(S) = sum over classes c of share_c * max over n in S of (p_cn - price * E_cn - lateness * late_cn)

It never falls when an expert joins and is submodular (facility location; Nemhauser, Wolsey and Fisher 1978). Joules of
answers stand in it by their price, because another expert can lower them. What is drawn while nobody asks is a
constraint: `G`, closed downwards, together with memory. What has to be carried is `H`, closed upwards. Each class is
taken by requests that were really asked, so that a long prompt counts where it makes an expert late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moe2.coordinator.choosing.request import ASSUMED_ANSWER_TOKENS
from moe2.coordinator.planning.awake import AwakeProblem, Need, Room
from moe2.coordinator.planning.values import BestOf, BoolArray, FloatArray, IntArray
from moe2.coordinator.provisioning.figures import ExpertFigures, Fleet, HostFigures, Readiness
from moe2.coordinator.provisioning.settings import ProvisioningSection
from moe2.coordinator.provisioning.traffic import ClassForecast, Forecast, most_offered

USUAL_LENGTHS = (256, ASSUMED_ANSWER_TOKENS)
"""Tokens of prompt and answer that are assumed before any answer has been seen."""
LATE_COSTS = 0.1
"""Score that a late first token takes from an answer. It is also the scale of values: 1 is an answer on time."""
MAX_KINDS = 192
"""Requests that stand for the traffic, over all classes."""
PINNED = "its host is pinned"
"""Why an expert stays in memory whose host is pinned."""
_PER_CLASS = 96


@dataclass(frozen=True)
class Limits:
    """What the fleet has to keep; None sets no limit."""

    first_token_s: float = 4.0
    """Seconds that people wait for a first token, where their category has no budget of its own."""
    first_token_by_category_s: Mapping[str, float] = field(default_factory=dict)
    hourly_late_share: float = 1.0
    """Share of an hour's answers of each category whose first token may come later, where some experts keep that."""
    average_w: float | None = None
    """Most watts that the fleet may draw while nobody asks, those of sleeping hosts included."""
    joules_per_answer: float | None = None
    """Most joules of waiting for each answer, at the rate at which answers are asked for; where that is too little for
    anybody, the least that has to be is kept awake."""
    least_hosts: Mapping[str, int] = field(default_factory=dict)
    """Least number of hosts that keep a model in memory, by model."""
    pinned: frozenset[str] = frozenset()
    """Keys of hosts that stay awake with all their models."""
    kept_asleep: frozenset[str] = frozenset()
    """Keys of hosts that an operator has sent to sleep."""
    least_awake: int = 1
    """Least number of experts in memory at any time."""
    price_per_j: float = 0.0
    """Score that a joule of an answer has to bring."""
    stay_s: float = 3600.0
    """Seconds over which a change of state is paid off."""

    def patience_s(self, category: str) -> float:
        """Seconds that requests of a category may take to their first token."""
        return self.first_token_by_category_s.get(category, self.first_token_s)


def limits_of(
    section: ProvisioningSection,
    *,
    pinned: frozenset[str],
    kept_asleep: frozenset[str] = frozenset(),
    patience_s: Mapping[str, float] | None = None,
    price_per_j: float = 0.0,
) -> Limits:
    """The limits that the settings set. pinned, kept_asleep: keys of hosts."""
    return Limits(
        first_token_s=section.first_token_s,
        first_token_by_category_s=patience_s or {},
        hourly_late_share=1.0 if section.hourly_late_share is None else section.hourly_late_share,
        average_w=section.average_power_w,
        joules_per_answer=section.joules_per_answer,
        least_hosts={model: least for model, least in section.min_hosts.items() if least > 0},
        pinned=pinned,
        kept_asleep=kept_asleep,
        least_awake=section.min_awake,
        price_per_j=price_per_j,
    )


@dataclass(frozen=True, eq=False)
class SlowProblem:
    """An `AwakeProblem` with what is needed to say in words what it and its answers mean."""

    problem: AwakeProblem
    experts: tuple[ExpertFigures, ...]
    rate_per_s: float
    score: FloatArray
    """(M, N) expected score of each expert on each kind of request; NaN where it cannot serve it."""
    late: FloatArray
    """(M, N) 1 where the expert's first token comes late, else 0."""
    value: FloatArray
    """(M, N) score less the price of joules and of lateness; -inf where it cannot serve the kind."""
    weight: FloatArray
    """(M,) share of the traffic that each kind stands for; they sum to 1."""
    fixed_w: float
    """Watts that the fleet draws whoever is awake: sleeping hosts, and hosts that cannot sleep."""
    fixed_because: Mapping[str, str]
    """Reasons by key of experts that stay as they are."""
    category: IntArray
    """(M,) the category of each kind, counted from 0."""
    hourly_late_share: float
    """Share of an hour's answers of each category that may come late, where some experts keep that."""
    allowed_w: float | None = None
    """Watts that the fleet may draw while nobody asks, as they are set; None for no limit."""

    def quality(self, members: Sequence[int]) -> tuple[float, float]:
        """Mean score, and share of late answers, where these experts are in memory and the others are woken for need.

        Each request goes to the member of most value; one that no member can serve waits for the best expert, late.
        """
        if len(self.weight) == 0:
            return 0.0, 0.0
        score, late = self._each(members)
        return float(self.weight @ score), float(self.weight @ late)

    def worst_late(self, members: Sequence[int]) -> float:
        """The share of late answers in the category that has most of them."""
        if len(self.weight) == 0:
            return 0.0
        asked = np.bincount(self.category, self.weight)
        late = np.bincount(self.category, self.weight * self._each(members)[1])
        return float((late[asked > 0.0] / asked[asked > 0.0]).max(initial=0.0))

    def _each(self, members: Sequence[int]) -> tuple[FloatArray, FloatArray]:
        """(M,) the score of each kind of request, and whether it comes late."""
        rows = np.arange(len(self.weight))
        best = np.nanmax(np.where(np.isnan(self.score), -1.0, self.score), axis=1)
        score, late = np.maximum(best, 0.0), np.ones(len(rows))
        if len(members):
            value = self.value[:, list(members)]
            column = np.asarray(list(members))[value.argmax(axis=1)]
            served = np.isfinite(value.max(axis=1))
            score = np.where(served, self.score[rows, column], score)
            late = np.where(served, self.late[rows, column], late)
        return score, late


def slow_problem(fleet: Fleet, forecast: Forecast, limits: Limits) -> SlowProblem:
    """Builds the problem for one hour's traffic.

    An expert that is not measured, or may not be moved, stays as it is: pinned where it is in memory, else ruled out.
    """
    experts = fleet.experts
    place_of = {host.key: place for place, host in enumerate(fleet.hosts)}
    stays, because = _fixed(fleet, limits)
    score, late, value, weight = _kinds(experts, forecast, limits)
    expert_w, host_w, fixed_w = _watts(fleet, limits)
    rate_per_s = sum(one.upper_per_s for one in forecast)
    mean_rate = sum(one.rate_per_s for one in forecast)
    most_w = None if limits.average_w is None else max(0.0, limits.average_w - fixed_w)
    if limits.joules_per_answer is not None:
        by_rate_w = max(0.0, limits.joules_per_answer * mean_rate - fixed_w)
        most_w = by_rate_w if most_w is None else min(most_w, by_rate_w)
    states = _states(value, weight)
    return SlowProblem(
        problem=AwakeProblem(
            names=tuple(expert.key for expert in experts),
            value=BestOf(states),
            expert_w=expert_w,
            host=np.array([place_of[expert.host] for expert in experts], dtype=np.intp),
            host_w=host_w,
            most_w=most_w,
            rooms=_rooms(fleet),
            needs=_needs(experts, forecast, limits, rate_per_s, stays),
            pinned=frozenset(n for n, is_in in stays.items() if is_in),
            ruled_out=frozenset(n for n, is_in in stays.items() if not is_in),
        ),
        experts=experts,
        rate_per_s=mean_rate,
        score=score,
        late=late,
        value=value,
        weight=weight,
        fixed_w=fixed_w,
        fixed_because=because,
        category=_categories(forecast, len(weight)),
        # Where the whole fleet may sleep, a first request waits for a wake by the operator's leave.
        hourly_late_share=limits.hourly_late_share if limits.least_awake > 0 else 1.0,
        allowed_w=limits.average_w,
    )


def _categories(forecast: Forecast, kinds: int) -> IntArray:
    """(M,) the category of each of the `kinds`, which are as many for each class, counted from 0."""
    names = sorted({one.category for one in forecast})
    of_class = np.array([names.index(one.category) for one in forecast], dtype=np.intp)
    return np.repeat(of_class, kinds // max(1, len(of_class)))


def is_settled(fleet: Fleet, limits: Limits) -> bool:
    """Whether every expert stays as it is, whatever the traffic is: none may be moved, or none is measured."""
    return len(_fixed(fleet, limits)[0]) == len(fleet.experts)


def _fixed(fleet: Fleet, limits: Limits) -> tuple[dict[int, bool], dict[str, str]]:
    """The places of experts that stay as they are, True for those in memory, and the reasons by key."""
    hosts = {host.key: host for host in fleet.hosts}
    stays: dict[int, bool] = {}
    because: dict[str, str] = {}
    for place, expert in enumerate(fleet.experts):
        host = hosts[expert.host]
        is_in = expert.readiness in (Readiness.READY, Readiness.LOADING)
        if expert.host in limits.kept_asleep:
            stays[place], because[expert.key] = False, "an operator has sent its host to sleep"
        elif expert.host in limits.pinned:
            stays[place], because[expert.key] = True, PINNED
        elif reason := _immovable(expert, host):
            stays[place], because[expert.key] = is_in, reason
    return stays, because


def _immovable(expert: ExpertFigures, host: HostFigures) -> str | None:
    """Why an expert is left as it is; None where it may be moved and it is known what that takes."""
    if expert.latency is None or expert.energy is None:
        return "its speed or its energy is unmeasured"
    if not (host.may_unload or host.may_suspend):
        return "its agent allows neither to unload it nor to suspend its host"
    if host.can_sleep:
        return None
    lacking = [name for name in ("ready_w", "load_s", "load_j") if getattr(expert, name) is None]
    if host.may_unload and not lacking:
        return None
    names = (*lacking, *(host.unmeasured if host.may_suspend else ()))
    return f"unmeasured: {', '.join(names)}" if names else "its host cannot sleep, and it may not be unloaded"


def _watts(fleet: Fleet, limits: Limits) -> tuple[FloatArray, FloatArray, float]:
    """Watts of each expert (N,) and of each host (H,) for being awake, and those of the fleet whoever is awake.

    What a change of state takes is spread over `limits.stay_s`. Unmeasured watts of experts that stay as they are
    decide nothing and are left out.
    """
    expert_w = np.zeros(len(fleet.experts))
    host_w = np.zeros(len(fleet.hosts))
    fixed_w = 0.0
    for place, host in enumerate(fleet.hosts):
        own = fleet.on(host.key)
        is_asleep = all(expert.readiness is Readiness.ASLEEP for expert in own) and bool(own)
        if host.can_sleep and host.awake_w is not None and host.asleep_w is not None:
            host_w[place] = max(0.0, host.awake_w - host.asleep_w)
            fixed_w += host.asleep_w
            if is_asleep and host.wake_j is not None and host.suspend_j is not None:
                host_w[place] += (host.wake_j + host.suspend_j) / limits.stay_s
        else:
            fixed_w += host.awake_w or 0.0
    for place, expert in enumerate(fleet.experts):
        expert_w[place] = max(0.0, expert.ready_w or 0.0)
        if expert.readiness in (Readiness.COLD, Readiness.ASLEEP):
            expert_w[place] += (expert.load_j or 0.0) / limits.stay_s
    return expert_w, host_w, fixed_w


def _kinds(
    experts: tuple[ExpertFigures, ...], forecast: Forecast, limits: Limits
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Score, lateness and value (M, N) of each expert on each kind of request, and the kinds' weights (M,)."""
    total = sum(one.rate_per_s for one in forecast)
    each = max(1, min(_PER_CLASS, MAX_KINDS // max(1, len(forecast))))
    shape = (len(forecast) * each, len(experts))
    score, late, value, weight = np.full(shape, np.nan), np.ones(shape), np.full(shape, -np.inf), np.zeros(shape[0])
    for place, one in enumerate(forecast):
        rows = slice(place * each, (place + 1) * each)
        lengths = sorted(one.lengths) or [USUAL_LENGTHS]
        picked = np.array([lengths[int((k + 0.5) * len(lengths) / each)] for k in range(each)])
        weight[rows] = one.rate_per_s / total / each if total > 0.0 else 1.0 / shape[0]
        for n, expert in enumerate(experts):
            if one.model is not None and one.model not in (expert.model, expert.key):
                continue
            costs = expert.costs(picked[:, 0], picked[:, 1])
            late[rows, n] = 1.0 if costs is None else costs.first_token_s > limits.patience_s(one.category)
            score[rows, n] = expert.score(one.category)
            joules = 0.0 if costs is None else costs.answer_j
            value[rows, n] = score[rows, n] - limits.price_per_j * joules - LATE_COSTS * late[rows, n]
    return score, late, value, weight


def _states(value: FloatArray, weight: FloatArray) -> FloatArray:
    """(M, N) the states of `BestOf`: what each expert in memory is worth above waking the best one, 0..1, weighted.

    The mean over kinds of the largest state is the set's value over `LATE_COSTS` times the largest weight.
    """
    if len(weight) == 0:
        return np.zeros((1, value.shape[1]))
    least = value.max(axis=1, keepdims=True) - LATE_COSTS
    # Nobody in memory can answer some kinds: then the best one is worth as little as all others.
    above = np.subtract(value, least, out=np.zeros_like(value), where=np.isfinite(value))
    return np.asarray(np.clip(above / LATE_COSTS, 0.0, 1.0) * (weight / weight.max())[:, None])


def _rooms(fleet: Fleet) -> tuple[Room, ...]:
    """The memory of each host that knows its own and that of all its models."""
    rooms = []
    for host in fleet.hosts:
        own = fleet.on(host.key)
        if host.memory_bytes is None or any(expert.memory_bytes is None for expert in own):
            continue
        if sum(expert.memory_bytes or 0 for expert in own) > host.memory_bytes:
            use = np.array(
                [float(expert.memory_bytes or 0) if expert.host == host.key else 0.0 for expert in fleet.experts]
            )
            rooms.append(Room(f"memory of {host.name}", use, float(host.memory_bytes)))
    return tuple(rooms)


def _needs(
    experts: tuple[ExpertFigures, ...],
    forecast: Forecast,
    limits: Limits,
    rate_per_s: float,
    stays: Mapping[int, bool],
) -> tuple[Need, ...]:
    """What the experts in memory have to carry: the traffic within people's patience, and the least numbers."""
    able: BoolArray = np.array([stays.get(n) is not False for n in range(len(experts))])
    needs = []
    if limits.least_awake > 0 and len(experts):
        share = np.ones(len(experts))
        needs.append(Need("experts in memory", share, float(min(limits.least_awake, int(able.sum())))))
    for wanted, least in sorted(limits.least_hosts.items()):
        share = np.array([float(expert.model == wanted) for expert in experts])
        needs.append(Need(f"hosts with {wanted}", share, float(least)))
    if rate_per_s <= 0.0 or limits.least_awake == 0:
        return tuple(needs)
    groups: dict[str | None, list[ClassForecast]] = {None: list(forecast)}
    for one in forecast:
        if one.model is not None:
            groups.setdefault(one.model, []).append(one)
    for model, classes in sorted(groups.items(), key=lambda item: item[0] or ""):
        upper = sum(one.upper_per_s for one in classes)
        share = np.array(
            [
                _carries(expert, classes, limits) if model in (None, expert.model, expert.key) else 0.0
                for expert in experts
            ]
        )
        # More than everybody together can carry is asked of nobody: then all who help are awake.
        carried = min(upper, float(share[able].sum()))
        if carried > 0.0:
            needs.append(Need(f"requests a second{f' for {model}' if model else ''}", share, carried))
    return tuple(needs)


def _carries(expert: ExpertFigures, classes: Sequence[ClassForecast], limits: Limits) -> float:
    """Requests a second of these classes that an expert takes while 95 in 100 of those it can serve are not late.

    The queue may use up the patience that the prompt leaves. A prompt too long for the expert's patience costs its
    seconds all the same.
    """
    total = sum(one.rate_per_s for one in classes)
    if total <= 0.0:
        return 0.0
    busy_s, slack_s = 0.0, float("inf")
    for one in classes:
        lengths = np.array(one.lengths or (USUAL_LENGTHS,))
        costs = expert.costs(lengths[:, 0], lengths[:, 1])
        if costs is None:
            return 0.0
        busy_s += one.rate_per_s / total * float(costs.service_s.mean())
        slack_s = min(slack_s, limits.patience_s(one.category) - float(np.median(costs.first_token_s)))
    if busy_s <= 0.0:
        return 0.0
    return most_offered(max(1, expert.slots), busy_s, slack_s) / busy_s
