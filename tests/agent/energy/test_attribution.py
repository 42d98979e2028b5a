"""How the joules of a device are shared among the requests that it served."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.agent.energy.attribution import DEFAULT_PREFILL_WEIGHT, DeviceAccount, TokenWeight
from moe2.agent.energy.meter import EnergyTrack
from moe2.common.energy import Attribution, Quality
from moe2.common.standby import Cause
from tests.agent.energy.accountbench import LOADED, OWN_JOB, Bench, sensor_facts


def test_lone_request_gets_all_above_idle_and_the_idle_share() -> None:
    """Two seconds at 40 W over 10 W idle: 80 J in all, 60 J of them marginal (up to one ramp of 100 ms)."""
    bench = Bench()
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
    bench = Bench()
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
    bench = Bench()
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
    bench = Bench()
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
    bench = Bench()
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
    bench = Bench()
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
    bench = Bench()
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
    bench = Bench()
    bench.account.request_started("a", 1, 0.05)
    bench.run_until(1.0, 10.0)
    bench.account.request_ended("a", 1.05)
    assert bench.account.settle(1.06) == {}
    bench.run_until(1.1, 10.0)
    assert bench.account.settle(1.11)["a"].joules == pytest.approx(10.0)


def test_cancelled_work_keeps_its_joules() -> None:
    """A request that ends during its prefill is charged for the time it had the device."""
    bench = Bench()
    bench.account.request_started("a", 1000, 0.0)
    bench.account.request_ended("a", 2.0)
    bench.run_until(2.0, 10.0)
    assert bench.account.settle(2.0)["a"].joules == pytest.approx(20.0)


def test_counter_that_moves_late_loses_nothing() -> None:
    """Energy that becomes known after its time was settled as unknown ends in the overhead, not nowhere."""
    track = EnergyTrack()
    account = DeviceAccount(sensor_facts(has_counter=True), track, start_s=0.0)
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


def test_job_cannot_start_twice() -> None:
    """A job id that is already running is a defect of the caller."""
    account = Bench().account
    account.request_started("a", 1, 0.0)
    with pytest.raises(ValueError, match="already started"):
        account.request_started("a", 1, 0.1)


def test_prompt_tokens_count_in_the_slices_in_which_they_were_prefilled() -> None:
    """700 prompt tokens over two seconds: half of them weigh in the second one, none after the first token."""
    bench = Bench()
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
    bench = Bench()
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
    bench = Bench()
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
    bench = Bench()
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
    bench = Bench()
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
    bench = Bench()
    for job in ("a", "b"):
        bench.account.request_started(job, 16_000, 0.0)
    bench.account.settle(5.0)
    assert bench.account.settled_s == 3.0


def test_event_told_late_counts_at_the_latest_time() -> None:
    """An event behind the one before it neither moves time back nor counts a joule twice."""
    bench = Bench()
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
    bench = Bench()
    bench.learn_idle()
    bench.account.request_started("a", 0, 14.0)
    bench.account.request_ended("a", 17.0)
    bench.run_until(17.0, 10.0)
    energy = bench.account.settle(17.0)["a"]
    assert energy.joules == pytest.approx(20.0)
    assert energy.coverage == pytest.approx(1.0)


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
    account = DeviceAccount(sensor_facts(), track, start_s=0.0)
    account.set_condition((None, LOADED if idle_first else frozenset()))
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
