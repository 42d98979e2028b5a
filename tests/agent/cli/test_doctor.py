"""The doctor's report."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from moe2.agent.cli import doctor
from moe2.agent.cli.doctor import run_doctor
from moe2.agent.energy.catalog import ProbeResult, ProbeState, SensorSettings
from moe2.agent.energy.ownership import DeviceLocks
from moe2.agent.energy.sensor import Reading
from moe2.agent.energy.wall import Plug
from moe2.agent.observing import host
from tests.fakes import sysfs
from tests.fakes.disk import filled, small_disk
from tests.fakes.plug import plugged_in
from tests.fakes.sensors import HangingSensor


def _run(root: Path, *, as_json: bool = False, plugs: tuple[Plug, ...] = ()) -> tuple[int, str]:
    output = io.StringIO()
    settings = SensorSettings(root=root, families=("ina3221", "rapl"), plugs=plugs)
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


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_what_a_host_says_of_itself_drives_no_terminal(tmp_path: Path, options: tuple[str, ...]) -> None:
    """The board's name in the device tree, the processor's and a rail's, as the command prints them."""
    folder = sysfs.orin_nx(tmp_path)
    hostile = "\x1b]0;mine\x07\x1b[2J\x9b31m[/x]"
    sysfs.device_tree(tmp_path, f"Board{hostile}\nNo fault", "nvidia,tegra234")
    sysfs.write(tmp_path, "proc/cpuinfo", f"model name : Processor{hostile}")
    sysfs.write(folder, "in2_label", f"VDD{hostile}")
    done = subprocess.run(
        [sys.executable, "-m", "moe2.agent", "doctor", "--root", str(tmp_path), *options],
        capture_output=True,
        check=False,
        text=True,
        encoding="utf-8",
    )
    assert "Board" in done.stdout
    assert "Processor" in done.stdout
    assert "\nNo fault" not in done.stdout
    assert all(char.isprintable() or char == "\n" for char in done.stdout + done.stderr)


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


def test_a_dead_rail_is_not_called_measured(tmp_path: Path) -> None:
    """0 mA is no power: broken, exit code 1, and no sentence that energy is measured."""
    folder = sysfs.orin_nx(tmp_path)
    sysfs.write(folder, "curr1_input", 0)
    code, text = _run(tmp_path)
    assert code == 1
    assert "broken" in text
    assert "Energy is measured" not in text


def test_a_power_that_cannot_be_is_broken(tmp_path: Path) -> None:
    """The agent would not believe it, so the doctor does not either."""
    folder = sysfs.orin_nx(tmp_path)
    sysfs.write(folder, "curr1_input", 1)
    code, text = _run(tmp_path)
    assert code == 1
    assert "cannot draw" in text


def test_a_device_that_an_agent_measures_says_which(tmp_path: Path) -> None:
    """The doctor looks beside a running agent, and takes nothing from it."""
    sysfs.orin_nx(tmp_path)
    (tmp_path / "run").mkdir()
    DeviceLocks(tmp_path, "edge-01").claim("module")
    code, text = _run(tmp_path)
    assert code == 0
    assert "measured by the agent edge-01" in " ".join(text.split())


def test_a_plug_is_read_and_compared(tmp_path: Path) -> None:
    """Its watts, and how much of them the host's own sensors see."""
    sysfs.orin_nx(tmp_path)
    with plugged_in() as plug:
        plug.power_w = 20.0
        code, text = _run(tmp_path, plugs=(Plug("shelly", plug.url),))
    assert code == 0
    assert "see 16.6 W of it (83%)" in " ".join(text.split())


def test_a_plug_that_does_not_answer_makes_the_host_unwell(tmp_path: Path) -> None:
    """Broken, with what to check."""
    sysfs.orin_nx(tmp_path)
    with plugged_in() as plug:
        url = plug.url
    code, text = _run(tmp_path, plugs=(Plug("tasmota", url),))
    assert code == 1
    assert "power and network" in " ".join(text.split())


def test_a_sensor_whose_read_hangs_is_broken_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answered when it was looked for, and never again."""
    sensor = HangingSensor("nvml:0", lambda: Reading(at_s=0.0, power_w=50.0))
    found = (ProbeResult("nvml:0", ProbeState.PRESENT, "a board", sensor=sensor),)
    monkeypatch.setattr(doctor, "discover", lambda _: found)
    code, text = _run(tmp_path)
    sensor.release.set()
    assert code == 1
    assert "it has not answered for 1 s." in text
    assert "kernel log" in text


def test_a_driver_that_hangs_does_not_keep_the_doctor_from_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks a hung driver for its boards' names waits for ever; the host is shown without them."""
    sysfs.orin_nx(tmp_path)
    release = threading.Event()
    monkeypatch.setattr(host, "board_names", lambda: ("late",) * release.wait())
    output = io.StringIO()
    run_doctor(
        SensorSettings(root=tmp_path, families=(), deadline_s=0.01),
        as_json=False,
        console=Console(file=output, width=160),
    )
    release.set()
    assert "Orin NX" in output.getvalue()
    assert "late" not in output.getvalue()


# --- The agent's state ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk")
async def test_a_full_disk_below_the_state_is_told(tmp_path: Path) -> None:
    """With its place and what to do; exit code 1 while it is full, 0 when there is room again."""
    sysfs.intel_host(tmp_path)
    settings = SensorSettings(root=tmp_path, families=("rapl",))
    async with small_disk(tmp_path / "disk", "64k") as disk:

        def told() -> tuple[int, str]:
            output = io.StringIO()
            code = run_doctor(settings, as_json=False, state_dir=disk, console=Console(file=output, width=400))
            return code, output.getvalue()

        assert told()[0] == 0
        with filled(disk):
            code, text = told()
        assert code == 1
        assert "State not written" in text
        assert "No space left on device" in text
        assert "Make room on the disk." in text
        assert told()[0] == 0
        assert not list(disk.iterdir())


def test_a_folder_of_state_that_only_the_agent_may_write_is_no_fault(tmp_path: Path) -> None:
    """One that is not there yet neither; asked with the service's rights both are."""
    sysfs.intel_host(tmp_path)
    settings = SensorSettings(root=tmp_path, families=("rapl",))
    missing = tmp_path / "none"
    assert doctor.diagnose(settings, state_dir=missing).state_fault is None
    found = doctor.diagnose(settings, state_dir=missing, as_service=True)
    assert found.state_fault is not None
    assert not found.healthy
    assert f"Make {missing} again" in found.state_fault.remedy
