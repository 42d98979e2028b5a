"""The doctor's report."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from moe2.agent.cli.doctor import run_doctor
from moe2.agent.energy.catalog import SensorSettings
from tests.fakes import sysfs


def _run(root: Path, *, as_json: bool = False) -> tuple[int, str]:
    output = io.StringIO()
    settings = SensorSettings(root=root, families=("ina3221", "rapl"))
    code = run_doctor(settings, as_json=as_json, console=Console(file=output, width=160))
    return code, output.getvalue()


def test_healthy_jetson_shows_its_power(tmp_path: Path) -> None:
    """Found, with the power of this moment, and exit code 0."""
    sysfs.orin_nx(tmp_path)
    code, text = _run(tmp_path)
    assert code == 0
    assert "16.6 W" in text
    assert "Energy is measured with ina3221." in text


def test_refused_sensor_comes_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RAPL for root only: denied, how to open it, and exit code 1."""
    sysfs.intel_host(tmp_path)
    sysfs.deny_energy(monkeypatch)
    code, text = _run(tmp_path)
    assert code == 1
    assert "denied" in text
    assert "systemd-tmpfiles" in text


def test_host_without_sensors_is_told_plainly(tmp_path: Path) -> None:
    """No sensor at all: joules will be unmeasured, never 0."""
    code, text = _run(tmp_path)
    assert code == 1
    assert "unmeasured" in text
    assert " 0.0 W" not in text


def test_json_leaves_unknown_power_out(tmp_path: Path) -> None:
    """In JSON too, an unknown power is no number."""
    sysfs.intel_host(tmp_path)
    _, text = _run(tmp_path, as_json=True)
    sensors = {sensor["name"]: sensor for sensor in json.loads(text)["sensors"]}
    assert sensors["rapl"]["state"] == "present"
    assert all("power_w" not in sensor for sensor in sensors.values())
