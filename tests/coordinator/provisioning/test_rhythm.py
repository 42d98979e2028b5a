"""How many requests of a key are still to come today."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.provisioning.rhythm import (
    DAY_S,
    HOUR_S,
    Rhythm,
    came,
    is_sound,
    requests_left,
    requests_today,
)


def lived(days: dict[int, dict[int, int]]) -> Rhythm:
    """The rhythm after so many requests by day and hour, each in the middle of its hour."""
    rhythm = Rhythm()
    for day, hours in days.items():
        for hour, count in hours.items():
            for _ in range(count):
                rhythm = came(rhythm, day * DAY_S + (hour + 0.5) * HOUR_S)
    return rhythm


def at(day: int, hour: float) -> float:
    return day * DAY_S + hour * HOUR_S


def test_there_is_always_the_one_that_is_made_now() -> None:
    """A key that was never used has one request left, also in the day's last second."""
    assert requests_left(Rhythm(), at(5, 0.0)) == 1.0
    assert requests_left(Rhythm(), at(5, 23.9999)) == 1.0


def test_a_day_like_the_former_ones_is_expected() -> None:
    """After days of work from nine to five, the rest of such a day is what is left to come."""
    work = dict.fromkeys(range(9, 17), 10)
    rhythm = lived({1: work, 2: work, 3: dict.fromkeys(range(9, 13), 10)})
    assert requests_left(rhythm, at(3, 13.0)) == pytest.approx(40.0, rel=0.05)
    assert requests_left(rhythm, at(3, 17.5)) == pytest.approx(1.0, abs=2.0)
    assert requests_today(rhythm, at(3, 13.0)) == pytest.approx(80.0, rel=0.05)


def test_a_quiet_day_is_expected_to_stay_quiet() -> None:
    """Today's level moves the rest of the day."""
    work = dict.fromkeys(range(9, 17), 10)
    assert requests_left(lived({1: work, 2: work, 3: {9: 1, 12: 1}}), at(3, 13.0)) < 12.0


def test_the_next_hour_is_at_least_like_the_last() -> None:
    """A burst at a time of day that was always quiet goes on for a while."""
    rhythm = lived({1: {9: 10}, 2: {9: 10}, 3: {20: 30}})
    assert requests_left(rhythm, at(3, 20.9)) >= 30.0


def test_a_first_day_is_taken_for_a_working_day() -> None:
    """After two hours of twenty requests each, eight more like these are expected, or as many as the day has."""
    assert requests_left(lived({1: {9: 20, 10: 20}}), at(1, 11.0)) == pytest.approx(160.0)
    assert requests_left(lived({1: {20: 20, 21: 20}}), at(1, 22.0)) == pytest.approx(40.0)


def test_a_clock_that_goes_back_by_a_day_teaches_nothing() -> None:
    """A request of the day before the latest one is left out, and that one has just begun."""
    rhythm = lived({4: {9: 20}, 5: {9: 3}})
    assert came(rhythm, at(4, 9.0)) == rhythm
    assert requests_left(rhythm, at(4, 23.0)) == requests_left(rhythm, at(5, 0.0)) > 10.0


def test_a_clock_that_was_far_ahead_leaves_the_days_after_it_as_they_are() -> None:
    """Days go on from where the clock is right again: their requests count, and the wrong day's do not."""
    work = dict.fromkeys(range(9, 17), 10)
    jumped = lived({1: work, 2: work, 30_000: {3: 1}, 3: dict.fromkeys(range(9, 13), 10)})
    assert requests_left(jumped, at(3, 13.0)) == pytest.approx(40.0, rel=0.05)
    assert requests_today(jumped, at(3, 13.0)) == pytest.approx(80.0, rel=0.05)


@given(
    times=st.lists(st.floats(0.0, 40 * DAY_S), max_size=40),
    now_unix_s=st.floats(0.0, 60 * DAY_S),
)
def test_the_figures_are_sound_whatever_came(times: list[float], now_unix_s: float) -> None:
    """Any history, in any order, leaves a finite number of requests that is 1 or more."""
    rhythm = Rhythm()
    for time in times:
        rhythm = came(rhythm, time)
    assert is_sound(rhythm)
    assert 1.0 <= requests_left(rhythm, now_unix_s) <= requests_today(rhythm, now_unix_s) < 1e6
