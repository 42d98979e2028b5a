"""What must hold for every problem, searched for counter-examples by hypothesis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.coordinator.planning import search
from moe2.coordinator.planning.bounds import envelope
from moe2.coordinator.planning.candidates import Candidates
from moe2.coordinator.planning.problem import Costs, Problem
from moe2.coordinator.planning.proof import Plan
from moe2.coordinator.planning.search import Effort, minimal_infeasible
from moe2.coordinator.planning.values import BestOf, CalibrationError, Coverage, FloatArray
from tests.oracles import exhaustive

from . import cases

seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(cases.KINDS)
counts = st.integers(1, 9)
SEARCH = Effort(list_up_to=2)


def worth(plan: Plan) -> float:
    """The plan's value; -inf if nothing is feasible."""
    return -np.inf if plan.proof.value is None else plan.proof.value


def draw(seed: int, kind: str, count: int) -> Problem:
    """A random problem."""
    return cases.random_problem(np.random.default_rng(seed), kind, count, prompts=8)


@given(seeds, kinds, counts, st.floats(1.0, 3.0))
@settings(max_examples=150, deadline=None)
def test_more_budget_never_hurts(seed: int, kind: str, count: int, more: float) -> None:
    """Every limit raised by the same factor gives at least the same value."""
    problem = draw(seed, kind, count)
    budgets = problem.budgets
    raised = replace(
        problem,
        budgets=replace(
            budgets,
            energy_j=None if budgets.energy_j is None else budgets.energy_j * more,
            delay_s=None if budgets.delay_s is None else budgets.delay_s * more,
            first_token_s=None if budgets.first_token_s is None else budgets.first_token_s * more,
            power_w=None if budgets.power_w is None else budgets.power_w * more,
            max_experts=None if budgets.max_experts is None else budgets.max_experts + 1,
        ),
    )
    assert worth(search.plan(raised, effort=SEARCH)) >= worth(search.plan(problem, effort=SEARCH)) - 2e-9


@given(seeds, kinds, counts, st.integers(0, 8))
@settings(max_examples=150, deadline=None)
def test_a_removed_expert_never_helps(seed: int, kind: str, count: int, gone: int) -> None:
    """Ruling one more expert out never raises the value."""
    problem = draw(seed, kind, count)
    name = problem.names[gone % count]
    fewer = replace(problem, ruled_out={**problem.ruled_out, name: "drained"})
    assert worth(search.plan(fewer, effort=SEARCH)) <= worth(search.plan(problem, effort=SEARCH)) + 2e-9


def permuted(problem: Problem, chances: FloatArray, kind: str, order: list[int]) -> tuple[Problem, Problem]:
    """The problem with `chances`, and the same with its experts listed in another order."""

    def costs(entry: Costs, places: list[int]) -> Costs:
        return Costs(
            energy_j=entry.energy_j[places],
            queue_s=entry.queue_s[places],
            transmit_s=entry.transmit_s[places],
            prefill_s=entry.prefill_s[places],
            decode_s=entry.decode_s[places],
            per_token_s=None if entry.per_token_s is None else entry.per_token_s[places],
        )

    def listed(places: list[int]) -> Problem:
        return replace(
            problem,
            names=tuple(problem.names[n] for n in places),
            value=cases.set_value(kind, chances[:, places]),
            p50=costs(problem.p50, places),
            p95=costs(problem.p95, places),
            power_w=None if problem.power_w is None else problem.power_w[places],
        )

    return listed(list(range(len(order)))), listed(order)


@given(seeds, kinds, counts)
@settings(max_examples=150, deadline=None)
def test_the_order_of_experts_changes_nothing(seed: int, kind: str, count: int) -> None:
    """The same experts in another order: the same names, value and bound, also with every value tied."""
    rng = np.random.default_rng(seed)
    chances = cases.probabilities(rng, 8, count)
    if seed % 3 == 0:
        chances = np.repeat(chances[:, :1], count, axis=1)
    order = rng.permutation(count).tolist()
    for problem in permuted(draw(seed, kind, count), chances, kind, order)[1:]:
        original = permuted(draw(seed, kind, count), chances, kind, order)[0]
        left, right = search.plan(original, effort=SEARCH), search.plan(problem, effort=SEARCH)
        assert left.names == right.names
        assert left.proof.value == right.proof.value
        assert left.proof.upper_bound == right.proof.upper_bound


@given(seeds, kinds, st.integers(4, 9), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_a_search_cut_short_still_has_a_valid_bound(seed: int, kind: str, count: int, nodes: int) -> None:
    """value <= best <= bound, whatever the number of nodes allowed."""
    problem = draw(seed, kind, count)
    best = worth(exhaustive.plan(problem))
    found = search.plan(problem, effort=Effort(list_up_to=0, node_limit=nodes))
    assert found.is_feasible == bool(np.isfinite(best))
    if found.is_feasible:
        bound = found.proof.upper_bound
        assert bound is not None
        assert worth(found) <= best + 2e-9
        assert best <= bound + 2e-9
        assert problem.is_feasible(list(found.members))


@given(seeds, kinds, st.integers(2, 9), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_minimal_infeasible_subsets_are_infeasible_and_minimal(
    seed: int, kind: str, count: int, held_count: int
) -> None:
    """With the held experts the subset breaks a limit; without any one of its members it does not."""
    problem = draw(seed, kind, count)
    candidates = Candidates.of(problem)
    rng = np.random.default_rng(seed)
    order = rng.permutation(candidates.count).tolist()
    held, free = order[:held_count], np.array(sorted(order[held_count:]), dtype=np.intp)

    def fits(panel: list[int]) -> bool:
        return not panel or candidates.is_feasible(panel)

    if not fits(held) or fits([*held, *free.tolist()]):
        return
    subset = minimal_infeasible(candidates, held, free, rng.random(candidates.count))
    assert not fits([*held, *subset])
    for expert in subset:
        assert fits([*held, *(n for n in subset if n != expert)])


@given(seeds, kinds, st.integers(1, 7), st.integers(0, 2))
@settings(max_examples=150, deadline=None)
def test_every_touching_point_of_an_envelope_is_a_valid_bound(
    seed: int, kind: str, count: int, held_count: int
) -> None:
    """For any touching points the linear function lies above the value of every panel."""
    rng = np.random.default_rng(seed)
    value = cases.set_value(kind, cases.probabilities(rng, 6, count + held_count))
    held = list(range(count, count + held_count))
    bound = envelope(value, value.states[:count], value.state_of(held))
    touching = rng.exponential(rng.choice([0.01, 1.0, 10.0]), 6) + 1e-9
    if kind == "best_of":
        touching = np.minimum(touching, 1.0)
    found = bound.at(rng.random(count))
    for constant, slope in (bound.linear(touching), (found.constant, found.slope)):
        for mask in range(1 << count):
            members = [n for n in range(count) if mask >> n & 1]
            assert value.of([*held, *members]) <= constant + float(slope[members].sum()) + 1e-9


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=6), kinds)
@settings(max_examples=200, deadline=None)
def test_calibration_is_taken_whole_or_refused(row: list[float], kind: str) -> None:
    """Anything but finite numbers in range is a CalibrationError, never a NaN in a value."""
    chances = np.array([row])
    good = bool(np.isfinite(chances).all() and (chances >= 0).all() and (chances <= 1).all())
    build = Coverage if kind == "coverage" else BestOf
    if good:
        assert 0.0 <= build(chances).of(list(range(len(row)))) <= 1.0
    else:
        with pytest.raises(CalibrationError, match=r"probabilities\[0, "):
            build(chances)
