"""The systemd units, without a systemd that runs: what its own tools say of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from moe2.agent.paths import DEFAULT_CONFIG_PATH as AGENT_CONFIG
from moe2.agent.paths import DEFAULT_SOCKET_PATH as AGENT_SOCKET
from moe2.agent.settings import AgentSection
from moe2.common.terminal.commandline import EXIT_CONFIG
from moe2.coordinator.paths import DEFAULT_CONFIG_PATH as COORDINATOR_CONFIG
from moe2.coordinator.paths import DEFAULT_SOCKET_PATH as COORDINATOR_SOCKET
from moe2.coordinator.settings import CoordinatorSection
from tests.install.fakehost import CHECKOUT

UNITS = CHECKOUT / "systemd"
ROLES = ("agent", "coordinator")
STATE = {"agent": AgentSection().state_dir, "coordinator": CoordinatorSection().state_dir}
SOCKET = {"agent": AGENT_SOCKET, "coordinator": COORDINATOR_SOCKET}
CONFIG = {"agent": AGENT_CONFIG, "coordinator": COORDINATOR_CONFIG}
DRAIN_S = {"agent": AgentSection().drain_s, "coordinator": CoordinatorSection().drain_s}
# Those who only came with newer releases of systemd, which an older one names and passes over.
NEWER = ("RestartSteps", "RestartMaxDelaySec")


def directives(role: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (UNITS / f"moe2-{role}.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(key, []).append(value)
    return found


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("role", "most"), [("coordinator", 2.0), ("agent", 3.5)])
def test_the_exposure_is_low(role: str, most: float) -> None:
    """systemd's own measure, 0 to 10."""
    rated = analyze("security", "--offline=true", "--no-pager", UNITS / f"moe2-{role}.service")
    if "offline" in rated.stderr:
        pytest.skip("this systemd-analyze cannot rate a file")
    level = re.search(r"Overall exposure level for .*: ([0-9.]+)", rated.stdout)
    assert level is not None, rated.stderr
    assert float(level[1]) <= most


@pytest.mark.parametrize("role", ROLES)
def test_systemd_understands_every_line(role: str, tmp_path: Path) -> None:
    """No unknown key, no value that is passed over."""
    # The program is not installed where the tests run.
    unit = tmp_path / f"moe2-{role}.service"
    text = (UNITS / unit.name).read_text()
    unit.write_text(re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", text))
    said = analyze("verify", "--man=no", unit)
    assert [line for line in said.stderr.splitlines() if unit.name in line and not any(k in line for k in NEWER)] == []


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_s_folders_are_the_daemon_s_defaults(role: str) -> None:
    """Socket, state and configuration are where the daemon looks if nothing else is set."""
    unit = directives(role)
    assert SOCKET[role].parent == Path("/run", *unit["RuntimeDirectory"])
    assert STATE[role] == Path("/var/lib", *unit["StateDirectory"])
    assert CONFIG[role].parent == Path("/etc", *unit["ConfigurationDirectory"])
    assert unit["ExecStart"][0].endswith(f" --config {CONFIG[role]}")


@pytest.mark.parametrize("role", ROLES)
def test_a_unit_waits_for_the_drain(role: str) -> None:
    """Requests that the daemon lets end must not be killed by systemd."""
    assert float(directives(role)["TimeoutStopSec"][0].removesuffix("s")) > DRAIN_S[role]


@pytest.mark.parametrize("role", ROLES)
def test_a_refused_configuration_is_not_tried_again(role: str) -> None:
    """The daemon's exit status for it."""
    assert directives(role)["RestartPreventExitStatus"] == [str(EXIT_CONFIG)]


@pytest.mark.parametrize("role", ROLES)
def test_the_token_goes_through_systemd(role: str) -> None:
    """Under its own file name, by which the daemon finds it."""
    assert directives(role)["LoadCredential"] == ["agent-token:/etc/moe2/agent-token"]
    host = (CHECKOUT / "install/host.sh").read_text()
    assert f"{'agents' if role == 'coordinator' else 'coordinator'}.token_file=/etc/moe2/agent-token" in host


def test_the_users_of_the_units_are_made() -> None:
    """By sysusers, with the group that may read their status."""
    users = (UNITS / "sysusers.conf").read_text()
    for role in ROLES:
        unit = directives(role)
        assert re.search(rf"^u {unit['User'][0]} ", users, re.MULTILINE)
        assert re.search(rf"^g {unit['Group'][0]} ", users, re.MULTILINE)
