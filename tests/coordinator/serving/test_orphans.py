"""Jobs that nobody waits for any more, and agents that do not know it yet."""

from __future__ import annotations

from moe2.coordinator.serving import tallies
from moe2.coordinator.serving.tallies import Orphans


def test_an_agent_is_told_once_per_job() -> None:
    """However many tokens come meanwhile; the same job of another agent is another one."""
    known = Orphans()
    assert [known.heard("a", "j") for _ in range(3)] == [True, False, False]
    assert known.heard("a", "k")
    assert known.heard("b", "j")


def test_an_agent_that_comes_back_is_told_again() -> None:
    """What it was told may have been lost with its link."""
    known = Orphans()
    known.heard("a", "j")
    known.heard("b", "j")
    known.forget("a")
    assert known.heard("a", "j")
    assert not known.heard("b", "j")


def test_an_orphan_that_has_ended_is_forgotten() -> None:
    """Nothing is kept of it."""
    known = Orphans()
    known.heard("a", "j")
    known.ended("a", "j")
    known.ended("a", "never heard of")
    assert len(known) == 0


def test_an_agent_that_makes_up_jobs_fills_no_memory() -> None:
    """The oldest ones go."""
    known = Orphans()
    for n in range(tallies.MAX_ORPHANS + 10):
        known.heard("a", str(n))
    assert len(known) == tallies.MAX_ORPHANS
    assert known.heard("a", "0")
