"""What bounds are computed from holds for every panel and set, however well the search does without it."""

from __future__ import annotations

import itertools
from itertools import combinations

import numpy as np
import pytest

from benchmarks.planner_fleet import fleet
from moe2.coordinator.planning import bounds, listing
from moe2.coordinator.planning.awake_search import _beside_need
from moe2.coordinator.planning.candidates import Candidates, Incumbent
from moe2.coordinator.planning.listing import LinearBound
from moe2.coordinator.planning.problem import Aggregation, PanelBudgets
from moe2.coordinator.planning.search import Effort, _Search
from moe2.coordinator.planning.values import FloatArray

from . import cases


def test_no_panel_breaks_the_relaxed_limits() -> None:
    """Neither at the root nor beside a held expert, also where it meets its limit exactly."""
    rng = np.random.default_rng(41)
    n_tight = 0
    for _ in range(60):
        count = int(rng.integers(2, 7))
        growth = np.cumsum(np.concatenate([[0.0, 0.0], rng.uniform(0.0, 1.5, count - 1)]))
        energy = rng.lognormal(0.5, 0.6, count)
        panel = rng.permutation(count)[: int(rng.integers(1, count + 1))]
        problem = cases.problem(
            cases.probabilities(rng, 4, count),
            energy,
            budgets=PanelBudgets(energy_j=float(energy[panel].sum() + growth[len(panel)])),
            aggregation=Aggregation(energy_j=growth, delay_s=growth * 0, first_token_s=growth * 0),
        )
        candidates = Candidates.of(problem)
        for held in ([], [0]):
            free = candidates.addable(held, np.ones(candidates.count, dtype=np.bool_))
            if not candidates.count or not len(free):
                continue
            costs, room = _Search(candidates, Effort(), None)._relaxed_limits(held, free)
            for size in range(1, len(free) + 1):
                for joining in combinations(range(len(free)), size):
                    if candidates.is_feasible([*held, *free[list(joining)].tolist()]):
                        left = room - costs[:, list(joining)].sum(axis=1)
                        assert (left >= -1e-6).all(), (held, joining)
                        n_tight += bool((left[1:] < 1e-6).any())
    assert n_tight > 20


def test_no_set_breaks_what_a_need_and_the_watts_say_together() -> None:
    """For every set that keeps both, whatever the need's unit is."""
    rng = np.random.default_rng(43)
    n_tried = 0
    for _ in range(200):
        count = int(rng.integers(2, 7))
        unit = 10.0 ** rng.uniform(-3, 3)
        cost, share = rng.uniform(0.1, 5.0, count), np.where(rng.random(count) < 0.7, rng.uniform(0.1, 2, count), 0.0)
        share[0] = 1.0
        chosen = rng.random(count) < 0.6
        if not (share[chosen] > 0).any():
            continue
        missing, left = float(share[chosen].sum()) * unit, float(cost[chosen].sum())
        rest, room = _beside_need(cost, share * unit, missing, left)
        for mask in range(1 << count):
            members = np.array([bool(mask >> n & 1) for n in range(count)])
            if cost[members].sum() <= left and share[members].sum() * unit >= missing:
                assert rest[members].sum() <= room + 1e-9
                n_tried += 1
    assert n_tried > 200


def test_a_bound_that_is_exact_leaves_the_best_three_in_the_listing() -> None:
    """Where values add up, each of a triple is needed for its bound: none of them may be left out before."""
    worth = np.array([0.55, 0.9, 0.1, 0.85, 0.6, 0.75, 0.8, 0.65])
    count = len(worth)
    problem = cases.problem(np.diag(worth), np.ones(count), budgets=PanelBudgets(energy_j=3.0))
    candidates = Candidates.of(problem)
    reduced = np.array([candidates.value_of([n]) for n in range(count)])
    incumbent = Incumbent(candidates, [])
    incumbent.offer([1, 3, 5])
    everyone = np.arange(count)
    listing.list_panels(candidates, [], everyone, 3, incumbent, lambda: False, linear=LinearBound(0.0, reduced))
    assert incumbent.members == [1, 3, 6]


def test_prices_that_are_set_in_turn_prove_no_less() -> None:
    """With one limit they prove what shares of the best experts for their costs are worth, which is the optimum."""
    rng = np.random.default_rng(47)
    for limits in (1, 2, 3):
        for _ in range(20):
            count = int(rng.integers(1, 40))
            slope, used = rng.uniform(0.0, 1.0, count), rng.uniform(0.01, 1.0, (limits, count))
            before = rng.uniform(0.0, 1.0, limits)
            after = bounds._repriced(before, slope, used, lambda: False)

            def proven(price: FloatArray, slope: FloatArray = slope, used: FloatArray = used) -> float:
                return float(price.sum() + np.maximum(slope - price @ used, 0.0).sum())

            assert (after >= 0.0).all()
            assert proven(after) <= proven(before) + 1e-12
            if limits == 1:
                room, worth = 1.0, 0.0
                for expert in np.argsort(-slope / used[0]):
                    share = min(1.0, room / float(used[0, expert]))
                    room, worth = room - share * float(used[0, expert]), worth + share * float(slope[expert])
                assert proven(after) == pytest.approx(worth, abs=1e-12)


@pytest.mark.parametrize("kind", ["best_of", "coverage"])
def test_a_relaxation_that_is_cut_short_bounds_all_experts(kind: str) -> None:
    """Of many experts the relaxation solves some; the time for a bound on the others is kept while it does."""
    drawn = fleet(np.random.default_rng(3), 300, "graded")
    value = drawn.value(kind)
    looks = itertools.count(1)

    def stop(further_s: float) -> bool:
        return 0.004 - 2e-4 * next(looks) <= further_s

    everyone = np.arange(300)
    rows, room = np.ones((1, 300)), np.array([4.0])
    found = bounds.solve_by_columns(
        value, everyone, value.empty_state(), rows, room, target=0.0, precision=0.0, stop=stop
    )
    assert found is not None
    strongest = np.argsort(-value.alone)[:40]
    assert max(value.of(list(panel)) for panel in combinations(strongest.tolist(), 2)) <= found.upper < value.of_all
