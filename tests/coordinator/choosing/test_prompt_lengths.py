"""Tests of the predicted number of tokens that a prompt needs prefilled."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.cost import RequestShape
from moe2.common.link.messages import JobUsage
from moe2.coordinator.choosing.lengths import PromptLengths
from moe2.coordinator.choosing.request import Demand


def learned(count: int, *, slope: float, offset: float, seed: int = 1) -> PromptLengths:
    """Prompt lengths learned from requests of 20 to 500 estimated tokens with a few percent of noise."""
    lengths, random = PromptLengths(), Random(seed)
    for _ in range(count):
        estimated = random.randint(20, 500)
        lengths.observe("m", estimated, round((offset + slope * estimated) * random.lognormvariate(0.0, 0.03)))
    return lengths


def test_nothing_learned_leaves_the_estimate() -> None:
    """A model that never ran leaves the estimate as it is."""
    assert learned(10, slope=2.0, offset=0.0).demand_on("other", Demand(100, 7)) == Demand(100, 7)


@pytest.mark.parametrize(("slope", "offset"), [(0.65, 0.0), (1.0, 30.0), (1.4, -10.0)])
def test_the_line_is_found(slope: float, offset: float) -> None:
    """The tokens to prefill are predicted within 5 % after 40 requests, for three kinds of lines."""
    lengths = learned(40, slope=slope, offset=offset)
    for estimated in (50, 200, 400):
        demand = lengths.demand_on("m", Demand(estimated, 7))
        assert demand.prompt_tokens == pytest.approx(offset + slope * estimated, rel=0.05)
        assert demand.max_tokens == 7


def test_one_odd_prompt_does_not_overthrow_the_estimate() -> None:
    """One prompt that was wholly cached hardly changes the prediction for the next."""
    lengths = PromptLengths()
    lengths.observe("m", 500, 1)
    assert lengths.demand_on("m", Demand(500, None)).prompt_tokens > 200


@given(
    seen=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000)), min_size=1, max_size=20),
    estimated=st.integers(0, 10_000),
)
def test_a_longer_prompt_is_never_shorter(seen: list[tuple[int, int]], estimated: int) -> None:
    """The prediction never falls with the estimate, and is at least one token."""
    lengths = PromptLengths()
    for one in seen:
        lengths.observe("m", *one)
    shorter, longer = (lengths.demand_on("m", Demand(n, None)).prompt_tokens for n in (estimated, estimated + 100))
    assert 1 <= shorter <= longer


def test_what_was_foreseen_in_the_cache_is_not_learned_away() -> None:
    """Turns of 1000 tokens with 900 cached as foreseen: a prompt is predicted whole, and the cache taken off once."""
    lengths = PromptLengths()
    foreseen = RequestShape(prompt_tokens=100, decoded_tokens=1, cached_tokens=900)
    for _ in range(30):
        usage = JobUsage(prompt_tokens=1000, cached_tokens=905, decoded_tokens=10)
        lengths.ran("m", Demand(1000, 10), usage, foreseen)
    assert lengths.demand_on("m", Demand(1000, 10)).prompt_tokens == pytest.approx(995, abs=3)


def test_what_nobody_foresaw_in_the_cache_is_learned() -> None:
    """A template that all prompts begin with is never read again."""
    lengths = PromptLengths()
    foreseen = RequestShape(prompt_tokens=100, decoded_tokens=1)
    for _ in range(30):
        usage = JobUsage(prompt_tokens=100, cached_tokens=40, decoded_tokens=10)
        lengths.ran("m", Demand(100, 10), usage, foreseen)
    assert lengths.demand_on("m", Demand(100, 10)).prompt_tokens == pytest.approx(60, abs=3)


def test_a_job_of_unknown_length_teaches_nothing() -> None:
    """It may have failed before its prompt was read."""
    lengths = PromptLengths()
    lengths.ran("m", Demand(100, 10), JobUsage(decoded_tokens=1), RequestShape(prompt_tokens=1, decoded_tokens=1))
    assert lengths.demand_on("m", Demand(100, 10)).prompt_tokens == 100
