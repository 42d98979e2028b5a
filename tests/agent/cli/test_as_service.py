"""The doctor's imitation of the agent's unit."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from moe2.agent.cli.as_service import NoServiceError, program_of, properties_of, run_as_service

KNOWN = frozenset(("User", "SupplementaryGroups", "DeviceAllow", "DevicePolicy", "Restart", "Type", "Environment"))
UNIT = """# /etc/systemd/system/moe2-agent.service
[Unit]
Description=moe2 agent
User=of-another-section

[Service]
Type=notify
ExecStart=/opt/moe2/current/bin/moe2-agent run --config /etc/moe2/agent.toml
User=moe2-agent
Restart=on-failure
DevicePolicy=closed
DeviceAllow=char-drm rw
ProtectProc=invisible
# DeviceAllow=/dev/sda rw

# /etc/systemd/system/moe2-agent.service.d/10-groups.conf
[Service]
SupplementaryGroups=video render

# /etc/systemd/system/moe2-agent.service.d/override.conf
[Service]
DeviceAllow=
Environment=LD_LIBRARY_PATH=/usr/local/cuda/lib64
"""


def test_rights_are_taken_in_their_order_and_nothing_else() -> None:
    """So that an empty list resets what came before; what this systemd does not know is left out."""
    options = properties_of(UNIT, KNOWN)
    assert options[::2] == ["--property"] * (len(options) // 2)
    assert options[1::2] == [
        "User=moe2-agent",
        "DevicePolicy=closed",
        "DeviceAllow=char-drm rw",
        "SupplementaryGroups=video render",
        "DeviceAllow=",
        "Environment=LD_LIBRARY_PATH=/usr/local/cuda/lib64",
    ]


def test_every_right_of_the_units_own_text_is_taken() -> None:
    """A line about rights that were left out would make the doctor see more than the agent."""
    text = (Path(__file__).parents[3] / "systemd/moe2-agent.service").read_text()
    keys = {line.split("=")[0] for line in text.splitlines() if "=" in line and not line.startswith("#")}
    taken = {option.split("=")[0] for option in properties_of(text, frozenset(keys))[1::2]}
    others = keys - taken
    assert {"Restart", "ExecStart", "RuntimeDirectory", "Type", "WatchdogSec"} <= others
    assert not [key for key in others if key.startswith(("Protect", "System", "Device", "Capability", "NoNew", "Lock"))]
    assert {"User", "Group", "PrivateMounts", "RestrictNamespaces", "LimitMEMLOCK"} <= taken


@pytest.mark.parametrize(
    ("text", "program"),
    [
        (UNIT, "/opt/moe2/current/bin/moe2-agent"),
        ("[Service]\nExecStart=-/a/b c\n[Service]\nExecStart=\nExecStart=/c/d\n", "/c/d"),
        ("[Service]\nExecStart=\n", None),
        ("", None),
    ],
)
def test_the_program_is_the_units_own(text: str, program: str | None) -> None:
    """Of several, the last; a unit without one cannot be imitated."""
    assert program_of(text) == program


def test_who_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any program is started."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NoServiceError, match="only root"):
        run_as_service(("doctor",), variables={})


def test_a_host_without_the_unit_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In systemd's own words."""
    monkeypatch.setattr("os.geteuid", lambda: 0)
    for name, body in (("systemd-run", "exit 0"), ("systemctl", "echo 'No files found for x.service.' >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(shutil.which('sh') or '/bin/sh').parent}")
    assert subprocess.run(["systemd-run"], check=False).returncode == 0
    with pytest.raises(NoServiceError, match="No files found"):
        run_as_service(("doctor",), variables={})
