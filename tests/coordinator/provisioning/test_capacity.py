"""Queueing says how much an expert takes before people wait too long."""

from __future__ import annotations

import numpy as np
import pytest

from moe2.coordinator.provisioning.traffic import most_offered, waits, waits_longer


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
