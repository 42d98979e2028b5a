"""What changes of state take."""

from __future__ import annotations

import pytest

from moe2.agent.standby.transitions import ENERGY_PATIENCE_S, MAX_REMEMBERED, Key, Transition, TransitionLog
from moe2.common.energy import Energy, Quality

LOAD: Key = (Transition.LOAD, "m")
OTHER: Key = (Transition.LOAD, "other")
NOW = 1_800_000_000.0


def ten_watts(start_s: float, end_s: float) -> Energy:
    """A host that always draws 10 W."""
    return Energy(joules=10.0 * (end_s - start_s), quality=Quality.MEASURED_COUNTER, coverage=1.0)


def unknown(_start_s: float, _end_s: float) -> None:
    """Sensors that have not covered the end."""


def log_of(*durations_s: float) -> TransitionLog:
    """A log in which the model was loaded so often."""
    log, at_s = TransitionLog(), 0.0
    for duration_s in durations_s:
        log.began(LOAD, at_s)
        log.ended(LOAD, at_s + duration_s, NOW)
        log.settle(ten_watts, at_s + duration_s)
        at_s += 100.0
    return log


def test_seconds_and_joules_are_means_of_the_last_times() -> None:
    """The longest is told apart, and older ones are forgotten."""
    cost = log_of(4.0, 6.0).cost(LOAD, NOW + 60.0)
    assert cost is not None
    assert (cost.duration_s, cost.max_duration_s, cost.energy_j, cost.n, cost.age_s) == (5.0, 6.0, 50.0, 2, 60.0)
    assert cost.quality is Quality.MEASURED_COUNTER
    many = log_of(100.0, *[2.0] * MAX_REMEMBERED).cost(LOAD, NOW)
    assert many is not None
    assert (many.n, many.max_duration_s) == (MAX_REMEMBERED, 2.0)


def test_what_was_never_measured_is_unknown() -> None:
    """Not 0 seconds."""
    assert TransitionLog().cost(LOAD, NOW) is None


def test_joules_are_awaited_and_then_given_up() -> None:
    """The seconds count with or without them."""
    log = TransitionLog()
    log.began(LOAD, 0.0)
    log.ended(LOAD, 4.0, NOW)
    assert not log.settle(unknown, 5.0)
    assert log.cost(LOAD, NOW) is None
    assert log.settle(unknown, 4.0 + ENERGY_PATIENCE_S)
    cost = log.cost(LOAD, NOW)
    assert cost is not None
    assert (cost.duration_s, cost.energy_j, cost.quality) == (4.0, None, Quality.UNMEASURED)


@pytest.mark.parametrize("by", ["a request", "another model"])
def test_joules_beside_requests_or_other_changes_are_nobodys(by: str) -> None:
    """Seconds are still its own."""
    log = TransitionLog()
    log.began(LOAD, 0.0)
    if by == "a request":
        log.disturbed()
    else:
        log.began(OTHER, 1.0)
    log.ended(LOAD, 4.0, NOW)
    log.settle(ten_watts, 4.0)
    cost = log.cost(LOAD, NOW)
    assert cost is not None
    assert (cost.duration_s, cost.energy_j) == (4.0, None)


def test_a_change_that_did_not_come_to_its_end_teaches_nothing() -> None:
    """A load that failed says nothing of one that succeeds."""
    log = TransitionLog()
    log.began(LOAD, 0.0)
    log.given_up(LOAD)
    log.ended(LOAD, 9.0, NOW)
    log.settle(ten_watts, 9.0)
    assert log.cost(LOAD, NOW) is None
    assert log.running == frozenset()


def test_a_wake_that_finds_no_coordinator_is_given_up() -> None:
    """The host is awake; its joules are those of waiting again."""
    log, wake = TransitionLog(), (Transition.WAKE, None)
    log.began(wake, 100.0)
    assert not log.give_up_older(wake, 99.0)
    assert log.give_up_older(wake, 101.0)
    assert log.running == frozenset()


def test_a_partly_covered_window_has_no_joules() -> None:
    """A sensor that was away for half of it knows a lower bound, which no decision should rest on."""
    log = TransitionLog()
    log.began(LOAD, 0.0)
    log.ended(LOAD, 4.0, NOW)
    log.settle(lambda _a, _b: Energy(joules=5.0, quality=Quality.PARTIAL, coverage=0.5), 4.0)
    cost = log.cost(LOAD, NOW)
    assert cost is not None
    assert cost.energy_j is None


def test_what_was_measured_is_restored_with_its_age() -> None:
    """By wall time, as the host may have slept or been off; a clock that was set back makes no negative age."""
    log = TransitionLog()
    log.restore(log_of(4.0).measured)
    cost = log.cost(LOAD, NOW + 3600.0)
    assert cost is not None
    assert cost.age_s == pytest.approx(3600.0)
    early = log.cost(LOAD, NOW - 10.0)
    assert early is not None
    assert early.age_s == 0.0


def test_another_file_under_the_same_name_begins_anew() -> None:
    """What was measured of a file holds under every name, and not for another file; before it was known, by name."""
    log = TransitionLog()
    for at_s, key, file in ((0.0, LOAD, "ab"), (10.0, LOAD, "cd"), (20.0, OTHER, None)):
        log.began(key, at_s)
        log.ended(key, at_s + (4.0 if file == "ab" else 6.0), NOW, file)
        log.settle(ten_watts, at_s + 10.0)

    def seconds(key: Key, file: str | None) -> float | None:
        cost = log.cost(key, NOW, file)
        return None if cost is None else cost.duration_s

    assert (seconds(LOAD, "ab"), seconds(LOAD, "cd"), seconds(LOAD, "ef")) == (4.0, 6.0, None)
    assert seconds((Transition.LOAD, "renamed"), "ab") == 4.0
    assert (seconds(LOAD, None), seconds(OTHER, "ef")) == (5.0, 6.0)
