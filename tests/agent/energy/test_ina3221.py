"""Jetson power monitors on sysfs trees of real boards."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe2.agent.energy.ina3221 import Ina3221Sensor
from moe2.agent.energy.sensor import SensorAbsentError, SensorBrokenError
from moe2.common.energy import Scope
from tests.fakes import sysfs
from tests.fakes.clock import ManualClock


def _sensor(root: Path) -> Ina3221Sensor:
    return Ina3221Sensor(root, ManualClock())


@pytest.mark.parametrize("driver", ["ina3221", "ina3221x"])
def test_agx_orin_adds_three_rails_and_not_the_one_inside_another(tmp_path: Path, driver: str) -> None:
    """GPU_SOC + CPU_CV + SYS_5V0; VDDQ is already inside SYS_5V0."""
    sysfs.agx_orin(tmp_path, driver=driver)
    sensor = _sensor(tmp_path)
    sensor.probe()
    expected_w = (19848 * 1880 + 19840 * 80 + 5040 * 2166) * 1e-6
    assert sensor.read().power_w == pytest.approx(expected_w)
    assert sensor.facts.scope is Scope.MODULE_RAILS


def test_orin_nx_uses_the_module_input_alone(tmp_path: Path) -> None:
    """VDD_IN already contains the other rails."""
    sysfs.orin_nx(tmp_path)
    sensor = _sensor(tmp_path)
    sensor.probe()
    assert sensor.read().power_w == pytest.approx(4992 * 3320e-6)
    assert sensor.facts.scope is Scope.MODULE_INPUT


def test_jetpack_4_layout_is_in_milliwatts(tmp_path: Path) -> None:
    """Industrial I/O files of an old Nano: in_power0_input 4210 mW."""
    sysfs.jetson_nano_jetpack4(tmp_path)
    sensor = _sensor(tmp_path)
    sensor.probe()
    assert sensor.read().power_w == pytest.approx(4.21)


def test_hwmon_number_does_not_matter(tmp_path: Path) -> None:
    """The hwmon folder's number changes from boot to boot."""
    sysfs.agx_orin(tmp_path, first_hwmon=7)
    assert "VDD_CPU_CV" in _sensor(tmp_path).probe()


def test_each_read_sees_the_present_value(tmp_path: Path) -> None:
    """Files are kept open, values are not."""
    folder = sysfs.orin_nx(tmp_path)
    sensor = _sensor(tmp_path)
    sensor.probe()
    sysfs.write(folder, "curr1_input", 1000)
    assert sensor.read().power_w == pytest.approx(4.992)


def test_disabled_channel_is_a_missing_rail(tmp_path: Path) -> None:
    """A channel switched off would read as 0 W: its rail is missing, and the total unknown."""
    first, _ = sysfs.agx_orin(tmp_path)
    sysfs.write(first, "in2_enable", 0)
    with pytest.raises(SensorBrokenError, match="VDD_CPU_CV"):
        _sensor(tmp_path).probe()


def test_unknown_board_is_not_guessed(tmp_path: Path) -> None:
    """Rails whose overlap is unknown are not added up."""
    folder = sysfs.orin_nx(tmp_path)
    sysfs.write(folder, "in1_label", "VDD_MYSTERY")
    with pytest.raises(SensorBrokenError, match="VDD_MYSTERY"):
        _sensor(tmp_path).probe()


def test_host_without_monitor_is_absent(tmp_path: Path) -> None:
    """An ordinary PC has no such sensor, and that is no fault."""
    with pytest.raises(SensorAbsentError, match="no INA3221"):
        _sensor(tmp_path).probe()


def test_rail_that_vanishes_ends_the_reading(tmp_path: Path) -> None:
    """One of three rails gone: no total at all, rather than a smaller one."""
    first, _ = sysfs.agx_orin(tmp_path)
    sensor = _sensor(tmp_path)
    sensor.probe()
    sensor.close()
    (first / "curr3_input").unlink()
    with pytest.raises(SensorAbsentError, match="curr3_input"):
        sensor.read()


def test_garbage_in_a_file_is_named(tmp_path: Path) -> None:
    """A value that is no number is a broken sensor, with the file's name."""
    folder = sysfs.orin_nx(tmp_path)
    sensor = _sensor(tmp_path)
    sensor.probe()
    sysfs.write(folder, "in1_input", "many")
    with pytest.raises(SensorBrokenError, match="in1_input"):
        sensor.read()
