"""Least squares that forgets."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.learning.regression import RelativeRegression


def test_coefficients_are_found() -> None:
    """From varied observations with a few percent of noise, the true coefficients."""
    random = Random(5)
    model = RelativeRegression((0.5, 0.0, 0.0), (5.0, 5.0, 5.0))
    for _ in range(300):
        x = (1.0, random.uniform(0, 8), random.uniform(0, 4))
        model.observe(x, (2.0 + 0.5 * x[1] + 0.25 * x[2]) * random.gauss(1.0, 0.03))
    assert model.coefficients == pytest.approx((2.0, 0.5, 0.25), rel=0.1)


def test_prior_keeps_what_observations_do_not_tell() -> None:
    """Where one feature never occurs, its coefficient stays what it was thought to be."""
    model = RelativeRegression((1.0, 0.3), (1.0, 0.1))
    for _ in range(50):
        model.observe((1.0, 0.0), 2.0)
    assert model.coefficients[0] == pytest.approx(2.0, rel=0.01)
    assert model.coefficients[1] == pytest.approx(0.3)


def test_old_observations_fade() -> None:
    """After two hundred observations at a new level the old one is forgotten."""
    model = RelativeRegression((1.0,), (10.0,))
    for value in [1.0] * 100 + [3.0] * 200:
        model.observe((1.0,), value)
    assert model.coefficients[0] == pytest.approx(3.0, rel=0.1)


def test_new_pace_keeps_the_law() -> None:
    """Three observations at thrice the pace: every coefficient is about three times as large."""
    random = Random(6)
    model = RelativeRegression((1.0, 0.0), (1.0, 1.0))
    for pace in [1.0] * 100 + [3.0] * 3:
        x = (1.0, random.uniform(0, 8))
        model.observe(x, pace * (2.0 + 0.5 * x[1]))
    assert model.repaced(3).coefficients == pytest.approx((6.0, 1.5), rel=0.1)


def test_value_must_be_positive() -> None:
    """A relative error to nothing does not exist."""
    with pytest.raises(ValueError, match="positive"):
        RelativeRegression((1.0,), (1.0,)).observe((1.0,), 0.0)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.floats(0.001, 1000)), min_size=1, max_size=30))
def test_coefficients_are_never_negative(observations: list[tuple[float, float, float]]) -> None:
    """More work never costs less, whatever was observed."""
    model = RelativeRegression((1.0, 0.1), (1.0, 1.0))
    for first, second, value in observations:
        model.observe((first, second), value)
    assert all(coefficient >= 0 for coefficient in model.coefficients)
