"""Every solver equals brute force on small fleets whose limits some panel meets exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moe2.coordinator.planning import search
from moe2.coordinator.planning.awake import AwakeProblem, Need, Room
from moe2.coordinator.planning.awake_search import most_valuable
from moe2.coordinator.planning.problem import Aggregation, PanelBudgets, Problem
from moe2.coordinator.planning.search import Effort
from tests.oracles import exhaustive

from . import cases
from .test_awake import agrees, agrees_on_least, fleet


def exact(rng: np.random.Generator, kind: str) -> Problem:
    """A problem of three to eight experts whose limit of joules is what one random panel takes, its growth included.

    Half of them grow by as much with each member, half by less or more.
    """
    count = int(rng.integers(3, 9))
    steps = np.full(count - 1, 0.5) if rng.random() < 0.5 else rng.uniform(0.0, 1.5, count - 1)
    growth = np.cumsum(np.concatenate([[0.0, 0.0], steps]))
    energy = rng.lognormal(0.5, 0.6, count)
    panel = rng.permutation(count)[: int(rng.integers(1, count))]
    return cases.problem(
        cases.probabilities(rng, 6, count),
        energy,
        kind=kind,
        budgets=PanelBudgets(energy_j=float(energy[panel].sum() + growth[len(panel)]) * (1 + 1e-12)),
        aggregation=Aggregation(energy_j=growth, delay_s=growth * 0, first_token_s=growth * 0),
    )


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("listed", [0, 3, None])
def test_a_limit_that_is_met_exactly_is_kept(kind: str, listed: int | None) -> None:
    """With every size of listing the search finds what brute force finds, and nothing above the limit."""
    rng = np.random.default_rng(31)
    for _ in range(25):
        problem = exact(rng, kind)
        found, best = search.plan(problem, effort=Effort(list_up_to=listed)), exhaustive.plan(problem)
        assert found.proof.value == pytest.approx(best.proof.value, abs=2e-9)
        assert problem.is_feasible(list(found.members))


def filled(problem: AwakeProblem, rng: np.random.Generator) -> AwakeProblem:
    """The problem with one more room, of the whole fleet, and a need that one random set of it fills and meets."""
    count = len(problem.names)
    chosen = rng.random(count) < 0.5
    use, share = rng.uniform(0.1, 3.0, count), rng.uniform(0.0, 2.0, count)
    return replace(
        problem,
        rooms=(*problem.rooms, Room("all", use, float(use[chosen].sum()))),
        needs=(*problem.needs, Need("met", share, float(share[chosen].sum()))),
        pinned=frozenset(),
        most_w=None if rng.random() < 0.5 else problem.standing_w(chosen),
    )


def test_rooms_that_are_filled_and_needs_that_are_just_met_are_kept() -> None:
    """The most valuable set and the one of the fewest watts, on forty random fleets of up to eight experts."""
    rng = np.random.default_rng(37)
    for _ in range(40):
        problem = filled(fleet(rng, int(rng.integers(2, 9))), rng)
        agrees(problem, most_valuable(problem))
        agrees_on_least(problem, 0.0)
