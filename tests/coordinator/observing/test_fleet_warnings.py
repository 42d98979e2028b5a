"""Warnings about the fleet's hosts: who is missing, and who only sleeps."""

from __future__ import annotations

from moe2.common.status import AgentRow
from moe2.coordinator.observing.health import fleet_warnings
from tests.coordinator.receipts import agent_row


def codes(*rows: AgentRow, n_choosable: int) -> list[str]:
    return [warning.code for warning in fleet_warnings(rows, n_choosable=n_choosable, stale_s=10.0)]


def test_a_host_that_sleeps_is_not_missing() -> None:
    """It said goodbye, and its last report grows old as it should."""
    asleep = agent_row(connected=False, asleep=True, report_age_s=3600.0)
    assert codes(asleep, n_choosable=1) == []
    assert codes(agent_row(connected=False), n_choosable=1) == ["agent_disconnected"]
    assert codes(agent_row(report_age_s=11.0), n_choosable=1) == ["agent_stale"]


def test_nobody_who_could_answer_is_told() -> None:
    """Whether all are gone, or all sleep and no request wakes them."""
    assert codes(agent_row(connected=False, asleep=True), n_choosable=0) == ["no_live_expert"]
