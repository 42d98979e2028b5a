"""Suspensions of agents that broke a rule."""

from __future__ import annotations

from moe2.common.health import Severity
from moe2.coordinator.fleet.suspensions import FIRST_SUSPENSION_S, FORGIVEN_S, MAX_SUSPENSION_S, Suspensions


def test_each_breach_doubles_the_suspension_up_to_a_limit() -> None:
    """Each breach doubles the suspension, up to a limit."""
    kept = Suspensions()
    pauses = [kept.broke("a", "r", 0.0) for _ in range(8)]
    assert pauses[:3] == [FIRST_SUSPENSION_S, 2 * FIRST_SUSPENSION_S, 4 * FIRST_SUSPENSION_S]
    assert pauses[-1] == MAX_SUSPENSION_S


def test_a_suspension_ends_and_is_forgiven() -> None:
    """First the requests come back, then the warning goes, and the next suspension is a first one again."""
    kept = Suspensions()
    kept.broke("a", "why", 0.0)
    assert kept.ends_s("a", 1.0) == FIRST_SUSPENSION_S
    assert kept.ends_s("other", 1.0) is None
    assert kept.ends_s("a", FIRST_SUSPENSION_S) is None
    told = kept.warning("a", 1.0), kept.warning("a", FIRST_SUSPENSION_S)
    assert [warning.severity for warning in told if warning] == [Severity.DEGRADED, Severity.NOTICE]
    late_s = FIRST_SUSPENSION_S + FORGIVEN_S
    assert kept.warning("a", late_s) is None
    assert kept.broke("a", "why", late_s) == late_s + FIRST_SUSPENSION_S


def test_the_warning_stays_after_the_suspension_and_says_that_it_is_over() -> None:
    """Until its breach is forgiven an agent that gets requests again is marked with a notice, not as degraded."""
    suspensions = Suspensions()
    until_s = suspensions.broke("a", "queue_s is nan", 1e6)
    warning = suspensions.warning("a", until_s)
    assert warning is not None
    assert warning.severity is Severity.NOTICE
    assert warning.message == (
        "It has sent 1 messages that cannot be true, the last: queue_s is nan. It gets requests again."
    )
    assert "Upgrade moe2" in (warning.remedy or "")
