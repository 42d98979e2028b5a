"""The traffic that was and will be, and how much of it an expert takes before people wait too long."""

from __future__ import annotations

import numpy as np
import pytest

from moe2.coordinator.provisioning.traffic import (
    HOUR_S,
    MAX_CLASSES,
    MAX_SAMPLES,
    OTHER,
    Asked,
    Traffic,
    most_offered,
    rate_of,
    waits,
    waits_longer,
)

DAY_S = 24 * HOUR_S
MONDAY = 1_000 * 7 * DAY_S


def asked(at_s: float, category: str = "chat", model: str | None = None) -> Asked:
    return Asked(at_s, category, model, 100, 50)


def poisson(per_hour: list[float], days: int, seed: int = 1) -> Traffic:
    """Days of random arrivals with the given rates by hour of the day."""
    rng, traffic = np.random.default_rng(seed), Traffic()
    traffic.passed(MONDAY)
    for hour in range(24 * days):
        begins = MONDAY + hour * HOUR_S
        for offset in sorted(rng.uniform(0, HOUR_S, rng.poisson(per_hour[hour % 24]))):
            traffic.note(asked(begins + float(offset)))
    traffic.passed(MONDAY + days * DAY_S)
    return traffic


def test_nothing_is_expected_of_nothing() -> None:
    """Without any request there is no class to forecast."""
    traffic = Traffic()
    traffic.passed(MONDAY)
    assert traffic.forecast(MONDAY) == ()


def test_rates_follow_the_hour_of_the_day() -> None:
    """After two weeks of busy days and quiet nights the forecast for each hour is near its true rate."""
    rates = [2.0] * 8 + [60.0] * 12 + [10.0] * 4
    traffic = poisson(rates, 14)
    for hour in (3, 12, 22):
        found = 3600.0 * rate_of(traffic.forecast(MONDAY + 14 * DAY_S + hour * HOUR_S, live=False))
        assert found == pytest.approx(rates[hour], rel=0.3, abs=1.0)


def test_the_upper_rate_is_rarely_exceeded() -> None:
    """The rate of a burst-free Poisson stream stays below the upper rate in at least nine of ten hours."""
    traffic, below = poisson([20.0] * 24, 7), 0
    rng = np.random.default_rng(7)
    for hour in range(100):
        [one] = traffic.forecast(MONDAY + 7 * DAY_S + hour * HOUR_S, live=False)
        assert one.upper_per_s > one.rate_per_s
        below += int(rng.poisson(20.0) <= 3600.0 * one.upper_per_s)
    assert below >= 90


def test_a_burst_moves_the_hour_at_once() -> None:
    """Sixty requests in ten minutes raise the live forecast, and leave that of the same hour of next week alone."""
    traffic = poisson([5.0] * 24, 7)
    now = MONDAY + 7 * DAY_S
    before = rate_of(traffic.forecast(now))
    traffic.note_all(asked(now + 10.0 * k) for k in range(60))
    assert rate_of(traffic.forecast(now + 600.0)) > 2.0 * before


def test_silence_lowers_the_live_rate() -> None:
    """Half an hour without a request lowers the forecast."""
    traffic = poisson([40.0] * 24, 7)
    now = MONDAY + 7 * DAY_S
    before = rate_of(traffic.forecast(now))
    traffic.passed(now + 1800.0)
    assert rate_of(traffic.forecast(now + 1800.0)) < before


@pytest.mark.parametrize("jump_s", [-5 * HOUR_S, -400 * DAY_S, 400 * DAY_S, float("inf"), float("nan")])
def test_a_clock_that_jumps_does_no_harm(jump_s: float) -> None:
    """After any jump of the clock rates are still finite and not negative."""
    traffic = poisson([10.0] * 24, 2)
    traffic.passed(MONDAY + 2 * DAY_S + jump_s)
    traffic.note(asked(MONDAY + 2 * DAY_S + 60.0))
    for one in traffic.forecast(MONDAY + 2 * DAY_S + 60.0):
        assert 0.0 <= one.rate_per_s < 1.0
        assert one.upper_per_s >= one.rate_per_s


def test_classes_are_bounded() -> None:
    """A thousand categories are counted as a bounded number of classes, none of them lost."""
    traffic = Traffic()
    traffic.note_all(asked(MONDAY + k, category=f"c{k}") for k in range(1000))
    found = traffic.forecast(MONDAY + 1000)
    assert len(found) <= MAX_CLASSES + 1
    assert OTHER in {one.category for one in found}


def test_lengths_are_bounded_and_of_the_newest() -> None:
    """Only so many lengths are remembered, and the newest are among them."""
    traffic = Traffic()
    traffic.note_all(Asked(MONDAY + k, "chat", None, k, 1) for k in range(2 * MAX_SAMPLES))
    [one] = traffic.forecast(MONDAY + 2 * MAX_SAMPLES)
    assert len(one.lengths) == MAX_SAMPLES
    assert (2 * MAX_SAMPLES - 1, 1) in one.lengths


def test_models_and_categories_are_told_apart() -> None:
    """Requests for one model and for any are two classes, in one order whatever came first."""
    traffic = Traffic()
    traffic.note_all([asked(MONDAY, "b", "m"), asked(MONDAY + 1, "a"), asked(MONDAY + 2, "b")])
    assert [(one.category, one.model) for one in traffic.forecast(MONDAY + 3)] == [("a", None), ("b", None), ("b", "m")]


def test_an_hour_is_quiet_by_the_day_that_it_begins() -> None:
    """Nights are quiet and noons are not; where nothing is known of days, an hour without requests is."""
    traffic = Traffic()
    for day in range(14):
        for hour in range(24):
            for n in range(1 if hour < 7 else 30):
                traffic.note(Asked(day * DAY_S + hour * HOUR_S + 100.0 * n, "chat", None, 10, 10))
    for hour, is_quiet in ((3, True), (12, False)):
        traffic.passed(14 * DAY_S + hour * HOUR_S)
        assert traffic.is_quiet(14 * DAY_S + hour * HOUR_S) is is_quiet
    assert Traffic().is_quiet(0.0)
    busy = Traffic()
    busy.passed(0.0)
    busy.note_all(Asked(60.0 * n, "chat", None, 10, 10) for n in range(30))
    assert not busy.is_quiet(1800.0)


@pytest.mark.parametrize(("slots", "offered", "share"), [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (10, 5.0, 0.0361)])
def test_the_share_that_waits_is_erlangs(slots: int, offered: float, share: float) -> None:
    """Erlang's C for known cases."""
    assert waits(slots, offered) == pytest.approx(share, rel=0.01)


def test_a_simulated_queue_waits_as_long() -> None:
    """In a simulated queue of two slots the share that waits longer than two seconds is the formula's."""
    rng = np.random.default_rng(2)
    n, service_s, offered = 200_000, 3.0, 1.2
    at = np.cumsum(rng.exponential(service_s / offered, n))
    takes = rng.exponential(service_s, n)
    free, late = [0.0, 0.0], 0
    for arrives, held in zip(at.tolist(), takes.tolist(), strict=True):
        slot = free.index(min(free))
        starts = max(arrives, free[slot])
        late += starts - arrives > 2.0
        free[slot] = starts + held
    assert late / n == pytest.approx(waits_longer(2, offered, service_s, 2.0), rel=0.05)


def test_the_most_that_is_offered_is_just_on_time() -> None:
    """At the most that may be offered, five in a hundred wait longer than they should."""
    found = most_offered(4, 10.0, 2.5)
    assert 0.0 < found < 4.0
    assert waits_longer(4, found, 10.0, 2.5) == pytest.approx(0.05, rel=1e-3)


def test_more_slots_and_more_patience_take_more() -> None:
    """Capacity grows with slots and with patience."""
    assert most_offered(2, 5.0, 1.0) < most_offered(3, 5.0, 1.0) < most_offered(3, 5.0, 4.0)


@pytest.mark.parametrize(("slots", "service_s", "patience_s"), [(0, 1.0, 1.0), (1, 0.0, 1.0), (1, 1.0, -1.0)])
def test_what_cannot_serve_takes_nothing(slots: int, service_s: float, patience_s: float) -> None:
    """No slots, no service time or no patience left is no capacity."""
    assert most_offered(slots, service_s, patience_s) == 0.0


def test_many_slots_do_not_overflow() -> None:
    """Thousands of slots are a number, not an overflow."""
    assert 0.0 <= waits(5000, 4900.0) <= 1.0
