"""The GPU as the installed service sees it: device rules, groups, nodes and the driver, in a system that was booted.

The nodes are those of devices that this machine has, under the names that NVIDIA's drivers register; the driver's
library is a fake one that opens a node as Tegra's does. The tests go in order, on one system.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.nvidialibrary import compile_cuda
from tests.install.machine import CHECKOUT_INSIDE, MODEL_INSIDE, WHEELS_OPTION, Machine, prepared_machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.systemd,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc to build the fake driver library"),
]

# A class that no unit could name beforehand, as the next Orin's will be.
GPU_CLASS = "17000000.gb10b"
NODE = "/dev/nvgpu/igpu0/ctrl"
DROPINS = "/etc/systemd/system/moe2-agent.service.d"
LIBRARY = "/usr/lib/libcuda.so.1"
RELEASE_FILE = "# R36 (release), REVISION: 4.0, GCID: 1, BOARD: generic"


def node_device() -> tuple[int, int]:
    """A character device that opens for anybody whom its node lets: a processor's cpuid, else a serial line."""
    known = Path("/proc/devices").read_text()
    if "203 cpu/cpuid" in known:
        return 203, 0
    pytest.skip("this machine has no device that a node of the fake GPU could be")


def misc_minor(name: str) -> int:
    for line in Path("/proc/misc").read_text().splitlines():
        minor, found = line.split()
        if found == name:
            return int(minor)
    pytest.skip(f"this machine has no {name}")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A Jetson with coordinator and agent installed while its GPU's driver was not there yet."""
    major, minor = node_device()
    fuse = misc_minor("fuse")
    with prepared_machine() as machine:
        machine.output("mknod", "/dev/other", "c", "10", str(fuse))
        enforced = machine.command(
            *("systemd-run", "--pipe", "--wait", "--quiet", "-p", "DevicePolicy=closed"),
            *("sh", "-c", "exec 3<>/dev/other"),
        )
        if enforced.returncode == 0:
            pytest.skip("device rules of units are not held in a container of this machine")
        shutil.copy(compile_cuda(tmp_path_factory.mktemp("cuda")), machine.root / LIBRARY.lstrip("/"))
        machine.shell(f"echo '{RELEASE_FILE}' >/etc/nv_tegra_release; echo 'opens {NODE}' >/etc/fake-cuda; ldconfig")
        machine.output(f"{CHECKOUT_INSIDE}/install.sh", "coordinator", *WHEELS_OPTION)
        machine.output(
            *(
                f"{CHECKOUT_INSIDE}/install.sh",
                "agent",
                "--coordinator",
                "ws://127.0.0.1:8081",
                "--model",
                MODEL_INSIDE,
            ),
            *WHEELS_OPTION,
        )
        # The driver comes: its class, its nodes, their groups.
        machine.shell(
            f"""groupadd --system render; groupadd --system nvidia
            sed 's|{major} cpu/cpuid|{major} {GPU_CLASS}|' /proc/devices >/run/devices
            mount --bind /run/devices /proc/devices
            mkdir -p /dev/nvgpu/igpu0 /dev/dri
            mknod {NODE} c {major} {minor}; chgrp nvidia {NODE}; chmod 660 {NODE}
            mknod /dev/nvmap c 10 {fuse}; chgrp video /dev/nvmap; chmod 660 /dev/nvmap
            mknod /dev/dri/renderD128 c {major} {minor}; chgrp render /dev/dri/renderD128
            chmod 660 /dev/dri/renderD128"""
        )
        yield machine


def doctor(machine: Machine, *options: str) -> dict[str, Any]:
    """What the doctor finds, asked by root."""
    told = machine.command("moe2-agent", "doctor", "--json", *options)
    assert told.returncode in (0, 1), told.stderr
    assert told.stderr == ""
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def states(found: dict[str, Any]) -> dict[str, str]:
    return {node["path"]: node["state"] for node in found["gpu"]["nodes"]}


def dropin(machine: Machine, text: str) -> None:
    """What `systemctl edit moe2-agent` writes."""
    machine.shell(f"printf '[Service]\\n{text}' >{DROPINS}/override.conf; systemctl daemon-reload")


def test_the_doctor_asks_with_the_services_rights(machine: Machine) -> None:
    """What root may open, the service may not: its unit bars a class that came later, a group is not its own."""
    as_root = doctor(machine, "--own-rights")
    assert set(states(as_root).values()) == {"opens"}
    assert as_root["gpu"]["cuda"]["code"] == 0
    found = doctor(machine)
    assert (found["user"], found["as_service"]) == ("moe2-agent", True)
    assert states(found)[NODE] == "barred" or states(found)[NODE] == "denied"
    assert states(found)["/dev/nvmap"] == "opens"
    assert found["gpu"]["cuda"]["code"] == 999


def test_installing_again_lets_this_hosts_gpu_through(machine: Machine) -> None:
    """By the class that its driver has registered and by the groups that own its nodes; the driver answers then."""
    machine.output(f"{CHECKOUT_INSIDE}/install.sh", "upgrade", *WHEELS_OPTION)
    assert f"DeviceAllow=char-{GPU_CLASS} rw" in machine.output("cat", f"{DROPINS}/20-devices.conf")
    groups = machine.output("cat", f"{DROPINS}/10-groups.conf")
    assert {"nvidia", "render", "video"} <= set(groups.rpartition("SupplementaryGroups=")[2].split())
    found = doctor(machine)
    assert set(states(found).values()) == {"opens"}
    assert found["gpu"]["cuda"] == {"code": 0, "devices": ["Fake GPU 0"], "driver": "12.6"}


def test_the_doctor_says_that_llama_cpp_has_no_cuda(machine: Machine) -> None:
    """The driver works now, and the wheel is one for processors; exit status 1, in the installer's doctor as well."""
    found = doctor(machine)
    assert (found["gpu_usable"], found["gpu_fault"]["cause"]) == (False, "no_gpu_build")
    told = machine.command(f"{CHECKOUT_INSIDE}/install.sh", "doctor")
    assert told.returncode == 1
    assert "the agent's service cannot use the GPU" in told.stdout
    assert "no_gpu_build" in told.stdout


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("DeviceAllow=\\n", "barred"),
        ("DevicePolicy=auto\\n", "barred"),
        ("DevicePolicy=auto\\nDeviceAllow=\\n", "opens"),
    ],
)
def test_the_documented_way_out_of_device_rules(machine: Machine, text: str, state: str) -> None:
    """An empty list and the policy, both: each alone still bars what the list does not name."""
    kept = machine.output("cat", f"{DROPINS}/20-devices.conf")
    machine.shell(f"sed -i '/gb10b/d' {DROPINS}/20-devices.conf")
    dropin(machine, text)
    try:
        assert states(doctor(machine))[NODE] == state
    finally:
        machine.shell(f"rm {DROPINS}/override.conf")
        (machine.root / f"{DROPINS}/20-devices.conf".lstrip("/")).write_text(kept + "\n")
        machine.shell("systemctl daemon-reload")


def test_the_agent_names_a_model_that_is_not_on_the_gpu(machine: Machine) -> None:
    """A notice while nobody asks for it, degraded where the configuration does, and refused where it must be there."""
    config = "/etc/moe2/agent.toml"

    def warned(code: str, severity: str) -> str:
        machine.shell("systemctl restart moe2-agent")
        machine.wait_for(f'moe2-agent status --json | grep -q \'"code":"{code}","severity":"{severity}"\'')
        return machine.shell("moe2-agent status --json || true")

    assert "no_gpu_build" in warned("gpu_unused", "notice")
    machine.shell(f"sed -i 's/^# gpu_layers = 0 /gpu_layers = -1 /' {config}")
    status = json.loads(warned("gpu_unused", "degraded"))
    [expert] = status["experts"]
    assert expert["gpu_fault"]["cause"] == "no_gpu_build"
    assert expert["placement"][0]["device"] == "CPU"
    assert expert["placement"][0]["layers"] == 31
    machine.shell(f"sed -i 's/^# require_gpu = false/require_gpu = true/' {config}")
    refused = json.loads(warned("model_failed", "degraded"))
    assert "must be on the GPU" in refused["experts"][0]["last_error"]
    machine.shell(f"sed -i 's/^require_gpu = true/require_gpu = false/; s/^gpu_layers = -1/gpu_layers = 0/' {config}")


def test_nodes_that_nobody_made_are_made_before_the_agent_starts(machine: Machine) -> None:
    """By nvidia-modprobe as root, in a unit of its own: within the agent's, its device rules would bar that."""
    fake = '#!/bin/sh\\n[ -e /dev/nvidia-uvm ] || mknod -m 666 /dev/nvidia-uvm c 10 200\\necho "$*" >>/run/modprobe\\n'
    machine.shell(f"printf '{fake}' >/usr/bin/nvidia-modprobe; chmod 755 /usr/bin/nvidia-modprobe")
    machine.shell("systemctl restart moe2-agent")
    assert machine.output("stat", "--format=%F", "/dev/nvidia-uvm") == "character special file"
    within = machine.command(
        *("systemd-run", "--pipe", "--wait", "--quiet", "-p", "DevicePolicy=closed", "-p", "DeviceAllow=char-misc rw"),
        *("mknod", "/dev/nvidia-uvm-tools", "c", "10", "200"),
    )
    assert within.returncode != 0
    assert shown(machine, "moe2-gpu-nodes.service", "Result") == "success"


def test_a_counter_that_only_root_may_read_is_denied_to_the_service(machine: Machine) -> None:
    """RAPL's, root's alone since 2020: the doctor must not call it present because root asks."""
    machine.shell(
        """mkdir -p /run/class/powercap/intel-rapl:0; cd /run/class/powercap/intel-rapl:0
        echo package-0 >name; echo 262143328850 >max_energy_range_uj; echo 240422366267 >energy_uj
        chmod 400 energy_uj; mount --bind /run/class /sys/class"""
    )
    try:
        found = {sensor["name"]: sensor["state"] for sensor in doctor(machine, "--own-rights")["sensors"]}
        assert found["rapl"] == "present"
        found = {sensor["name"]: sensor["state"] for sensor in doctor(machine)["sensors"]}
        assert found["rapl"] == "denied"
    finally:
        machine.shell("umount /sys/class")


def test_uninstalling_takes_the_drop_ins_and_the_units_along(machine: Machine) -> None:
    """Nothing of moe2 is left in systemd's folder."""
    machine.output(f"{CHECKOUT_INSIDE}/install.sh", "uninstall", "--purge")
    assert machine.shell("ls /etc/systemd/system | grep moe2 || true") == ""


def shown(machine: Machine, unit: str, name: str) -> str:
    return machine.output("systemctl", "show", "--property", name, "--value", unit)
