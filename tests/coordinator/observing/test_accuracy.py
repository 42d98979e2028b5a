"""Predictions against measurements."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.cost import Spread
from moe2.common.energy import Energy, Quality, unmeasured
from moe2.common.link.messages import JobUsage
from moe2.coordinator.choosing.request import Demand
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.observing.accuracy import CalibrationReport, CalibrationWindow
from tests.coordinator.experts import cost, expert, speed
from tests.coordinator.lives import JOULES, LifeBench

# 1000 tokens/s prefill, 10 tokens/s, 2 J per token: 100 prompt tokens and 11 decoded take 1.1 s and 22 J.
FAST = expert("agent-1", latency=speed(1000.0, 10.0), energy=cost(2.0))
MEASURED = Energy(joules=22.0, quality=Quality.MEASURED_COUNTER)
DEMAND = Demand(prompt_tokens=100, max_tokens=11)


def serve(
    window: CalibrationWindow,
    *,
    by: Expert = FAST,
    total_s: float = 1.1,
    decoded_tokens: int = 11,
    energy: Energy = MEASURED,
    demand: Demand = DEMAND,
    reason: str = "stop",
) -> None:
    """Adds one answered request, with its first token after a tenth of a second."""
    life = LifeBench(by, demand=demand, max_tokens=demand.max_tokens).admitted()
    life.now_s += 0.1
    life.tokens("a")
    life.now_s += total_s - 0.1
    life.done(reason, usage=JobUsage(decoded_tokens=decoded_tokens, energy=energy))
    window.request_retired(life.life)


def served(*totals_s: float, by: Expert = FAST, **fields: object) -> CalibrationReport:
    window = CalibrationWindow()
    for total_s in totals_s:
        serve(window, by=by, total_s=total_s, **fields)  # type: ignore[arg-type]
    return window.report()


def test_exact_predictions_have_no_error() -> None:
    """Requests that take exactly what the profile predicts have no error in time and joules."""
    overall = served(1.1, 1.1).overall
    for comparison in (overall.ttft_s, overall.total_s, overall.energy_j):
        assert comparison.decoded.n == comparison.planned.n == 2
        assert comparison.decoded.median_abs_error_pct == pytest.approx(0.0, abs=1e-9)


def test_error_is_relative_to_the_measurement() -> None:
    """A prediction of 1.1 s for 2.2 s is an error of half, whatever the other requests were."""
    assert served(2.2, 2.2, 1.1).overall.total_s.decoded.median_abs_error_pct == pytest.approx(50.0)


def test_coverage_is_the_share_within_the_quantile() -> None:
    """Coverage is the share of requests that stayed within the predicted quantile."""
    wide = expert("agent-1", latency=speed(1000.0, 10.0, spread=Spread(p50=0.0, p95=0.69315)))
    agreement = served(1.0, 1.09, 2.0, 3.0, by=wide).overall.total_s.decoded
    assert agreement.p50_coverage_pct == 50.0
    assert agreement.p95_coverage_pct == 75.0


def test_an_answer_that_ended_early_is_compared_both_ways() -> None:
    """An answer of 11 of 101 planned tokens is far off as planned, and right for the decoded tokens."""
    total_s = served(1.1, demand=Demand(prompt_tokens=100, max_tokens=101)).overall.total_s
    assert total_s.decoded.median_abs_error_pct == pytest.approx(0.0, abs=1e-9)
    assert total_s.planned.median_abs_error_pct == pytest.approx(100 * (10.1 - 1.1) / 1.1)


def test_an_answer_without_a_limit_is_compared_for_what_came() -> None:
    """An answer without a limit is compared for the tokens that came."""
    total_s = served(1.1, demand=Demand(prompt_tokens=100, max_tokens=None)).overall.total_s
    assert total_s.decoded.median_abs_error_pct == pytest.approx(0.0, abs=1e-9)
    assert total_s.planned.median_abs_error_pct != pytest.approx(0.0)


@pytest.mark.parametrize(
    "energy",
    [
        unmeasured("no power sensor"),
        Energy(joules=22.0, quality=Quality.PARTIAL),
        Energy(joules=22.0, quality=Quality.MEASURED_INTEGRATED, n_samples=2),
    ],
    ids=("unknown", "lower bound", "too few samples"),
)
def test_unmeasured_joules_are_counted_apart(energy: Energy) -> None:
    """Unmeasured joules are counted apart and not compared."""
    overall = served(1.1, energy=energy).overall
    assert overall.energy_j.n_unmeasured == 1
    assert overall.energy_j.decoded.n == 0
    assert overall.energy_j.decoded.median_abs_error_pct is None
    assert overall.energy_quality is None
    assert overall.total_s.decoded.n == 1


def test_an_expert_that_was_not_measured_yet_is_counted_apart() -> None:
    """Requests to an expert without a prediction are counted apart."""
    overall = served(1.1, by=expert("agent-1", latency=None)).overall
    assert (overall.total_s.n_unpredicted, overall.total_s.decoded.n) == (1, 0)


def test_experts_are_told_apart() -> None:
    """Each expert has its own figures beside those of all together."""
    window = CalibrationWindow()
    serve(window)
    serve(window, by=expert("agent-2", latency=speed(1000.0, 10.0)), total_s=2.2)
    report = window.report()
    assert [(one.expert, one.agent, one.n_requests) for one in report.experts] == [
        ("agent-1/m", "name of agent-1", 1),
        ("agent-2/m", "name of agent-2", 1),
    ]
    errors = [one.total_s.decoded.median_abs_error_pct for one in report.experts]
    assert errors == [pytest.approx(0.0, abs=1e-9), pytest.approx(50.0)]
    assert report.overall.n_requests == 2


def test_only_the_last_ones_are_looked_back_on() -> None:
    """A window of two forgets the first of three requests, and reports fewer when asked to."""
    window = CalibrationWindow(2)
    for total_s in (9.0, 2.2, 1.1):
        serve(window, total_s=total_s)
    assert window.report().overall.n_requests == 2
    assert window.report(last=1).overall.total_s.decoded.median_abs_error_pct == pytest.approx(0.0, abs=1e-9)


def test_requests_that_were_not_answered_say_nothing() -> None:
    """Failed and cancelled requests, and attempts before the one that answered, are left out."""
    window = CalibrationWindow()
    failed = LifeBench(FAST).admitted()
    failed.failed()
    gone = LifeBench(FAST).admitted()
    gone.gone()
    gone.done("cancelled")
    for life in (failed, gone):
        window.request_retired(life.life)
    assert window.report().overall.n_requests == 0


def test_after_a_failover_the_time_is_that_of_the_expert_that_answered() -> None:
    """After a failover only the time of the expert that answered is compared."""
    life = LifeBench(expert("agent-1"), FAST_SECOND, demand=DEMAND, max_tokens=11).admitted()
    life.now_s += 30.0
    life.failed()
    life.now_s += 0.1
    life.tokens("a", attempt=1)
    life.now_s += 1.0
    life.done(attempt=1, usage=JobUsage(decoded_tokens=11, energy=JOULES))
    window = CalibrationWindow()
    window.request_retired(life.life)
    [one] = window.report().experts
    assert one.expert == "agent-2/m"
    assert one.total_s.decoded.median_abs_error_pct == pytest.approx(0.0, abs=1e-6)


FAST_SECOND = expert("agent-2", latency=speed(1000.0, 10.0), context_tokens=8192)


def test_the_worst_quality_is_told() -> None:
    """One simulated measurement makes the comparison simulated."""
    window = CalibrationWindow()
    serve(window)
    serve(window, energy=Energy(joules=22.0, quality=Quality.SIMULATED))
    assert window.report().overall.energy_quality is Quality.SIMULATED


@pytest.mark.parametrize(("n_late", "codes"), [(2, []), (20, ["predictions_too_low"])])
def test_a_p95_that_does_not_hold_is_a_notice(n_late: int, codes: list[str]) -> None:
    """Two late requests of 60 are what p95 means; 20 make a notice."""
    report = served(*[1.0] * (60 - n_late), *[5.0] * n_late)
    assert [warning.code for warning in report.warnings] == codes


@pytest.mark.slow
@given(totals_s=st.lists(st.floats(0.2, 100.0), min_size=1, max_size=20))
def test_every_answer_is_either_compared_or_counted_apart(totals_s: list[float]) -> None:
    """Every answer is either compared or counted apart, and shares are between 0 and 100."""
    for comparison in (report := served(*totals_s).overall).ttft_s, report.total_s, report.energy_j:
        counted = comparison.decoded.n + comparison.n_unmeasured + comparison.n_unpredicted
        assert counted == len(totals_s)
        assert comparison.decoded.p50_coverage_pct is not None
        assert comparison.decoded.p95_coverage_pct is not None
        assert 0 <= comparison.decoded.p50_coverage_pct <= comparison.decoded.p95_coverage_pct <= 100
