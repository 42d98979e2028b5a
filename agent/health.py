"""What is wrong with this agent, each with its remedy. PURE: snapshots in, named warnings out."""

from __future__ import annotations

from collections.abc import Iterable

from moe2.common.health import HealthWarning, Severity
from moe2.common.messages import ExpertReport, ExpertState, SensorReport
from moe2.common.status import LinkState, LinkStatus


def agent_warnings(
    link: LinkStatus, experts: tuple[ExpertReport, ...], sensors: tuple[SensorReport, ...]
) -> tuple[HealthWarning, ...]:
    """Every warning of link, experts and sensors that holds now."""
    return (*_link_warnings(link), *_expert_warnings(experts), *_sensor_warnings(sensors))


def gravest_first(warnings: Iterable[HealthWarning]) -> tuple[HealthWarning, ...]:
    """What an operator should read first comes first."""
    return tuple(sorted(warnings, key=lambda warning: warning.severity is not Severity.DEGRADED))


def _link_warnings(link: LinkStatus) -> list[HealthWarning]:
    if link.state is LinkState.CONNECTED or link.last_error is None:
        return []
    if "token" in link.last_error:
        code, remedy = "token_refused", "Copy the coordinator's enrolment token into token_file and restart the agent."
    elif "protocol" in link.last_error:
        code, remedy = "protocol_version", "Install the same moe2 release on the agent and the coordinator."
    else:
        code, remedy = (
            "coordinator_unreachable",
            "Check that the coordinator runs, that coordinator.url names its agents listener, and the firewall.",
        )
    return [
        HealthWarning(
            code=code,
            severity=Severity.DEGRADED,
            message=f"No link to the coordinator at {link.url}: {link.last_error}",
            remedy=remedy,
        )
    ]


def _expert_warnings(experts: tuple[ExpertReport, ...]) -> list[HealthWarning]:
    warnings = []
    for expert in experts:
        if expert.state is ExpertState.FAILED:
            warnings.append(
                HealthWarning(
                    code="model_failed",
                    severity=Severity.DEGRADED,
                    message=f"{expert.model} cannot be loaded: {expert.last_error}",
                    remedy="Correct its path or replace the GGUF file; loading is tried again with back-off.",
                )
            )
        elif expert.state is ExpertState.RESTARTING:
            warnings.append(
                HealthWarning(
                    code="engine_restarting",
                    severity=Severity.DEGRADED,
                    message=f"The engine of {expert.model} died and is started again: {expert.last_error}",
                    remedy="If it keeps dying: lower context_tokens, slots or gpu_layers, and read the agent's log.",
                )
            )
        elif expert.max_queue and expert.queued >= expert.max_queue:
            warnings.append(
                HealthWarning(
                    code="queue_full",
                    severity=Severity.NOTICE,
                    message=f"{expert.model} has {expert.queued} waiting requests, its most.",
                    remedy="Add another agent for this model, or raise its slots or max_queue.",
                )
            )
    return warnings


def _sensor_warnings(sensors: tuple[SensorReport, ...]) -> list[HealthWarning]:
    if any(sensor.state == "present" for sensor in sensors):
        return []
    refused = [sensor.remedy for sensor in sensors if sensor.state != "absent" and sensor.remedy]
    return [
        HealthWarning(
            code="energy_unmeasured",
            severity=Severity.NOTICE,
            message="No power sensor can be read on this host, so joules are reported as unmeasured.",
            remedy=refused[0] if refused else "`moe2-agent doctor` shows what was looked for and what could be added.",
        )
    ]
