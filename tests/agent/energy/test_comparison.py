"""The host's own sensors against the wall."""

from __future__ import annotations

import pytest

from moe2.agent.energy.comparison import WallComparison


def _compared(*sensors_w: float, slope: float = 1.02, offset_w: float = 3.1) -> WallComparison:
    comparison = WallComparison()
    for power_w in sensors_w:
        comparison.add(power_w, slope * power_w + offset_w)
    return comparison


def test_losses_are_a_line() -> None:
    """The calibration of an AGX Orin that was published: wall = 1.02 x rails + 3.1 W."""
    line = _compared(*range(10, 50, 2)).line
    assert line is not None
    assert (line.slope, line.offset_w) == pytest.approx((1.02, 3.1))
    assert line.error_w == pytest.approx(0.0, abs=1e-9)


def test_one_load_makes_no_line() -> None:
    """Idle alone cannot tell what grows with the load: only the share is told."""
    comparison = _compared(*[11.2, 11.3] * 10)
    assert comparison.line is None
    assert comparison.sentence == "the other sensors see 11.2 of 14.6 W (77%), over 20 windows of 10 s"


def test_few_windows_make_no_line() -> None:
    """Eleven are too few."""
    assert _compared(*range(10, 21)).line is None


def test_nothing_compared_is_nothing_said() -> None:
    """No figure without a measurement."""
    assert WallComparison().sentence is None


def test_the_line_is_told_with_its_error() -> None:
    """For people: share, slope, offset, error, and what it rests on."""
    told = _compared(*range(10, 50, 2)).sentence or ""
    assert "wall = 1.02 x sensors + 3.1 W (within 0.0 W, over 20 windows of 10 s)" in told


def test_a_host_that_draws_nothing_divides_nothing() -> None:
    """A plug at 0 W makes no share."""
    comparison = WallComparison()
    comparison.add(0.0, 0.0)
    assert comparison.sentence == "the other sensors see 0.0 of 0.0 W, over 1 windows of 10 s"


def test_what_was_long_ago_is_forgotten() -> None:
    """Two hours are kept: a new supply is told soon."""
    comparison = _compared(*[10.0, 40.0] * 360)
    for power_w in [10.0, 40.0] * 360:
        comparison.add(power_w, 2 * power_w)
    line = comparison.line
    assert line is not None
    assert line.slope == pytest.approx(2.0)
