"""Circuit breakers: experts that fail lose their traffic and earn it back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.errors import REQUEST_FAULTS, JobErrorCode
from moe2.coordinator.fleet.breaker import EXPLAINED_S, FIRST_OPEN_S, HALF_LIFE_S, MAX_OPEN_S, Breakers, BreakerState
from moe2.coordinator.fleet.table import Expert
from tests.coordinator.experts import expert

KEY = "agent-1/m"


def fail(breakers: Breakers, now_s: float, *, code: str = JobErrorCode.INTERNAL, job: str = "job") -> None:
    """Lets a job fail at once, as the worst kind of expert does."""
    breakers.submitted(KEY, job, now_s)
    breakers.failed(KEY, job, code, now_s, submitted_s=now_s)


def tripped(now_s: float = 100.0) -> Breakers:
    breakers = Breakers()
    for n in range(3):
        fail(breakers, now_s - 0.02 + 0.01 * n)
    return breakers


def state(breakers: Breakers, now_s: float) -> BreakerState:
    return breakers.states(now_s)[KEY]


def test_three_failures_in_a_row_open_it() -> None:
    """Three failures in a row open a breaker, two do not."""
    breakers = Breakers()
    fail(breakers, 100.0)
    fail(breakers, 100.1)
    assert breakers.barred(100.2) == {}
    fail(breakers, 100.2)
    assert set(breakers.barred(100.2)) == {KEY}


def test_failures_among_many_answers_do_not_open_it() -> None:
    """Failures below the error rate do not open a breaker, as their requests fail over."""
    breakers = Breakers()
    for n in range(40):
        breakers.succeeded(KEY, "job", 100.0 + n)
        if n % 3 == 0:
            fail(breakers, 100.5 + n)
    assert breakers.barred(140.0) == {}


def test_old_failures_are_forgotten() -> None:
    """A failure now and then, with answers between them, does not open a breaker."""
    breakers = Breakers()
    for n in range(10):
        fail(breakers, 100.0 + 4 * HALF_LIFE_S * n)
        breakers.succeeded(KEY, "job", 101.0 + 4 * HALF_LIFE_S * n)
    assert breakers.barred(1e6) == {}


def test_a_slow_stream_of_failures_opens_it_too() -> None:
    """Three failures in a row open a breaker even if they are an hour apart."""
    breakers = Breakers()
    for n in range(3):
        fail(breakers, 100.0 + 1200.0 * n)
    assert set(breakers.barred(2500.0)) == {KEY}


def test_many_failures_among_answers_open_it() -> None:
    """Failures of half the requests open a breaker, even if no three of them come in a row."""
    breakers = Breakers()
    for n in range(6):
        breakers.succeeded(KEY, "job", 100.0 + n)
        fail(breakers, 100.2 + n)
        fail(breakers, 100.4 + n)
    assert breakers.states(106.0)[KEY] is not BreakerState.CLOSED


def test_an_engine_that_hung_begins_anew_once_it_has_been_restarted() -> None:
    """A restart closes the breaker of an engine that hung, and of no other."""
    hung, failing = Breakers(), tripped()
    hung.late(KEY, "job", 100.0, hangs=True, restarts=2)
    assert hung.wants_news
    hung.seen([expert(restarts=2)], 101.0)
    assert state(hung, 100.0) is BreakerState.OPEN
    hung.seen([expert(restarts=3)], 102.0)
    assert (state(hung, 100.0), hung.wants_news) == (BreakerState.CLOSED, False)
    assert not failing.wants_news
    failing.seen([expert(restarts=3)], 102.0)
    assert state(failing, 100.0) is BreakerState.OPEN


@pytest.mark.parametrize("code", sorted(REQUEST_FAULTS | {JobErrorCode.QUEUE_FULL, JobErrorCode.DRAINING}))
def test_what_is_not_the_experts_fault_does_not_count(code: str) -> None:
    """A failure that is not the expert's fault takes no traffic from it."""
    breakers = Breakers()
    for n in range(10):
        fail(breakers, 100.0 + n, code=code)
    assert breakers.barred(110.0) == {}


def disowned(breakers: Breakers) -> None:
    for job in ("one", "two"):
        fail(breakers, 100.0, code=JobErrorCode.UNKNOWN_EXPERT, job=job)


def test_an_expert_that_was_taken_from_its_host_begins_anew() -> None:
    """Jobs that were on their way to it do not count against it when it is served again."""
    breakers = Breakers()
    disowned(breakers)
    breakers.seen([expert("other")], 101.0)
    fail(breakers, 105.0)
    assert state(breakers, 105.0) is BreakerState.CLOSED


def test_an_agent_that_disowns_what_it_reports_loses_its_traffic() -> None:
    """It is held to what it said, and reports are not asked about it for ever."""
    breakers = Breakers()
    disowned(breakers)
    breakers.seen([expert()], 101.0)
    fail(breakers, 105.0, code=JobErrorCode.UNKNOWN_EXPERT)
    assert state(breakers, 105.0) is BreakerState.OPEN
    breakers.seen([expert()], 116.0)
    assert not breakers.wants_news


def turn_away(breakers: Breakers, *at_s: float) -> None:
    """The expert, which is reported as ready, refuses a job at each of these moments because it is not."""
    for now_s in at_s:
        breakers.submitted(KEY, "job", now_s)
        breakers.refused(KEY, "job", now_s, restarts=0)


@pytest.mark.parametrize("reported", [[], [expert(restarts=1)]], ids=["missing", "restarted"])
def test_refusals_of_an_engine_that_died_do_not_count(reported: list[Expert]) -> None:
    """Of each death the next report tells, by the expert's absence or its restarts."""
    breakers = Breakers()
    for n in range(10):
        turn_away(breakers, *(100.0 + 10 * n + 0.1 * one for one in range(8)))
        breakers.seen(reported, 101.0 + 10 * n)
    assert breakers.barred(191.0) == {}
    assert not breakers.wants_news


def test_an_expert_that_is_reported_ready_and_is_not_loses_its_traffic() -> None:
    """It is held to its reports: a refusal counts after a while in which none has explained it."""
    breakers = Breakers()
    for n in range(3):
        now_s = 100.0 + 2 * EXPLAINED_S * n
        turn_away(breakers, now_s)
        breakers.seen([expert()], now_s + 1.0)
        turn_away(breakers, now_s + EXPLAINED_S)
    assert set(breakers.barred(now_s + EXPLAINED_S)) == {KEY}


def test_a_refusal_is_not_remembered_for_ever() -> None:
    """What comes long after it is another matter."""
    breakers = tripped()
    turn_away(breakers, 105.0)
    assert breakers.wants_news
    breakers.seen([expert()], 115.0)
    assert not breakers.wants_news


def test_a_probe_that_is_turned_away_frees_its_place() -> None:
    """It is no failed probe: the next request tries the expert."""
    breakers = tripped()
    turn_away(breakers, 105.0)
    assert breakers.barred(105.0) == {}
    assert state(breakers, 105.0) is BreakerState.HALF_OPEN


def test_one_crash_counts_once() -> None:
    """Jobs that die together count as one failure; each job submitted later counts as another."""
    breakers = Breakers()
    for n in range(8):
        breakers.failed(KEY, f"{n}", JobErrorCode.ENGINE_CRASHED, 100.0, submitted_s=90.0 + n)
    assert breakers.barred(100.0) == {}
    for n in range(2):
        breakers.failed(KEY, f"{n}", JobErrorCode.ENGINE_CRASHED, 101.0 + n, submitted_s=100.5 + n)
    assert set(breakers.barred(102.0)) == {KEY}


def test_lateness_counts_as_failure() -> None:
    """Three late jobs in a row open a breaker."""
    breakers = Breakers()
    for n in range(3):
        assert breakers.barred(100.0 + n) == {}
        breakers.late(KEY, f"{n}", 100.0 + n, hangs=False)
    assert set(breakers.barred(102.0)) == {KEY}


def test_an_expert_that_hangs_loses_its_traffic_at_once() -> None:
    """A single job that is late enough to show a hang opens a breaker."""
    breakers = Breakers()
    breakers.late(KEY, "0", 100.0, hangs=True)
    assert set(breakers.barred(100.0)) == {KEY}


def test_late_jobs_from_before_do_not_prolong_it() -> None:
    """While a breaker is open only its probe counts, not older jobs that are late."""
    breakers = tripped()
    breakers.late(KEY, "older", 104.0, hangs=True)
    assert breakers.barred(100.0 + FIRST_OPEN_S) == {}


def test_half_open_lets_one_request_through_at_a_time() -> None:
    """A half-open breaker lets one request through and holds the others until it has ended."""
    breakers = tripped()
    now_s = 100.0 + FIRST_OPEN_S
    assert state(breakers, now_s) is BreakerState.HALF_OPEN
    assert breakers.barred(now_s) == {}
    breakers.submitted(KEY, "probe", now_s)
    assert set(breakers.barred(now_s)) == {KEY}
    breakers.succeeded(KEY, "probe", now_s + 1)
    assert state(breakers, now_s + 1) is BreakerState.CLOSED
    assert breakers.barred(now_s + 1) == {}


def test_an_older_jobs_answer_does_not_close_it() -> None:
    """The answer to a job from before the failures does not close a breaker."""
    breakers = tripped()
    breakers.succeeded(KEY, "older", 101.0)
    breakers.submitted(KEY, "probe", 100.0 + FIRST_OPEN_S)
    breakers.succeeded(KEY, "older", 106.0)
    assert set(breakers.barred(106.0)) == {KEY}


def test_a_probe_that_is_cancelled_frees_its_place() -> None:
    """After a cancelled probe the next request is the probe."""
    breakers = tripped()
    breakers.submitted(KEY, "probe", 106.0)
    breakers.ended(KEY, "probe")
    assert breakers.barred(107.0) == {}
    assert state(breakers, 107.0) is BreakerState.HALF_OPEN


def test_each_failed_probe_doubles_the_pause() -> None:
    """Each failed probe doubles the pause, up to a limit of minutes."""
    breakers, now_s, pauses = tripped(), 100.0, []
    for n in range(10):
        opens_s = breakers.next_change_s(now_s)
        assert opens_s is not None
        pauses.append(round(opens_s - now_s, 6))
        now_s = opens_s
        fail(breakers, now_s, job=f"probe {n}")
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0, 300.0]


def test_after_long_good_service_the_pause_is_short_again() -> None:
    """After long good service the first pause is short again."""
    breakers = tripped()
    breakers.submitted(KEY, "probe", 106.0)
    breakers.succeeded(KEY, "probe", 107.0)
    later_s = 107.0 + MAX_OPEN_S + 1
    for n in range(3):
        fail(breakers, later_s + 0.01 * n)
    assert breakers.opens_again_in_s(KEY, later_s + 0.02) == pytest.approx(FIRST_OPEN_S)


def play(breakers: Breakers, outcomes: str, now_s: float) -> None:
    """Lets the expert answer (s) or fail (f) in this order, all in one moment."""
    for outcome in outcomes:
        if outcome == "s":
            breakers.succeeded(KEY, "job", now_s)
        else:
            fail(breakers, now_s)


@pytest.mark.parametrize(
    ("outcomes", "expected"), [("sfsfsf", BreakerState.OPEN), ("ssfsfsf", BreakerState.CLOSED), ("ff", "closed")]
)
def test_three_failures_that_are_half_of_all_outcomes_open_it(outcomes: str, expected: str) -> None:
    """Exactly half is enough, less is not, and neither are two failures."""
    breakers = Breakers()
    play(breakers, outcomes, 100.0)
    assert state(breakers, 100.0) == expected


def test_an_answer_ends_a_row_of_failures() -> None:
    """Two failures after an answer are two in a row."""
    breakers = Breakers()
    play(breakers, "ssssffsff", 100.0)
    assert state(breakers, 100.0) is BreakerState.CLOSED


def test_outcomes_count_half_after_their_half_life() -> None:
    """Failures fade, and so do the answers that would excuse new ones."""
    faded = Breakers()
    play(faded, "sffs", 100.0)
    fail(faded, 100.0 + 2 * HALF_LIFE_S)
    assert state(faded, 100.0 + 2 * HALF_LIFE_S) is BreakerState.CLOSED
    excused = Breakers()
    play(excused, "s" * 10, 100.0)
    play(excused, "sfsfsff", 100.0 + 10 * HALF_LIFE_S)
    assert state(excused, 100.0 + 10 * HALF_LIFE_S) is BreakerState.OPEN


@pytest.mark.parametrize(("outcomes", "expected"), [("ff", BreakerState.CLOSED), ("fsfsf", BreakerState.OPEN)])
def test_a_probes_answer_begins_a_new_record(outcomes: str, expected: BreakerState) -> None:
    """Afterwards one answer and no failure are known of the expert."""
    breakers = tripped(100.0)
    breakers.submitted(KEY, "probe", 100.0 + FIRST_OPEN_S)
    breakers.succeeded(KEY, "probe", 106.0)
    play(breakers, outcomes, 106.0)
    assert state(breakers, 106.0) is expected


@pytest.mark.parametrize(("pause_s", "opens_for_s"), [(1.0, 10.0), (MAX_OPEN_S, 10.0), (MAX_OPEN_S + 1, 5.0)])
def test_an_expert_that_fails_again_soon_is_left_out_for_longer(pause_s: float, opens_for_s: float) -> None:
    """The pause doubles unless the expert has worked for longer than the longest pause."""
    breakers = tripped(100.0)
    breakers.submitted(KEY, "probe", 106.0)
    breakers.succeeded(KEY, "probe", 106.0)
    play(breakers, "fff", 106.0 + pause_s)
    assert breakers.opens_again_in_s(KEY, 106.0 + pause_s) == opens_for_s


def test_jobs_submitted_in_the_moment_of_a_crash_count_with_it() -> None:
    """An event that fails all jobs together counts once, also for a job that came at the same time."""
    breakers = Breakers()
    for n in range(4):
        breakers.failed(KEY, f"job-{n}", JobErrorCode.AGENT_LOST, 100.0, submitted_s=100.0)
    assert state(breakers, 100.0) is BreakerState.CLOSED


def test_a_late_probe_is_no_hang() -> None:
    """The breaker stays open by its clock; a restart of the engine does not close it."""
    breakers = tripped(100.0)
    breakers.submitted(KEY, "probe", 106.0)
    breakers.late(KEY, "probe", 107.0, hangs=False)
    assert not breakers.wants_news
    assert state(breakers, 107.0) is BreakerState.OPEN


def test_times_of_change_are_known_only_of_open_breakers() -> None:
    """A breaker that is closed, unknown or half-open is waited for no longer."""
    breakers = tripped(100.0)
    assert breakers.opens_again_in_s("agent-2/m", 100.0) == 0.0
    assert breakers.opens_again_in_s(KEY, 200.0) == 0.0
    assert breakers.next_change_s(100.0) == 105.0
    assert breakers.next_change_s(105.0) is None


def test_an_evicted_agents_breakers_are_forgotten() -> None:
    """The breakers of an evicted agent are forgotten."""
    breakers = tripped()
    breakers.forget("agent-1")
    assert breakers.states(100.0) == {}


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["submitted", "succeeded", "failed", "late", "ended"]),
        st.sampled_from(["a", "b", "c"]),
        st.floats(0, 20),
    ),
    max_size=60,
)


@given(EVENTS)
def test_no_schedule_has_two_probes_or_stays_open_for_good(events: list[tuple[str, str, float]]) -> None:
    """In any schedule at most one probe runs at a time, and once it has ended time alone lets the next one in."""
    breakers, now_s = Breakers(), 0.0
    probes: set[str] = set()
    for what, job, pause_s in events:
        now_s += pause_s
        match what:
            case "submitted":
                if KEY not in breakers.barred(now_s) and breakers.states(now_s).get(KEY) is BreakerState.HALF_OPEN:
                    assert not probes
                    probes.add(job)
                breakers.submitted(KEY, job, now_s)
            case "succeeded":
                breakers.succeeded(KEY, job, now_s)
                probes.discard(job)
            case "failed":
                breakers.failed(KEY, job, JobErrorCode.INTERNAL, now_s, submitted_s=now_s)
                probes.discard(job)
            case "late":
                breakers.late(KEY, job, now_s, hangs=False)
                probes.discard(job)
            case "ended":
                breakers.ended(KEY, job)
                probes.discard(job)
    for job in "abc":
        breakers.ended(KEY, job)
    assert breakers.barred(now_s + MAX_OPEN_S) == {}
