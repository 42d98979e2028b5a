"""Searches that are cut short: what they have found is feasible, and what they claim of the rest is true."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.planner_fleet import fleet
from moe2.coordinator.planning import greedy, lattice, listing, search
from moe2.coordinator.planning.candidates import Candidates, Incumbent
from moe2.coordinator.planning.problem import PanelBudgets
from moe2.coordinator.planning.proof import Status
from moe2.coordinator.planning.search import Effort
from moe2.coordinator.planning.values import FloatArray
from tests.oracles import exhaustive

from . import cases


def after(looks: int) -> Callable[[], bool]:
    """A clock whose time is up at the given look."""
    left = iter(range(looks))
    return lambda: next(left, None) is None


def ticking() -> Callable[[], float]:
    """A clock on which every look takes a second."""
    seconds = itertools.count()
    return lambda: float(next(seconds))


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.slow
def test_a_listing_cut_short_bounds_what_it_did_not_reach(kind: str) -> None:
    """The best panel of a listing stopped at any look and its bound enclose the true best value."""
    rng = np.random.default_rng(5)
    cut = 0
    for looks in range(40):
        problem = cases.random_problem(rng, kind, 12, prompts=3000)  # long enough for several chunks
        problem = replace(problem, budgets=replace(problem.budgets, max_experts=int(rng.integers(3, 5))))
        candidates = Candidates.of(problem)
        free = np.arange(candidates.count)
        if candidates.count == 0:
            continue
        incumbent = Incumbent(candidates, [])
        left = listing.list_panels(
            candidates, [], free, candidates.max_joining([], free), incumbent, stop=after(looks // 2)
        )
        best = exhaustive.plan(problem).proof.value
        assert best is not None
        assert left is not None
        cut += left > -np.inf
        assert incumbent.value <= best + 1e-9
        assert max(left, incumbent.value) >= best - 1e-9
    assert cut >= 5


@pytest.mark.parametrize("kind", cases.KINDS)
def test_a_search_cut_short_encloses_the_best_value(kind: str) -> None:
    """Under any time limit the panel is feasible, and value and bound enclose the brute force's."""
    rng = np.random.default_rng(6)
    unproven = 0
    for number in range(30):
        problem = cases.random_problem(rng, kind, 12)
        if number % 2:
            problem = replace(problem, budgets=replace(problem.budgets, max_experts=4))
        # Next to nothing is listed outright, so that the search has to search.
        effort = Effort(time_limit_s=float(2 + number), list_up_to=1)
        found = search.plan(problem, effort=effort, clock=ticking())
        oracle = exhaustive.plan(problem)
        assert found.is_feasible == oracle.is_feasible
        if not oracle.is_feasible:
            continue
        best, value, bound = oracle.proof.value, found.proof.value, found.proof.upper_bound
        assert best is not None
        assert value is not None
        assert bound is not None
        assert problem.is_feasible(list(found.members))
        assert value <= best + 2e-9
        assert bound >= best - 2e-9
        unproven += found.proof.status is Status.BOUNDED
    assert unproven >= 3


@pytest.mark.parametrize("kind", cases.KINDS)
def test_values_of_all_panels_are_the_same_a_part_at_a_time(kind: str) -> None:
    """Listing in parts gives the same values, and nothing where the clock runs out on the way."""
    rng = np.random.default_rng(7)
    value = cases.set_value(kind, cases.probabilities(rng, 4000, 9))
    base = value.empty_state()
    whole = lattice.values(value, value.states, base)
    parts = lattice.values_in_time(value, value.states, base, stop=lambda: False)
    assert parts is not None
    np.testing.assert_array_equal(parts, whole)
    assert lattice.values_in_time(value, value.states, base, stop=after(1)) is None


@pytest.mark.parametrize("kind", cases.KINDS)
def test_a_listing_looks_at_the_clock_all_the_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks at the clock a listing takes some hundred microseconds, even with 64 experts."""
    rng = np.random.default_rng(7)
    problem = cases.problem(
        cases.probabilities(rng, 256, 64),
        rng.lognormal(1.0, 0.8, 64),
        kind=kind,
        budgets=PanelBudgets(energy_j=30.0, max_experts=4),
    )
    candidates = Candidates.of(problem)
    free, value = np.arange(candidates.count), problem.value
    steps, most = 0.0, 0.0

    def counted(name: str, per_step: float) -> None:
        method = getattr(value, name)

        def run(left: FloatArray, right: FloatArray) -> FloatArray:
            nonlocal steps
            result: FloatArray = method(left, right)
            steps += per_step * result.size
            return result

        monkeypatch.setattr(value, name, run)

    def look() -> bool:
        nonlocal steps, most
        most, steps = max(most, steps), 0.0
        return False

    counted("combine", 1.0)
    # A coverage's crossing is a matrix product, ten times as fast; the others' combines by itself.
    counted("cross", 256 / 10 if kind == "coverage" else 0.0)
    listing.list_panels(candidates, [], free, 4, Incumbent(candidates, []), look)
    assert 2e4 < most < 6e5


@given(seed=st.integers(0, 10_000), kind=st.sampled_from(cases.KINDS), limit_s=st.integers(2, 120))
@settings(max_examples=60, deadline=None)
def test_what_is_claimed_under_a_time_limit_holds(seed: int, kind: str, limit_s: int) -> None:
    """Bound >= best >= value >= what the search was started from; and what is called optimal is the brute force's."""
    problem = cases.random_problem(np.random.default_rng(seed), kind, 11)
    problem = replace(problem, budgets=replace(problem.budgets, max_experts=4))
    known = greedy.plan(problem)
    effort = Effort(time_limit_s=float(limit_s), list_up_to=1)
    found = search.plan(problem, effort=effort, clock=ticking(), known=known.members)
    oracle = exhaustive.plan(problem)
    assert found.is_feasible == oracle.is_feasible
    if not oracle.is_feasible:
        return
    best, value, bound = (oracle.proof.value, found.proof.value, found.proof.upper_bound)
    start = known.proof.value
    assert best is not None
    assert value is not None
    assert bound is not None
    assert start is not None
    assert bound >= best - 2e-9
    assert best + 2e-9 >= value >= start - 2e-9
    assert problem.is_feasible(list(found.members))
    if found.proof.status is Status.OPTIMAL:
        assert value == pytest.approx(best, abs=2e-9)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_panels_of_up_to_four_are_the_brute_forces(kind: str) -> None:
    """A listing without a time limit finds the best panel of up to four, also among many equals."""
    rng = np.random.default_rng(8)
    for number in range(12):
        problem = cases.random_problem(rng, kind, 12)
        if number % 3 == 0:
            problem = cases.problem(
                np.round(cases.probabilities(rng, 6, 12)), np.ones(12), kind=kind, budgets=PanelBudgets(energy_j=5.0)
            )
        problem = replace(problem, budgets=replace(problem.budgets, max_experts=int(rng.integers(3, 5))))
        candidates = Candidates.of(problem)
        if candidates.count == 0:
            continue
        free, incumbent = np.arange(candidates.count), Incumbent(candidates, [])
        most = candidates.max_joining([], free)
        left = listing.list_panels(candidates, [], free, most, incumbent, lambda: False)
        assert left == -np.inf
        assert incumbent.value == pytest.approx(exhaustive.plan(problem).proof.value, abs=2e-9)


def test_a_listing_needs_little_memory_at_once() -> None:
    """Listing panels of four of 64 experts takes few megabytes: fresh memory costs time between two looks."""
    drawn = fleet(np.random.default_rng(1), 64, "decided")
    value = drawn.value("coverage")
    problem, looks = drawn.request(value, 0.03, 4), itertools.count()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        plan = search.plan(problem, effort=Effort(time_limit_s=0.02), clock=lambda: next(looks) * 5e-5)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert plan.proof.status is Status.OPTIMAL
    assert most - before < 8e6


def test_a_large_fleet_is_not_branched_on_without_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a thousand experts it takes some ten milliseconds in which nobody looks at the clock."""
    drawn = fleet(np.random.default_rng(2), 1000, "graded")
    asked: list[list[int]] = []
    monkeypatch.setattr(search, "minimal_infeasible", lambda _, held, *__: asked.append(held))
    looks = itertools.count()
    plan = search.plan(
        drawn.request(drawn.value("best_of"), 0.12),
        effort=Effort(time_limit_s=0.0195),
        clock=lambda: next(looks) * 1e-4,
    )
    assert plan.proof.status is Status.BOUNDED
    assert asked == []


def test_a_search_leaves_room_for_a_step_as_long_as_the_longest() -> None:
    """On a busy host a step takes several times as long as it should, and the last one must not be late."""
    drawn = fleet(np.random.default_rng(3), 128, "graded")
    looks = itertools.count()

    def clock() -> float:
        look = next(looks)
        return look * 2e-4 + (0.004 if look > 20 else 0.0)

    plan = search.plan(drawn.request(drawn.value("best_of"), 0.12), effort=Effort(time_limit_s=0.0195), clock=clock)
    assert plan.proof.status is Status.BOUNDED
    assert plan.proof.elapsed_s is not None
    assert plan.proof.elapsed_s + 0.004 < 0.0195


@given(seed=st.integers(0, 10_000), most=st.integers(1, 12), held=st.integers(0, 2))
@settings(max_examples=100, deadline=None)
def test_experts_join_in_turn_as_one_by_one(seed: int, most: int, held: int) -> None:
    """Each joins where it still fits when its turn comes; who does not is passed over."""
    rng = np.random.default_rng(seed)
    problem = cases.random_problem(rng, "coverage", 12)
    candidates = Candidates.of(replace(problem, budgets=replace(problem.budgets, max_experts=most)))
    order = rng.permutation(candidates.count)
    panel = order[:held].tolist()
    if panel and not candidates.is_feasible(panel):
        return
    one_by_one = list(panel)
    for expert in order[held:].tolist():
        if candidates.is_feasible([*one_by_one, expert]):
            one_by_one.append(expert)
    assert [*panel, *candidates.joining_in_turn(panel, order[held:])] == one_by_one
