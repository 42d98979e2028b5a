"""The answer of a solver: the panel, how good it provably is, and what would be possible where there is none.

`proven_plan` and `infeasible_plan` make a `Plan` of what a solver found; they are the only makers of plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np

from moe2.coordinator.planning.candidates import by_name, tie_width
from moe2.coordinator.planning.exclusions import Breach, Breached, Cause, Exclusions
from moe2.coordinator.planning.problem import Limit, Problem
from moe2.coordinator.planning.values import IntArray


class Status(StrEnum):
    """The kind of proof that there is for a panel."""

    OPTIMAL = "optimal"
    """No feasible panel is worth more, up to the width of a tie."""
    BOUNDED = "bounded"
    """The search was cut short; no feasible panel is worth more than the bound."""
    INFEASIBLE = "infeasible"
    """No expert fits the limits, so no panel does."""


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
    exclusions: Exclusions = field(hash=False)
    """The reason for each expert outside the panel, in the problem's order."""
    cheapest: Offer | None = None
    """The expert with the fewest joules, where nothing is feasible and some expert is not ruled out."""
    fastest: Offer | None = None
    """The expert with the least delay, where nothing is feasible and some expert is not ruled out."""

    @property
    def is_feasible(self) -> bool:
        """True where there is a panel."""
        return bool(self.members)

    @cached_property
    def within_limits(self) -> IntArray:
        """Places, ascending, of the members and of the experts that would keep the limits with them but add nothing."""
        is_within = self.exclusions.are_outside_for(Cause.NO_GAIN)
        is_within[self.exclusions.chosen] = True
        found = is_within.nonzero()[0]
        found.flags.writeable = False
        return found


def _offer(problem: Problem, by: Limit) -> Offer | None:
    """The cheapest expert by energy, or the fastest by delay; experts that break no other limit come first."""
    costs, aggregation = problem.costs, problem.aggregation
    pool = np.flatnonzero(~problem.is_ruled_out)
    if len(pool) == 0:
        return None
    own = {Limit.ENERGY} if by is Limit.ENERGY else {Limit.DELAY, Limit.FIRST_TOKEN, Limit.PER_TOKEN}
    breached = Breached.alone(problem)
    cost = costs.energy_j if by is Limit.ENERGY else costs.delay_s
    is_foreign = breached.any_but(own)[pool]
    pool = pool[is_foreign == is_foreign.min()]
    n = min(pool[cost[pool] == cost[pool].min()].tolist(), key=problem.names.__getitem__)
    return Offer(
        name=problem.names[n],
        energy_j=float(costs.energy_j[n] + aggregation.energy_j[1]),
        delay_s=float(costs.delay_s[n] + aggregation.delay_s[1]),
        first_token_s=float(costs.first_token_s[n] + aggregation.first_token_s[1]),
        breaches=breached.by(n),
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
        exclusions=Exclusions(problem, ()),
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
    chosen = np.array(members, dtype=np.intp)
    chosen = chosen[by_name(problem.names)[chosen].argsort()]
    size, costs, aggregation = len(chosen), problem.costs, problem.aggregation
    spent = costs.energy_j[chosen]
    energy_j = spent.max() if problem.budgets.one_runs else spent.sum()
    added_w = None if problem.power_w is None else problem.power_w[chosen]
    proven = not upper_bound > value + tie_width(value)
    return Plan(
        members=tuple(places := chosen.tolist()),
        names=tuple(map(problem.names.__getitem__, places)),
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
        exclusions=Exclusions(problem, chosen),
    )
