"""The panels that evaluation chooses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moe2.coordinator.training.evaluate.routers import PanelProblem, Planner
from tests.coordinator.training.evaluate.enumeration import best_panel

# Steps far above the planner's rounding, so that both see the same ties.
UNIT = hnp.arrays(float, 5, elements=st.integers(5, 95).map(lambda share: share / 100))


def problem(p: np.ndarray, energy: np.ndarray, delay: np.ndarray, **limits: float) -> PanelProblem:
    return PanelProblem(
        probabilities=p,
        energy_j=energy,
        delay_s=delay,
        available=np.ones(p.size, dtype=bool),
        max_energy_j=limits.get("max_energy_j", float("inf")),
        max_delay_s=limits.get("max_delay_s", float("inf")),
        max_experts=int(limits.get("max_experts", p.size)),
    )


@given(UNIT, UNIT, UNIT, st.floats(0, 3), st.floats(0, 1), st.integers(1, 5))
def test_the_panel_is_worth_as_much_as_the_best_of_all(
    p: np.ndarray, energy: np.ndarray, delay: np.ndarray, most_j: float, most_s: float, count: int
) -> None:
    """The chosen panel keeps every limit, and no other that does is worth more."""
    request = problem(p, energy, delay, max_energy_j=most_j, max_delay_s=most_s, max_experts=count)
    panel, other = list(Planner().select(request)), list(best_panel(request))
    assert energy[panel].sum() <= most_j * (1 + 1e-9)
    assert all(delay[panel] <= most_s * (1 + 1e-9))
    assert len(panel) <= count
    assert bool(panel) >= bool(other)
    assert np.prod(1 - p[panel]) <= np.prod(1 - p[other]) + 1e-8


@pytest.mark.slow
@given(UNIT, UNIT, UNIT, hnp.arrays(bool, 5), st.floats(0, 1))
def test_a_panel_of_one_is_the_likeliest_expert_that_fits(
    p: np.ndarray, energy: np.ndarray, delay: np.ndarray, available: np.ndarray, most_s: float
) -> None:
    """With one seat the largest probability wins, ties by joules, and nobody where nobody fits."""
    request = problem(p, energy, np.round(delay), max_delay_s=round(most_s), max_experts=1)
    request = PanelProblem(**{**vars(request), "available": available})
    assert Planner().select(request) == best_panel(request)


def test_ties_go_to_the_cheaper_expert() -> None:
    """Of experts with equal value the one with fewer joules is chosen."""
    p = np.array([0.5, 0.5])
    assert Planner().select(problem(p, np.array([2.0, 1.0]), np.ones(2), max_experts=1)) == (1,)


def test_members_are_numbers_in_the_order_of_the_arrays() -> None:
    """Members of more than ten experts are numbers in the arrays' order, not the names' order."""
    p = np.linspace(0.1, 0.5, 12)
    assert Planner().select(problem(p, np.ones(12), np.ones(12), max_energy_j=3)) == (9, 10, 11)
    assert Planner().select(problem(np.full(12, 0.5), np.ones(12), np.ones(12), max_experts=2)) == (0, 1)


def test_no_expert_is_needed_to_fit() -> None:
    """The panel is empty where no expert is available."""
    request = problem(np.array([0.5]), np.ones(1), np.ones(1), max_energy_j=0.5)
    assert Planner().select(request) == ()
    assert best_panel(request) == ()


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_a_limit_that_is_met_exactly_is_kept(limit: float) -> None:
    """An expert whose joules equal the budget fits."""
    request = problem(np.array([0.5]), np.full(1, limit), np.ones(1), max_energy_j=limit)
    assert Planner().select(request) == best_panel(request) == (0,)
