"""How often a key may ask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.token_bucket import TokenBucket

rates = st.floats(0.01, 10_000)
waits = st.lists(st.floats(0, 120), max_size=60)


@given(rates, waits)
def test_no_more_pass_than_the_bucket_and_the_time_allow(per_minute: float, between_s: list[float]) -> None:
    """Over any while: at most what was in the bucket, and what dripped in since."""
    bucket, now_s, passed = TokenBucket(per_minute, 0.0), 0.0, 0
    for wait_s in between_s:
        now_s += wait_s
        passed += bucket.take(now_s) == 0
    assert passed <= bucket.capacity + per_minute * now_s / 60 + 1e-6


@given(rates, waits)
def test_who_waits_as_told_passes(per_minute: float, between_s: list[float]) -> None:
    """The seconds that a refusal names are enough, whatever came before."""
    bucket, now_s = TokenBucket(per_minute, 0.0), 0.0
    for wait_s in between_s:
        now_s += wait_s
        if told_s := bucket.take(now_s):
            now_s += told_s * (1 + 1e-9)
            assert bucket.take(now_s) == 0


@pytest.mark.slow
@given(rates, st.integers(1, 50))
def test_a_refused_attempt_costs_nothing(per_minute: float, n_impatient: int) -> None:
    """Who asks again and again does not have to wait longer for it."""
    bucket = TokenBucket(per_minute, 0.0)
    while bucket.take(0.0) == 0:
        pass
    told = [bucket.take(0.0) for _ in range(n_impatient)]
    assert told == [told[0]] * n_impatient


def test_a_minutes_worth_may_come_at_once() -> None:
    """Then one by one."""
    bucket = TokenBucket(3, 0.0)
    assert [bucket.take(0.0) for _ in range(4)] == [0, 0, 0, pytest.approx(20)]
    assert bucket.take(20.0) == 0
    assert bucket.take(30.0) == pytest.approx(10)


def test_less_than_one_per_minute_begins_with_one() -> None:
    """A bucket that could never hold a whole token would refuse for ever."""
    bucket = TokenBucket(0.5, 0.0)
    assert [bucket.take(0.0) for _ in range(2)] == [0, pytest.approx(120)]


def test_a_clock_that_goes_back_fills_nothing() -> None:
    """Nor does it empty anything."""
    bucket = TokenBucket(1, 100.0)
    assert bucket.take(50.0) == 0
    assert bucket.take(50.0) == pytest.approx(60)
    assert bucket.take(100.0) == pytest.approx(60)
