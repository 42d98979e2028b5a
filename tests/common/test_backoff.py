"""Jittered exponential back-off."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from moe2.common.backoff import Backoff


class Top(Random):
    """Draws the upper end."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_delays_double_up_to_the_most() -> None:
    """Without jitter: 1, 2, 4, 8 and then the ceiling."""
    backoff = Backoff(first_s=1.0, most_s=10.0, random=Top())
    assert [backoff.next_delay_s() for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_success_starts_over() -> None:
    """A link that held is not punished for what was before."""
    backoff = Backoff(first_s=1.0, most_s=10.0, random=Top())
    for _ in range(4):
        backoff.next_delay_s()
    backoff.succeeded()
    assert backoff.next_delay_s() == 1.0


@given(first_s=st.floats(0.01, 10), most_s=st.floats(10, 100), seed=st.integers(), tries=st.integers(1, 2000))
def test_every_delay_is_in_the_upper_half_below_its_ceiling(
    first_s: float, most_s: float, seed: int, tries: int
) -> None:
    """Never zero, never beyond the most, however many failures."""
    backoff = Backoff(first_s=first_s, most_s=most_s, random=Random(seed))
    delays_s = [backoff.next_delay_s() for _ in range(tries)]
    ceiling_s = min(most_s, first_s * 2.0 ** min(tries - 1, 32))
    assert 0.5 * ceiling_s <= delays_s[-1] <= ceiling_s


def test_agents_do_not_come_back_all_at_once() -> None:
    """Different random sources give different delays."""
    delays = {Backoff(first_s=1.0, most_s=10.0, random=Random(seed)).next_delay_s() for seed in range(50)}
    assert len(delays) == 50
