"""Sensors that lie."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.agent.energy.plausibility import PlausibilityJudge
from moe2.agent.energy.sensor import Limits, Reading

_LIMITS = Limits(min_power_w=0.5, max_power_w=200.0, stuck_after_s=60.0)


def _feed(judge: PlausibilityJudge, *powers: float, start: int = 0) -> list[float | None]:
    """What passes of power readings 100 ms apart."""
    passed = []
    for index, power_w in enumerate(powers, start=start):
        reading = judge.examine(Reading(at_s=index * 0.1, power_w=power_w), index * 0.1)
        passed.append(reading.power_w if reading else None)
    return passed


@pytest.mark.parametrize("lie", [-3.0, math.nan, math.inf, 0.0, 54_218.0, 20.0e6])
def test_one_impossible_reading_is_dropped(lie: float) -> None:
    """Negative, NaN, infinite, zero, milliwatts for watts, a jump by a million: not passed on, the next one is."""
    judge = PlausibilityJudge(_LIMITS)
    assert _feed(judge, 20.0, lie, 21.0) == [20.0, None, 21.0]
    assert judge.quarantine_reason is None
    assert judge.rejected == 1


@pytest.mark.parametrize("lie", [-3.0, math.nan, 54_218.0])
def test_repeated_lies_lead_to_quarantine(lie: float) -> None:
    """Three impossible readings among the last twenty, and the sensor is not believed, with the reason."""
    judge = PlausibilityJudge(_LIMITS)
    _feed(judge, 20.0, lie, 20.0, lie, lie, 20.0)
    assert judge.quarantine_reason is not None


def test_unit_slip_is_named() -> None:
    """Milliwatts read as watts exceed what any such device can draw."""
    judge = PlausibilityJudge(_LIMITS)
    _feed(judge, 54218.0, 54218.5, 54219.0)
    assert judge.quarantine_reason is not None
    assert "more than such a device can draw" in judge.quarantine_reason


def test_sensor_returns_from_quarantine_after_ten_good_readings() -> None:
    """Trust comes back by itself, but not with the first possible reading."""
    judge = PlausibilityJudge(_LIMITS)
    _feed(judge, -1.0, -2.0, -3.0)
    passed = _feed(judge, *(20.0 + step / 10 for step in range(12)), start=3)
    assert passed[:9] == [None] * 9
    assert passed[9:] == [20.9, 21.0, 21.1]
    assert judge.quarantine_reason is None


def test_stuck_register_is_quarantined_at_once() -> None:
    """The same value to the last digit for a minute is not a steady load."""
    judge = PlausibilityJudge(_LIMITS)
    _feed(judge, *([20.125] * 602))
    assert judge.quarantine_reason is not None
    assert "stuck" in judge.quarantine_reason


def test_simulated_load_may_be_constant() -> None:
    """Where the limits do not call repetition a fault, it is none."""
    judge = PlausibilityJudge(Limits(0.5, 200.0, None))
    assert None not in _feed(judge, *([20.0] * 5000))


def test_stale_reading_is_dropped() -> None:
    """A value that was read seconds ago says nothing about now."""
    judge = PlausibilityJudge(_LIMITS)
    assert judge.examine(Reading(at_s=10.0, power_w=20.0), now_s=13.0) is None
    assert judge.rejected == 1


def test_repetition_of_the_same_sample_is_no_fault() -> None:
    """A source slower than the polling repeats its last sample, with its time."""
    judge = PlausibilityJudge(_LIMITS)
    sample = Reading(at_s=10.0, power_w=20.0)
    assert judge.examine(sample, 10.0) is not None
    assert judge.examine(sample, 10.1) is None
    assert judge.rejected == 0


def test_clock_that_steps_back_is_a_fault() -> None:
    """Time that runs backwards is dropped, and what follows on the old time line passes."""
    judge = PlausibilityJudge(_LIMITS)
    judge.examine(Reading(at_s=10.0, power_w=20.0), 10.0)
    assert judge.examine(Reading(at_s=9.0, power_w=20.0), 10.1) is None
    assert judge.examine(Reading(at_s=10.2, power_w=20.0), 10.2) is not None


def test_counter_that_jumps_gives_no_difference_across_the_jump() -> None:
    """A leap by a million joules is dropped; later readings count, in a new epoch."""
    judge = PlausibilityJudge(_LIMITS)
    first = judge.examine(Reading(at_s=0.0, energy_j=100.0), 0.0)
    assert judge.examine(Reading(at_s=0.1, energy_j=1_000_100.0), 0.1) is None
    after = judge.examine(Reading(at_s=0.2, energy_j=1_000_102.0), 0.2)
    assert first is not None
    assert after is not None
    assert after.epoch != first.epoch


def test_reading_without_a_figure_is_a_fault() -> None:
    """Neither power nor energy: nothing to pass on."""
    assert PlausibilityJudge(_LIMITS).examine(Reading(at_s=1.0), 1.0) is None


@given(st.lists(st.one_of(st.floats(), st.sampled_from([0.0, -1.0, 1e6, 1e12])), max_size=60))
def test_nothing_impossible_ever_passes(powers: list[float]) -> None:
    """Whatever comes in, what passes is finite and within the limits."""
    passed = [power_w for power_w in _feed(PlausibilityJudge(_LIMITS), *powers) if power_w is not None]
    assert all(0.5 <= power_w <= 200.0 for power_w in passed)
