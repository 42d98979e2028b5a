"""An expert's cost, per power mode."""

from __future__ import annotations

import pytest

from moe2.agent.learning.costs import ExpertCosts
from moe2.agent.learning.latency import RequestTiming
from moe2.common.cost import RequestShape
from moe2.common.energy import Energy, Quality
from moe2.common.link.reports import Performance
from tests.common.predictions import predicted_latency

_SHAPE = RequestShape(prompt_tokens=100, decoded_tokens=101)


def _serve(costs: ExpertCosts, count: int, *, pace: float = 1.0) -> None:
    """Requests of 1000 tokens/s prefill, 50 tokens/s and 2 J per token, at a pace."""
    for _ in range(count):
        timing = RequestTiming(shape=_SHAPE, prefill_s=0.1 * pace, decode_s=2.0 * pace)
        costs.request_finished(timing)
        costs.energy_settled(timing, Energy(joules=202.0 * pace, quality=Quality.MEASURED_COUNTER, idle_w=10.0))


def test_fresh_expert_says_that_nothing_was_measured() -> None:
    """All figures None and no requests; no zero anywhere."""
    costs = ExpertCosts(slots=4)
    assert costs.performance == Performance()
    assert costs.latency is None
    assert costs.energy is None


def test_figures_for_people() -> None:
    """Rates, first token, joules per token and idle power, as served."""
    costs = ExpertCosts(slots=4)
    _serve(costs, 30)
    shown = costs.performance
    assert shown.decode_tokens_per_s == pytest.approx(50.0, rel=0.05)
    assert shown.ttft_s == pytest.approx(0.1)
    assert shown.j_per_decoded_token == pytest.approx(2.0, rel=0.1)
    assert shown.idle_w == 10.0
    assert shown.n_requests == 30


def test_warm_up_alone_counts_no_request() -> None:
    """Rates of the run after loading are shown, with no requests behind them."""
    costs = ExpertCosts(slots=4)
    costs.warmed_up(400.0, 40.0)
    assert costs.performance.decode_tokens_per_s == pytest.approx(40.0)
    assert costs.performance.n_requests == 0
    assert costs.performance.j_per_decoded_token is None


def test_new_power_mode_starts_unconfirmed_from_the_old_law() -> None:
    """The old law is the best guess, with no requests behind it and wide quantiles."""
    costs = ExpertCosts(slots=4, power_mode="MAXN")
    _serve(costs, 30)
    known = costs.latency
    costs.set_power_mode("MODE_30W")
    guessed = costs.latency
    assert known is not None
    assert guessed is not None
    assert guessed.n_requests == 0
    assert guessed.decode == pytest.approx(known.decode)
    assert predicted_latency(guessed, _SHAPE).total_s.p95 > 1.5 * predicted_latency(known, _SHAPE).total_s.p95
    assert costs.performance.ttft_s is None


def test_each_mode_remembers_its_own() -> None:
    """Back in the first mode, its own figures are there again."""
    costs = ExpertCosts(slots=4, power_mode="MAXN")
    _serve(costs, 30)
    costs.set_power_mode("MODE_30W")
    _serve(costs, 30, pace=3.0)
    assert costs.performance.decode_tokens_per_s == pytest.approx(50.0 / 3, rel=0.1)
    costs.set_power_mode("MAXN")
    assert costs.performance.decode_tokens_per_s == pytest.approx(50.0, rel=0.05)


def test_stored_profile_is_a_beginning() -> None:
    """After a restart the stored law predicts, unconfirmed."""
    measured = ExpertCosts(slots=4)
    _serve(measured, 30)
    restarted = ExpertCosts(slots=8)
    restarted.restore(measured.latency, measured.energy)
    assert restarted.latency is not None
    assert restarted.latency.slots == 8
    assert restarted.energy is not None
    assert measured.energy is not None
    assert restarted.energy.mean_j(_SHAPE) == pytest.approx(measured.energy.mean_j(_SHAPE), rel=0.05)
    assert restarted.latency.n_requests == restarted.energy.n_requests == 0


def test_a_larger_models_token_counts_by_its_size() -> None:
    """Two experts on one device share its joules by what has to be read for a token."""
    costs = ExpertCosts(slots=1)
    small, large = costs.token_weight(10**8), costs.token_weight(4 * 10**8)
    assert large.decode / small.decode == pytest.approx(4.0)
    assert large.prefill / small.prefill == pytest.approx(4.0)
