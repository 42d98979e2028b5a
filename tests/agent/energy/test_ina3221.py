"""Jetson power monitors on sysfs trees of real boards."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from moe2.agent.energy.ina3221 import Ina3221Sensor
from moe2.agent.energy.sensor import SensorAbsentError, SensorBrokenError, SensorMissedError
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


def test_orin_nano_super_uses_the_module_input(tmp_path: Path) -> None:
    """The super mode changes the power, not the rails: VDD_IN alone."""
    sysfs.orin_nano_super(tmp_path)
    sensor = _sensor(tmp_path)
    sensor.probe()
    assert sensor.read().power_w == pytest.approx(4984 * 5016e-6)


def test_agx_xavier_adds_all_six_rails(tmp_path: Path) -> None:
    """They lie side by side; GPU and CV at 0 mA are switched off, not dead."""
    sysfs.agx_xavier(tmp_path)
    sensor = _sensor(tmp_path)
    sensor.probe()
    assert sensor.read().power_w == pytest.approx(0.306432 + 1.264032 + 0.4788 + 2.205792)
    assert sensor.facts.scope is Scope.MODULE_RAILS


@pytest.mark.parametrize("label", [None, "VIN"])
def test_thor_uses_its_board_input_in_microwatts(tmp_path: Path, label: str | None) -> None:
    """The INA238 at the board's input contains the rails, whether its driver labels it or not."""
    sysfs.agx_thor(tmp_path, label=label)
    sensor = _sensor(tmp_path)
    sensor.probe()
    assert sensor.read().power_w == pytest.approx(58.25)
    assert sensor.facts.scope is Scope.MODULE_INPUT


def test_thor_without_a_board_input_adds_its_rails(tmp_path: Path) -> None:
    """On a carrier board without the INA238 the three rails are the lower bound that there is."""
    sysfs.agx_thor(tmp_path, board_input_uw=None)
    sensor = _sensor(tmp_path)
    sensor.probe()
    assert sensor.read().power_w == pytest.approx((19600 * 1520 + 19600 * 840 + 5032 * 1340) * 1e-6)
    assert sensor.facts.scope is Scope.MODULE_RAILS


def test_a_rail_at_0_ma_is_dead_and_not_idle(tmp_path: Path) -> None:
    """No total is made of the other rails: the sensor is broken, and says what to do instead."""
    first, _ = sysfs.agx_orin(tmp_path)
    sysfs.write(first, "curr1_input", 0)
    with pytest.raises(SensorBrokenError, match="VDD_GPU_SOC reads 0 mA") as broken:
        _sensor(tmp_path).probe()
    assert "sensors.wall" in (broken.value.remedy or "")


def test_two_monitors_with_one_label_are_asked_about(tmp_path: Path) -> None:
    """A carrier board's VDD_IN beside the module's: neither is taken, and the remedy is a setting that works."""
    sysfs.orin_nx(tmp_path)
    sysfs.second_monitor(tmp_path, "7-0041", ["VDD_IN", "NC", "NC"], 900)
    with pytest.raises(SensorBrokenError, match=r"1-0040, 7-0041") as broken:
        _sensor(tmp_path).probe()
    assert 'monitors = ["1-0040"]' in (broken.value.remedy or "")
    chosen = Ina3221Sensor(tmp_path, ManualClock(), monitors=["1-0040"])
    chosen.probe()
    assert chosen.read().power_w == pytest.approx(4992 * 3320e-6)


def test_a_label_twice_does_not_matter_where_it_does_not_count(tmp_path: Path) -> None:
    """A second VDD_SOC is no part of the total on a board with VDD_IN."""
    sysfs.orin_nx(tmp_path)
    sysfs.second_monitor(tmp_path, "7-0041", ["VDD_SOC", "NC", "NC"], 900)
    assert "VDD_IN" in _sensor(tmp_path).probe()


def test_a_monitor_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    """A wrong address in the settings is a fault with the right ones."""
    sysfs.orin_nx(tmp_path)
    with pytest.raises(SensorBrokenError, match=r"no power monitor 9-0040; this board has 1-0040"):
        Ina3221Sensor(tmp_path, ManualClock(), monitors=["9-0040"]).probe()


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EAGAIN, errno.EREMOTEIO])
def test_a_busy_bus_is_one_missed_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The reading is missed, the next one succeeds."""
    sysfs.orin_nx(tmp_path)
    sensor = _sensor(tmp_path)
    sensor.probe()
    read, failures = os.pread, [OSError(code, os.strerror(code))]

    def busy_once(descriptor: int, length: int, offset: int) -> bytes:
        if failures:
            raise failures.pop()
        return read(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", busy_once)
    with pytest.raises(SensorMissedError):
        sensor.read()
    assert sensor.read().power_w == pytest.approx(4992 * 3320e-6)


def test_a_driver_that_is_bound_anew_is_found_under_another_number(tmp_path: Path) -> None:
    """hwmon1 became hwmon6: probed again, the sensor reads there."""
    folder = sysfs.orin_nx(tmp_path)
    sensor = _sensor(tmp_path)
    sensor.probe()
    sensor.close()
    folder.rename(folder.with_name("hwmon6"))
    with pytest.raises(SensorAbsentError):
        sensor.read()
    sensor.probe()
    assert sensor.read().power_w == pytest.approx(4992 * 3320e-6)


def test_swapped_labels_are_followed(tmp_path: Path) -> None:
    """A carrier board's device tree has the input on channel 3: the label decides, not the channel."""
    folder = sysfs.orin_nx(tmp_path)
    sysfs.write(folder, "in1_label", "VDD_SOC")
    sysfs.write(folder, "in3_label", "VDD_IN")
    sensor = _sensor(tmp_path)
    sensor.probe()
    assert sensor.read().power_w == pytest.approx(4992 * 584e-6)


def test_one_label_on_two_channels_of_a_monitor_is_not_guessed(tmp_path: Path) -> None:
    """Neither the first nor the last is taken."""
    folder = sysfs.orin_nx(tmp_path)
    sysfs.write(folder, "in2_label", "VDD_IN")
    with pytest.raises(SensorBrokenError, match="two channels of one power monitor are called VDD_IN"):
        _sensor(tmp_path).probe()


def test_a_monitor_without_labels_is_told_apart_from_no_monitor(tmp_path: Path) -> None:
    """It is there, nobody knows what it measures, and a plug could measure instead."""
    folder = sysfs.orin_nx(tmp_path)
    for number in (1, 2, 3):
        (folder / f"in{number}_label").unlink()
    with pytest.raises(SensorAbsentError, match="1-0040 names no rail") as absent:
        _sensor(tmp_path).probe()
    assert "sensors.wall" in (absent.value.remedy or "")
