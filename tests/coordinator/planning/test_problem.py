"""Tests of planning problems: their checks, and the meaning of their limits."""

from __future__ import annotations

import numpy as np
import pytest

from moe2.coordinator.planning.problem import Aggregation, Costs, Limit, PanelBudgets, Problem, ProblemError, Quantile
from moe2.coordinator.planning.values import Coverage, FloatArray

from . import cases

TWO = np.array([[0.5, 0.5]])


def costs(energy_j: list[float]) -> Costs:
    """Costs without delays."""
    nothing = np.zeros(len(energy_j))
    return Costs(np.array(energy_j), nothing, nothing, nothing, nothing)


@pytest.mark.parametrize("bad", [float("nan"), -1.0, float("inf")])
def test_a_cost_that_is_no_cost_is_refused_by_name_and_place(bad: float) -> None:
    """NaN, negative and infinite costs name the field and the expert's place."""
    with pytest.raises(ProblemError, match=r"energy_j\[1\] is .* finite number and not negative"):
        costs([1.0, bad])


def test_costs_of_a_wrong_shape_are_refused() -> None:
    """A matrix is no cost per expert."""
    nothing = np.zeros(2)
    with pytest.raises(ProblemError, match="one number per entry"):
        Costs(np.zeros((2, 2)), nothing, nothing, nothing, nothing)


def test_costs_of_another_length_are_refused() -> None:
    """Costs for three experts do not fit a fleet of two."""
    with pytest.raises(ProblemError, match=r"p50\.energy_j is for 3 experts, but 2 are named"):
        Problem(("a", "b"), Coverage(TWO), costs([1, 2, 3]), costs([1, 2]), Aggregation.free(2))


def test_a_value_of_another_fleet_is_refused() -> None:
    """Calibration of three experts does not fit a fleet of two."""
    with pytest.raises(ProblemError, match="value is for 3 experts"):
        Problem(("a", "b"), Coverage(np.ones((1, 3))), costs([1, 2]), costs([1, 2]), Aggregation.free(2))


@pytest.mark.parametrize("names", [(), ("a", "a")])
def test_experts_need_distinct_names(names: tuple[str, ...]) -> None:
    """No expert at all, or one name twice, is no fleet."""
    with pytest.raises(ProblemError, match="distinct names"):
        Problem(names, Coverage(TWO), costs([1, 2]), costs([1, 2]), Aggregation.free(2))


def test_ruling_out_an_unknown_expert_is_refused() -> None:
    """A reason for an expert that is not there is a mistake of the caller."""
    with pytest.raises(ProblemError, match="not in the fleet: zeta"):
        cases.problem(TWO, np.ones(2), ruled_out={"zeta": "stale"})


@pytest.mark.parametrize("name", ["energy_j", "delay_s", "first_token_s", "per_token_s", "power_w"])
@pytest.mark.parametrize("bad", [float("nan"), -0.1, float("inf")])
def test_an_absurd_budget_is_refused_by_name(name: str, bad: float) -> None:
    """Every budget must be finite and not negative."""
    with pytest.raises(ProblemError, match=f"The budget {name} is"):
        PanelBudgets(**{name: bad})  # type: ignore[arg-type]


def test_a_panel_of_nobody_is_refused() -> None:
    """max_experts starts at one."""
    with pytest.raises(ProblemError, match="at least one expert"):
        PanelBudgets(max_experts=0)


def test_aggregation_that_falls_is_refused() -> None:
    """Feasible panels must stay feasible when a member leaves."""
    with pytest.raises(ProblemError, match="must never fall"):
        Aggregation(np.array([0.0, 1.0, 0.5]), np.zeros(3), np.zeros(3))


def test_a_power_budget_needs_the_experts_watts() -> None:
    """Unknown watts are not zero watts."""
    with pytest.raises(ProblemError, match="needs power_w"):
        cases.problem(TWO, np.ones(2), budgets=PanelBudgets(power_w=100.0))


def test_a_per_token_budget_needs_the_experts_pace() -> None:
    """Unknown seconds per token are not zero seconds."""
    with pytest.raises(ProblemError, match="needs per_token_s"):
        Problem(
            ("a", "b"),
            Coverage(TWO),
            costs([1, 2]),
            costs([1, 2]),
            Aggregation.free(2),
            PanelBudgets(per_token_s=0.1),
        )


def test_arrays_of_a_problem_cannot_be_changed() -> None:
    """A problem is a value."""
    problem = cases.problem(TWO, np.ones(2))
    with pytest.raises(ValueError, match="read-only"):
        problem.p95.energy_j[0] = 5.0


def test_a_problem_does_not_alias_the_callers_arrays() -> None:
    """Changing the caller's array later changes nothing."""
    energy: FloatArray = np.ones(2)
    problem = cases.problem(TWO, energy)
    energy[0] = 9.0
    assert problem.p95.energy_j[0] == 1.0


def test_limits_hold_for_the_requested_quantile() -> None:
    """The same panel may pass at p50 and break the limit at p95."""
    energy = np.array([4.0, 4.0])
    at_p95 = cases.problem(TWO, energy, budgets=PanelBudgets(energy_j=5.0))
    at_p50 = cases.problem(TWO, energy, budgets=PanelBudgets(energy_j=5.0, quantile=Quantile.P50))
    assert at_p95.breaches([0, 1]) == [(Limit.ENERGY, 8.0, 5.0)]
    assert at_p50.breaches([0, 1]) == []


def test_the_fleets_cap_counts_what_is_drawn_already() -> None:
    """Beside the members' watts together, or beside each one's where they run one at a time."""
    for one_at_a_time, needed in ((False, [(Limit.POWER, 75.0, 60.0)]), (True, [])):
        budgets = PanelBudgets(power_w=60.0, drawn_w=20.0, one_at_a_time=one_at_a_time)
        problem = cases.problem(TWO, np.ones(2), budgets=budgets, power_w=np.array([30.0, 25.0]))
        assert problem.breaches([0, 1]) == needed
        assert problem.breaches([0]) == []


def test_each_limit_counts_what_its_definition_says() -> None:
    """Sums for joules and watts, the slowest member for delays, aggregation by the panel's size on top."""
    problem = cases.problem(
        TWO,
        np.array([1.0, 2.0]),
        np.array([10.0, 20.0]),
        budgets=PanelBudgets(
            energy_j=3.4, delay_s=20.6, first_token_s=8.2, per_token_s=0.1, power_w=50.0, max_experts=1
        ),
        aggregation=Aggregation(np.array([0, 0, 0.5]), np.array([0, 0, 0.7]), np.array([0, 0, 0.3])),
        power_w=np.array([30.0, 25.0]),
    )
    assert problem.breaches([0, 1]) == [
        (Limit.PANEL_SIZE, 2.0, 1.0),
        (Limit.ENERGY, 3.5, 3.4),
        (Limit.POWER, 55.0, 50.0),
        (Limit.DELAY, pytest.approx(20.7), 20.6),
        (Limit.FIRST_TOKEN, pytest.approx(8.3), 8.2),
        (Limit.PER_TOKEN, pytest.approx(0.2), 0.1),
    ]
    assert problem.is_feasible([0])
    assert not problem.is_feasible([])


def test_a_sum_that_only_rounding_puts_over_the_limit_is_feasible() -> None:
    """0.1 + 0.2 joules fit a budget of 0.3 joules."""
    problem = cases.problem(TWO, np.array([0.1, 0.2]), budgets=PanelBudgets(energy_j=0.3))
    assert problem.is_feasible([0, 1])
