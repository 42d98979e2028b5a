"""The answer of a solver: the panel, how good it provably is, and why every other expert is not in it.

`proven_plan` and `infeasible_plan` make a `Plan` of what a solver found; they are the only makers of plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from moe2.coordinator.planning.candidates import tie_width
from moe2.coordinator.planning.problem import Limit, PanelLimit, Problem, exceeds
from moe2.coordinator.planning.values import FloatArray


class Status(StrEnum):
    """The kind of proof that there is for a panel."""

    OPTIMAL = "optimal"
    """No feasible panel is worth more, up to the width of a tie."""
    BOUNDED = "bounded"
    """The search was cut short; no feasible panel is worth more than the bound."""
    INFEASIBLE = "infeasible"
    """No expert fits the limits, so no panel does."""


class Cause(StrEnum):
    """The cause why an expert is not in the panel."""

    RULED_OUT = "ruled_out"
    """The request or the expert's state excludes it."""
    INFEASIBLE_ALONE = "infeasible_alone"
    """It breaks a limit even as the only member."""
    NO_ROOM = "no_room"
    """It would break a limit together with the chosen experts, which are worth more."""
    NO_GAIN = "no_gain"
    """It would keep the limits together with the chosen experts, but adds no value to them."""
    NOT_EXPLORED = "not_explored"
    """It would keep the limits and add value, but the search was cut short."""


@dataclass(frozen=True)
class Breach:
    """A limit that would be broken, with what is needed and what is allowed, both in the limit's unit."""

    limit: Limit
    needed: float
    allowed: float

    def __str__(self) -> str:
        if self.limit is Limit.POWER:
            return f"would exceed the fleet's cap of {self.allowed:.4g} W ({self.needed:.4g} W with it)"
        name, unit = _LIMIT_TEXTS[self.limit]
        return f"{name} of {self.needed:.4g} {unit} exceeds {self.allowed:.4g} {unit}"


_LIMIT_TEXTS = {
    Limit.ENERGY: ("energy", "J"),
    Limit.DELAY: ("latency", "s"),
    Limit.FIRST_TOKEN: ("time to first token", "s"),
    Limit.PER_TOKEN: ("time per output token", "s"),
    Limit.PANEL_SIZE: ("panel", "experts"),
}
"""Each limit's name and unit in messages; the power limit has a sentence of its own."""


@dataclass(frozen=True)
class Exclusion:
    """The reason why one expert is not in the panel."""

    name: str
    """Name of the expert."""
    cause: Cause
    given: str | None = None
    """The problem's own reason in words, where it rules the expert out."""
    breaches: tuple[Breach, ...] = ()
    """The limits that it breaks alone, or else together with the chosen experts."""
    gain: float | None = None
    """The value that it would add to the chosen panel; None where there is no panel."""

    @property
    def detail(self) -> str:
        """The reason in words."""
        if self.given is not None:
            return self.given
        breaches = ", ".join(map(str, self.breaches))
        return _CAUSE_TEXTS[self.cause] + (f": {breaches}" if breaches else "")


_CAUSE_TEXTS = {
    Cause.RULED_OUT: "it is ruled out",
    Cause.INFEASIBLE_ALONE: "it does not keep the limits even alone",
    Cause.NO_ROOM: "it does not keep the limits together with the chosen experts",
    Cause.NO_GAIN: "it adds nothing to the chosen experts",
    Cause.NOT_EXPLORED: "it would improve the chosen set, but the planner ran out of time before trying it",
}


@dataclass(frozen=True)
class Offer:
    """An expert that could answer alone if the budgets that it breaks were raised to what it needs."""

    name: str
    """Name of the expert."""
    energy_j: float
    delay_s: float
    first_token_s: float
    breaches: tuple[Breach, ...]
    """The budgets that it breaks."""


@dataclass(frozen=True)
class Proof:
    """What a solver proves about its panel."""

    method: str
    """Name of the solver."""
    status: Status
    value: float | None
    """Value of the panel; None where there is none."""
    upper_bound: float | None
    """No feasible panel is worth more than this; None where there is none."""
    nodes: int
    """Panels that a table listed, or nodes that a search bounded."""
    elapsed_s: float | None
    """Seconds on the solver's clock; None without a clock."""
    gap_share: float | None = None
    """The gap as a share of the value; None where there is no panel."""

    @property
    def gap(self) -> float | None:
        """`upper_bound` less `value`, never negative; None where nothing is feasible."""
        if self.value is None or self.upper_bound is None:
            return None
        return max(0.0, self.upper_bound - self.value)


@dataclass(frozen=True)
class Plan:
    """The panel that a solver chose, with its proof. Its costs hold at the limits' quantile, aggregation included."""

    members: tuple[int, ...]
    """Places of the members in the problem, in the order of `names`; empty where nothing is feasible."""
    names: tuple[str, ...]
    """Names of the members in alphabetical order."""
    energy_j: float | None
    """Joules of the panel; None where there is none."""
    delay_s: float | None
    """Seconds until the whole answer; None where there is no panel."""
    first_token_s: float | None
    """Seconds until the first token; None where there is no panel."""
    power_w: float | None
    """Watts that the members add; None where unknown."""
    proof: Proof
    exclusions: tuple[Exclusion, ...]
    """The reason for each expert outside the panel, in the problem's order."""
    cheapest: Offer | None = None
    """The expert with the fewest joules, where nothing is feasible and some expert is not ruled out."""
    fastest: Offer | None = None
    """The expert with the least delay, where nothing is feasible and some expert is not ruled out."""

    @property
    def is_feasible(self) -> bool:
        """True where there is a panel."""
        return bool(self.members)


def _exclusions(problem: Problem, members: Sequence[int]) -> tuple[Exclusion, ...]:
    """The reason for each expert outside the panel of `members`, in the problem's order."""
    chosen = list(members)
    outside = [n for n in range(len(problem.names)) if n not in chosen]
    if not outside:
        return ()
    gains: list[float | None] = [None] * len(outside)
    if chosen:
        value = problem.value
        state = value.state_of(chosen)
        reached = value.cross(state[None], value.states)[0, outside]
        gains = list((reached - float(value.average(state))).tolist())
    alone: dict[int, list[Breach]] = {}
    beside: dict[int, list[Breach]] = {}
    size = len(chosen) + 1
    if size > problem.largest_panel:
        full = Breach(Limit.PANEL_SIZE, float(size), float(problem.largest_panel))
        beside = {n: [full] for n in outside}
    for total in problem.sum_limits():
        held = float(total.cost[chosen].sum())
        _note(alone, outside, total, total.cost + total.by_size[1])
        _note(beside, outside, total, total.cost + (held + total.by_size[size]))
    for limit in problem.max_limits():
        held = float(limit.cost[chosen].max()) if chosen else 0.0
        _note(alone, outside, limit, limit.cost + limit.by_size[1])
        _note(beside, outside, limit, np.maximum(limit.cost, held) + limit.by_size[size])
    return tuple(
        _exclusion(problem, n, tuple(alone.get(n, ())), tuple(beside.get(n, ())), gain)
        for n, gain in zip(outside, gains, strict=True)
    )


def _note(broken: dict[int, list[Breach]], outside: list[int], limit: PanelLimit, needed: FloatArray) -> None:
    """Add a breach to `broken` for each outside expert whose `needed` (N,) exceeds the limit."""
    over = exceeds(needed, limit.limit)
    if over.any():
        for n in outside:
            if over[n]:
                broken.setdefault(n, []).append(Breach(limit.limit_kind, float(needed[n]), limit.limit))


def _exclusion(
    problem: Problem, n: int, alone: tuple[Breach, ...], beside: tuple[Breach, ...], gain: float | None
) -> Exclusion:
    """The reason for expert `n`, from the limits that it breaks alone and beside the chosen experts, and its gain."""
    name = problem.names[n]
    if name in problem.ruled_out:
        return Exclusion(name, Cause.RULED_OUT, problem.ruled_out[name], gain=gain)
    if alone:
        return Exclusion(name, Cause.INFEASIBLE_ALONE, breaches=alone, gain=gain)
    if beside:
        return Exclusion(name, Cause.NO_ROOM, breaches=beside, gain=gain)
    explored = gain is None or gain <= tie_width(gain)
    return Exclusion(name, Cause.NO_GAIN if explored else Cause.NOT_EXPLORED, gain=gain)


def _offer(problem: Problem, by: Limit) -> Offer | None:
    """The cheapest expert by energy, or the fastest by delay; experts that break no other limit come first."""
    costs, aggregation = problem.costs, problem.aggregation
    pool = [n for n, name in enumerate(problem.names) if name not in problem.ruled_out]
    if not pool:
        return None
    own = {Limit.ENERGY} if by is Limit.ENERGY else {Limit.DELAY, Limit.FIRST_TOKEN, Limit.PER_TOKEN}
    alone: dict[int, list[Breach]] = {}
    limits: tuple[PanelLimit, ...] = (*problem.sum_limits(), *problem.max_limits())
    for limit in limits:
        _note(alone, pool, limit, limit.cost + limit.by_size[1])
    cost = costs.energy_j if by is Limit.ENERGY else costs.delay_s
    n = min(
        pool,
        key=lambda n: (any(breach.limit not in own for breach in alone.get(n, ())), cost[n], problem.names[n]),
    )
    return Offer(
        name=problem.names[n],
        energy_j=float(costs.energy_j[n] + aggregation.energy_j[1]),
        delay_s=float(costs.delay_s[n] + aggregation.delay_s[1]),
        first_token_s=float(costs.first_token_s[n] + aggregation.first_token_s[1]),
        breaches=tuple(alone.get(n, ())),
    )


def infeasible_plan(problem: Problem, method: str, elapsed_s: float | None) -> Plan:
    """The plan for a problem in which no expert keeps the limits, with the offers that come nearest."""
    proof = Proof(method, Status.INFEASIBLE, None, None, 0, elapsed_s)
    return Plan(
        members=(),
        names=(),
        energy_j=None,
        delay_s=None,
        first_token_s=None,
        power_w=None,
        proof=proof,
        exclusions=_exclusions(problem, ()),
        cheapest=_offer(problem, Limit.ENERGY),
        fastest=_offer(problem, Limit.DELAY),
    )


def proven_plan(
    problem: Problem,
    members: Sequence[int],
    *,
    method: str,
    value: float,
    upper_bound: float,
    nodes: int,
    elapsed_s: float | None,
) -> Plan:
    """The plan for a non-empty feasible panel; its proof is OPTIMAL where the bound is within a tie of its value."""
    chosen = sorted(members, key=lambda n: problem.names[n])
    size, costs, aggregation = len(chosen), problem.costs, problem.aggregation
    spent = costs.energy_j[chosen]
    energy_j = spent.max() if problem.budgets.one_runs else spent.sum()
    added_w = None if problem.power_w is None else problem.power_w[chosen]
    proven = not upper_bound > value + tie_width(value)
    return Plan(
        members=tuple(chosen),
        names=tuple(problem.names[n] for n in chosen),
        energy_j=float(energy_j + aggregation.energy_j[size]),
        delay_s=float(costs.delay_s[chosen].max() + aggregation.delay_s[size]),
        first_token_s=float(costs.first_token_s[chosen].max() + aggregation.first_token_s[size]),
        power_w=None if added_w is None else float(added_w.sum() if problem.runs_together else added_w.max()),
        proof=Proof(
            method=method,
            status=Status.OPTIMAL if proven else Status.BOUNDED,
            value=value,
            upper_bound=value if proven else upper_bound,
            nodes=nodes,
            elapsed_s=elapsed_s,
            gap_share=0.0 if proven else problem.value.share(upper_bound - value, value),
        ),
        exclusions=_exclusions(problem, chosen),
    )
