"""The frontier: the best value over a range of energy budgets, which shows what more joules would buy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from moe2.coordinator.planning import search
from moe2.coordinator.planning.problem import Problem
from moe2.coordinator.planning.proof import Plan
from moe2.coordinator.planning.value_table import ValueTable


@dataclass(frozen=True)
class FrontierPoint:
    """The plan for one energy budget, all other limits as in the problem."""

    energy_budget_j: float
    plan: Plan


def frontier(
    problem: Problem,
    energy_budgets_j: Sequence[float],
    *,
    table: ValueTable | None = None,
    effort: search.Effort | None = None,
    clock: Callable[[], float] | None = None,
) -> tuple[FrontierPoint, ...]:
    """The plans for several energy budgets, by rising budget; the value never falls, even where searches are cut short.

    table: values computed before, as in `search.plan`. effort: limits of the search for each budget. clock: monotonic
    seconds. Raises ProblemError for a budget that is negative or not finite.
    """
    points: list[FrontierPoint] = []
    known: tuple[int, ...] = ()
    for budget in sorted(energy_budgets_j):
        priced = replace(problem, budgets=replace(problem.budgets, energy_j=float(budget)))
        plan = search.plan(priced, table=table, effort=effort, clock=clock, known=known)
        known = plan.members
        points.append(FrontierPoint(float(budget), plan))
    return tuple(points)
