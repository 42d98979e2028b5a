"""Readings to joules."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.energy.meter import CounterUnwrapper, EnergyTrack


def _track(*samples: tuple[float, float], max_gap_s: float = 0.5) -> EnergyTrack:
    track = EnergyTrack(max_gap_s=max_gap_s)
    for at_s, power_w in samples:
        track.add_power(at_s, power_w)
    return track


def test_power_between_samples_is_a_straight_line() -> None:
    """Both edges of a window are interpolated on the trapezoid: 10 W rising to 20 W, middle half of a 0.4 s
    step."""
    window = _track((0.0, 10.0), (0.4, 20.0)).between(0.1, 0.3)
    assert window.joules == pytest.approx(15.0 * 0.2)
    assert window.coverage == pytest.approx(1.0)


def test_gap_is_not_covered_and_not_bridged() -> None:
    """Samples further apart than the allowed gap leave a hole: less coverage, no energy made up for it."""
    window = _track((0.0, 10.0), (0.4, 10.0), (2.0, 10.0), (2.4, 10.0)).between(0.0, 2.4)
    assert window.joules == pytest.approx(8.0)
    assert window.coverage == pytest.approx(0.8 / 2.4)
    assert window.max_gap_s == pytest.approx(1.6)


def test_window_without_readings_is_unknown() -> None:
    """Outside of what was read, joules are None and never 0."""
    track = _track((0.0, 10.0), (0.4, 10.0))
    assert track.between(5.0, 6.0).joules is None
    assert EnergyTrack().between(0.0, 1.0).joules is None


def test_samples_of_a_window_are_counted() -> None:
    """n_samples counts the readings inside the window, the spacing also those that bracket it."""
    window = _track((0.0, 1.0), (0.1, 1.0), (0.2, 1.0), (0.3, 1.0)).between(0.05, 0.25)
    assert window.n_samples == 2
    assert window.max_gap_s == pytest.approx(0.1)


def test_sample_from_the_past_is_ignored() -> None:
    """A clock that steps back neither adds nor removes energy."""
    track = _track((0.0, 10.0), (0.1, 10.0), (0.05, 1000.0), (0.2, 10.0))
    assert track.between(0.0, 0.2).joules == pytest.approx(2.0)


def test_counter_that_stands_still_is_unknown_until_it_moves() -> None:
    """A zero difference is below the counter's resolution, not zero energy; the next move covers the whole
    time."""
    track = EnergyTrack()
    track.add_counter(0.0, 100.0)
    track.add_counter(0.1, 100.0)
    assert track.between(0.0, 0.1).joules is None
    track.add_counter(0.2, 110.0)
    assert track.between(0.0, 0.1).joules == pytest.approx(5.0)


def test_counter_gives_no_difference_across_epochs() -> None:
    """After a reset the first reading is only an origin."""
    track = EnergyTrack()
    track.add_counter(0.0, 100.0)
    track.add_counter(1.0, 150.0)
    track.add_counter(2.0, 3.0, epoch=1)
    track.add_counter(3.0, 23.0, epoch=1)
    window = track.between(0.0, 3.0)
    assert window.joules == pytest.approx(70.0)
    assert window.coverage == pytest.approx(2 / 3)


def test_forgetting_the_past_changes_no_later_window() -> None:
    """A track that trims itself still answers for what it keeps."""
    track = EnergyTrack(keep_s=10.0)
    for step in range(1000):
        track.add_power(step * 0.1, 7.0)
    assert track.between(95.0, 99.0).joules == pytest.approx(28.0)


@pytest.mark.slow
@given(
    powers=st.lists(st.floats(0.1, 500.0), min_size=3, max_size=40),
    cuts=st.tuples(st.floats(-1.0, 5.0), st.floats(-1.0, 5.0), st.floats(-1.0, 5.0)),
)
def test_energy_is_additive(powers: list[float], cuts: tuple[float, float, float]) -> None:
    """E(a, b) + E(b, c) = E(a, c) for any readings and any cuts."""
    track = _track(*((0.1 * step, power_w) for step, power_w in enumerate(powers)))
    a, b, c = sorted(cuts)
    parts = (track.between(a, b).joules or 0.0) + (track.between(b, c).joules or 0.0)
    assert math.isclose(parts, track.between(a, c).joules or 0.0, rel_tol=1e-9, abs_tol=1e-9)


@given(
    steps=st.lists(st.floats(0.0, 90.0), min_size=1, max_size=60),
    start=st.floats(0.0, 99.9),
)
def test_unwrapping_recovers_the_true_energy(steps: list[float], start: float) -> None:
    """Whatever the start and the steps (each below one range), the unwrapped counter is their sum."""
    unwrapper = CounterUnwrapper(range_j=100.0, max_power_w=95.0)
    true_j = start
    unwrapper.advance(0.0, true_j % 100.0)
    for index, step_j in enumerate(steps, start=1):
        true_j += step_j
        unwrapped_j = unwrapper.advance(float(index), true_j % 100.0)
    assert unwrapper.epoch == 0
    assert unwrapped_j == pytest.approx(true_j - start, abs=1e-6)


def test_fall_too_deep_for_a_wrap_is_a_reset() -> None:
    """A counter that restarts near zero in mid-range begins a new epoch instead of adding most of a range."""
    unwrapper = CounterUnwrapper(range_j=262_143.0, max_power_w=500.0)
    unwrapper.advance(0.0, 100_000.0)
    assert unwrapper.advance(0.1, 5.0) == 0.0
    assert unwrapper.epoch == 1


def test_pause_that_could_hide_two_wraps_is_a_reset() -> None:
    """After ten minutes unread, a 65 kJ counter may have wrapped more than once: no difference is taken."""
    unwrapper = CounterUnwrapper(range_j=65_532.0, max_power_w=500.0)
    unwrapper.advance(0.0, 100.0)
    assert unwrapper.advance(600.0, 200.0) == 0.0
    assert unwrapper.epoch == 1


def test_counter_without_range_never_wraps() -> None:
    """A 64-bit counter that falls was reset, such as by a driver reload."""
    unwrapper = CounterUnwrapper(range_j=None, max_power_w=500.0)
    unwrapper.advance(0.0, 5000.0)
    unwrapper.advance(1.0, 10.0)
    assert unwrapper.epoch == 1
    assert unwrapper.advance(2.0, 60.0) == pytest.approx(50.0)
