"""Searches that are cut short: what they have found is feasible, and what they claim of the rest is true."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from moe2.coordinator.planning import branch, exhaustive, few, lattice
from moe2.coordinator.planning.branch import Effort
from moe2.coordinator.planning.candidates import Candidates, Incumbent
from moe2.coordinator.planning.certificate import Status

from . import cases


def after(looks: int) -> Callable[[], bool]:
    """A clock that has run out at that look."""
    left = iter(range(looks))
    return lambda: next(left, None) is None


def ticking() -> Callable[[], float]:
    """A clock on which every look takes a second."""
    seconds = itertools.count()
    return lambda: float(next(seconds))


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.slow
def test_a_listing_cut_short_bounds_what_it_did_not_reach(kind: str) -> None:
    """Stopped at any look, the best panel found and the bound enclose the true best value."""
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
        left = few.list_panels(
            candidates, [], free, candidates.most_joining([], free), incumbent, stop=after(looks // 2)
        )
        best = exhaustive.plan(problem).certificate.value
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
        found = branch.plan(problem, effort=effort, clock=ticking())
        oracle = exhaustive.plan(problem)
        assert found.is_feasible == oracle.is_feasible
        if not oracle.is_feasible:
            continue
        best, value, bound = oracle.certificate.value, found.certificate.value, found.certificate.upper_bound
        assert best is not None
        assert value is not None
        assert bound is not None
        assert problem.is_feasible(list(found.members))
        assert value <= best + 2e-9
        assert bound >= best - 2e-9
        unproven += found.certificate.status is Status.BOUNDED
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
