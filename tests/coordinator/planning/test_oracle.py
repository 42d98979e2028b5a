"""Tests of every solver against brute force, and of brute force against the definitions."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from moe2.coordinator.planning import greedy, listing, search
from moe2.coordinator.planning.candidates import Candidates, Incumbent
from moe2.coordinator.planning.problem import Aggregation, PanelBudgets, Problem
from moe2.coordinator.planning.proof import Plan, Status
from moe2.coordinator.planning.search import Effort
from moe2.coordinator.planning.value_table import ValueTable
from tests.oracles import exhaustive, polyblock

from . import cases

# Thousands of cases; `test_properties` is the inner loop's guard.
pytestmark = pytest.mark.slow


def agree(problem: Problem, found: Plan, oracle: Plan) -> None:
    """Assert that two plans have the same proven value to 1e-9, with panels that keep the limits."""
    assert found.is_feasible == oracle.is_feasible
    if not oracle.is_feasible:
        assert found.proof.status is Status.INFEASIBLE
        return
    best = oracle.proof.value
    assert best is not None
    assert found.proof.value == pytest.approx(best, abs=2e-9 * max(1.0, abs(best)))
    assert found.proof.status is Status.OPTIMAL
    assert problem.is_feasible(list(found.members))
    assert problem.value.of(list(found.members)) == pytest.approx(found.proof.value, abs=1e-9)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_brute_force_is_the_best_over_all_panels_by_definition(kind: str) -> None:
    """Brute force equals a plain loop over itertools that shares no code with it."""
    rng = np.random.default_rng(11)
    for _ in range(60):
        count = int(rng.integers(1, 8))
        chances = cases.probabilities(rng, 6, count)
        energy, delay = rng.lognormal(1, 1, count), rng.lognormal(0, 0.5, count)
        joules, seconds = float(energy.sum() * rng.uniform(0, 1)), float(delay.max() * rng.uniform(0.5, 1.2))
        growth = np.concatenate([[0.0, 0.0], np.linspace(0.05, 0.4, count - 1)])
        problem = cases.problem(
            chances,
            energy,
            delay,
            kind=kind,
            budgets=PanelBudgets(energy_j=joules, delay_s=seconds, max_experts=4),
            aggregation=Aggregation(energy_j=growth, delay_s=growth, first_token_s=growth),
        )

        expected = -np.inf
        for panel in (panel for size in range(1, count + 1) for panel in combinations(range(count), size)):
            spent = sum(energy[n] for n in panel) + growth[len(panel)]
            slowest = max(delay[n] for n in panel) + growth[len(panel)]
            if len(panel) <= 4 and spent <= joules and slowest <= seconds:
                expected = max(expected, cases.naive_value(kind, chances.tolist(), panel))
        found = exhaustive.plan(problem).proof.value
        assert (-np.inf if found is None else found) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("listed", [0, 4, None])
def test_branch_equals_brute_force_on_random_fleets(kind: str, listed: int | None) -> None:
    """300 fleets per set value and listing threshold; with threshold 0 every node is bounded and branched."""
    rng = np.random.default_rng(100 + (listed or 0))
    for _ in range(300):
        problem = cases.random_problem(rng, kind, int(rng.integers(1, 12)))
        agree(problem, search.plan(problem, effort=Effort(list_up_to=listed)), exhaustive.plan(problem))


@pytest.mark.parametrize("kind", cases.KINDS)
def test_branch_equals_brute_force_with_sixteen_experts(kind: str) -> None:
    """The search equals brute force on fleets of sixteen experts, the largest that it is asked for."""
    rng = np.random.default_rng(16)
    for _ in range(4):
        problem = cases.random_problem(rng, kind, 16, prompts=32)
        agree(problem, search.plan(problem, effort=Effort(list_up_to=3)), exhaustive.plan(problem))


@pytest.mark.parametrize("kind", cases.KINDS)
def test_table_equals_brute_force_on_random_fleets(kind: str) -> None:
    """The table of all panels gives the same panel, ties included."""
    rng = np.random.default_rng(7)
    for _ in range(300):
        problem = cases.random_problem(rng, kind, int(rng.integers(1, 12)))
        found = search.plan(problem, table=ValueTable.build(problem.value))
        oracle = exhaustive.plan(problem)
        agree(problem, found, oracle)
        assert found.names == oracle.names


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("chunk", [16, 1 << 13])
def test_table_of_small_panels_equals_brute_force(kind: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 16 experts a table lists panels by size and is read in chunks; the same panel, ties included."""
    monkeypatch.setattr("moe2.coordinator.planning.value_table._CHUNK", chunk)
    rng = np.random.default_rng(8)
    for _ in range(3):
        problem = cases.random_problem(rng, kind, 17, prompts=8)
        table = ValueTable.build(problem.value, 3)
        for scale in (0.02, 0.05, 0.1, 0.4, 1.0):
            budgets = PanelBudgets(energy_j=float(problem.p95.energy_j.sum() * scale), max_experts=3)
            limited = cases.problem(
                np.zeros((1, 17)),
                problem.p95.energy_j,
                problem.p95.delay_s,
                value=problem.value,
                budgets=budgets,
                aggregation=problem.aggregation,
            )
            found, oracle = search.plan(limited, table=table), exhaustive.plan(limited)
            agree(limited, found, oracle)
            assert found.proof.method == "table" or not found.is_feasible
            assert found.names == oracle.names


@pytest.mark.parametrize("kind", cases.KINDS)
def test_polyblock_equals_brute_force_on_random_fleets(kind: str) -> None:
    """The polyblock method, the reference, is exact too."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        problem = cases.random_problem(rng, kind, int(rng.integers(1, 9)))
        agree(problem, polyblock.plan(problem), exhaustive.plan(problem))


@pytest.mark.parametrize("kind", cases.KINDS)
def test_all_solvers_equal_brute_force_on_adversarial_fleets(kind: str) -> None:
    """All solvers are exact with ties, zero budgets, duplicates, equal costs and huge spreads."""
    rng = np.random.default_rng(5)
    for count in (1, 2, 5, 8, 9):
        for problem in cases.adversarial(rng, kind, count):
            oracle = exhaustive.plan(problem)
            agree(problem, search.plan(problem, effort=Effort(list_up_to=2)), oracle)
            agree(problem, search.plan(problem), oracle)
            agree(problem, polyblock.plan(problem), oracle)
            agree(problem, search.plan(problem, table=ValueTable.build(problem.value)), oracle)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_greedy_is_feasible_and_never_above_the_best(kind: str) -> None:
    """Greedy gives a panel within the limits, at most as good as the best, under a bound that holds."""
    rng = np.random.default_rng(9)
    for _ in range(150):
        problem = cases.random_problem(rng, kind, int(rng.integers(1, 10)))
        found, oracle = greedy.plan(problem), exhaustive.plan(problem)
        assert found.is_feasible == oracle.is_feasible
        if found.is_feasible:
            assert problem.is_feasible(list(found.members))
            value, best = found.proof.value, oracle.proof.value
            bound = found.proof.upper_bound
            assert value is not None
            assert best is not None
            assert bound is not None
            assert value <= best + 2e-9
            assert best <= bound + 2e-9


@pytest.mark.parametrize("kind", cases.KINDS)
def test_listing_small_panels_equals_brute_force(kind: str) -> None:
    """Listing panels of up to four joining experts is exact, with and without held experts."""
    rng = np.random.default_rng(21)
    listed = 0
    for number in range(150):
        experts = int(rng.integers(2, 13))
        problem = cases.random_problem(rng, kind, experts, prompts=8)
        problem = replace(problem, budgets=replace(problem.budgets, max_experts=int(rng.integers(1, 5))))
        candidates = Candidates.of(problem)
        held = [0] if number % 2 and candidates.count > 1 else []
        free = candidates.addable(held, np.ones(candidates.count, dtype=np.bool_))
        if len(free) == 0:
            continue
        incumbent = Incumbent(candidates, [])
        if held:
            incumbent.offer(held)
        most = candidates.max_joining(held, free)
        left = listing.list_panels(candidates, held, free, most, incumbent, stop=lambda: False)
        others = {n for n in range(experts) if n not in candidates.index}
        forced = {problem.names[candidates.index[n]] for n in held}
        value, _ = best_with(problem, forced, others)
        assert left == -np.inf
        listed += 1
        assert incumbent.value == pytest.approx(value, abs=2e-9)
        assert candidates.is_feasible(incumbent.members)
        assert set(held) <= set(incumbent.members)
    assert listed > 60


def best_with(problem: Problem, forced: set[str], barred: set[int]) -> tuple[float, tuple[int, ...]]:
    """The best feasible panel that holds all of `forced`, by a loop over all panels."""
    best: tuple[float, tuple[int, ...]] = (-np.inf, ())
    places = [n for n in range(len(problem.names)) if n not in barred]
    for size in range(1, problem.largest_panel + 1):
        for panel in combinations(places, size):
            if forced <= {problem.names[n] for n in panel} and problem.is_feasible(list(panel)):
                best = max(best, (problem.value.of(list(panel)), panel))
    return best
