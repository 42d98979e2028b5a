"""Suspensions of agents: one that breaks a rule gets no requests for a while. PURE.

All times are monotonic seconds, and come in as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

from moe2.common.health import HealthWarning, Severity

FIRST_SUSPENSION_S = 5.0
MAX_SUSPENSION_S = 300.0
FORGIVEN_S = 600.0
"""The time after the end of a suspension from which on the next one counts as the first again."""


@dataclass
class _Record:
    reason: str
    n_breaches: int
    until_s: float


class Suspensions:
    """The suspensions of agents that broke a rule and get no requests for a while, which doubles with each breach."""

    def __init__(self) -> None:
        self._records: dict[str, _Record] = {}

    def broke(self, agent_id: str, reason: str, now_s: float) -> float:
        """Suspends an agent that has broken a rule, and returns when it gets requests again."""
        record = self._record(agent_id, now_s)
        n_before = record.n_breaches if record else 0
        pause_s = min(MAX_SUSPENSION_S, FIRST_SUSPENSION_S * 2.0 ** min(n_before, 16))
        self._records[agent_id] = _Record(reason, n_before + 1, now_s + pause_s)
        return now_s + pause_s

    def ends_s(self, agent_id: str, now_s: float) -> float | None:
        """Returns when the agent's suspension ends; None if it is not suspended."""
        record = self._record(agent_id, now_s)
        return record.until_s if record and record.until_s > now_s else None

    def forget(self, agent_id: str) -> None:
        """Removes the record of an agent that will not come back."""
        self._records.pop(agent_id, None)

    def warning(self, agent_id: str, now_s: float) -> HealthWarning | None:
        """Returns the warning about an agent's breaches, until they are forgiven; None if there are none."""
        record = self._record(agent_id, now_s)
        if record is None:
            return None
        is_suspended = record.until_s > now_s
        now = f"It gets no requests for {record.until_s - now_s:.0f} s" if is_suspended else "It gets requests again"
        told = f"It has sent {record.n_breaches} message{'' if record.n_breaches == 1 else 's'}"
        return HealthWarning(
            code="agent_broke_rules",
            severity=Severity.DEGRADED if is_suspended else Severity.NOTICE,
            message=f"{told} that cannot be true, the last: {record.reason}. {now}.",
            remedy="Upgrade moe2 on it to the coordinator's version and restart it; if that does not help, report it.",
        )

    def _record(self, agent_id: str, now_s: float) -> _Record | None:
        record = self._records.get(agent_id)
        if record is not None and now_s - record.until_s >= FORGIVEN_S:
            del self._records[agent_id]
            return None
        return record
