"""Processor energy on powercap trees."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from moe2.agent.energy.rapl import RaplSensor
from moe2.agent.energy.sensor import SensorAbsentError, SensorBrokenError, SensorDeniedError
from tests.fakes import sysfs
from tests.fakes.clock import ManualClock


def _probed(root: Path, clock: ManualClock) -> RaplSensor:
    sensor = RaplSensor(root, clock)
    sensor.probe()
    return sensor


def test_only_the_package_counts(tmp_path: Path) -> None:
    """core, uncore, psys and the MMIO copy are the same joules again."""
    package = sysfs.intel_host(tmp_path)
    clock = ManualClock()
    sensor = _probed(tmp_path, clock)
    for zone in (tmp_path / "sys/class/powercap").iterdir():
        if zone != package:
            sysfs.write(zone, "energy_uj", 250_000_000_000)
    clock.advance(1.0)
    sysfs.write(package, "energy_uj", 240422366267 + 15_000_000)
    assert sensor.read().energy_j == pytest.approx(15.0)


def test_two_packages_are_added_each_with_its_own_wrap(tmp_path: Path) -> None:
    """An AMD server: one package wraps at 65.5 kJ while the other does not."""
    first, second = sysfs.amd_host(tmp_path)
    sysfs.write(first, "energy_uj", 65532610987 - 10_000_000)
    clock = ManualClock()
    sensor = _probed(tmp_path, clock)
    clock.advance(1.0)
    sysfs.write(first, "energy_uj", 5_000_000)
    sysfs.write(second, "energy_uj", 2_000_000 + 30_000_000)
    assert sensor.read().energy_j == pytest.approx(15.0 + 30.0)
    assert sensor.read().epoch == 0


def test_two_zones_of_one_name_are_not_added(tmp_path: Path) -> None:
    """It may be one counter that two drivers tell."""
    for zone in ("0", "1"):
        sysfs.rapl_zone(tmp_path, zone, "package-0", 1_000_000)
    with pytest.raises(SensorBrokenError, match="package-0; whether one counter is told twice"):
        RaplSensor(tmp_path).probe()


def test_reset_begins_a_new_epoch(tmp_path: Path) -> None:
    """After a resume from suspend the counter starts again: no difference across it."""
    package = sysfs.intel_host(tmp_path)
    clock = ManualClock()
    sensor = _probed(tmp_path, clock)
    clock.advance(1.0)
    sysfs.write(package, "energy_uj", 7)
    assert sensor.read().epoch == 1


def test_denied_counter_says_how_to_allow_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root-only counters are denied, with the rule that opens them, and never 0."""
    sysfs.intel_host(tmp_path)
    sysfs.deny_energy(monkeypatch)
    with pytest.raises(SensorDeniedError) as denied:
        RaplSensor(tmp_path, ManualClock()).probe()
    assert denied.value.remedy is not None
    assert "tmpfiles" in denied.value.remedy


def test_permission_lost_midway_is_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EPERM on an open counter is a refusal, and reading resumes when it is lifted."""
    sysfs.intel_host(tmp_path)
    sensor = _probed(tmp_path, ManualClock())
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", _refuse)
        with pytest.raises(SensorDeniedError):
            sensor.read()
    assert sensor.read().energy_j == 0.0


def test_host_without_rapl_is_absent(tmp_path: Path) -> None:
    """A virtual machine shows no powercap zones."""
    with pytest.raises(SensorAbsentError, match="no RAPL"):
        RaplSensor(tmp_path, ManualClock()).probe()


def _refuse(*_: object) -> bytes:
    raise PermissionError(errno.EPERM, "not permitted")
