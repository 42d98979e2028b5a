"""What the host is."""

from __future__ import annotations

from pathlib import Path

from moe2.agent.energy.profiles import find_profile
from moe2.agent.observing.host import detect_host
from tests.fakes import sysfs


def test_jetson_names_its_board_and_power_mode(tmp_path: Path) -> None:
    """Device tree, nvpmodel and the kernel's memory figure."""
    sysfs.agx_orin(tmp_path)
    sysfs.write(tmp_path, "etc/nvpmodel.conf", "< POWER_MODEL ID=0 NAME=MAXN >")
    sysfs.write(tmp_path, "var/lib/nvpmodel/status", "pmode:0000")
    sysfs.write(tmp_path, "proc/meminfo", "MemTotal:       64349568 kB\nMemFree: 1 kB")
    facts = detect_host(tmp_path)
    assert facts.board == "NVIDIA Jetson AGX Orin Developer Kit"
    assert facts.power_mode == "MAXN"
    assert facts.memory_bytes == 64349568 * 1024


def test_pc_names_its_processor_and_make(tmp_path: Path) -> None:
    """cpuinfo and DMI."""
    sysfs.write(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: AMD Ryzen 9 7950X\n")
    sysfs.write(tmp_path, "sys/class/dmi/id/sys_vendor", "ASUS")
    sysfs.write(tmp_path, "sys/class/dmi/id/product_name", "ProArt")
    facts = detect_host(tmp_path)
    assert facts.cpu_model == "AMD Ryzen 9 7950X"
    assert facts.board == "ASUS ProArt"


def test_what_the_host_does_not_tell_is_unknown(tmp_path: Path) -> None:
    """An empty tree: None, nothing guessed."""
    facts = detect_host(tmp_path)
    assert (facts.board, facts.cpu_model, facts.memory_bytes, facts.power_mode) == (None, None, None, None)


def test_simulated_host_says_so(tmp_path: Path) -> None:
    """Board and accelerator of a profile are marked."""
    facts = detect_host(tmp_path, simulated=find_profile("rtx-4090"))
    assert facts.accelerator == "NVIDIA GeForce RTX 4090 (simulated)"
