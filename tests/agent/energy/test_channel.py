"""One sensor's running state and what it reports."""

from __future__ import annotations

import math

import pytest

from moe2.agent.energy.channel import SensorChannel, fault_of
from moe2.agent.energy.meter import EnergyTrack
from moe2.agent.energy.sensor import Reading, SensorBrokenError, SensorDeniedError, SensorMissedError
from tests.fakes import sensors


def _channel(*, has_counter: bool = False) -> SensorChannel:
    return SensorChannel(sensors.facts(has_counter=has_counter), EnergyTrack(), opened_s=0.0)


def _run(channel: SensorChannel, power_w: float, *, steps: int = 20) -> float:
    """Readings of `power_w` 100 ms apart; the time of the last one."""
    for step in range(steps):
        channel.read(Reading(at_s=step * 0.1, power_w=power_w + step * 1e-4), step * 0.1)
    return (steps - 1) * 0.1


def test_present_power_is_the_mean_of_the_last_second() -> None:
    """A report shows recent power in W."""
    channel = _channel()
    now_s = _run(channel, 20.0)
    assert channel.report(now_s).state == "present"
    assert channel.report(now_s).power_w == pytest.approx(20.0, abs=0.01)


def test_power_is_unknown_once_it_is_old() -> None:
    """Three seconds after the last reading there is no present power, and the silence is a warning."""
    channel = _channel()
    now_s = _run(channel, 20.0) + 3.0
    assert channel.power_w(now_s) is None
    assert [warning.code for warning in channel.warnings(now_s)] == ["sensor_silent"]


def test_refusal_midway_is_denied_with_its_remedy() -> None:
    """EPERM in the middle of the run: denied, with the remedy, and no power."""
    channel = _channel()
    now_s = _run(channel, 20.0)
    channel.failed(SensorDeniedError("energy_uj may not be read.", remedy="Join the group."))
    (warning,) = channel.warnings(now_s)
    assert (warning.code, warning.remedy) == ("sensor_denied", "Join the group.")
    assert channel.report(now_s).state == "denied"
    assert channel.report(now_s).power_w is None


def test_sensor_that_answers_again_is_present_again() -> None:
    """A fault ends with the next good reading."""
    channel = _channel()
    channel.failed(SensorBrokenError("gone."))
    now_s = _run(channel, 20.0)
    assert channel.warnings(now_s) == ()


def test_lying_sensor_is_quarantined_with_a_named_warning() -> None:
    """NaN over and over: a warning with a code, and nothing enters the track."""
    channel = _channel()
    for step in range(5):
        channel.read(Reading(at_s=step * 0.1, power_w=math.nan), step * 0.1)
    assert [warning.code for warning in channel.warnings(0.5)] == ["sensor_quarantined"]
    assert channel.track.frontier_s is None


def test_hung_read_is_told_apart_from_a_broken_one() -> None:
    """A read that does not return is reported with how long it has lasted."""
    channel = _channel()
    _run(channel, 20.0)
    channel.hung(2.0)
    (warning,) = channel.warnings(7.0)
    assert warning.code == "sensor_hung"
    assert "5.0 s" in warning.message


def test_counter_that_disagrees_with_power_is_suspect() -> None:
    """187 J counted where 327 J were integrated: used, but said to be suspect."""
    channel = _channel(has_counter=True)
    for step in range(60):
        at_s = step * 0.1
        channel.read(Reading(at_s=at_s, energy_j=37.4 * at_s, power_w=65.4 + step * 1e-4), at_s)
    assert channel.suspicion is not None
    assert "-43%" in channel.suspicion
    assert [warning.code for warning in channel.warnings(6.0)] == ["sensor_suspect"]


def test_counter_that_agrees_with_power_is_not_suspect() -> None:
    """Within ten percent there is nothing to say."""
    channel = _channel(has_counter=True)
    for step in range(60):
        at_s = step * 0.1
        channel.read(Reading(at_s=at_s, energy_j=50.0 * at_s, power_w=52.0 + step * 1e-4), at_s)
    assert channel.suspicion is None
    assert channel.warnings(6.0) == ()


def test_unforeseen_exception_is_a_broken_sensor() -> None:
    """Whatever a driver's library raises becomes a sentence with its name."""
    fault = fault_of(ZeroDivisionError("oh"), "nvml:0")
    assert isinstance(fault, SensorBrokenError)
    assert "nvml:0" in fault.message
    assert "ZeroDivisionError" in fault.message


def _standing(channel: SensorChannel, *, seconds: float) -> None:
    """The counter moves for one second and stands from then on, while 50 W are drawn all the time."""
    for step in range(round(seconds * 10) + 1):
        at_s = step * 0.1
        channel.read(Reading(at_s=at_s, energy_j=50.0 * min(at_s, 1.0), power_w=50.0 + step * 1e-6), at_s)


def test_power_stands_in_for_a_counter_that_stands_still() -> None:
    """No joule is lost: those of the time in which that was not known yet are integrated as well."""
    channel = _channel(has_counter=True)
    _standing(channel, seconds=10.0)
    window = channel.track.between(0.0, 10.0)
    assert window.joules == pytest.approx(500.0, rel=1e-3)
    assert window.coverage == pytest.approx(1.0)


def test_a_counter_that_stands_still_is_told() -> None:
    """In a notice, in the records' source and in their quality."""
    channel = _channel(has_counter=True)
    _standing(channel, seconds=10.0)
    (warning,) = channel.warnings(10.0)
    assert warning.code == "sensor_suspect"
    assert "stands still" in warning.message
    assert not channel.facts.has_counter


def test_a_sensor_found_anew_may_use_its_counter_again() -> None:
    """A driver that was loaded again gets a new chance, without a difference across."""
    channel = _channel(has_counter=True)
    _standing(channel, seconds=10.0)
    channel.found_anew(sensors.facts(has_counter=True))
    for step in range(20):
        at_s = 11.0 + step * 0.1
        channel.read(Reading(at_s=at_s, energy_j=step * 4.0, power_w=40.0 + step * 1e-3), at_s)
    assert channel.suspicion is None
    assert channel.track.between(11.0, 12.9).joules == pytest.approx(76.0)
    assert channel.track.between(10.0, 11.0).joules is None


def test_a_counter_without_power_may_stand() -> None:
    """RAPL tells no power of its own: nothing can stand in, and nothing is said."""
    channel = _channel(has_counter=True)
    for step in range(60):
        channel.read(Reading(at_s=step * 0.1, energy_j=7.0), step * 0.1)
    assert channel.suspicion is None


def test_a_few_missed_samples_are_no_fault() -> None:
    """A busy bus: the samples around bridge it, and nobody is told."""
    channel = _channel()
    _run(channel, 20.0)
    for _ in range(3):
        channel.failed(SensorMissedError("busy."))
    assert channel.warnings(2.2) == ()
    channel.failed(SensorMissedError("busy."))
    assert [warning.code for warning in channel.warnings(2.3)] == ["sensor_lost"]
    channel.read(Reading(at_s=2.4, power_w=20.0), 2.4)
    assert channel.warnings(2.4) == ()
    assert channel.track.between(0.0, 2.4).coverage == pytest.approx(1.0)
