"""Tests of what a plan says about itself: reasons, offers, gaps, ties and time."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count, pairwise

import numpy as np
import pytest

from moe2.coordinator.planning import greedy, search
from moe2.coordinator.planning.candidates import TIE
from moe2.coordinator.planning.exclusions import Cause
from moe2.coordinator.planning.problem import Limit, PanelBudgets, Problem
from moe2.coordinator.planning.proof import Plan, Status
from moe2.coordinator.planning.search import Effort, frontier
from moe2.coordinator.planning.value_table import TableError, ValueTable
from moe2.coordinator.planning.values import Coverage, FloatArray
from tests.coordinator.planning import cases
from tests.oracles import exhaustive, polyblock

SOLVERS: list[Callable[[Problem], Plan]] = [
    search.plan,
    exhaustive.plan,
    greedy.plan,
    polyblock.plan,
    lambda problem: search.plan(problem, table=ValueTable.build(problem.value)),
]


def hard_problem(experts: int = 32) -> Problem:
    """A problem that takes a search some tens of nodes: answers are nearly certain, right or wrong."""
    rng = np.random.default_rng(3)
    good = rng.random((128, experts)) < rng.uniform(0.2, 0.7, experts)
    chances: FloatArray = np.where(good, rng.uniform(0.9, 1, good.shape), rng.uniform(0, 0.1, good.shape))
    energy: FloatArray = rng.lognormal(1.0, 0.8, experts)
    return cases.problem(chances, energy, budgets=PanelBudgets(energy_j=float(energy.sum() * 0.06)))


@pytest.mark.parametrize("solve", SOLVERS)
def test_every_excluded_expert_has_its_reason(solve: Callable[[Problem], Plan]) -> None:
    """Experts ruled out, infeasible alone, without room and without gain are told apart."""
    problem = cases.problem(
        np.array([[0.9, 0.6, 0.5, 0.8, 0.0], [0.2, 0.7, 0.5, 0.8, 0.0]]),
        np.array([3.0, 2.0, 3.0, 9.0, 0.0]),
        budgets=PanelBudgets(energy_j=5.0),
        names=("a", "b", "c", "d", "e"),
        ruled_out={"c": "draining"},
    )
    plan = solve(problem)
    assert plan.names == ("a", "b")
    found = {exclusion.name: exclusion for exclusion in plan.exclusions}
    assert {name: exclusion.cause for name, exclusion in found.items()} == {
        "c": Cause.RULED_OUT,
        "d": Cause.INFEASIBLE_ALONE,
        "e": Cause.NO_GAIN,
    }
    assert found["c"].detail == "draining"
    assert found["d"].detail == "it does not keep the limits even alone: energy of 9 J exceeds 5 J"
    assert found["e"].gain == 0.0


def test_an_expert_without_room_says_what_the_panel_would_need() -> None:
    """The breach of an expert without room is that of the chosen panel with the expert in it."""
    plan = search.plan(
        cases.problem(
            np.array([[0.9, 0.5]]), np.array([3.0, 4.0]), budgets=PanelBudgets(energy_j=5.0), names=("a", "b")
        )
    )
    (exclusion,) = plan.exclusions
    assert exclusion.cause is Cause.NO_ROOM
    assert [(b.limit, b.needed, b.allowed) for b in exclusion.breaches] == [(Limit.ENERGY, 7.0, 5.0)]
    assert exclusion.gain == pytest.approx(0.05)


@pytest.mark.parametrize("solve", SOLVERS)
def test_nothing_feasible_names_the_cheapest_and_the_fastest_offer(solve: Callable[[Problem], Plan]) -> None:
    """Offers that break only the budget in question come first, with what that budget would have to be."""
    problem = cases.problem(
        np.full((1, 3), 0.5),
        np.array([5.0, 8.0, 1.0]),
        np.array([2.0, 1.0, 9.0]),
        budgets=PanelBudgets(energy_j=4.0, delay_s=3.0),
        names=("near", "quick", "slow"),
    )
    plan = solve(problem)
    assert plan.proof.status is Status.INFEASIBLE
    assert plan.names == ()
    assert plan.cheapest is not None
    assert plan.fastest is not None
    assert plan.cheapest.name == "near"
    assert [str(breach) for breach in plan.cheapest.breaches] == ["energy of 5 J exceeds 4 J"]
    assert plan.fastest.name == "slow"
    assert [str(breach) for breach in plan.fastest.breaches] == ["latency of 9 s exceeds 3 s"]


def test_no_offer_is_made_of_experts_that_are_ruled_out() -> None:
    """An offer is never an expert that no budget could buy."""
    plan = search.plan(cases.problem(np.array([[0.5]]), np.ones(1), names=("a",), ruled_out={"a": "context too short"}))
    assert (plan.cheapest, plan.fastest) == (None, None)
    assert [exclusion.detail for exclusion in plan.exclusions] == ["context too short"]


@pytest.mark.parametrize("solve", [SOLVERS[0], SOLVERS[1], SOLVERS[4]])
def test_equal_values_go_to_fewer_joules_then_seconds_then_members_then_names(
    solve: Callable[[Problem], Plan],
) -> None:
    """Each rule for ties decides where all rules before it tie."""
    same = np.full((2, 3), 0.5)
    one = PanelBudgets(max_experts=1)

    def chosen(
        energy: list[float], delay: list[float], names: tuple[str, ...], budgets: PanelBudgets = one
    ) -> tuple[str, ...]:
        problem = cases.problem(same, np.array(energy), np.array(delay), kind="best_of", names=names, budgets=budgets)
        return solve(problem).names

    assert chosen([2, 1, 3], [1, 2, 3], ("a", "b", "c")) == ("b",)
    assert chosen([1, 1, 1], [2, 2, 1], ("a", "b", "c")) == ("c",)
    assert chosen([1, 1, 1], [1, 1, 1], ("z", "m", "n")) == ("m",)
    assert chosen([0, 0, 0], [1, 1, 1], ("z", "m", "n"), PanelBudgets()) == ("m",)


def test_a_search_out_of_time_gives_a_feasible_panel_under_a_bound_that_holds() -> None:
    """A clock that runs out at once leaves the greedy panel and the value of all experts."""
    problem = hard_problem()
    best = search.plan(problem).proof.value
    ticks = count()
    plan = search.plan(problem, effort=Effort(time_limit_s=0.5), clock=lambda: float(next(ticks)))
    found = plan.proof
    assert found.status is Status.BOUNDED
    assert problem.is_feasible(list(plan.members))
    assert best is not None
    assert found.value is not None
    assert found.upper_bound is not None
    assert found.value <= best + 2e-9 <= found.upper_bound + 4e-9
    assert found.gap_share == pytest.approx((found.upper_bound - found.value) / found.value)


def test_the_bound_only_falls_and_the_value_only_rises_with_more_nodes() -> None:
    """An anytime search never takes back what it proved."""
    problem = hard_problem()
    runs = [search.plan(problem, effort=Effort(list_up_to=4, node_limit=n)).proof for n in (0, 1, 4, 16, 64)]
    bounds = [run.upper_bound for run in runs if run.upper_bound is not None]
    values = [run.value for run in runs if run.value is not None]
    assert bounds == sorted(bounds, reverse=True)
    assert all(after >= before - TIE for before, after in pairwise(values))
    assert len(set(bounds)) > 2


def test_a_tolerated_gap_ends_the_search_sooner_and_is_certified() -> None:
    """The gap that is left is within the tolerance, and fewer nodes were needed."""
    problem = hard_problem()
    exact = search.plan(problem, effort=Effort(list_up_to=4)).proof
    rough = search.plan(problem, effort=Effort(list_up_to=4, gap_share=0.005)).proof
    assert rough.nodes < exact.nodes
    assert rough.gap_share is not None
    assert rough.gap_share <= 0.005
    assert exact.value is not None
    assert rough.upper_bound is not None
    assert rough.upper_bound >= exact.value


def test_time_is_that_of_the_injected_clock_and_unknown_without_one() -> None:
    """The plan's time comes from the given clock, and is None without one."""
    problem = hard_problem(6)
    times = iter([10.0, 12.5])
    assert search.plan(problem, table=ValueTable.build(problem.value)).proof.elapsed_s is None
    timed = search.plan(problem, table=ValueTable.build(problem.value), clock=lambda: next(times))
    assert timed.proof.elapsed_s == 2.5


def test_the_same_problem_gives_the_same_plan_and_the_same_nodes() -> None:
    """A search is not random: the same problem gives the same plan and the same nodes."""
    problem = hard_problem()
    left, right = search.plan(problem), search.plan(problem)
    assert left == right


def test_a_table_of_another_fleet_is_not_used() -> None:
    """A table serves only problems with the very value that it was built from."""
    problem = hard_problem(8)
    other = ValueTable.build(Coverage(np.full((2, 8), 0.5)))
    assert search.plan(problem, table=other).proof.method == "branch"


def test_a_table_of_smaller_panels_than_asked_for_is_not_used() -> None:
    """A table of pairs is not used for panels of three."""
    problem = hard_problem(18)
    table = ValueTable.build(problem.value, 2)
    assert search.plan(problem, table=table).proof.method == "branch"


def test_a_table_that_would_be_huge_is_refused() -> None:
    """A table of 2^64 values is refused."""
    with pytest.raises(TableError, match="Limit max_experts"):
        ValueTable.build(Coverage(np.full((1, 64), 0.5)))


def test_a_frontier_rises_with_the_budget_and_ends_at_the_best_panel() -> None:
    """Values never fall along the budgets; the first budgets may buy nothing."""
    problem = hard_problem(10)
    total = float(problem.p95.energy_j.sum())
    points = frontier(problem, [total, 0.0, total / 8, total / 4, total / 2])
    values = [point.plan.proof.value for point in points]
    assert [point.energy_budget_j for point in points] == sorted(point.energy_budget_j for point in points)
    assert values[0] is None
    known = [value for value in values if value is not None]
    assert known == sorted(known)
    assert known[-1] == pytest.approx(problem.value.of(list(range(10))))


def test_a_frontier_never_falls_even_where_searches_are_cut_short() -> None:
    """A search starts from the panel of the next smaller budget, so that a frontier never falls."""
    problem = hard_problem()
    total = float(problem.p95.energy_j.sum())
    points = frontier(problem, np.linspace(0.05, 0.6, 12) * total, effort=Effort(node_limit=0))  # type: ignore[arg-type]
    values = [point.plan.proof.value for point in points]
    known = [value for value in values if value is not None]
    assert all(after >= before - TIE for before, after in pairwise(known))
