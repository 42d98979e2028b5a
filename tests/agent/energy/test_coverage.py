"""How far a request's joules were measured: gaps, resolution, strangers on the device."""

from __future__ import annotations

import pytest

from moe2.common.energy import Quality
from tests.agent.energy.accountbench import Bench


def test_silent_sensor_leaves_a_request_unmeasured_not_zero() -> None:
    """Without a reading the request is handed out at the bound, with None and the reason."""
    bench = Bench()
    bench.account.request_started("a", 1, 1.0)
    bench.account.request_ended("a", 3.0)
    assert bench.account.settle(4.9) == {}
    energy = bench.account.settle(5.0)["a"]
    assert energy.joules is None
    assert energy.marginal_joules is None
    assert energy.quality is Quality.UNMEASURED
    assert energy.reason == "ina3221 gave no usable reading during the request's 2.00 s"


def test_gap_makes_a_request_partial() -> None:
    """Half of the window without readings: a lower bound that is called one."""
    bench = Bench()
    bench.account.request_started("a", 1, 0.0)
    bench.run_until(2.0, 10.0)
    bench.account.request_ended("a", 4.0)
    energy = bench.account.settle(6.1)["a"]
    assert energy.quality is Quality.PARTIAL
    assert energy.joules == pytest.approx(20.0)
    assert energy.coverage == pytest.approx(0.5)
    assert energy.reason is not None
    assert "50%" in energy.reason


def test_without_a_baseline_nothing_is_called_marginal() -> None:
    """Before ten idle seconds were seen, the marginal energy is unknown."""
    bench = Bench()
    bench.account.request_started("a", 1, 0.0)
    bench.account.request_ended("a", 3.0)
    bench.run_until(3.0, 10.0)
    energy = bench.account.settle(3.0)["a"]
    assert energy.joules == pytest.approx(30.0)
    assert energy.marginal_joules is None
    assert energy.idle_w is None


def test_short_request_says_that_its_resolution_is_low() -> None:
    """Two samples are no basis for a single request's figure; the record says so."""
    bench = Bench()
    bench.account.request_started("a", 1, 0.05)
    bench.account.request_ended("a", 0.25)
    bench.run_until(0.3, 10.0)
    energy = bench.account.settle(0.3)["a"]
    assert energy.joules == pytest.approx(2.0)
    assert energy.reason is not None
    assert "resolution too low" in energy.reason


def test_simulated_device_says_so() -> None:
    """A simulated host's joules are never called measured."""
    bench = Bench(simulated=True)
    bench.account.request_started("a", 1, 0.0)
    bench.account.request_ended("a", 3.0)
    bench.run_until(3.0, 10.0)
    assert bench.account.settle(3.0)["a"].quality is Quality.SIMULATED


def test_request_of_no_length_is_unmeasured() -> None:
    """Started and ended in one moment: nothing was covered, so nothing is known of it."""
    bench = Bench()
    bench.run_until(1.0, 10.0)
    bench.account.request_started("a", 1, 0.5)
    bench.account.request_ended("a", 0.5)
    energy = bench.account.settle(1.0)["a"]
    assert (energy.joules, energy.marginal_joules, energy.attribution) == (None, None, None)
    assert energy.quality is Quality.UNMEASURED


def test_98_percent_of_coverage_is_as_good_as_all() -> None:
    """A hole of two seconds in a hundred does not make a request partial."""
    bench = Bench()
    bench.account.request_started("a", 1, 0.0)
    bench.account.request_ended("a", 100.0)
    bench.run_until(98.0, 10.0)
    bench.track.add_power(100.0, 10.0)
    energy = bench.account.settle(100.0)["a"]
    assert energy.quality is Quality.MEASURED_INTEGRATED
    assert energy.reason is None


def test_98_percent_of_coverage_make_an_idle_time_useful() -> None:
    """The same hole in a long idle time leaves its power known."""
    bench = Bench()
    bench.run_until(10.0, 10.0)
    bench.account.settle(10.0)
    bench.run_until(108.0, 10.0)
    bench.track.add_power(110.0, 10.0)
    bench.account.settle(110.0)
    assert bench.account.baseline.idle_w == pytest.approx(10.0)


def test_counter_is_named_as_such() -> None:
    """Energy from a hardware counter is better than power added up, and says so."""
    bench = Bench(has_counter=True)
    bench.account.request_started("a", 1, 0.0)
    bench.account.request_ended("a", 3.0)
    bench.run_until(3.0, 10.0)
    assert bench.account.settle(3.0)["a"].quality is Quality.MEASURED_COUNTER


@pytest.mark.parametrize(
    ("end_s", "reason"),
    [
        (0.15, "resolution too low for a single request: 2 samples in 0.15 s"),
        (0.25, "low resolution: 3 samples in 0.25 s"),
        (2.0, None),
    ],
)
def test_record_says_how_fine_its_readings_were(end_s: float, reason: str | None) -> None:
    """Under three readings, under two seconds, or neither; a suspicion about the sensor follows."""
    for suspicion in (None, "the sensor repeats itself"):
        bench = Bench()
        bench.account.suspicion = suspicion
        bench.account.request_started("a", 1, 0.0)
        bench.account.request_ended("a", end_s)
        bench.run_until(3.0, 10.0)
        assert bench.account.settle(3.0)["a"].reason == ("; ".join(filter(None, (reason, suspicion))) or None)


def _while_strangers(bench: Bench, *looks: tuple[float, str | None]) -> Quality:
    """The quality of a request from 15 to 17 s, with looks at the device's processes at these times."""
    bench.learn_idle()
    for at_s, names in looks:
        bench.account.strangers_seen(at_s, names)
    bench.account.request_started("a", 1, 15.0)
    bench.account.request_ended("a", 17.0)
    bench.run_until(17.0, 40.0)
    return bench.account.settle(17.0)["a"].quality


@pytest.mark.parametrize(
    ("looks", "quality"),
    [
        ([(14.0, None)], Quality.MEASURED_INTEGRATED),
        ([(12.0, "python3 (7)"), (14.0, None)], Quality.MEASURED_INTEGRATED),
        ([(14.0, "python3 (7)")], Quality.PARTIAL),
        ([(14.0, "python3 (7)"), (15.5, None)], Quality.PARTIAL),
        ([(16.5, "python3 (7)"), (18.0, None)], Quality.PARTIAL),
        ([(14.5, None), (18.5, "python3 (7)")], Quality.PARTIAL),
        ([(17.5, None), (18.5, "python3 (7)")], Quality.MEASURED_INTEGRATED),
    ],
    ids=["none", "before", "during", "until midway", "from midway", "between two looks", "after"],
)
def test_joules_beside_other_programs_are_partial(looks: list[tuple[float, str | None]], quality: Quality) -> None:
    """From the look before the first that saw them until the next that did not, nobody knows whose they are."""
    assert _while_strangers(Bench(), *looks) is quality


def test_other_programs_are_named_in_the_record() -> None:
    """Whoever reads the figure learns whose work is in it."""
    bench = Bench()
    bench.account.strangers_seen(0.0, "python3 (7)")
    bench.account.request_started("a", 1, 0.0)
    bench.account.request_ended("a", 2.0)
    bench.run_until(2.0, 40.0)
    assert "other programs were on module: python3 (7)" in (bench.account.settle(2.0)["a"].reason or "")


def test_simulated_stays_simulated_beside_other_programs() -> None:
    """The worst of the two qualities is said."""
    bench = Bench(simulated=True)
    assert _while_strangers(bench, (14.0, "python3 (7)")) is Quality.SIMULATED
