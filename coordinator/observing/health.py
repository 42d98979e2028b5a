"""Warnings about the fleet's health, each with its remedy. PURE."""

from __future__ import annotations

import math

from moe2.common.health import HealthWarning, Severity
from moe2.common.status import AgentRow, AverageRow, DispatchStatus

SAME_AVERAGE = 0.02
"""Share by which a mean may exceed its target without being worth a word."""

WRONG_CLOCK_EFFECTS = (
    "API keys and enrolment tokens that expire are refused, certificates look as if they were not valid, and the "
    "ledger forgets nothing."
)


def dispatch_warnings(
    dispatch: DispatchStatus, rows: tuple[AgentRow, ...], *, max_queued: int
) -> tuple[HealthWarning, ...]:
    """Warns of experts that get no requests because they fail, and of a full queue."""
    names = {row.agent_id: row.agent_name for row in rows}
    warnings: list[HealthWarning] = []
    for breaker in dispatch.breakers:
        agent_id, _, model = breaker.expert.partition("/")
        if breaker.state != "closed" and agent_id in names:
            name = names[agent_id]
            warnings.append(
                HealthWarning(
                    code="breaker_open",
                    severity=Severity.DEGRADED,
                    message=f"{model} on {name} has kept failing; it gets a request now and then as a trial.",
                    remedy=f"On {name}: `moe2-agent status` and the agent's log; restart it if it hangs.",
                )
            )
    if max_queued and dispatch.waiting >= max_queued:
        warnings.append(
            HealthWarning(
                code="queue_full",
                severity=Severity.DEGRADED,
                message=f"All {max_queued} places of the queue are taken; more requests are answered with 429.",
                remedy="Add experts or slots, or raise dispatch.max_queued if longer waits are acceptable.",
            )
        )
    return tuple(warnings)


def cap_warnings(rows: tuple[AgentRow, ...], fleet_watts_cap_w: float | None) -> tuple[HealthWarning, ...]:
    """Warns of experts that get no requests because the fleet's power is capped and theirs is not known."""
    if fleet_watts_cap_w is None:
        return ()
    warnings: list[HealthWarning] = []
    for row in rows:
        if not row.connected or row.host is None:
            continue
        if all(sensor.power_w is None for sensor in row.sensors):
            who = f"{row.agent_name} gets no requests: its power is not measured"
            remedy = f"On {row.agent_name}: `moe2-agent doctor` tells which sensors could."
        elif unknown := [expert.model for expert in row.experts if expert.energy is None]:
            who = f"{row.agent_name} gets no requests for {', '.join(unknown)}: their power has not been measured"
            remedy = f"On {row.agent_name}: `moe2-agent bench`."
        else:
            continue
        warnings.append(
            HealthWarning(
                code="fleet_cap_unmeasured",
                severity=Severity.DEGRADED,
                message=f"{who}, and the fleet's power is capped.",
                remedy=remedy,
            )
        )
    return tuple(warnings)


def average_warnings(averages: tuple[AverageRow, ...]) -> tuple[HealthWarning, ...]:
    """Warns of average budgets that cannot be kept: dearer than the cheapest expert, or blind for want of joules."""
    warnings: list[HealthWarning] = []
    for row in averages:
        mean_j = row.mean_j
        if row.saturated and mean_j is not None and mean_j > row.average_energy_j * (1 + SAME_AVERAGE):
            warnings.append(_too_dear(row, mean_j))
        elif row.n_unmeasured > row.n_answers:
            warnings.append(
                HealthWarning(
                    code="average_unmeasured",
                    severity=Severity.DEGRADED,
                    message=f"The joules of {row.n_unmeasured} answers of {row.scope} are not known, and only "
                    f"{row.n_answers} were measured: this average budget cannot be kept.",
                    remedy="`moe2-agent doctor` on the hosts tells which sensors could measure them.",
                )
            )
    return tuple(warnings)


def _too_dear(row: AverageRow, mean_j: float) -> HealthWarning:
    """Says that the cheapest answers take more than an average allows."""
    if row.of_day:
        # Nobody has set this average, and a limit that does its work is no fault of the service.
        return HealthWarning(
            code="day_used_up",
            severity=Severity.NOTICE,
            message=f"What is left of the {row.scope} is {row.average_energy_j:.4g} J for each answer that is usual "
            f"until midnight (UTC), and the cheapest ones took {mean_j:.4g} J: its requests are refused once "
            "nothing is left.",
            remedy="Wait for midnight, limit max_tokens, add a cheaper expert, or make a key with a larger "
            "--energy-per-day.",
        )
    return HealthWarning(
        code="average_unreachable",
        severity=Severity.DEGRADED,
        message=f"Answers of {row.scope} are to take {row.average_energy_j:.4g} J on average and take {mean_j:.4g} J, "
        "although the cheapest expert within their limits answers them all.",
        remedy=f"Set the average to {math.ceil(mean_j)} J or more, limit max_tokens, or add a cheaper expert; "
        "`moe2-coordinator plan` shows what each would take.",
    )


def fleet_warnings(rows: tuple[AgentRow, ...], *, n_choosable: int, stale_s: float) -> tuple[HealthWarning, ...]:
    """Returns all warnings of the fleet: the coordinator's own first, then the agents', each with its agent's name.

    A host that sleeps is not connected, as it should be. n_choosable: experts that a request finds, or that it
    wakes.
    """
    warnings: list[HealthWarning] = []
    if not n_choosable:
        warnings.append(
            HealthWarning(
                code="no_live_expert",
                severity=Severity.DEGRADED,
                message="No expert is ready; requests are answered with 503.",
                remedy="Start an agent that names this coordinator, or wait until its model is loaded.",
            )
        )
    for row in rows:
        if not row.connected and not row.asleep:
            warnings.append(
                HealthWarning(
                    code="agent_disconnected",
                    severity=Severity.DEGRADED,
                    message=f"{row.agent_name} is not connected.",
                    remedy=f"On {row.agent_name}: `moe2-agent status`, or `systemctl start moe2-agent`.",
                )
            )
        elif row.connected and row.report_age_s is not None and row.report_age_s > stale_s:
            warnings.append(
                HealthWarning(
                    code="agent_stale",
                    severity=Severity.DEGRADED,
                    message=f"{row.agent_name} has not reported for {row.report_age_s:.0f} s.",
                    remedy="Look at the agent's log and the network between it and here.",
                )
            )
        warnings += [
            HealthWarning(
                code=warning.code,
                severity=warning.severity,
                message=f"{row.agent_name}: {warning.message}",
                remedy=warning.remedy,
            )
            for warning in row.warnings
        ]
    return tuple(sorted(warnings, key=lambda warning: warning.severity is not Severity.DEGRADED))
