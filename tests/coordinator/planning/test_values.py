"""The set values by their definitions, and what makes them safe to optimise."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.coordinator.planning import lattice
from moe2.coordinator.planning.values import BestOf, CalibrationError, Coverage
from tests.oracles.free_energy import FreeEnergy

from . import cases


@pytest.mark.parametrize("kind", cases.KINDS)
def test_values_are_what_they_are_defined_as(kind: str) -> None:
    """Values equal those of a loop over prompts with Python's math."""
    rng = np.random.default_rng(1)
    chances = cases.probabilities(rng, 7, 5)
    value = cases.set_value(kind, chances)
    for members in ((0,), (1, 3), (0, 1, 2, 3, 4)):
        expected = cases.naive_value(kind, chances.tolist(), members)
        assert value.of(list(members)) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.sampled_from(cases.KINDS))
@settings(max_examples=100, deadline=None)
def test_values_are_monotone_and_submodular(seed: int, kind: str) -> None:
    """A further member never lowers the value, and gains no more beside a larger panel."""
    rng = np.random.default_rng(seed)
    value = cases.set_value(kind, cases.probabilities(rng, 5, 6))
    order = rng.permutation(6).tolist()
    small, large, joining = order[:2], order[:4], order[5]
    gain_small = value.of([*small, joining]) - value.of(small)
    gain_large = value.of([*large, joining]) - value.of(large)
    assert -1e-12 <= gain_large <= gain_small + 1e-12


def test_free_energy_is_minus_the_optimum_of_the_gates_objective() -> None:
    """Weights proportional to exp(-loss / tau) reach the free energy, and no others go below it."""
    rng = np.random.default_rng(2)
    losses, tau = rng.uniform(0, 3, (1, 4)), 0.5
    best = -FreeEnergy(losses, tau).of([0, 1, 2, 3])

    def objective(weights: np.typing.NDArray[np.float64]) -> float:
        return float((weights * losses[0]).sum() + tau * (weights * np.log(weights)).sum())

    optimum = np.exp(-losses[0] / tau)
    assert objective(optimum / optimum.sum()) == pytest.approx(best, abs=1e-12)
    for _ in range(50):
        assert objective(rng.dirichlet(np.ones(4))) >= best - 1e-12


def test_free_energy_survives_spreads_that_underflow() -> None:
    """Losses of 0 and 1e6 at temperature 1e-3, whose exponentials sum to 0, have a finite value."""
    value = FreeEnergy([[0.0, 1e6], [1e6, 2e6]], 1e-3)
    assert value.of([1]) == pytest.approx(-1.5e6)
    assert value.of([0, 1]) == pytest.approx(-0.5e6)


@pytest.mark.parametrize("kind", cases.KINDS)
def test_all_subsets_at_once_equal_one_at_a_time(kind: str) -> None:
    """The product of halves gives each panel its own value."""
    rng = np.random.default_rng(3)
    value = cases.set_value(kind, cases.probabilities(rng, 9, 7))
    base = value.state_of([6])
    values = lattice.values(value, value.states[:6], base)
    for mask in range(64):
        members = [n for n in range(6) if mask >> n & 1]
        assert values[mask] == pytest.approx(value.of([*members, 6]), abs=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), -0.1, 1.1])
def test_chances_out_of_range_name_prompt_and_expert(bad: float) -> None:
    """An error about a probability out of range names the prompt and the expert."""
    with pytest.raises(CalibrationError, match=r"probabilities\[1, 0\] is"):
        Coverage([[0.5, 0.5], [bad, 0.5]])


@pytest.mark.parametrize("bad", [float("nan"), -0.1, float("inf")])
def test_losses_out_of_range_name_prompt_and_expert(bad: float) -> None:
    """An error about a loss out of range names the prompt and the expert."""
    with pytest.raises(CalibrationError, match=r"losses\[0, 1\] is"):
        FreeEnergy([[0.5, bad]], 1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_an_absurd_temperature_is_refused(temperature: float) -> None:
    """A temperature that is not a positive number is refused."""
    with pytest.raises(CalibrationError, match="temperature"):
        FreeEnergy([[0.5]], temperature)


@pytest.mark.parametrize("shape", [(3,), (0, 2), (2, 0), (1, 2, 3)])
def test_calibration_of_a_wrong_shape_is_refused(shape: tuple[int, ...]) -> None:
    """Calibration figures need the shape (prompts, experts) with at least one of each."""
    with pytest.raises(CalibrationError, match="shape"):
        BestOf(np.zeros(shape))
