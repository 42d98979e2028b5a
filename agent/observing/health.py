"""What is wrong with this agent, each with its remedy. PURE: snapshots in, named warnings out."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from moe2.common.health import HealthWarning, Severity
from moe2.common.hosts import is_loopback
from moe2.common.link.enrolment import Refusal
from moe2.common.link.reports import ExpertReport, ExpertState, SensorReport
from moe2.common.placement import GpuCause, GpuFault, placement_text
from moe2.common.standby import Standby
from moe2.common.status import LinkState, LinkStatus
from moe2.common.tls.fault import TlsFault

WRONG_CLOCK_EFFECTS = (
    "Certificates look as if they were not valid, so that an encrypted link to the coordinator may not come about; "
    "times in the log are wrong, and nothing that was measured earlier counts as too old."
)


def agent_warnings(
    link: LinkStatus,
    experts: tuple[ExpertReport, ...],
    sensors: tuple[SensorReport, ...],
    standby: Standby | None = None,
) -> tuple[HealthWarning, ...]:
    """Every warning of link, experts, sensors and sleep that holds now."""
    return (
        *link_warnings(link),
        *_expert_warnings(experts),
        *_sensor_warnings(sensors),
        *(_standby_warnings(standby) if standby else ()),
    )


def gravest_first(warnings: Iterable[HealthWarning]) -> tuple[HealthWarning, ...]:
    """What an operator should read first comes first."""
    return tuple(sorted(warnings, key=lambda warning: warning.severity is not Severity.DEGRADED))


def link_warnings(link: LinkStatus) -> list[HealthWarning]:
    """Every warning of one link that holds now."""
    warnings = [_link_plaintext(link)] if _is_plaintext(link.url) else []
    if link.state is LinkState.CONNECTED or link.last_error is None:
        return warnings
    code, message = link.last_error_code, f"No link to the coordinator at {link.url}: {link.last_error}"
    if code in (*Refusal, *TlsFault) and code is not None and link.last_error_remedy:
        remedy = link.last_error_remedy
        message = message.removesuffix(" " + remedy)
    elif code == "protocol_version":
        remedy = "Install the same moe2 release on the agent and the coordinator."
    else:
        code = "coordinator_unreachable"
        remedy = "Check that the coordinator runs, that coordinator.url names its agents listener, and the firewall."
    warnings.append(HealthWarning(code=code, severity=Severity.DEGRADED, message=message, remedy=remedy))
    return warnings


def _is_plaintext(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "ws" and not is_loopback(parts.hostname or "")


def _link_plaintext(link: LinkStatus) -> HealthWarning:
    return HealthWarning(
        code="link_plaintext",
        severity=Severity.NOTICE,
        message=f"The link to {link.url} is not encrypted: who sees the network reads prompts and answers.",
        remedy="Set certificate and key in the coordinator's [agents.tls], and write wss:// in coordinator.url.",
    )


def _expert_warnings(experts: tuple[ExpertReport, ...]) -> list[HealthWarning]:
    warnings = []
    for expert in experts:
        if expert.state is ExpertState.FAILED:
            warnings.append(
                HealthWarning(
                    code="model_failed",
                    severity=Severity.DEGRADED,
                    message=f"{expert.model} cannot be loaded: {expert.last_error}",
                    remedy="Correct what the message names; loading is tried again, less and less often."
                    if expert.gpu_fault is None
                    else f"{expert.gpu_fault.remedy} Loading is tried again, less and less often.",
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
                    message=f"{expert.model} has {expert.queued} waiting requests, as many as it may have.",
                    remedy="Add another agent for this model, or raise its slots or max_queue.",
                )
            )
        if expert.gpu_fault is not None and expert.state is ExpertState.READY:
            warnings.append(_gpu_unused(expert, expert.gpu_fault))
        if expert.draft_fault is not None:
            warnings.append(
                HealthWarning(
                    code="draft_unused",
                    severity=Severity.NOTICE,
                    message=f"{expert.model} is served without its draft model: {expert.draft_fault}",
                    remedy="Do as it says, or remove `draft` from the model's section; then load the model again.",
                )
            )
    return warnings


def _gpu_unused(expert: ExpertReport, fault: GpuFault) -> HealthWarning:
    """A model that answers, but from the processor; degraded where the configuration wants it on a GPU that exists."""
    is_notice = not fault.is_asked or fault.cause is GpuCause.NO_GPU
    where = placement_text(expert.placement) or "no layer is on the GPU"
    return HealthWarning(
        code="gpu_unused",
        severity=Severity.NOTICE if is_notice else Severity.DEGRADED,
        message=f"{expert.model} does not use the GPU as it could ({where}; {fault.cause}): {fault.message}",
        remedy=fault.remedy,
    )


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


def _standby_warnings(standby: Standby) -> list[HealthWarning]:
    warnings = []
    if standby.suspend_fault is not None:
        warnings.append(
            HealthWarning(
                code="cannot_suspend",
                severity=Severity.NOTICE,
                message=f"agent.allow_suspend is set, and this host cannot be suspended: {standby.suspend_fault}",
                remedy="Correct what the message names, or remove agent.allow_suspend.",
            )
        )
    addresses = standby.wake_addresses
    if standby.allow_suspend and addresses and all(address.armed is False for address in addresses):
        names = ", ".join(address.interface for address in addresses)
        warnings.append(
            HealthWarning(
                code="cannot_be_woken",
                severity=Severity.NOTICE,
                message=f"agent.allow_suspend is set, and no network card may wake this host: {names}.",
                remedy="Switch Wake-on-LAN on (ethtool -s NAME wol g), or wake it by other means.",
            )
        )
    return warnings
