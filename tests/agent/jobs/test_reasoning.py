"""What a job's reasoning cost."""

from __future__ import annotations

import pytest

from moe2.agent.energy.attribution import TokenWeight
from moe2.agent.jobs.expert import effort_of, reasoning_part
from moe2.common.energy import Energy
from moe2.common.link.messages import JobUsage

WEIGHT = TokenWeight(decode=1.0, prefill=0.1)


def test_reasoning_has_its_tokens_share() -> None:
    """Twenty new prompt tokens count as two, so that four of ten tokens make four of twelve joules."""
    usage = JobUsage(prompt_tokens=25, cached_tokens=5, decoded_tokens=10, reasoning_tokens=4)
    assert reasoning_part(usage, Energy(joules=12.0), WEIGHT) == pytest.approx(4.0)


def test_guessed_tokens_count_by_what_they_took() -> None:
    """Ten tokens in four steps, with eight guesses: 4.8 instead of 10, of which reasoning has four tenths."""
    usage = JobUsage(decoded_tokens=10, reasoning_tokens=4, drafted_tokens=8, accepted_tokens=6)
    assert effort_of(10, usage, WEIGHT) == pytest.approx(0.48)
    assert reasoning_part(usage, Energy(joules=12.0), WEIGHT) == pytest.approx(4.8)
    assert effort_of(10, JobUsage(decoded_tokens=10), WEIGHT) == 1.0


@pytest.mark.parametrize(
    ("usage", "energy"),
    [
        (JobUsage(decoded_tokens=10), Energy(joules=12.0)),
        (JobUsage(decoded_tokens=10, reasoning_tokens=4), Energy(reason="no sensor")),
    ],
)
def test_without_reasoning_or_joules_there_is_no_share(usage: JobUsage, energy: Energy) -> None:
    """Unknown is none, never 0."""
    assert reasoning_part(usage, energy, WEIGHT) is None
