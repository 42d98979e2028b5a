"""Tests of weights and mixtures against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.choosing.mixture import best_of, distributions, gate_weights, mixture, renormalised

LOGITS = st.lists(st.floats(-50, 50), min_size=2, max_size=6)


def test_weights_are_a_softmax_of_the_logits() -> None:
    """Probabilities of 0.7 and 0.5 at tau = 0.1 give weights with odds of e^2 to 1."""
    assert gate_weights([7.0, 5.0]) == pytest.approx([math.exp(2) / (math.exp(2) + 1), 1 / (math.exp(2) + 1)])


@given(LOGITS)
def test_who_is_left_has_the_weights_of_the_smaller_panel(logits: list[float]) -> None:
    """Renormalised weights equal the gate's weights for the smaller panel."""
    left = gate_weights(logits)[:-1]
    if left.sum() > 1e-9:
        assert renormalised(left) == pytest.approx(gate_weights(logits[:-1]), rel=1e-6, abs=1e-12)


def test_a_vote_is_the_weighted_mixture() -> None:
    """0.75 (0.6, 0.3, 0.1) + 0.25 (0.1, 0.8, 0.1) = (0.475, 0.425, 0.1)."""
    members = distributions(np.log([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1]]))
    assert mixture([0.75, 0.25], members) == pytest.approx([0.475, 0.425, 0.1])
    assert best_of(mixture([0.75, 0.25], members)) == 0


def test_likelihoods_are_normalised_over_the_choices() -> None:
    """Only 0.06 of all texts begin like one of the two: 0.05 and 0.01 are odds of 5 to 1."""
    assert distributions(np.log([[0.05, 0.01]]))[0] == pytest.approx([5 / 6, 1 / 6])


def test_length_normalisation_takes_the_likelihood_per_unit() -> None:
    """e^-2 over 2 bytes and e^-4 over 8 bytes are e^-1 and e^-0.5 per byte: the longer one is the likelier."""
    (plain,), (per_byte,) = distributions([[-2.0, -4.0]]), distributions([[-2.0, -4.0]], [2, 8])
    assert best_of(plain) == 0
    assert per_byte == pytest.approx([1 / (1 + math.exp(0.5)), 1 / (1 + math.exp(-0.5))])


def test_an_impossible_choice_has_no_share() -> None:
    """An impossible choice gets no share, and a member that finds all impossible is indifferent."""
    found = distributions([[-math.inf, -3.0], [-math.inf, -math.inf]])
    assert found.tolist() == [[0.0, 1.0], [0.5, 0.5]]


def test_of_equal_choices_the_first_is_taken() -> None:
    """Of equally likely choices the first is taken, not a random one."""
    assert best_of(np.array([0.2, 0.4, 0.4])) == 1


@given(st.lists(st.lists(st.floats(-200, 0), min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_mixture_is_a_distribution_between_its_members(log_likelihoods: list[list[float]]) -> None:
    """A mixture sums to 1, and gives no choice more than the member that likes it most."""
    members = distributions(log_likelihoods)
    mixed = mixture(gate_weights(np.zeros(len(members))), members)
    assert mixed.sum() == pytest.approx(1.0)
    assert (mixed <= members.max(axis=0) + 1e-12).all()
    assert (mixed >= members.min(axis=0) - 1e-12).all()
