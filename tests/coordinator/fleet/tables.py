"""A capability table with agents, for tests."""

from __future__ import annotations

from moe2.coordinator.fleet.table import CapabilityTable
from tests.coordinator.experts import expert_report, hello, report

STALE_S, EVICT_S = 10.0, 100.0
READY = expert_report()


def join(table: CapabilityTable, agent_id: str = "agent-1", now_s: float = 0.0) -> None:
    table.agent_joined(hello(agent_id), now_s)
    table.agent_reported(agent_id, report(READY), now_s)


def keys(table: CapabilityTable, now_s: float = 0.0) -> list[str]:
    return [expert.key for expert in table.choosable(now_s)]
