"""What the service counts beside its requests: hedges saved up, and jobs that nobody waits for any more."""

from __future__ import annotations

from moe2.coordinator.serving import tallies
from moe2.coordinator.serving.tallies import HedgeRation, Orphans


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


def took(ration: HedgeRation) -> bool:
    """Take a hedge if there is one."""
    has_one = ration.has_one
    if has_one:
        ration.take()
    return has_one


def test_the_ration_is_a_share_of_the_requests() -> None:
    """With a little to begin with, and little to be saved up."""
    ration = HedgeRation(0.1)
    assert [took(ration), took(ration)] == [True, False]
    taken = 0
    for _ in range(1000):
        ration.request_came()
        taken += took(ration)
    assert taken == 100
    for _ in range(1000):
        ration.request_came()
    assert [took(ration) for _ in range(3)] == [True, True, False]
    assert not HedgeRation(0.0).has_one


def test_to_ask_for_a_hedge_uses_none_up() -> None:
    """A ration is the same however often it is asked whether there is a hedge left."""
    ration = HedgeRation(0.1)
    assert [ration.has_one for _ in range(3)] == [True, True, True]
    ration.take()
    assert not ration.has_one
