"""Builders of /sys trees as the kernel lays them out on real boards, below any root."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

_I2C = "sys/bus/i2c/drivers"

AGX_ORIN_RAILS = {
    # Rail: (mV, mA). Power of the three that count: 37.31 + 1.59 + 10.92 W.
    "VDD_GPU_SOC": (19848, 1880),
    "VDD_CPU_CV": (19840, 80),
    "VIN_SYS_5V0": (5040, 2166),
    "VDDQ_VDD2_1V8AO": (5040, 873),
}
ORIN_NX_RAILS = {
    "VDD_IN": (4992, 3320),
    "VDD_CPU_GPU_CV": (4992, 1720),
    "VDD_SOC": (4992, 584),
}

ORIN_NANO_SUPER_RAILS = {
    "VDD_IN": (4984, 5016),
    "VDD_CPU_GPU_CV": (4984, 2480),
    "VDD_SOC": (4984, 1120),
}
AGX_XAVIER_RAILS = {
    # GPU and CV are switched off while nothing uses them. 0 + 0.314 + 1.254 + 0 + 0.471 + 2.208 W.
    "GPU": (19152, 0),
    "CPU": (19152, 16),
    "SOC": (19152, 66),
    "CV": (19152, 0),
    "VDDRQ": (19152, 25),
    "SYS5V": (4968, 444),
}
AGX_THOR_RAILS = {
    "VDD_GPU": (19600, 1520),
    "VDD_CPU_SOC_MSS": (19600, 840),
    "VIN_SYS_5V0": (5032, 1340),
}


def write(root: Path, path: str, value: object) -> Path:
    """Create or replace one attribute file."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{value}\n")
    return file


def _hwmon(
    root: Path,
    driver: str,
    address: str,
    number: int,
    labels: list[str],
    rails: Mapping[str, tuple[int, int]],
) -> Path:
    folder = f"{_I2C}/{driver}/{address}/hwmon/hwmon{number}"
    write(root, f"{folder}/name", "ina3221")
    for channel, label in enumerate(labels, start=1):
        millivolt, milliampere = rails.get(label, (0, 0))
        write(root, f"{folder}/in{channel}_label", label)
        write(root, f"{folder}/in{channel}_enable", 1)
        write(root, f"{folder}/in{channel}_input", millivolt)
        write(root, f"{folder}/curr{channel}_input", milliampere)
    # Shunt voltages and the kernel's sums, which no one should take for rails.
    for channel in (4, 5, 6):
        write(root, f"{folder}/in{channel}_input", 1)
    write(root, f"{folder}/in7_label", "sum of shunt voltages")
    write(root, f"{folder}/in7_input", 3)
    write(root, f"{folder}/curr4_input", 99999)
    return root / folder


def agx_orin(root: Path, *, driver: str = "ina3221", first_hwmon: int = 3) -> tuple[Path, Path]:
    """A Jetson AGX Orin with JetPack 5 or 6: two monitors, the second mostly unconnected; their folders."""
    device_tree(root, "NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0005", "nvidia,tegra234")
    first = _hwmon(root, driver, "1-0040", first_hwmon, ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"], AGX_ORIN_RAILS)
    second = _hwmon(root, driver, "1-0041", first_hwmon + 1, ["NC", "VDDQ_VDD2_1V8AO", "NC"], AGX_ORIN_RAILS)
    return first, second


def orin_nx(root: Path) -> Path:
    """A Jetson Orin NX with JetPack 6: one monitor with the module's input; its folder."""
    device_tree(root, "NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "nvidia,tegra234")
    return _hwmon(root, "ina3221", "1-0040", 1, ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"], ORIN_NX_RAILS)


def orin_nano_super(root: Path) -> Path:
    """A Jetson Orin Nano 8 GB with JetPack 6.2 in its super mode; the monitor's folder."""
    device_tree(
        root, "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "nvidia,p3768", "nvidia,tegra234"
    )
    modes = ("15W", "25W", "MAXN_SUPER")
    write(root, "etc/nvpmodel.conf", "\n".join(f"< POWER_MODEL ID={i} NAME={name} >" for i, name in enumerate(modes)))
    write(root, "var/lib/nvpmodel/status", "pmode:0002 fmode:quiet")
    return _hwmon(root, "ina3221", "1-0040", 1, ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"], ORIN_NANO_SUPER_RAILS)


def agx_xavier(root: Path) -> tuple[Path, Path]:
    """A Jetson AGX Xavier with JetPack 5: two monitors of three rails each; their folders."""
    device_tree(root, "Jetson-AGX", "nvidia,p2972-0000", "nvidia,tegra194")
    first = _hwmon(root, "ina3221", "1-0040", 3, ["GPU", "CPU", "SOC"], AGX_XAVIER_RAILS)
    second = _hwmon(root, "ina3221", "1-0041", 4, ["CV", "VDDRQ", "SYS5V"], AGX_XAVIER_RAILS)
    return first, second


def agx_thor(root: Path, *, board_input_uw: int | None = 58_250_000, label: str | None = None) -> Path:
    """A Jetson AGX Thor kit with JetPack 7: rails on an INA3221, the board's input on an INA238; the rails' folder.

    board_input_uw: what the INA238 tells in µW; None where the carrier board has none. label: of its rail.
    """
    device_tree(root, "NVIDIA Jetson AGX Thor Developer Kit", "nvidia,p3971-0089+p3834-0008", "nvidia,tegra264")
    if board_input_uw is not None:
        folder = f"{_I2C}/ina238/2-0044/hwmon/hwmon0"
        write(root, f"{folder}/name", "ina238")
        write(root, f"{folder}/power1_input", board_input_uw)
        write(root, f"{folder}/in1_input", 19_980)
        write(root, f"{folder}/curr1_input", 2_915)
        if label is not None:
            write(root, f"{folder}/label", label)
    return _hwmon(root, "ina3221", "2-0040", 1, ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"], AGX_THOR_RAILS)


def second_monitor(root: Path, address: str, labels: list[str], milliampere: int, number: int = 9) -> Path:
    """A further INA3221, such as a carrier board's, with rails at 5 V and this current; its folder."""
    return _hwmon(root, "ina3221", address, number, labels, dict.fromkeys(labels, (5000, milliampere)))


def jetson_nano_jetpack4(root: Path) -> Path:
    """The first Jetson Nano with JetPack 4: industrial I/O in mW; the monitor's folder."""
    device_tree(root, "NVIDIA Jetson Nano Developer Kit", "nvidia,tegra210")
    folder = f"{_I2C}/ina3221x/6-0040/iio:device0"
    for number, (rail, milliwatt) in enumerate({"POM_5V_IN": 4210, "POM_5V_GPU": 1200, "POM_5V_CPU": 900}.items()):
        write(root, f"{folder}/rail_name_{number}", rail)
        write(root, f"{folder}/in_power{number}_input", milliwatt)
    return root / folder


def device_tree(root: Path, model: str, *compatible: str) -> None:
    """The board's name as the firmware gives it: strings that end in NUL."""
    folder = root / "proc/device-tree"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model").write_bytes(model.encode() + b"\0")
    (folder / "compatible").write_bytes(b"".join(name.encode() + b"\0" for name in compatible))


def rapl_zone(
    root: Path,
    zone: str,
    name: str,
    energy_uj: int,
    range_uj: int | None = 262143328850,
    control: str = "intel-rapl",
) -> Path:
    """One powercap zone, such as "0" or "0:1"; its folder."""
    folder = f"sys/class/powercap/{control}:{zone}"
    write(root, f"{folder}/name", name)
    write(root, f"{folder}/energy_uj", energy_uj)
    if range_uj is not None:
        write(root, f"{folder}/max_energy_range_uj", range_uj)
    return root / folder


def intel_host(root: Path, energy_uj: int = 240422366267) -> Path:
    """A laptop: a package with parts, psys around it, the same package again through MMIO; the package."""
    package = rapl_zone(root, "0", "package-0", energy_uj)
    rapl_zone(root, "0:0", "core", energy_uj // 2)
    rapl_zone(root, "0:1", "uncore", energy_uj // 10)
    rapl_zone(root, "1", "psys", energy_uj * 2)
    rapl_zone(root, "0", "package-0", energy_uj, control="intel-rapl-mmio")
    return package


def amd_host(root: Path) -> tuple[Path, Path]:
    """A two-socket AMD server: the kernel gives its packages Intel's zone names; the two packages."""
    first = rapl_zone(root, "0", "package-0", 1_000_000, range_uj=65532610987)
    rapl_zone(root, "0:0", "core", 400_000, range_uj=65532610987)
    second = rapl_zone(root, "1", "package-1", 2_000_000, range_uj=65532610987)
    return first, second


def deny_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAPL's counters can be read by nobody."""
    # Tests may run as root, who may read everything: the refusal has to come from the call itself.
    real_open = os.open

    def refuse_energy(path: Path, flags: int, *rest: int) -> int:
        if str(path).endswith("energy_uj"):
            raise PermissionError(errno.EACCES, "denied")
        return real_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse_energy)
