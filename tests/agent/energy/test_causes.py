"""What of a device's joules no request has caused: idling, loading, the host's own work."""

from __future__ import annotations

import pytest

from moe2.common.energy import Attribution, Quality, Scope
from moe2.common.standby import Cause
from tests.agent.energy.accountbench import Bench


def test_idle_energy_goes_to_the_overhead() -> None:
    """With nobody active, the device's energy has no owner among requests."""
    bench = Bench()
    bench.learn_idle()
    assert bench.account.overhead().joules == pytest.approx(150.0)


def test_overhead_is_unknown_before_any_idle_time() -> None:
    """No idle time measured reads as None, not as 0."""
    overhead = Bench().account.overhead()
    assert overhead.joules is None
    assert overhead.quality is Quality.UNMEASURED
    assert overhead.reason == "no idle time was measured yet"


def test_loading_with_nobody_active_is_booked_to_loading() -> None:
    """Two seconds at 50 W while a model is read, within waiting at 10 W."""
    bench = Bench()
    bench.run_until(2.0, 10.0)
    bench.account.cause_changed(Cause.LOADING, 2.0)
    bench.run_until(4.0, 50.0)
    bench.account.cause_changed(Cause.IDLE, 4.0)
    bench.run_until(6.0, 10.0)
    bench.account.settle(6.0)
    by_cause = bench.account.by_cause
    assert by_cause[Cause.LOADING] == pytest.approx(100.0 - 2.0)
    assert by_cause[Cause.IDLE] == pytest.approx(40.0 + 2.0)
    assert by_cause[Cause.WAKING] == by_cause[Cause.OTHER] == 0.0


def test_loading_beside_a_request_takes_an_equal_share() -> None:
    """Neither does the request pay for the other model, nor does the model load for nothing."""
    bench = Bench()
    bench.run_until(1.0, 40.0)
    bench.account.settle(1.0)
    bench.account.request_started("a", 10, 1.0)
    bench.account.first_token("a", 1.0)
    bench.account.cause_changed(Cause.LOADING, 1.0)
    bench.account.request_ended("a", 3.0)
    bench.run_until(3.0, 40.0)
    energy = bench.account.settle(3.0)["a"]
    assert energy.joules == pytest.approx(40.0)
    assert energy.attribution is Attribution.SLOT_SHARE
    assert bench.account.by_cause[Cause.LOADING] == pytest.approx(40.0)


def test_loading_does_not_count_as_idle_power() -> None:
    """The baseline is that of waiting."""
    bench = Bench()
    bench.account.cause_changed(Cause.LOADING, 0.0)
    for second in range(1, 20):
        bench.run_until(second, 80.0)
        bench.account.settle(float(second))
    assert bench.account.baseline.idle_w is None


def test_the_hosts_own_work_is_handed_out_and_booked_to_its_cause() -> None:
    """What a host spends on measuring itself is known for learning, and is no request's."""
    bench = Bench()
    bench.account.request_started("self", 10, 0.0, cause=Cause.OTHER)
    bench.account.request_ended("self", 2.0)
    bench.run_until(2.0, 40.0)
    energy = bench.account.settle(2.0)["self"]
    assert energy.joules == pytest.approx(80.0 - 1.5)
    assert bench.account.by_cause[Cause.OTHER] == pytest.approx(energy.joules)


def test_joules_of_one_cause_and_of_requests_grow_with_each_job() -> None:
    """What stands is the sum over all that has ended, and over all slices in which nobody was active."""
    bench = Bench()
    bench.account.cause_changed(Cause.WAKING, 0.0)
    for number, cause in enumerate((Cause.OTHER, None, Cause.OTHER, None)):
        bench.account.request_started(f"{number}", 1, 4.0 * number, cause=cause)
        bench.account.request_ended(f"{number}", 4.0 * number + 2.0)
    bench.account.cause_changed(Cause.IDLE, 16.0)
    bench.run_until(18.0, 10.0)
    for second in range(19):
        bench.account.settle(float(second))
    by_cause = bench.account.by_cause
    figures = (by_cause[Cause.OTHER], bench.account.requests_j, by_cause[Cause.WAKING], by_cause[Cause.IDLE])
    # Waking takes an equal share beside each job.
    assert figures == pytest.approx((20.0, 20.0, 120.0, 20.0))
    assert bench.account.covered_s == pytest.approx(18.0)
    assert bench.account.counted_j == pytest.approx(180.0)
    assert bench.account.known_j(2.0, 5.0) == pytest.approx(30.0)
    assert bench.account.known_j(20.0, 21.0) == 0.0


def test_overhead_is_a_whole_record_from_the_first_second() -> None:
    """It says where it comes from and, once known, what idling draws."""
    bench = Bench(has_counter=True)
    bench.run_until(1.0, 10.0)
    bench.account.settle(1.0)
    overhead = bench.account.overhead()
    assert overhead.joules == pytest.approx(10.0)
    assert (overhead.quality, overhead.scope, overhead.source) == (
        Quality.MEASURED_COUNTER,
        Scope.MODULE_INPUT,
        "ina3221",
    )
    assert (overhead.idle_w, overhead.reason) == (None, None)
    bench.learn_idle()
    assert bench.account.overhead().idle_w == pytest.approx(10.0)
