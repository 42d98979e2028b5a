"""What is wrong with an agent, each with its remedy."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from moe2.agent.observing.health import agent_warnings
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.reports import ExpertReport, ExpertState, SensorReport
from moe2.common.placement import DeviceShare, GpuCause, GpuFault
from moe2.common.standby import Standby, WakeAddress
from moe2.common.status import LinkState, LinkStatus, exit_code

CONNECTED = LinkStatus(url="wss://hub:8081", state=LinkState.CONNECTED)
PRESENT = SensorReport(name="rapl", state="present")


def expert(state: ExpertState = ExpertState.READY, **fields: int | str) -> ExpertReport:
    return ExpertReport(model="m", state=state, context_tokens=64, slots=1, **fields)  # type: ignore[arg-type]


def link(
    last_error: str | None, state: LinkState = LinkState.WAITING, *, code: str | None = None, remedy: str | None = None
) -> LinkStatus:
    return LinkStatus(
        url="wss://hub:8081", state=state, last_error=last_error, last_error_code=code, last_error_remedy=remedy
    )


def only(warnings: tuple[HealthWarning, ...]) -> HealthWarning:
    [warning] = warnings
    return warning


def test_a_healthy_agent_has_no_warnings() -> None:
    """Connected, ready, measured."""
    assert agent_warnings(CONNECTED, (expert(),), (PRESENT,)) == ()


def test_loading_is_not_a_fault() -> None:
    """Nor is a link that is being made for the first time."""
    connecting = LinkStatus(url="wss://hub:8081", state=LinkState.CONNECTING)
    assert agent_warnings(connecting, (expert(ExpertState.LOADING),), (PRESENT,)) == ()


@pytest.mark.parametrize(
    ("told", "code", "named", "remedy"),
    [
        ("Cannot connect to host hub:8081", None, "coordinator_unreachable", "Check that the coordinator runs"),
        ("the peer was silent", "silent", "coordinator_unreachable", "Check that the coordinator runs"),
        ("Wrong.", "token_refused", "token_refused", "Do so."),
        ("Revoked.", "credential_revoked", "credential_revoked", "Do so."),
        ("Other name.", "certificate_name", "certificate_name", "Do so."),
        ("The agent speaks protocol 0 to 0.", "protocol_version", "protocol_version", "same moe2 release"),
    ],
)
def test_a_missing_link_is_named_by_its_cause(told: str, code: str | None, named: str, remedy: str) -> None:
    """Each cause has a remedy of its own, said once, and the error is quoted."""
    status = link(f"{told} Do so.", code=code, remedy="Do so.")
    warning = only(agent_warnings(status, (expert(),), (PRESENT,)))
    assert (warning.code, warning.severity) == (named, Severity.DEGRADED)
    assert told in warning.message
    assert remedy in warning.remedy
    assert f"{warning.message} {warning.remedy}".count("Do so.") == 1


@pytest.mark.parametrize(
    ("url", "codes"),
    [
        ("ws://192.0.2.7:8081", ["link_plaintext"]),
        ("ws://hub:8081", ["link_plaintext"]),
        ("wss://hub:8081", []),
        ("ws://127.0.0.1:8081", []),
        ("ws://[::1]:8081", []),
        ("ws://localhost:8081", []),
    ],
)
def test_a_link_in_the_clear_over_a_network_is_worth_knowing(url: str, codes: list[str]) -> None:
    """Connected or not, but not where nobody else can listen; the host still does its work."""
    status = LinkStatus(url=url, state=LinkState.CONNECTED)
    warnings = agent_warnings(status, (expert(),), (PRESENT,))
    assert [warning.code for warning in warnings] == codes
    assert all(warning.severity is Severity.NOTICE for warning in warnings)


def test_a_mended_link_is_no_longer_warned_about() -> None:
    """The last error is kept for status, but it is over."""
    assert agent_warnings(link("broke", LinkState.CONNECTED), (expert(),), (PRESENT,)) == ()


@pytest.mark.parametrize(
    ("report", "code", "severity"),
    [
        (expert(ExpertState.FAILED, last_error="There is no file."), "model_failed", Severity.DEGRADED),
        (expert(ExpertState.RESTARTING, last_error="killed by SIGKILL"), "engine_restarting", Severity.DEGRADED),
        (expert(queued=3, max_queue=3), "queue_full", Severity.NOTICE),
    ],
)
def test_an_expert_in_trouble_is_named(report: ExpertReport, code: str, severity: Severity) -> None:
    """With its model, its last words and what to do."""
    warning = only(agent_warnings(CONNECTED, (report,), (PRESENT,)))
    assert (warning.code, warning.severity) == (code, severity)
    assert "m" in warning.message.split()
    assert report.last_error is None or report.last_error in warning.message
    assert warning.remedy


@pytest.mark.parametrize(
    ("cause", "is_asked", "severity"),
    [
        (GpuCause.NO_PERMISSION, True, Severity.DEGRADED),
        (GpuCause.NO_GPU_BUILD, True, Severity.DEGRADED),
        (GpuCause.NOT_ASKED, False, Severity.NOTICE),
        (GpuCause.NO_GPU, True, Severity.NOTICE),
    ],
)
def test_a_model_that_is_not_on_the_gpu_is_named(cause: GpuCause, is_asked: bool, severity: Severity) -> None:
    """With where it is, the cause and the remedy; degraded only where a GPU that is there was asked for."""
    fault = GpuFault(cause=cause, message="It is barred.", remedy="Join video.", is_asked=is_asked)
    on_cpu = msgspec.structs.replace(expert(), placement=(DeviceShare(device="CPU", layers=31),), gpu_fault=fault)
    warning = only(agent_warnings(CONNECTED, (on_cpu,), (PRESENT,)))
    assert (warning.code, warning.severity, warning.remedy) == ("gpu_unused", severity, "Join video.")
    assert f"CPU 31/31 layers; {cause}" in warning.message
    assert "It is barred." in warning.message


def test_a_model_that_needs_the_gpu_is_told_the_gpus_remedy() -> None:
    """Not that of a file that cannot be read."""
    fault = GpuFault(cause=GpuCause.NO_DRIVER, message="No driver.", remedy="Install it.")
    failed = msgspec.structs.replace(expert(ExpertState.FAILED, last_error="m must be on the GPU"), gpu_fault=fault)
    warning = only(agent_warnings(CONNECTED, (failed,), (PRESENT,)))
    assert warning.code == "model_failed"
    assert warning.remedy.startswith("Install it.")


def test_no_queue_is_not_a_full_one() -> None:
    """An expert without queue places always has zero of zero."""
    assert agent_warnings(CONNECTED, (expert(queued=0, max_queue=0),), (PRESENT,)) == ()


def test_unmeasured_energy_is_worth_a_notice() -> None:
    """With the remedy of a sensor that was refused; one that is merely absent is no remedy."""
    denied = SensorReport(name="rapl", state="denied", remedy="Add the user to group x.")
    assert only(agent_warnings(CONNECTED, (expert(),), ())).code == "energy_unmeasured"
    assert only(agent_warnings(CONNECTED, (expert(),), (denied,))).remedy == "Add the user to group x."
    absent = SensorReport(name="jtop", state="absent", remedy="On a Jetson: install it.")
    assert "doctor" in only(agent_warnings(CONNECTED, (expert(),), (absent,))).remedy


def test_the_gravest_come_first_and_decide_the_exit_code() -> None:
    """A notice alone leaves the agent healthy."""
    warnings = agent_warnings(CONNECTED, (expert(ExpertState.FAILED, last_error="x"),), ())
    assert [warning.code for warning in warnings] == ["model_failed", "energy_unmeasured"]
    assert exit_code(warnings) == 1
    assert exit_code(agent_warnings(CONNECTED, (expert(),), ())) == 0


# --- Sleep ------------------------------------------------------------------------------------------------------------

CARD = WakeAddress(interface="eth0", mac="3c:6d:66:01:02:03")


def sleeping(standby: Standby) -> tuple[HealthWarning, ...]:
    return agent_warnings(CONNECTED, (expert(),), (PRESENT,), standby)


def test_a_host_that_shall_sleep_and_cannot_says_why() -> None:
    """With logind's reason."""
    warning = only(sleeping(Standby(allow_suspend=True, suspend_fault="polkit says no")))
    assert (warning.code, warning.severity) == ("cannot_suspend", Severity.NOTICE)
    assert "polkit says no" in warning.message


@pytest.mark.parametrize(
    ("armed", "is_warned"), [((False, False), True), ((False, None), False), ((True, False), False), ((), False)]
)
def test_a_host_that_shall_sleep_and_could_not_be_woken_is_warned_of(
    armed: tuple[bool | None, ...], is_warned: bool
) -> None:
    """Only where the kernel says so of every card."""
    addresses = tuple(replace(CARD, armed=one) for one in armed)
    codes = [warning.code for warning in sleeping(Standby(allow_suspend=True, wake_addresses=addresses))]
    assert codes == (["cannot_be_woken"] if is_warned else [])


def test_a_host_that_may_not_sleep_is_not_warned_of_waking() -> None:
    """Nobody will send it to sleep."""
    assert sleeping(Standby(wake_addresses=(replace(CARD, armed=False),))) == ()


def test_a_draft_model_that_does_not_guess_is_named() -> None:
    """A notice with the reason: the model answers all the same."""
    warning = only(agent_warnings(CONNECTED, (expert(draft_fault="It has another vocabulary."),), (PRESENT,)))
    assert (warning.code, warning.severity) == ("draft_unused", Severity.NOTICE)
    assert "m is served without its draft model: It has another vocabulary." in warning.message
