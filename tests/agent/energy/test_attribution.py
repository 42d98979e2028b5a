"""Whose joules."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.agent.energy.attribution import DEFAULT_PREFILL_WEIGHT, DeviceAccount, TokenWeight
from moe2.agent.energy.meter import EnergyTrack
from moe2.agent.energy.sensor import Limits, SensorFacts
from moe2.common.energy import Attribution, Quality, Scope
from moe2.common.standby import Cause

_LOADED = frozenset({"model"})
OWN_JOB = 0
"""Of a random schedule: the host's own work, which is no request."""


def _facts(*, has_counter: bool = False, simulated: bool = False) -> SensorFacts:
    return SensorFacts(
        name="ina3221",
        device="module",
        scope=Scope.MODULE_INPUT,
        source="ina3221",
        has_counter=has_counter,
        limits=Limits(0.1, 500.0, None),
        simulated=simulated,
    )


class _Bench:
    """An account over a device whose power a test sets, sampled every 100 ms."""

    def __init__(self, *, has_counter: bool = False, simulated: bool = False) -> None:
        self.track = EnergyTrack()
        self.account = DeviceAccount(_facts(has_counter=has_counter, simulated=simulated), self.track, start_s=0.0)
        self.account.set_condition((None, _LOADED))
        self.track.add_power(0.0, 10.0)
        self._ticks = 0

    def run_until(self, end_s: float, power_w: float) -> None:
        """Sample `power_w` up to `end_s`."""
        while self._ticks * 0.1 < end_s - 1e-9:
            self._ticks += 1
            self.track.add_power(self._ticks * 0.1, power_w)

    def learn_idle(self) -> None:
        """Fifteen seconds at 10 W with nobody active."""
        for second in range(1, 16):
            self.run_until(second, 10.0)
            self.account.settle(float(second))


def test_lone_request_gets_all_above_idle_and_the_idle_share() -> None:
    """Two seconds at 40 W over 10 W idle: 80 J in all, 60 J of them marginal (up to one ramp of 100 ms)."""
    bench = _Bench()
    bench.learn_idle()
    bench.account.request_started("a", 10, 15.0)
    bench.account.first_token("a", 15.5)
    bench.account.tokens_decoded("a", 30, 17.0)
    bench.account.request_ended("a", 17.0)
    bench.run_until(17.0, 40.0)
    energy = bench.account.settle(17.0)["a"]
    assert energy.joules == pytest.approx(80.0 - 1.5)
    assert energy.marginal_joules == pytest.approx(60.0 - 1.5)
    assert energy.idle_w == pytest.approx(10.0)
    assert energy.quality is Quality.MEASURED_INTEGRATED
    assert energy.attribution is Attribution.EXCLUSIVE
    assert energy.coverage == pytest.approx(1.0)
    assert energy.n_samples == 21
    assert energy.max_gap_s == pytest.approx(0.1)
    assert energy.reason is None


def test_two_decoding_requests_share_by_tokens() -> None:
    """Thirty tokens against ten: three quarters of the dynamic energy against one quarter, idle in halves."""
    bench = _Bench()
    bench.learn_idle()
    bench.run_until(16.0, 40.0)
    for job in ("a", "b"):
        bench.account.request_started(job, 0, 16.0)
        bench.account.first_token(job, 16.0)
    bench.account.tokens_decoded("a", 30, 17.0)
    bench.account.tokens_decoded("b", 10, 17.5)
    bench.account.request_ended("a", 18.0)
    bench.account.request_ended("b", 18.0)
    bench.run_until(18.0, 40.0)
    settled = bench.account.settle(18.0)
    assert settled["a"].marginal_joules == pytest.approx(45.0)
    assert settled["b"].marginal_joules == pytest.approx(15.0)
    assert settled["b"].joules == pytest.approx(15.0 + 10.0)
    assert settled["a"].attribution is Attribution.TOKEN_SHARE


def test_guessed_tokens_weigh_what_they_took() -> None:
    """Job a wrote 30 tokens in 10 steps, with 70 guesses that weigh like 2 tokens; job b wrote 12 in as many steps."""
    bench = _Bench()
    bench.learn_idle()
    bench.run_until(16.0, 40.0)
    for job in ("a", "b"):
        bench.account.request_started(job, 0, 16.0)
        bench.account.first_token(job, 16.0)
    bench.account.tokens_guessed("a", 70, 20, 17.0)
    bench.account.tokens_decoded("a", 30, 17.0)
    bench.account.tokens_decoded("b", 12, 17.0)
    bench.account.request_ended("a", 18.0)
    bench.account.request_ended("b", 18.0)
    bench.run_until(18.0, 40.0)
    settled = bench.account.settle(18.0)
    assert settled["a"].marginal_joules == pytest.approx(settled["b"].marginal_joules)


def test_prefilled_tokens_weigh_less_than_decoded_ones() -> None:
    """350 prompt tokens weigh as much as 10 decoded ones by default."""
    bench = _Bench()
    bench.account.request_started("reader", 350, 0.0)
    bench.account.request_started("writer", 0, 0.0)
    bench.account.first_token("writer", 0.0)
    bench.account.tokens_decoded("writer", 10, 1.0)
    bench.account.first_token("reader", 2.0)
    bench.account.request_ended("writer", 2.0)
    bench.account.request_ended("reader", 2.0)
    bench.run_until(2.0, 10.0)
    settled = bench.account.settle(2.0)
    assert pytest.approx(10) == 350 * DEFAULT_PREFILL_WEIGHT
    assert settled["reader"].joules == pytest.approx(10.0)
    assert settled["writer"].joules == pytest.approx(10.0)


def test_larger_model_weighs_more_per_token() -> None:
    """Equal tokens of a model with three times the decode weight get three quarters."""
    bench = _Bench()
    for job, decode in (("large", 3.0), ("small", 1.0)):
        bench.account.request_started(job, 0, 0.0, TokenWeight(decode=decode, prefill=decode / 35))
        bench.account.first_token(job, 0.0)
    bench.account.tokens_decoded("large", 5, 1.0)
    bench.account.tokens_decoded("small", 5, 1.0)
    bench.account.request_ended("large", 2.0)
    bench.account.request_ended("small", 2.0)
    bench.run_until(2.0, 10.0)
    assert bench.account.settle(2.0)["large"].joules == pytest.approx(15.0)


def test_slice_without_tokens_is_split_by_slots() -> None:
    """Where no tokens tell, active requests share equally, and the record says so."""
    bench = _Bench()
    for job in ("a", "b"):
        bench.account.request_started(job, 0, 0.0)
        bench.account.first_token(job, 0.0)
    bench.account.request_ended("a", 1.0)
    bench.account.request_ended("b", 1.0)
    bench.run_until(1.0, 10.0)
    settled = bench.account.settle(1.0)
    assert settled["a"].joules == settled["b"].joules == pytest.approx(5.0)
    assert settled["a"].attribution is Attribution.SLOT_SHARE


def test_split_waits_for_the_end_of_a_prefill_but_not_for_ever() -> None:
    """Beside a prefill of unknown length a request settles late, at the bound, by slots."""
    bench = _Bench()
    bench.account.request_started("long", 16_000, 0.0)
    bench.account.request_started("short", 5, 0.0)
    bench.account.first_token("short", 0.1)
    bench.account.tokens_decoded("short", 3, 0.4)
    bench.account.request_ended("short", 0.5)
    bench.run_until(2.4, 10.0)
    assert bench.account.settle(2.4) == {}
    bench.run_until(2.5, 10.0)
    assert bench.account.settle(2.5)["short"].attribution is Attribution.SLOT_SHARE


def test_request_settles_only_when_samples_cover_its_end() -> None:
    """Before the next sample after its end a request has no energy yet."""
    bench = _Bench()
    bench.account.request_started("a", 1, 0.05)
    bench.run_until(1.0, 10.0)
    bench.account.request_ended("a", 1.05)
    assert bench.account.settle(1.06) == {}
    bench.run_until(1.1, 10.0)
    assert bench.account.settle(1.11)["a"].joules == pytest.approx(10.0)


def test_silent_sensor_leaves_a_request_unmeasured_not_zero() -> None:
    """Without a reading the request is handed out at the bound, with None and the reason."""
    bench = _Bench()
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
    bench = _Bench()
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
    bench = _Bench()
    bench.account.request_started("a", 1, 0.0)
    bench.account.request_ended("a", 3.0)
    bench.run_until(3.0, 10.0)
    energy = bench.account.settle(3.0)["a"]
    assert energy.joules == pytest.approx(30.0)
    assert energy.marginal_joules is None
    assert energy.idle_w is None


def test_idle_energy_goes_to_the_overhead() -> None:
    """With nobody active, the device's energy has no owner among requests."""
    bench = _Bench()
    bench.learn_idle()
    assert bench.account.overhead().joules == pytest.approx(150.0)


def test_overhead_is_unknown_before_any_idle_time() -> None:
    """No idle time measured reads as None, not as 0."""
    overhead = _Bench().account.overhead()
    assert overhead.joules is None
    assert overhead.quality is Quality.UNMEASURED
    assert overhead.reason == "no idle time was measured yet"


def test_cancelled_work_keeps_its_joules() -> None:
    """A request that ends during its prefill is charged for the time it had the device."""
    bench = _Bench()
    bench.account.request_started("a", 1000, 0.0)
    bench.account.request_ended("a", 2.0)
    bench.run_until(2.0, 10.0)
    assert bench.account.settle(2.0)["a"].joules == pytest.approx(20.0)


def test_short_request_says_that_its_resolution_is_low() -> None:
    """Two samples are no basis for a single request's figure; the record says so."""
    bench = _Bench()
    bench.account.request_started("a", 1, 0.05)
    bench.account.request_ended("a", 0.25)
    bench.run_until(0.3, 10.0)
    energy = bench.account.settle(0.3)["a"]
    assert energy.joules == pytest.approx(2.0)
    assert energy.reason is not None
    assert "resolution too low" in energy.reason


def test_simulated_device_says_so() -> None:
    """A simulated host's joules are never called measured."""
    bench = _Bench(simulated=True)
    bench.account.request_started("a", 1, 0.0)
    bench.account.request_ended("a", 3.0)
    bench.run_until(3.0, 10.0)
    assert bench.account.settle(3.0)["a"].quality is Quality.SIMULATED


def test_counter_that_moves_late_loses_nothing() -> None:
    """Energy that becomes known after its time was settled as unknown ends in the overhead, not nowhere."""
    track = EnergyTrack()
    account = DeviceAccount(_facts(has_counter=True), track, start_s=0.0)
    track.add_counter(0.0, 0.0)
    account.request_started("a", 1, 0.0)
    account.request_ended("a", 1.0)
    assert account.settle(4.0)["a"].joules is None
    track.add_counter(5.0, 100.0)
    account.settle(5.0)
    assert account.overhead().joules == pytest.approx(100.0)
    account.request_started("b", 1, 5.0)
    account.request_ended("b", 6.0)
    account.settle(9.0)
    track.add_counter(10.0, 150.0)
    account.settle(10.0)
    assert account.counted_j == pytest.approx(150.0)
    assert account.by_cause[Cause.OTHER] + account.by_cause[Cause.IDLE] == pytest.approx(150.0)


def test_loading_with_nobody_active_is_booked_to_loading() -> None:
    """Two seconds at 50 W while a model is read, within waiting at 10 W."""
    bench = _Bench()
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
    bench = _Bench()
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
    bench = _Bench()
    bench.account.cause_changed(Cause.LOADING, 0.0)
    for second in range(1, 20):
        bench.run_until(second, 80.0)
        bench.account.settle(float(second))
    assert bench.account.baseline.idle_w is None


def test_the_hosts_own_work_is_handed_out_and_booked_to_its_cause() -> None:
    """What a host spends on measuring itself is known for learning, and is no request's."""
    bench = _Bench()
    bench.account.request_started("self", 10, 0.0, cause=Cause.OTHER)
    bench.account.request_ended("self", 2.0)
    bench.run_until(2.0, 40.0)
    energy = bench.account.settle(2.0)["self"]
    assert energy.joules == pytest.approx(80.0 - 1.5)
    assert bench.account.by_cause[Cause.OTHER] == pytest.approx(energy.joules)


def test_joules_of_one_cause_and_of_requests_grow_with_each_job() -> None:
    """What stands is the sum over all that has ended, and over all slices in which nobody was active."""
    bench = _Bench()
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


def test_job_cannot_start_twice() -> None:
    """A job id that is already running is a defect of the caller."""
    account = _Bench().account
    account.request_started("a", 1, 0.0)
    with pytest.raises(ValueError, match="already started"):
        account.request_started("a", 1, 0.1)


def test_prompt_tokens_count_in_the_slices_in_which_they_were_prefilled() -> None:
    """700 prompt tokens over two seconds: half of them weigh in the second one, none after the first token."""
    bench = _Bench()
    bench.account.request_started("reader", 700, 1.0)
    bench.account.request_started("writer", 0, 2.0)
    bench.account.first_token("writer", 2.0)
    bench.account.tokens_decoded("writer", 10, 2.25)
    bench.account.tokens_decoded("writer", 20, 2.5)
    bench.account.first_token("reader", 3.0)
    bench.account.tokens_decoded("writer", 10, 3.5)
    bench.account.request_ended("reader", 4.0)
    bench.account.request_ended("writer", 4.0)
    bench.run_until(4.0, 10.0)
    settled = bench.account.settle(4.0)
    assert settled["reader"].joules == pytest.approx(10.0 + 2.5)
    assert settled["writer"].joules == pytest.approx(7.5 + 10.0)


def test_few_prompt_tokens_still_share_by_tokens() -> None:
    """Weights that add up to less than one are weights all the same."""
    bench = _Bench()
    for job, prompt_tokens in (("a", 7), ("b", 14)):
        bench.account.request_started(job, prompt_tokens, 0.0)
    for job in ("a", "b"):
        bench.account.request_ended(job, 3.0)
    bench.run_until(3.0, 10.0)
    settled = bench.account.settle(3.0)
    assert settled["a"].joules == pytest.approx(10.0)
    assert settled["a"].attribution is Attribution.TOKEN_SHARE


def test_first_token_counts_once() -> None:
    """Told again, it does not move the end of the prefill."""
    bench = _Bench()
    bench.account.request_started("a", 700, 0.0)
    bench.account.first_token("a", 1.0)
    bench.account.first_token("a", 2.0)
    bench.account.request_started("b", 0, 1.0)
    bench.account.first_token("b", 1.0)
    bench.account.tokens_decoded("b", 1, 1.5)
    for job in ("a", "b"):
        bench.account.request_ended(job, 2.0)
    bench.run_until(2.0, 10.0)
    assert bench.account.settle(2.0)["b"].joules == pytest.approx(10.0)


@pytest.mark.parametrize("tokens", [("a", "none"), ("none", "a")])
def test_record_names_the_loosest_rule_of_its_slices(tokens: tuple[str, str]) -> None:
    """One slice shared by tokens and one by slots make a share by slots, in either order."""
    bench = _Bench()
    for job in ("a", "b", "c"):
        bench.account.request_started(job, 0, 0.0)
        bench.account.first_token(job, 0.0)
    for second, job in enumerate(tokens):
        if job != "none":
            bench.account.tokens_decoded(job, 5, second + 0.5)
        bench.account.request_ended("bc"[second], second + 1.0)
    bench.account.request_ended("a", 3.0)
    bench.run_until(3.0, 10.0)
    assert bench.account.settle(3.0)["a"].attribution is Attribution.SLOT_SHARE


def test_energy_is_given_away_at_least_once_a_second_and_not_more_often() -> None:
    """Without events a slice is as long as a second; a prefill that is alone needs no end for it."""
    bench = _Bench()
    bench.learn_idle()
    bench.run_until(15.5, 10.0)
    bench.account.settle(15.5)
    assert bench.account.settled_s == 15.0
    bench.account.request_started("alone", 16_000, 15.5)
    bench.run_until(18.5, 10.0)
    bench.account.settle(18.5)
    assert bench.account.settled_s == 18.5


def test_silent_sensor_does_not_stop_the_account_of_two_prefills() -> None:
    """Time that no reading will explain any more is settled at the bound, whoever is active."""
    bench = _Bench()
    for job in ("a", "b"):
        bench.account.request_started(job, 16_000, 0.0)
    bench.account.settle(5.0)
    assert bench.account.settled_s == 3.0


def test_event_told_late_counts_at_the_latest_time() -> None:
    """An event behind the one before it neither moves time back nor counts a joule twice."""
    bench = _Bench()
    bench.account.request_started("a", 0, 1.0)
    bench.account.request_started("b", 0, 0.5)
    for job in ("a", "b"):
        bench.account.request_ended(job, 3.0)
    bench.run_until(3.0, 10.0)
    settled = bench.account.settle(3.0)
    assert settled["a"].joules == settled["b"].joules == pytest.approx(10.0)
    assert bench.account.overhead().joules == pytest.approx(10.0)


def test_event_before_what_is_settled_counts_from_there() -> None:
    """A start that is told after its time was given to the overhead begins where the account stands."""
    bench = _Bench()
    bench.learn_idle()
    bench.account.request_started("a", 0, 14.0)
    bench.account.request_ended("a", 17.0)
    bench.run_until(17.0, 10.0)
    energy = bench.account.settle(17.0)["a"]
    assert energy.joules == pytest.approx(20.0)
    assert energy.coverage == pytest.approx(1.0)


def test_request_of_no_length_is_unmeasured() -> None:
    """Started and ended in one moment: nothing was covered, so nothing is known of it."""
    bench = _Bench()
    bench.run_until(1.0, 10.0)
    bench.account.request_started("a", 1, 0.5)
    bench.account.request_ended("a", 0.5)
    energy = bench.account.settle(1.0)["a"]
    assert (energy.joules, energy.marginal_joules, energy.attribution) == (None, None, None)
    assert energy.quality is Quality.UNMEASURED


def test_98_percent_of_coverage_is_as_good_as_all() -> None:
    """A hole of two seconds in a hundred does not make a request partial."""
    bench = _Bench()
    bench.account.request_started("a", 1, 0.0)
    bench.account.request_ended("a", 100.0)
    bench.run_until(98.0, 10.0)
    bench.track.add_power(100.0, 10.0)
    energy = bench.account.settle(100.0)["a"]
    assert energy.quality is Quality.MEASURED_INTEGRATED
    assert energy.reason is None


def test_98_percent_of_coverage_make_an_idle_time_useful() -> None:
    """The same hole in a long idle time leaves its power known."""
    bench = _Bench()
    bench.run_until(10.0, 10.0)
    bench.account.settle(10.0)
    bench.run_until(108.0, 10.0)
    bench.track.add_power(110.0, 10.0)
    bench.account.settle(110.0)
    assert bench.account.baseline.idle_w == pytest.approx(10.0)


def test_counter_is_named_as_such() -> None:
    """Energy from a hardware counter is better than power added up, and says so."""
    bench = _Bench(has_counter=True)
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
        bench = _Bench()
        bench.account.suspicion = suspicion
        bench.account.request_started("a", 1, 0.0)
        bench.account.request_ended("a", end_s)
        bench.run_until(3.0, 10.0)
        assert bench.account.settle(3.0)["a"].reason == ("; ".join(filter(None, (reason, suspicion))) or None)


def test_overhead_is_a_whole_record_from_the_first_second() -> None:
    """It says where it comes from and, once known, what idling draws."""
    bench = _Bench(has_counter=True)
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


@st.composite
def _schedules(draw: st.DrawFn) -> list[tuple[float, str, int, int]]:
    """Events (time, kind, job, count) of up to six overlapping requests, in order of time."""
    events: list[tuple[float, str, int, int]] = []
    for job in range(draw(st.integers(0, 6))):
        start_s = draw(st.floats(0.0, 8.0))
        prefill_s = draw(st.floats(0.0, 3.0))
        decode_s = draw(st.floats(0.0, 5.0))
        events.append((start_s, "start", job, draw(st.integers(0, 2000))))
        if draw(st.booleans()):
            events.append((start_s + prefill_s, "first", job, 0))
            events.extend(
                (start_s + prefill_s + decode_s * share, "tokens", job, draw(st.integers(1, 8)))
                for share in sorted(draw(st.lists(st.floats(0.0, 1.0), max_size=6)))
            )
        events.append((start_s + prefill_s + decode_s, "end", job, 0))
    causes = draw(st.lists(st.tuples(st.floats(0.0, 16.0), st.integers(0, len(Cause) - 1)), max_size=6))
    events.extend((at_s, "cause", 0, cause) for at_s, cause in causes)
    return sorted(events, key=lambda event: event[0])


def _tell(account: DeviceAccount, at_s: float, kind: str, job: int, count: int) -> None:
    match kind:
        case "start":
            own = Cause.OTHER if job == OWN_JOB else None
            account.request_started(str(job), count, at_s, cause=own)
        case "cause":
            account.cause_changed(tuple(Cause)[count], at_s)
        case "first":
            account.first_token(str(job), at_s)
        case "tokens":
            account.tokens_decoded(str(job), count, at_s)
        case _:
            account.request_ended(str(job), at_s)


@pytest.mark.slow
@settings(max_examples=200)
@given(
    schedule=_schedules(),
    powers=st.lists(st.one_of(st.none(), st.floats(0.5, 400.0)), min_size=25, max_size=25),
    lose_every=st.integers(2, 50),
    settle_every=st.integers(1, 37),
    idle_first=st.booleans(),
)
def test_requests_and_overhead_add_up_to_the_device(
    schedule: list[tuple[float, str, int, int]],
    powers: list[float | None],
    lose_every: int,
    settle_every: int,
    idle_first: bool,
) -> None:
    """The invariant, over random schedules, powers, lost samples and rhythms of settling."""
    track = EnergyTrack()
    account = DeviceAccount(_facts(), track, start_s=0.0)
    account.set_condition((None, _LOADED if idle_first else frozenset()))
    offset_s = 20.0 if idle_first else 0.0
    if idle_first:
        for tick in range(200):
            track.add_power(tick * 0.1, 12.0)
            if tick % 10 == 0:
                account.settle(tick * 0.1)
    pending = [(offset_s + at_s, kind, job, count) for at_s, kind, job, count in schedule]
    settled = {}
    for tick in range(200):
        now_s = offset_s + tick * 0.1
        power_w = powers[tick // 8] if tick % lose_every else None
        while pending and pending[0][0] <= now_s:
            _tell(account, *pending.pop(0))
        if power_w is not None:
            track.add_power(now_s, power_w)
        if tick % settle_every == 0:
            settled.update(account.settle(now_s))
    settled.update(account.settle(offset_s + 25.0))
    assert len(settled) == len({job for _, kind, job, _ in schedule if kind == "end"})
    of_requests_j = sum(energy.joules or 0.0 for job, energy in settled.items() if job != str(OWN_JOB))
    overhead_j = sum(account.by_cause.values())
    device_j = track.between(0.0, account.settled_s).joules or 0.0
    assert math.isclose(of_requests_j + overhead_j, device_j, rel_tol=1e-9, abs_tol=1e-6)
    assert math.isclose(account.counted_j, device_j, rel_tol=1e-9, abs_tol=1e-6)
    own_j = (settled[str(OWN_JOB)].joules or 0.0) if str(OWN_JOB) in settled else 0.0
    assert account.by_cause[Cause.OTHER] >= own_j - 1e-6
    assert math.isclose(account.requests_j, of_requests_j, rel_tol=1e-9, abs_tol=1e-6)
    for energy in settled.values():
        if energy.marginal_joules is not None and energy.joules is not None:
            assert -1e-9 <= energy.marginal_joules <= energy.joules + 1e-9


def _while_strangers(bench: _Bench, *looks: tuple[float, str | None]) -> Quality:
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
    assert _while_strangers(_Bench(), *looks) is quality


def test_other_programs_are_named_in_the_record() -> None:
    """Whoever reads the figure learns whose work is in it."""
    bench = _Bench()
    bench.account.strangers_seen(0.0, "python3 (7)")
    bench.account.request_started("a", 1, 0.0)
    bench.account.request_ended("a", 2.0)
    bench.run_until(2.0, 40.0)
    assert "other programs were on module: python3 (7)" in (bench.account.settle(2.0)["a"].reason or "")


def test_simulated_stays_simulated_beside_other_programs() -> None:
    """The worst of the two qualities is said."""
    bench = _Bench(simulated=True)
    assert _while_strangers(bench, (14.0, "python3 (7)")) is Quality.SIMULATED
