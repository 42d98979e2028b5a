"""The entropy-regularised objective and the optimality-preserving property."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize

from tests.oracles.objective import (
    entropy_regularised_loss,
    free_energy,
    mixture_cross_entropy,
    optimal_logits,
    restricted_softmax,
)

TAU = 0.3
LABELS = np.array([0.39, 0.31, 0.30])
EXPERTS = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6]])


def subsets(size: int) -> list[np.ndarray]:
    """Every non-empty subset of `size` experts as a mask."""
    return [np.array(bits, dtype=bool) for bits in itertools.product([False, True], repeat=size) if any(bits)]


@pytest.mark.slow
@given(hnp.arrays(float, 5, elements=st.floats(0, 4)), hnp.arrays(float, 5, elements=st.floats(0.01, 1)))
def test_full_set_logits_are_optimal_on_every_subset(losses: np.ndarray, other: np.ndarray) -> None:
    """No weights on any subset beat the full-set logits restricted to it; their value is the free energy."""
    logits = optimal_logits(losses, TAU)
    for members in subsets(5):
        best = entropy_regularised_loss(restricted_softmax(logits, members), losses, TAU)
        rival = np.where(members, other, 0) / other[members].sum()
        assert best <= entropy_regularised_loss(rival, losses, TAU) + 1e-9
        assert best == pytest.approx(free_energy(losses, members, TAU), abs=1e-9)


@pytest.mark.slow
def test_full_set_logits_equal_training_on_the_subset_alone() -> None:
    """A numerical optimiser run on each subset alone finds the same objective value as the restricted full-set gate."""
    losses = np.random.default_rng(3).gamma(1.0, 1.0, (40, 3))
    full = optimal_logits(losses, TAU)
    for members in subsets(3):

        def objective(free: np.ndarray, members: np.ndarray = members) -> float:
            weights = restricted_softmax(free.reshape(40, 3), np.broadcast_to(members, (40, 3)))
            return float(entropy_regularised_loss(weights, losses, TAU).mean())

        alone = minimize(objective, np.zeros(120), method="L-BFGS-B").fun
        assert objective(full.ravel()) <= alone + 1e-6


def test_the_naive_objective_is_not_preserved() -> None:
    """Counter-example: the mixture's cross-entropy, optimal on all three experts, is not optimal on the first two."""

    def value(logits: np.ndarray, members: np.ndarray) -> float:
        return mixture_cross_entropy(restricted_softmax(logits, members), LABELS, EXPERTS)

    everyone, pair = np.array([True, True, True]), np.array([True, True, False])
    starts = np.random.default_rng(0).normal(size=(20, 3))
    full = min((minimize(value, start, args=(everyone,), tol=1e-12) for start in starts), key=lambda r: r.fun)
    alone = min((minimize(value, start, args=(pair,), tol=1e-12) for start in starts), key=lambda r: r.fun)
    assert value(full.x, pair) > alone.fun + 1e-3


def test_free_energy_falls_as_the_set_grows() -> None:
    """Adding an expert never raises the free energy, so it is a monotone set value."""
    losses = np.random.default_rng(1).random(4)
    for members in subsets(4):
        for extra in np.flatnonzero(~members):
            larger = members.copy()
            larger[extra] = True
            assert free_energy(losses, larger, TAU) <= free_energy(losses, members, TAU)


def test_the_plain_gated_loss_is_not_monotone() -> None:
    """Why the plain gated loss is no set value: with a frozen gate, a weak expert that joins makes it worse."""
    losses = np.array([0.1, 0.9])
    logits = np.array([0.0, 0.0])
    one = restricted_softmax(logits, np.array([True, False])) @ losses
    two = restricted_softmax(logits, np.array([True, True])) @ losses
    assert two > one


def test_an_empty_set_has_no_weights() -> None:
    """A softmax over nothing is refused."""
    with pytest.raises(ValueError, match="empty"):
        restricted_softmax(np.zeros(2), np.array([False, False]))


def test_tau_must_be_positive() -> None:
    """A temperature of zero is refused."""
    with pytest.raises(ValueError, match="tau"):
        optimal_logits(np.zeros(2), 0.0)
