"""What batch a request will live in."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.learning.occupancy import OccupancyForecast


def test_nothing_seen_expects_no_change() -> None:
    """What a request finds is what it gets."""
    assert OccupancyForecast().coefficients == (0.0, 1.0)


def test_steady_load_pulls_towards_its_mean() -> None:
    """Lone requests are joined, crowded ones left: the line through what 100 requests lived in, within a tenth."""
    forecast, random = OccupancyForecast(), Random(1)
    for _ in range(100):
        found = random.randint(1, 4)
        forecast.observe(found, 1.5 + 0.4 * found + random.gauss(0.0, 0.1))
    m0, m1 = forecast.coefficients
    for found in (1, 2, 3, 4):
        assert m0 + m1 * found == pytest.approx(1.5 + 0.4 * found, abs=0.1)


def test_a_load_that_changes_is_followed() -> None:
    """Sixty requests alone, after busy hours."""
    forecast = OccupancyForecast()
    for _ in range(300):
        forecast.observe(2.0, 3.5)
    for _ in range(100):
        forecast.observe(1.0, 1.0)
    m0, m1 = forecast.coefficients
    assert m0 + m1 == pytest.approx(1.0, abs=0.25)


@given(st.lists(st.tuples(st.floats(1, 64), st.floats(1, 64)), max_size=40))
def test_a_fuller_batch_is_never_expected_to_be_emptier(seen: list[tuple[float, float]]) -> None:
    """Whatever was seen."""
    forecast = OccupancyForecast()
    for found, lived in seen:
        forecast.observe(found, lived)
    assert 0 <= forecast.coefficients[1] <= 1
