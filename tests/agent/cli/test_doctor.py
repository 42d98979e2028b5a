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


# --- The GPU ----------------------------------------------------------------------------------------------------------


def test_a_jetson_whose_nodes_are_missing_is_told_what_to_do(tmp_path: Path) -> None:
    """By the nodes' names, with the remedy for such a board; exit status 1 though energy can be measured."""
    sysfs.orin_nx(tmp_path)
    (tmp_path / "dev").mkdir()
    code, text = _run(tmp_path)
    assert code == 1
    assert "GPU not usable (no_device_node)" in text
    assert "/dev/nvmap" in text
    assert "modprobe nvgpu" in text


def test_a_host_without_a_gpu_is_not_told_about_one(tmp_path: Path) -> None:
    """Nothing is wrong with it."""
    sysfs.intel_host(tmp_path)
    code, text = _run(tmp_path)
    assert (code, "GPU" in text) == (0, False)
    found = json.loads(_run(tmp_path, as_json=True)[1])
    assert (found["gpu_usable"], found["gpu_fault"]) == (None, None)


def test_whose_rights_were_used_is_told(tmp_path: Path) -> None:
    """Another tree than this host's is asked with one's own."""
    sysfs.orin_nx(tmp_path)
    found = json.loads(_run(tmp_path, as_json=True)[1])
    assert found["as_service"] is False
    assert found["user"] in _run(tmp_path)[1]
