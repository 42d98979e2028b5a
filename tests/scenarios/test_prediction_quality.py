"""How good predictions are on a quiet host under a steady load, in virtual time."""

from __future__ import annotations

import pytest

from moe2.coordinator.observing.accuracy import Agreement, CalibrationReport
from tests.fakes.virtualhost import Load, VirtualHost

# It serves thousands of virtual requests.
pytestmark = pytest.mark.slow

WARM_UP_S, MEASURED_S = 60.0, 300.0


def figures(agreement: Agreement) -> tuple[float, float]:
    assert agreement.median_abs_error_pct is not None
    assert agreement.p95_coverage_pct is not None
    return agreement.median_abs_error_pct, agreement.p95_coverage_pct


def assert_half_is_below(agreement: Agreement) -> None:
    """The p50 is no lower and no higher than it says: 28 % of first tokens were within it while the wait for the batch
    in progress was unseen (0041)."""
    assert agreement.p50_coverage_pct is not None
    assert 38.0 <= agreement.p50_coverage_pct <= 62.0


def measured(load: Load, seed: int) -> CalibrationReport:
    host = VirtualHost(load, seed=seed)
    host.serve(WARM_UP_S)
    return host.serve(MEASURED_S)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_chats_mix_of_lengths_and_concurrency_is_predicted(seed: int) -> None:
    """Three clients with pauses: median errors of seconds and joules below 10 %; p95 covers 95 %, within chance."""
    overall = measured(Load(), seed).overall
    for comparison in (overall.ttft_s, overall.total_s, overall.energy_j):
        assert comparison.decoded.n > 250
        error_pct, coverage_pct = figures(comparison.decoded)
        assert error_pct <= 10.0
        # Three standard deviations of 300 draws.
        assert 91.0 <= coverage_pct <= 99.0
        assert_half_is_below(comparison.decoded)


class SmallHost(VirtualHost):
    """Two cores with SmolLM2-135M: what its batches take in processor time (decision 0041)."""

    law = (0.012, 0.0023, 0.0027, 5e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_those_at_work_have_left_is_known(seed: int) -> None:
    """Where prompts take long, first tokens are predicted to 7 % and answers to 9 %: 8 and 11 % without (0041)."""
    host = SmallHost(Load(prompt_tokens=(27, 52, 92, 162)), seed=seed)
    host.serve(WARM_UP_S)
    overall = host.serve(3 * MEASURED_S).overall
    for comparison, largest_pct in ((overall.ttft_s, 7.0), (overall.total_s, 9.0)):
        error_pct, coverage_pct = figures(comparison.decoded)
        assert error_pct <= largest_pct
        assert 91.5 <= coverage_pct <= 98.5
        assert_half_is_below(comparison.decoded)


def test_one_client_is_predicted_closely() -> None:
    """Without company nothing but the host's own noise is left."""
    overall = measured(Load(clients=1), 0).overall
    assert figures(overall.total_s.decoded)[0] < 3.0
    assert figures(overall.energy_j.decoded)[0] < 5.0


def test_a_wrong_estimate_of_prompts_is_learned_away() -> None:
    """A vocabulary with half as many tokens per byte as assumed: first tokens are predicted all the same."""
    overall = measured(Load(estimate=2.0), 0).overall
    assert figures(overall.ttft_s.decoded)[0] <= 10.0


def test_a_host_that_slows_down_is_noticed() -> None:
    """At half the speed (a power mode, heat), predictions are right again within the next minute or so."""
    host = VirtualHost(Load())
    host.serve(WARM_UP_S)
    host.pace = 2.0
    host.serve(90.0)
    assert figures(host.serve(MEASURED_S).overall.total_s.decoded)[0] <= 10.0


@pytest.mark.parametrize("seed", [0, 1])
def test_conversations_with_a_cached_beginning_are_predicted(seed: int) -> None:
    """Eight turns, each after all earlier ones: the cache is taken off once, attention's look back is counted."""
    overall = measured(Load(turns=8, prompt_tokens=(40, 80, 150, 300)), seed).overall
    assert overall.ttft_s.decoded.n > 200
    for comparison, largest_pct in ((overall.ttft_s, 15.0), (overall.total_s, 17.0)):
        error_pct, coverage_pct = figures(comparison.decoded)
        assert error_pct <= largest_pct
        assert 91.0 <= coverage_pct <= 99.0


def test_the_first_request_after_a_pause_is_predicted() -> None:
    """It takes 0.15 s more than a prefill beside others, on a host that idles now and then."""
    load = Load(clients=3, pause_s=3.0, answer_tokens=(8, 16, 32), found_idle=(0.2, 0.15))
    assert figures(measured(load, 0).overall.ttft_s.decoded)[0] <= 17.0
