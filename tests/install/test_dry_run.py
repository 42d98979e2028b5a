"""install.sh --dry-run: tells everything, changes nothing."""

from __future__ import annotations

import pytest

from tests.install.fakehost import FakeHost


@pytest.mark.parametrize("command", ["coordinator", "agent"])
def test_a_dry_run_of_an_installation_changes_nothing(host: FakeHost, command: str) -> None:
    """No file is written and no program called but to ask."""
    host.token()
    host.model()
    before = host.files()
    shown = host.install_agent("--dry-run") if command == "agent" else host.install(command, "--dry-run")
    assert shown.returncode == 0
    assert "Nothing was changed" in shown.stdout
    assert host.files() == before
    assert host.calls() == []


def test_a_dry_run_shows_every_step(host: FakeHost) -> None:
    """In the order in which they would be done, with their commands."""
    shown = host.install_agent("--dry-run", "--name", "edge").stdout
    steps = [line for line in shown.splitlines() if line.startswith("·")]
    expected = [
        "Compiling llama.cpp for the CPU",
        "Creating a virtual environment",
        "Installing moe2[agent] 0.1.0",
        "Trying llama.cpp",
        "Making the users moe2-agent and moe2-coordinator",
        "Copying the enrolment token",
        "Writing /etc/moe2/agent.toml",
        "Putting",
        "Writing the unit",
        "Telling systemd about the units",
        "Enabling moe2-agent.service",
        "Starting moe2-agent.service",
    ]
    positions = [next(n for n, step in enumerate(steps) if wanted in step) for wanted in expected]
    assert positions == sorted(positions)
    assert "systemctl enable moe2-agent.service" in shown
    assert "--constraint constraints.txt .\\[agent\\]" in shown


@pytest.mark.slow
@pytest.mark.parametrize("command", ["upgrade", "uninstall"])
def test_a_dry_run_on_an_installed_host_changes_nothing(host: FakeHost, command: str) -> None:
    """Neither the way forward nor the way back."""
    assert host.install("coordinator").returncode == 0
    (host.checkout / "common/__init__.py").write_text('__version__ = "0.2.0"\n')
    before, release = host.files(), host.release()
    host.calls()
    shown = host.install(command, "--dry-run", *(["--purge"] if command == "uninstall" else []))
    assert shown.returncode == 0
    assert host.files() == before
    assert host.release() == release
    assert host.calls() == []
