"""Power mode, heat and throttling."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.agent.energy.conditions import ConditionLog, Conditions, read_conditions, read_power_mode
from tests.fakes import sysfs

_NVPMODEL_CONF = """
# < POWER_MODEL ID=2 NAME=COMMENTED_OUT >
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MODE_30W >
"""


def test_nvpmodel_is_read_without_running_anything(tmp_path: Path) -> None:
    """The chosen number from nvpmodel's status, its name from the catalogue."""
    sysfs.write(tmp_path, "etc/nvpmodel.conf", _NVPMODEL_CONF)
    sysfs.write(tmp_path, "var/lib/nvpmodel/status", "pmode:0002 fmode:cool")
    assert read_power_mode(tmp_path) == "MODE_30W"


def test_mode_without_catalogue_keeps_its_number(tmp_path: Path) -> None:
    """An unreadable catalogue costs the name, not the knowledge that the mode is another one."""
    sysfs.write(tmp_path, "var/lib/nvpmodel/status", "pmode:0000")
    assert read_power_mode(tmp_path) == "nvpmodel 0"


def test_pc_has_a_platform_profile(tmp_path: Path) -> None:
    """On a PC the firmware's profile is the power mode."""
    sysfs.write(tmp_path, "sys/firmware/acpi/platform_profile", "performance")
    assert read_power_mode(tmp_path) == "performance"


def test_host_without_modes_has_none(tmp_path: Path) -> None:
    """Unknown is None."""
    assert read_conditions(tmp_path) == Conditions()


def test_zone_that_is_off_has_no_temperature(tmp_path: Path) -> None:
    """-256 °C is a switched-off zone, not the coldest place on earth."""
    for number, (kind, milli) in enumerate([("cpu-thermal", 48_500), ("cv0-thermal", -256_000)]):
        sysfs.write(tmp_path, f"sys/class/thermal/thermal_zone{number}/type", kind)
        sysfs.write(tmp_path, f"sys/class/thermal/thermal_zone{number}/temp", milli)
    assert read_conditions(tmp_path).temperature_c == 48.5
    (tmp_path / "sys/class/thermal/thermal_zone0/temp").unlink()
    assert read_conditions(tmp_path).temperature_c is None


def test_thermal_alert_is_throttling_and_a_fan_is_not(tmp_path: Path) -> None:
    """Only cooling devices that are alerts hold the host back."""
    for number, (kind, state) in enumerate([("pwm-fan", 4), ("gpu-throttle-alert", 1), ("cpu-throttle-alert", 0)]):
        sysfs.write(tmp_path, f"sys/class/thermal/cooling_device{number}/type", kind)
        sysfs.write(tmp_path, f"sys/class/thermal/cooling_device{number}/cur_state", state)
    log = ConditionLog(read_conditions(tmp_path))
    log.update(read_conditions(tmp_path), 5.0)
    (warning,) = log.warnings(5.0)
    assert warning.code == "throttled"
    assert "gpu-throttle-alert" in warning.message
    assert "fan" not in warning.message


def test_over_current_counts_only_when_it_grows(tmp_path: Path) -> None:
    """A count left from earlier is history; growth is throttling now; oc3 rises under any load."""
    monitor = "sys/class/hwmon/hwmon3"
    sysfs.write(tmp_path, f"{monitor}/oc2_event_cnt", 15)
    sysfs.write(tmp_path, f"{monitor}/oc3_event_cnt", 37)
    log = ConditionLog(read_conditions(tmp_path))
    sysfs.write(tmp_path, f"{monitor}/oc3_event_cnt", 99)
    log.update(read_conditions(tmp_path), 1.0)
    assert log.warnings(1.0) == ()
    sysfs.write(tmp_path, f"{monitor}/oc2_event_cnt", 16)
    log.update(read_conditions(tmp_path), 2.0)
    assert [warning.code for warning in log.warnings(2.0)] == ["throttled"]
    assert log.warnings(60.0) == ()


def test_processor_throttling_is_seen(tmp_path: Path) -> None:
    """The package's throttle counter grows while the processor holds back."""
    counter = "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count"
    sysfs.write(tmp_path, counter, 3)
    log = ConditionLog(read_conditions(tmp_path))
    sysfs.write(tmp_path, counter, 4)
    log.update(read_conditions(tmp_path), 1.0)
    assert "package thermal throttling" in log.warnings(1.0)[0].message


def test_gpu_throttling_is_reported() -> None:
    """What the GPU's own sensor says is part of the same warning."""
    log = ConditionLog(Conditions())
    log.update(Conditions(), 1.0, gpu_throttling="hardware thermal slowdown")
    assert "hardware thermal slowdown" in log.warnings(1.0)[0].message


def test_change_of_power_mode_is_told_once_and_noted() -> None:
    """The account is told of the new mode; the operator sees a notice for ten minutes."""
    told: list[str | None] = []
    log = ConditionLog(Conditions(power_mode="MAXN"), on_power_mode=told.append)
    log.update(Conditions(power_mode="MODE_30W"), 10.0)
    log.update(Conditions(power_mode="MODE_30W"), 15.0)
    assert told == ["MODE_30W"]
    assert [warning.code for warning in log.warnings(15.0)] == ["power_mode_changed"]
    assert log.warnings(700.0) == ()


def _surface(root: Path, state: int) -> None:
    sysfs.write(root, "sys/class/thermal/cooling_device0/type", "hot-surface-alert")
    sysfs.write(root, "sys/class/thermal/cooling_device0/cur_state", state)


def test_a_hot_surface_is_no_throttling(tmp_path: Path) -> None:
    """From 70 °C people should not touch the board; it is as fast as before."""
    _surface(tmp_path, 1)
    log = ConditionLog(Conditions())
    log.update(read_conditions(tmp_path), 5.0)
    (warning,) = log.warnings(5.0)
    assert (warning.code, warning.severity) == ("hot_surface", "notice")


@pytest.mark.slow
def test_a_surface_that_hovers_about_its_limit_is_one_fact(tmp_path: Path) -> None:
    """Hundreds of changes an hour are the same notice all the time."""
    log = ConditionLog(Conditions())
    told = set()
    for look in range(720):
        _surface(tmp_path, look % 2)
        log.update(read_conditions(tmp_path), 5.0 * look)
        told.add(tuple(warning.code for warning in log.warnings(5.0 * look)))
    assert told == {(), ("hot_surface",)}
    assert log.warnings(5.0 * 720 + 600.0) == ()


def test_a_mode_named_tightly_keeps_its_name(tmp_path: Path) -> None:
    """The bracket is not part of the mode's name."""
    sysfs.write(tmp_path, "etc/nvpmodel.conf", "<POWER_MODEL ID=1 NAME=25W>")
    sysfs.write(tmp_path, "var/lib/nvpmodel/status", "pmode:0001")
    assert read_power_mode(tmp_path) == "25W"


def test_orin_nano_super_tells_its_mode(tmp_path: Path) -> None:
    """MAXN_SUPER, as nvpmodel calls it."""
    sysfs.orin_nano_super(tmp_path)
    assert read_power_mode(tmp_path) == "MAXN_SUPER"
