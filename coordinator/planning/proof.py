"""The answer of a solver: the panel, how good it provably is, and why every other expert is not in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from moe2.coordinator.planning.candidates import tie_width
from moe2.coordinator.planning.problem import Limit, PanelLimit, Problem, exceeds
from moe2.coordinator.planning.values import FloatArray


class Status(StrEnum):
    """What is proven about the panel."""

    OPTIMAL = "optimal"
    """No feasible panel is worth more, up to the width of a tie."""
    BOUNDED = "bounded"
    """The search was cut short; no feasible panel is worth more than the bound."""
    INFEASIBLE = "infeasible"
    """No expert fits the limits, so no panel does."""


class Cause(StrEnum):
    """Why an expert is not in the panel."""

    RULED_OUT = "ruled_out"
    """The request or the expert's state excludes it."""
    INFEASIBLE_ALONE = "infeasible_alone"
    """It breaks a limit even without company."""
    NO_ROOM = "no_room"
    """It would break a limit beside the chosen, and the chosen are worth more."""
    NO_GAIN = "no_gain"
    """It would fit, but adds nothing."""
    NOT_EXPLORED = "not_explored"
    """It would fit and add something, but the search was cut short."""


@dataclass(frozen=True)
class Breach:
    """A limit that would be broken: what is needed, what is allowed."""

    limit: Limit
    needed: float
    allowed: float

    def __str__(self) -> str:
        if self.limit is Limit.POWER:
            return f"would exceed the fleet's cap of {self.allowed:.4g} W ({self.needed:.4g} W with it)"
        return f"{self.limit.value} {self.needed:.4g} > {self.allowed:.4g}"


@dataclass(frozen=True)
class Exclusion:
    """Why one expert is not in the panel.

    given: the problem's own reason, where it rules the expert out. breaches: limits broken alone or beside
    the chosen. gain: value that it would add to the chosen panel, None where there is no panel.
    """

    name: str
    cause: Cause
    given: str | None = None
    breaches: tuple[Breach, ...] = ()
    gain: float | None = None

    @property
    def detail(self) -> str:
        """The reason in words."""
        if self.given is not None:
            return self.given
        words = ", ".join(map(str, self.breaches))
        return _WORDS[self.cause] + (f": {words}" if words else "")


_WORDS = {
    Cause.RULED_OUT: "ruled out",
    Cause.INFEASIBLE_ALONE: "does not fit even alone",
    Cause.NO_ROOM: "does not fit beside the chosen",
    Cause.NO_GAIN: "adds nothing to the chosen",
    Cause.NOT_EXPLORED: "would fit and gain; the search was cut short",
}


@dataclass(frozen=True)
class Offer:
    """A panel of one that would do if the named budgets were raised to what is needed."""

    name: str
    energy_j: float
    delay_s: float
    first_token_s: float
    breaches: tuple[Breach, ...]


@dataclass(frozen=True)
class Proof:
    """What a solver proves.

    value: of the panel, None where there is none. upper_bound: no feasible panel is worth more. nodes: panels
    listed by a table or bounded by a search. elapsed_s: on the injected clock, None without one. method: the
    solver.
    """

    method: str
    status: Status
    value: float | None
    upper_bound: float | None
    nodes: int
    elapsed_s: float | None
    gap_share: float | None = None

    @property
    def gap(self) -> float | None:
        """upper_bound - value, never negative; None where nothing is feasible."""
        if self.value is None or self.upper_bound is None:
            return None
        return max(0.0, self.upper_bound - self.value)


@dataclass(frozen=True)
class Plan:
    """A coarse decision. `members` and `names` are in alphabetical order of the names; both empty if
    infeasible.

    members: places in the problem. energy_j, delay_s, first_token_s: predictions of the panel at the limits'
    quantile, aggregation included; power_w None where unknown. cheapest, fastest: offers, only where nothing
    is feasible and some expert is not ruled out.
    """

    members: tuple[int, ...]
    names: tuple[str, ...]
    energy_j: float | None
    delay_s: float | None
    first_token_s: float | None
    power_w: float | None
    proof: Proof
    exclusions: tuple[Exclusion, ...]
    cheapest: Offer | None = None
    fastest: Offer | None = None

    @property
    def is_feasible(self) -> bool:
        """True where there is a panel."""
        return bool(self.members)


def _exclusions(problem: Problem, members: Sequence[int]) -> tuple[Exclusion, ...]:
    """A reason for each expert outside the panel, in the problem's order."""
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
    for most in problem.max_limits():
        held = float(most.cost[chosen].max()) if chosen else 0.0
        _note(alone, outside, most, most.cost + most.by_size[1])
        _note(beside, outside, most, np.maximum(most.cost, held) + most.by_size[size])
    return tuple(
        _exclusion(problem, n, tuple(alone.get(n, ())), tuple(beside.get(n, ())), gain)
        for n, gain in zip(outside, gains, strict=True)
    )


def _note(broken: dict[int, list[Breach]], outside: list[int], limit: PanelLimit, needed: FloatArray) -> None:
    """Add the outsiders whose `needed` (N,) breaks the limit."""
    over = exceeds(needed, limit.limit)
    if over.any():
        for n in outside:
            if over[n]:
                broken.setdefault(n, []).append(Breach(limit.limit_kind, float(needed[n]), limit.limit))


def _exclusion(
    problem: Problem, n: int, alone: tuple[Breach, ...], beside: tuple[Breach, ...], gain: float | None
) -> Exclusion:
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
    """The expert that is cheapest (by energy) or fastest (by delay), those breaking no other limit first."""
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
    """The plan for a problem that no expert can serve, with the offers that would work."""
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
    """The plan for a non-empty feasible panel; optimal if the bound is within a tie of its value."""
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
