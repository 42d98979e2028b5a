"""Suspensions of agents that broke a rule, by themselves and in the table."""

from __future__ import annotations

from moe2.common.health import Severity
from moe2.coordinator.fleet.suspensions import FIRST_SUSPENSION_S, FORGIVEN_S, MAX_SUSPENSION_S, Suspensions
from moe2.coordinator.fleet.table import CapabilityTable
from tests.coordinator.fleet.tables import join, keys


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
        "It has sent 1 message that cannot be true, the last: queue_s is nan. It gets requests again."
    )
    assert "Upgrade moe2" in (warning.remedy or "")


# --- Who has broken a rule --------------------------------------------------------------------------------------------


def test_an_agent_that_broke_a_rule_gets_no_requests_for_a_while(table: CapabilityTable) -> None:
    """Experts of a suspended agent cannot be chosen until the suspension ends; others can."""
    join(table)
    join(table, "agent-2")
    epoch = table.epoch
    until_s = table.agent_broke_rules("agent-1", "joules is nan", 1.0)
    assert table.epoch > epoch
    assert keys(table, 1.0) == ["agent-2/m"]
    assert keys(table, until_s) == ["agent-1/m", "agent-2/m"]


def test_a_suspension_outlasts_a_new_connection(table: CapabilityTable) -> None:
    """A suspension outlasts a new connection of the agent."""
    join(table)
    table.agent_broke_rules("agent-1", "joules is nan", 1.0)
    table.agent_left("agent-1", 2.0)
    join(table, now_s=3.0)
    assert keys(table, 3.0) == []


def test_a_breach_is_a_named_warning_in_the_agents_row(table: CapabilityTable) -> None:
    """A breach is a named warning in the agent's row, with the rule and the length of the suspension."""
    join(table)
    table.agent_broke_rules("agent-1", "joules is nan", 1.0)
    [row] = table.rows(2.0)
    [warning] = row.warnings
    assert warning.code == "agent_broke_rules"
    assert "joules is nan" in warning.message
    assert "4 s" in warning.message
