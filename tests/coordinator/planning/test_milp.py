"""Tests of the search on larger fleets against the solver HiGHS, where the problem is linear."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from moe2.coordinator.planning import search
from moe2.coordinator.planning.problem import PanelBudgets
from moe2.coordinator.planning.values import FloatArray

from . import cases

# HiGHS takes its time.
pytestmark = pytest.mark.slow


def best_by_milp(chances: FloatArray, energy: FloatArray, joules: float, most: int | None) -> float:
    """Facility location as a mixed-integer program: prompt m is answered with share y_mn by a chosen expert
    n.
    """
    prompts, experts = chances.shape
    answers = prompts * experts
    cost = np.concatenate([np.zeros(experts), -chances.reshape(-1) / prompts])
    served = coo_array(
        (np.ones(answers), (np.repeat(np.arange(prompts), experts), experts + np.arange(answers))),
        shape=(prompts, experts + answers),
    )
    chosen = coo_array(
        (
            np.concatenate([np.ones(answers), -np.ones(answers)]),
            (
                np.concatenate([np.arange(answers)] * 2),
                np.concatenate([experts + np.arange(answers), np.tile(np.arange(experts), prompts)]),
            ),
        ),
        shape=(answers, experts + answers),
    )
    spent = np.concatenate([energy, np.zeros(answers)])[None]
    members = np.concatenate([np.ones(experts), np.zeros(answers)])[None]
    found = milp(
        cost,
        constraints=[
            LinearConstraint(served.tocsr(), -np.inf, 1.0),
            LinearConstraint(chosen.tocsr(), -np.inf, 0.0),
            LinearConstraint(spent, -np.inf, joules),
            LinearConstraint(members, -np.inf, most or experts),
        ],
        bounds=Bounds(0.0, 1.0),
        integrality=np.concatenate([np.ones(experts), np.zeros(answers)]),
        options={"mip_rel_gap": 0.0},
    )
    assert found.success
    return float(-found.fun)


@pytest.mark.parametrize("experts", [12, 20, 28])
@pytest.mark.parametrize("most", [None, 5])
def test_best_of_equals_facility_location_by_highs(experts: int, most: int | None) -> None:
    """Best-of-set is facility location, a linear mixed-integer program that HiGHS solves."""
    rng = np.random.default_rng(experts)
    for share in (0.1, 0.3, 0.6):
        chances = rng.beta(0.8, 0.8, (20, experts))
        energy = rng.lognormal(1, 0.8, experts)
        joules = float(energy.sum() * share)
        problem = cases.problem(
            chances, energy, kind="best_of", budgets=PanelBudgets(energy_j=joules, max_experts=most)
        )
        found = search.plan(problem).proof.value
        assert found == pytest.approx(best_by_milp(chances, energy, joules, most), abs=1e-6)


@pytest.mark.parametrize("experts", [12, 20, 28])
def test_coverage_of_certain_answers_equals_highs(experts: int) -> None:
    """With chances of exactly 0 or 1 coverage is maximum coverage, which is linear too."""
    rng = np.random.default_rng(experts)
    for share in (0.1, 0.3, 0.5):
        chances = (rng.random((60, experts)) < 0.12).astype(np.float64)
        energy = rng.lognormal(1, 0.8, experts)
        joules = float(energy.sum() * share)
        found = search.plan(cases.problem(chances, energy, budgets=PanelBudgets(energy_j=joules))).proof.value
        assert found == pytest.approx(best_by_milp(chances, energy, joules, None), abs=1e-6)


def test_coverage_of_separate_prompts_equals_a_knapsack() -> None:
    """Where each prompt can be answered by one expert only, coverage is a plain knapsack."""
    rng = np.random.default_rng(4)
    for _ in range(10):
        experts = 24
        chances = np.diag(rng.uniform(0.1, 1, experts))
        energy = np.diag(chances) * rng.uniform(0.9, 1.1, experts)
        joules = float(energy.sum() * rng.uniform(0.2, 0.8))
        found = search.plan(cases.problem(chances, energy, budgets=PanelBudgets(energy_j=joules))).proof.value
        knapsack = milp(
            -np.diag(chances) / experts,
            constraints=LinearConstraint(energy[None], -np.inf, joules),
            bounds=Bounds(0, 1),
            integrality=np.ones(experts),
            options={"mip_rel_gap": 0.0},
        )
        assert found == pytest.approx(-knapsack.fun, abs=1e-6)
