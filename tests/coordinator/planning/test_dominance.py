"""Large fleets: experts that others replace are dropped, and relaxations rest on the few that matter."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moe2.coordinator.planning import bounds, dominance, listing, search
from moe2.coordinator.planning.candidates import Candidates
from moe2.coordinator.planning.problem import PanelBudgets, Problem
from moe2.coordinator.planning.proof import Status
from moe2.coordinator.planning.search import Effort
from tests.oracles import exhaustive

from . import cases


@pytest.fixture
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fleets of ten are treated like those of thousands."""
    monkeypatch.setattr(dominance, "MIN_REDUCED", 2)
    monkeypatch.setattr(dominance, "MAX_REFERENCES", 6)
    monkeypatch.setattr(bounds, "_MAX_COLUMNS", 4)
    monkeypatch.setattr(bounds, "_JOINING_COLUMNS", 2)
    monkeypatch.setattr(listing, "MAX_PAIRED", 6)


def fleet_of_models(
    rng: np.random.Generator, kind: str, experts: int, models: int, budgets: PanelBudgets, *, rounded: bool = False
) -> Problem:
    """A problem whose experts serve a few models each, so that many have the same states."""
    chances = cases.probabilities(rng, 8, models)[:, rng.integers(0, models, experts)]
    energy_j, delay_s = rng.lognormal(1.0, 0.6, experts), rng.lognormal(0.0, 0.5, experts)
    if rounded:
        energy_j, delay_s = np.round(energy_j), np.round(delay_s)
    return cases.problem(chances, energy_j, delay_s, kind=kind, budgets=budgets)


def random_of_models(rng: np.random.Generator, kind: str, experts: int) -> Problem:
    """A small such problem under random budgets, with ties in every second one."""
    most = int(rng.integers(1, 5)) if rng.random() < 0.8 else None
    budgets = PanelBudgets(
        energy_j=float(rng.uniform(1.0, 5.0 * experts)) if rng.random() < 0.7 else None,
        delay_s=float(rng.uniform(0.5, 4.0)) if rng.random() < 0.4 else None,
        max_experts=most,
    )
    return fleet_of_models(rng, kind, experts, int(rng.integers(1, 5)), budgets, rounded=rng.random() < 0.5)


def same_as_brute_force(problem: Problem, effort: Effort | None = None) -> None:
    """The search proves the brute force's value, or that nothing is feasible."""
    found, oracle = search.plan(problem, effort=effort), exhaustive.plan(problem)
    assert found.proof.status is oracle.proof.status
    if oracle.is_feasible:
        assert found.proof.value == pytest.approx(oracle.proof.value, abs=1e-9)
        assert problem.is_feasible(list(found.members))


@pytest.mark.usefixtures("_small_is_large")
@pytest.mark.parametrize("kind", cases.KINDS)
def test_what_is_left_holds_the_preferred_of_all_best_panels(kind: str) -> None:
    """Without the dominated experts brute force finds the same value, joules and seconds, ties included."""
    rng = np.random.default_rng(60)
    dropped = 0
    for _ in range(60):
        problem = random_of_models(rng, kind, int(rng.integers(2, 11)))
        candidates = Candidates.of(problem)
        everyone = np.arange(candidates.count)
        if candidates.count == 0:
            continue
        kept = dominance.undominated(candidates, candidates.max_joining([], everyone), everyone[:0])
        out = {problem.names[n]: "dominated" for n in candidates.index[np.setdiff1d(everyone, kept)]}
        dropped += len(out)
        left, whole = exhaustive.plan(replace(problem, ruled_out=out)), exhaustive.plan(problem)
        assert left.proof.value == pytest.approx(whole.proof.value, abs=1e-12)
        assert (left.energy_j, left.delay_s) == pytest.approx((whole.energy_j, whole.delay_s))
    assert dropped > 40


@pytest.mark.usefixtures("_small_is_large")
@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("listed", [None, 0, 2])
def test_fleets_of_few_models_are_solved_like_brute_force(kind: str, listed: int | None) -> None:
    """Dropping dominated experts and relaxing by columns changes neither value, joules nor proof."""
    rng = np.random.default_rng(61)
    for _ in range(40):
        same_as_brute_force(random_of_models(rng, kind, int(rng.integers(2, 11))), Effort(list_up_to=listed))


@pytest.mark.usefixtures("_small_is_large")
@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.slow
def test_thousands_of_random_fleets_are_solved_like_brute_force(kind: str) -> None:
    """The same holds over thousands of fleets of every character, with each kind of limit and with pins."""
    rng = np.random.default_rng(62)
    for number in range(1500):
        count = int(rng.integers(2, 11))
        problem = cases.random_problem(rng, kind, count) if number % 2 else random_of_models(rng, kind, count)
        if number % 5 == 0:  # pinned to some: the others are ruled out
            others = {name: "pinned elsewhere" for name in problem.names if rng.random() < 0.3}
            problem = replace(problem, ruled_out={**problem.ruled_out, **others})
        same_as_brute_force(problem, Effort(list_up_to=number % 3))


@pytest.mark.usefixtures("_small_is_large")
@pytest.mark.parametrize("kind", cases.KINDS)
def test_a_search_of_a_large_fleet_cut_short_has_a_valid_bound(kind: str) -> None:
    """However few nodes are looked at, value and bound enclose the brute force's value."""
    rng = np.random.default_rng(63)
    for number in range(30):
        problem = random_of_models(rng, kind, 10)
        oracle = exhaustive.plan(problem)
        found = search.plan(problem, effort=Effort(node_limit=number % 4, list_up_to=0))
        assert found.is_feasible == oracle.is_feasible
        if oracle.proof.value is not None:
            assert found.proof.value is not None
            assert found.proof.upper_bound is not None
            assert found.proof.value - 1e-9 <= oracle.proof.value <= found.proof.upper_bound + 1e-9


@pytest.mark.usefixtures("_small_is_large")
def test_a_known_panel_of_dominated_experts_is_still_a_start() -> None:
    """A panel that is known before is not lost because its members would be dropped."""
    rng = np.random.default_rng(64)
    problem = fleet_of_models(rng, "best_of", 10, 2, PanelBudgets(max_experts=1))
    worst = int(np.argmax(problem.costs.energy_j))
    found = search.plan(problem, effort=Effort(node_limit=0), known=(worst,))
    assert found.proof.value is not None
    assert found.proof.value >= problem.value.of([worst]) - 1e-9


def test_a_fleet_of_a_thousand_shrinks_to_few() -> None:
    """Of a thousand experts of eight models, at most a quarter have to be looked at for panels of three."""
    rng = np.random.default_rng(65)
    problem = fleet_of_models(rng, "best_of", 1000, 8, PanelBudgets(energy_j=30.0, max_experts=3))
    candidates = Candidates.of(problem)
    assert len(dominance.undominated(candidates, 3, np.empty(0, dtype=np.intp))) <= 250


def test_whoever_is_dropped_has_enough_superiors() -> None:
    """Each dropped expert has at least as many superiors as a panel has members; of equals the earlier names stay."""
    rng = np.random.default_rng(66)
    for number in range(20):
        problem = fleet_of_models(rng, "coverage", 60, 4, PanelBudgets(max_experts=3), rounded=number % 2 == 0)
        candidates = Candidates.of(problem)
        kept = dominance.undominated(candidates, 3, np.empty(0, dtype=np.intp))
        assert 3 <= len(kept) < 60
        for expert in np.setdiff1d(np.arange(60), kept).tolist():
            assert len(dominance.superiors(candidates, expert)) >= 3


def test_superiors_have_no_cycles_among_equals() -> None:
    """Of experts that are equal in everything each has just the earlier names as superiors."""
    same = np.full((4, 5), 0.5)
    candidates = Candidates.of(cases.problem(same, np.ones(5), kind="best_of"))
    assert [dominance.superiors(candidates, n).tolist() for n in range(5)] == [list(range(n)) for n in range(5)]
    assert dominance.inferiors(candidates, 2, np.arange(5)).tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("kind", ["coverage", "best_of"])
def test_a_hundred_experts_of_random_chances_are_proven(kind: str) -> None:
    """A best panel of three among a hundred and twenty unlike experts is proven, and no exchange improves it."""
    rng = np.random.default_rng(67)
    logits = rng.normal(0, 1, (64, 1)) + rng.normal(0, 0.7, 120)
    chances = 1 / (1 + np.exp(-logits - rng.normal(0, 0.8, (64, 120))))
    problem = cases.problem(chances, rng.lognormal(1.0, 0.8, 120), kind=kind, budgets=PanelBudgets(max_experts=3))
    plan = search.plan(problem)
    assert plan.proof.status is Status.OPTIMAL
    assert plan.proof.value is not None
    for leaving in plan.members:
        rest = [n for n in plan.members if n != leaving]
        assert all(problem.value.of([*rest, n]) <= plan.proof.value + 1e-9 for n in range(120))
