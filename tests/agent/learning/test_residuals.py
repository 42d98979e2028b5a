"""Quantiles of residuals, and shifts."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from moe2.agent.learning.residuals import ResidualPool, student_t_quantile


@pytest.mark.parametrize("freedom", [3, 5, 10, 23, 100])
@pytest.mark.parametrize("q", [0.05, 0.5, 0.9, 0.95])
def test_t_quantile_agrees_with_scipy(q: float, freedom: int) -> None:
    """The series is within one percent where it is used."""
    assert student_t_quantile(q, freedom) == pytest.approx(special.stdtrit(freedom, q), rel=0.01, abs=1e-9)


def test_nothing_known_is_wide() -> None:
    """Before any residual, p95 is more than twice the median."""
    spread = ResidualPool().spread
    assert spread.p50 == 0.0
    assert math.exp(spread.p95) > 2


def test_uncertainty_shrinks_with_evidence() -> None:
    """Fifteen residuals of a few percent leave much less doubt than three."""
    random = Random(1)
    pool, widths = ResidualPool(), {}
    for count in range(1, 41):
        pool.add(random.gauss(0.0, 0.03))
        widths[count] = pool.spread.p95
    assert widths[3] > 2 * widths[15] > 0
    assert widths[40] < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_p95_covers_95_of_100(seed: int) -> None:
    """Over 3000 residuals of a skewed distribution, 93 to 97 % of the next ones stay below p95."""
    random = Random(seed)
    pool, below, judged = ResidualPool(), 0, 0
    for index in range(3000):
        residual = random.expovariate(20.0) - 0.03
        if index >= 20:
            judged += 1
            below += residual <= pool.spread.p95
        pool.add(residual)
    assert 0.93 <= below / judged <= 0.97


def test_few_residuals_still_cover() -> None:
    """With 3 to 19 residuals the quantile errs on the safe side."""
    below, judged = 0, 0
    for seed in range(200):
        random = Random(seed)
        pool = ResidualPool()
        for index in range(20):
            residual = random.gauss(0.1, 0.15)
            if index >= 3:
                judged += 1
                below += residual <= pool.spread.p95
            pool.add(residual)
    assert below / judged >= 0.95


def _steady(count: int = 40) -> ResidualPool:
    random = Random(7)
    pool = ResidualPool()
    for _ in range(count):
        assert not pool.add(random.gauss(0.0, 0.05))
    return pool


@pytest.mark.parametrize("factor", [2.0, 0.5, 1.4])
def test_shift_is_noticed_within_three_requests(factor: float) -> None:
    """A power mode of half the speed, or the way back: seen after three requests, once."""
    pool = _steady()
    found = [pool.add(math.log(factor) + noise) for noise in (0.02, -0.03, 0.01)]
    assert sum(found) == 1
    assert abs(pool.spread.p50) < 0.1


def test_one_outlier_is_no_shift() -> None:
    """A single request ten times as slow changes nothing."""
    pool = _steady()
    assert not pool.add(math.log(10.0))
    assert not any(pool.add(0.0) for _ in range(5))


def test_steady_noise_raises_no_alarm() -> None:
    """Two thousand ordinary requests: no change of pace is found."""
    random = Random(3)
    pool = ResidualPool()
    assert sum(pool.add(random.gauss(0.0, 0.08)) for _ in range(2000)) == 0


@given(st.lists(st.floats(-5.0, 5.0), max_size=80))
def test_p95_is_never_below_the_median(residuals: list[float]) -> None:
    """Whatever the residuals, the quantiles are in order and finite."""
    pool = ResidualPool()
    for residual in residuals:
        pool.add(residual)
    spread = pool.spread
    assert math.isfinite(spread.p95)
    assert spread.p50 <= spread.p95 + 1e-12
