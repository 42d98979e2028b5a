"""The power that the fleet draws, compared with its cap in watts. PURE.

A host counts with the power that its sensors report, or with the power that its running requests are predicted to draw
where that is more, because a request that has just begun is in no report yet. Hosts that are not connected do not
count, nor do hosts whose power is unknown: they get no requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.choosing.forecast import FloatArray, IntArray, Roster
from moe2.coordinator.fleet.table import HostPower
from moe2.coordinator.planning.problem import Limit
from moe2.coordinator.planning.proof import Plan


@dataclass(frozen=True)
class FleetDraw:
    """The power that all connected hosts draw, and the cap on it."""

    cap_w: float
    drawn_w: float
    """Power drawn now."""
    idle_w: float = 0.0
    """Power drawn while nothing runs, as far as that is known."""
    simulated: bool = False
    """True where some of `drawn_w` is a simulated host's."""
    unmeasured: frozenset[str] = frozenset()
    """Ids of the agents whose hosts' power is unknown."""


def draw_of(
    cap_w: float,
    hosts: Iterable[HostPower],
    roster: Roster,
    busy: IntArray,
    running_w: FloatArray,
    *,
    sharers: int = 1,
) -> FleetDraw:
    """The power that the fleet draws now.

    sharers: coordinators that give the fleet work. Each may add an equal part of what the cap leaves above idle power,
    and counts what it has added itself: what others add is in no report for a moment, and must not exceed the cap.

    roster: all experts of the fleet. busy: (N,) requests in progress on each. running_w: (N,) watts that each expert's
    host is predicted to draw with those requests, NaN where unknown.
    """
    expected_w = _expected_w(roster, busy, running_w)
    drawn_w, simulated, unmeasured = 0.0, False, set()
    idle_w = {expert.agent_id: idle for expert, idle in zip(roster.experts, roster.idle_w.tolist(), strict=True)}
    known_w = sum(idle for idle in idle_w.values() if not math.isnan(idle))
    for host in hosts:
        if host.power_w is None:
            unmeasured.add(host.agent_id)
        idle = idle_w.get(host.agent_id, math.nan)
        is_mine = sharers > 1 and not math.isnan(idle)
        drawn_w += max(idle if is_mine else host.power_w or 0.0, expected_w.get(host.agent_id, 0.0))
        simulated = simulated or host.simulated
    if sharers > 1:
        cap_w = known_w + max(0.0, cap_w - known_w) / sharers
    return FleetDraw(cap_w, drawn_w, known_w, simulated, frozenset(unmeasured))


def _expected_w(roster: Roster, busy: IntArray, running_w: FloatArray) -> dict[str, float]:
    """Predicted watts, by agent id, of hosts with requests in progress: idle power and what each expert adds."""
    expected_w: dict[str, float] = {}
    for place in np.flatnonzero((busy > 0) & ~np.isnan(running_w)).tolist():
        agent_id, idle_w = roster.experts[place].agent_id, float(np.nan_to_num(roster.idle_w[place]))
        expected_w[agent_id] = expected_w.get(agent_id, idle_w) + float(running_w[place]) - idle_w
    return expected_w


def cap_refusal(plan: Plan, draw: FleetDraw) -> tuple[ErrorCode, str]:
    """Error code and message for a request that no expert can take under the fleet's cap.

    plan: an infeasible plan whose exclusions say what each expert would need.
    """
    mark = " (simulated)" if draw.simulated else ""
    message = (
        f"The fleet's cap of {draw.cap_w:.4g} W leaves no room for this request: "
        f"{draw.drawn_w:.4g} W{mark} are drawn already"
    )
    breaches = [breach for exclusion in plan.exclusions for breach in exclusion.breaches]
    needed_w = [breach.needed for breach in breaches if breach.limit is Limit.POWER]
    if not needed_w:
        reasons = sorted({exclusion.detail for exclusion in plan.exclusions})
        return ErrorCode.FLEET_CAP_INFEASIBLE, f"{message}, and no expert can take it: {'; '.join(reasons)}."
    least_w = min(needed_w) - draw.drawn_w
    code = ErrorCode.FLEET_CAPPED if draw.idle_w + least_w <= draw.cap_w else ErrorCode.FLEET_CAP_INFEASIBLE
    return code, f"{message}, and even the most frugal expert would add {least_w:.4g} W."
