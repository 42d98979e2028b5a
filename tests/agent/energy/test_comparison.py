"""The host's own sensors against the wall."""

from __future__ import annotations

import pytest

from moe2.agent.energy.comparison import PlugReading, WallComparison, last_before_sleep, power_asleep


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


def _reading(at_s: float, energy_j: float, *, power_w: float = 50.0, step_j: float = 360.0) -> PlugReading:
    return PlugReading(at_s=at_s, power_w=power_w, energy_j=energy_j, step_j=step_j)


def test_what_was_counted_during_sleep_is_the_sleeping_hosts() -> None:
    """An hour at 2 W, with 3 s awake at 50 W before and after, which are taken off."""
    asleep = power_asleep(_reading(100.0, 1000.0), _reading(103.0, 1000.0 + 150.0 + 7200.0), 3600.0)
    assert asleep is not None
    assert asleep.power_w == pytest.approx(2.0)
    assert asleep.doubt_w == pytest.approx((360.0 + 75.0) / 3600.0)


@pytest.mark.parametrize(
    ("counted_j", "slept_s", "step_j"),
    [(500.0, 30.0, 1.0), (7200.0, 600.0, 3600.0), (-10.0, 3600.0, 1.0), (500.0, 0.0, 1.0)],
    ids=["too short", "too coarse", "counter reset", "no sleep"],
)
def test_what_cannot_be_told_of_a_sleep_is_not(counted_j: float, slept_s: float, step_j: float) -> None:
    """No figure rather than one that is off by watts."""
    before = _reading(100.0, 1000.0, step_j=step_j)
    assert power_asleep(before, _reading(101.0, 1000.0 + counted_j, step_j=step_j), slept_s) is None


def test_a_reading_that_may_be_from_after_the_sleep_is_not_taken_for_one_before() -> None:
    """The clock stands still: a plug may have answered between the waking and its being noticed."""
    readings = [_reading(95.0, 1.0), _reading(97.0, 2.0), _reading(99.5, 9000.0)]
    assert last_before_sleep(readings, 100.0) == readings[1]
    assert last_before_sleep(readings[2:], 100.0) is None
