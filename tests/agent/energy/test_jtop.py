"""jetson-stats through the helper process, against a stand-in service in a process of its own."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moe2.agent.energy import jtop_helper
from moe2.agent.energy.jtop import JtopSensor
from moe2.agent.energy.sensor import SensorAbsentError, SensorBrokenError, SensorDeniedError
from moe2.common.energy import Scope

_REPOSITORY = Path(__file__).parents[3]
_CLIENT = _REPOSITORY / "tests/fakes/jtop_client"
_PYTHONPATH = os.pathsep.join([str(_REPOSITORY / "dev"), str(_REPOSITORY)])

_AGX_ORIN: dict[str, Any] = {
    "interval": 0.2,
    "power": {
        "rail": {
            "VDD_GPU_SOC": {"volt": 19848, "curr": 1880, "power": 37314, "avg": 21237, "online": True},
            "VDD_CPU_CV": {"volt": 19840, "curr": 80, "power": 1587, "avg": 1587, "online": True},
            "VIN_SYS_5V0": {"volt": 5040, "curr": 2166, "power": 10917, "avg": 10917, "online": True},
            "VDDQ_VDD2_1V8AO": {"volt": 5040, "curr": 873, "power": 4400, "avg": 4400, "online": True},
        },
        "tot": {"power": 54218, "avg": 54218},
    },
    "temperature": {"cpu": {"temp": 48.5, "online": True}, "cv0": {"temp": -256.0, "online": False}},
    "memory": {"EMC": {"val": 14}},
    "fan": {"pwmfan": {"speed": [37.0]}},
    "nvpmodel": "MODE_30W",
}
_ORIN_NX: dict[str, Any] = _AGX_ORIN | {
    "power": {
        "rail": {"VDD_CPU_GPU_CV": {"power": 8586}, "VDD_SOC": {"power": 2915}},
        "tot": {"volt": 4992, "curr": 3320, "power": 16573, "name": "VDD_IN"},
    }
}

Start = Callable[..., JtopSensor]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a service with given values and a sensor over it."""
    processes: list[subprocess.Popen[str]] = []
    sensors: list[JtopSensor] = []
    state = tmp_path / "state.json"

    def begin(values: dict[str, Any] | None = None, *, socket: str | None = None) -> JtopSensor:
        path = str(tmp_path / "jtop.sock")
        if values is not None:
            state.write_text(json.dumps(values))
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.jtop_service", path, str(state)],
                env=os.environ | {"PYTHONPATH": _PYTHONPATH},
                cwd=_REPOSITORY,
                stdout=subprocess.PIPE,
                text=True,
            )
            processes.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        environment = os.environ | {
            "FAKE_JTOP_SOCKET": socket or path,
            "PYTHONPATH": os.pathsep.join([str(_CLIENT), _PYTHONPATH]),
        }
        sensor = JtopSensor(environment=environment)
        sensors.append(sensor)
        return sensor

    yield begin
    for sensor in sensors:
        sensor.close()
    for process in processes:
        process.terminate()
        process.communicate()


def test_agx_orin_total_is_not_the_services_total(start: Start) -> None:
    """The service adds a rail that is inside another (54.2 W); the module draws 49.8 W."""
    sensor = start(_AGX_ORIN)
    sensor.probe()
    assert sensor.read().power_w == pytest.approx(37.314 + 1.587 + 10.917)
    assert sensor.facts.scope is Scope.MODULE_RAILS


def test_orin_nx_total_is_the_input_rail(start: Start) -> None:
    """Where the service's total is the input rail itself, it is that rail."""
    sensor = start(_ORIN_NX)
    sensor.probe()
    assert sensor.read().power_w == pytest.approx(16.573)
    assert sensor.facts.scope is Scope.MODULE_INPUT


def test_power_mode_load_and_temperatures_come_along(start: Start) -> None:
    """What sysfs does not give; a zone that is off (-256 °C) is left out."""
    sensor = start(_AGX_ORIN)
    sensor.probe()
    sample = sensor.latest
    assert sample is not None
    assert (sample.power_mode, sample.emc_pct, sample.fan_pct) == ("MODE_30W", 14.0, 37.0)
    assert sample.temperature_c == {"cpu": 48.5}


def test_services_own_interval_is_taken_over(start: Start) -> None:
    """The first client of the service decides on the interval; ours is told it and believes it."""
    sensor = start(_AGX_ORIN | {"interval": 1.0})
    sensor.probe()
    assert sensor.facts.interval_s == 1.0


def test_stopped_service_is_absent(start: Start) -> None:
    """No service: absent, and where its unit is not installed the remedy is no command that could not work."""
    with pytest.raises(SensorAbsentError) as absent:
        start().probe()
    assert "install jetson-stats" in str(absent.value)


def test_installed_service_is_to_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where its unit is installed the remedy is to start it."""
    (tmp_path / "jtop.service").write_text("", encoding="utf-8")
    monkeypatch.setattr(jtop_helper, "_UNIT_FOLDERS", (tmp_path,))
    told = jtop_helper.refusal(RuntimeError("The jtop.service is not active."))
    assert told["remedy"] == "sudo systemctl start jtop.service"


def test_the_group_is_joined_by_the_user_who_was_refused() -> None:
    """The remedy names this process's user: no other one may exist on the host."""
    told = jtop_helper.refusal(PermissionError("I can't access jtop.service."))
    assert f"usermod -aG jtop {pwd.getpwuid(os.geteuid()).pw_name}" in (told["remedy"] or "")


def test_refused_socket_is_denied(start: Start) -> None:
    """Not in the group: denied, with the group to join."""
    with pytest.raises(SensorDeniedError) as denied:
        start(socket="forbidden").probe()
    assert "usermod -aG jtop" in str(denied.value)


def test_missing_package_is_absent(start: Start) -> None:
    """Without jetson-stats installed there is no such sensor."""
    sensor = JtopSensor(environment=os.environ | {"PYTHONPATH": _PYTHONPATH})
    with pytest.raises(SensorAbsentError, match="not installed"):
        sensor.probe()


def test_helper_that_dies_is_broken_and_comes_back(start: Start) -> None:
    """A killed helper costs one reading; the next read starts another."""
    sensor = start(_AGX_ORIN)
    sensor.probe()
    process = sensor._process
    assert process is not None
    process.kill()
    process.wait()
    with pytest.raises(SensorBrokenError, match="ended"):
        _read_for_ever(sensor)
    assert sensor.read().power_w == pytest.approx(49.818)


def _read_for_ever(sensor: JtopSensor) -> None:
    while True:
        sensor.read()


def test_chatter_is_not_a_sample() -> None:
    """A helper that prints anything else is broken, whatever it prints."""
    sensor = JtopSensor(command=("sh", "-c", "echo hello"))
    with pytest.raises(SensorBrokenError, match="something else"):
        sensor.probe()


def test_silent_helper_does_not_hang_the_reader() -> None:
    """Nothing within the patience is a broken sensor."""
    sensor = JtopSensor(command=("sh", "-c", "read forever < /dev/zero", "--"), patience_s=0.01)
    with pytest.raises(SensorBrokenError, match="no sample"):
        sensor.probe()
