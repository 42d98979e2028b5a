"""Finding the host's sensors."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from moe2.agent.energy.catalog import (
    ProbeResult,
    ProbeState,
    SensorSettings,
    choose,
    discover,
    probe_all,
    why_unmeasured,
)
from moe2.agent.energy.profiles import find_profile
from moe2.agent.energy.sensor import Family, Reading, SensorDeniedError
from moe2.common.errors import ConfigError
from tests.fakes import sysfs
from tests.fakes.sensors import ScriptedSensor

_SYSFS: tuple[Family, ...] = ("ina3221", "rapl")


def _good(name: str, device: str) -> ScriptedSensor:
    return ScriptedSensor(name, lambda: Reading(at_s=0.0, power_w=20.0), device=device)


def _denied() -> Reading:
    raise SensorDeniedError("it may not be read.", remedy="Join the group.")


def _defect() -> Reading:
    raise RuntimeError("oh")


def _states(results: tuple[ProbeResult, ...]) -> dict[str, str]:
    return {result.name: result.state for result in results}


def test_jetson_and_pc_trees_are_told_apart(tmp_path: Path) -> None:
    """Each host has the sensors of its kind; the others are absent, which is no fault."""
    sysfs.agx_orin(tmp_path / "jetson")
    sysfs.intel_host(tmp_path / "pc")
    jetson = discover(SensorSettings(root=tmp_path / "jetson", families=_SYSFS))
    pc = discover(SensorSettings(root=tmp_path / "pc", families=_SYSFS))
    assert _states(jetson) == {"ina3221": "present", "rapl": "absent"}
    assert _states(pc) == {"ina3221": "absent", "rapl": "present"}


def test_each_family_fails_alone() -> None:
    """Refused, defective and good sensors each get their own verdict."""
    results = probe_all(
        [
            ("refused", lambda: [ScriptedSensor("refused", _denied)]),
            ("defect", lambda: [ScriptedSensor("defect", _defect)]),
            ("good", lambda: [_good("good", "cpu")]),
        ],
        5.0,
    )
    assert _states(results) == {"refused": "denied", "defect": "broken", "good": "present"}
    assert results[0].remedy == "Join the group."
    assert "RuntimeError" in results[1].detail


def test_probe_that_hangs_delays_nobody() -> None:
    """A driver that never answers is broken after the deadline; the others are found."""
    never = threading.Event()

    def hang() -> list[ScriptedSensor]:
        never.wait()
        return []

    results = probe_all([("hung", hang), ("good", lambda: [_good("good", "cpu")])], 0.05)
    never.set()
    assert _states(results)["hung"] == "broken"
    assert "did not answer" in results[0].detail


def test_search_that_fails_is_broken() -> None:
    """A defect while looking for sensors is reported as such, not as silence."""

    def defective() -> list[ScriptedSensor]:
        raise RuntimeError("oh")

    (result,) = probe_all([("nvml", defective)], 5.0)
    assert result.state == "broken"
    assert "RuntimeError" in result.detail


def test_one_sensor_per_device_is_chosen() -> None:
    """Of two sensors of the same module the first is used, the other closed."""
    first, spare, other = _good("ina3221", "module"), _good("jtop", "module"), _good("nvml:0", "gpu0")
    results = [ProbeResult(sensor.name, ProbeState.PRESENT, "", sensor=sensor) for sensor in (first, spare, other)]
    assert choose(results) == (first, other)
    assert spare.closed


def test_simulated_host_has_only_its_profile() -> None:
    """A profile replaces all real sensors."""
    assert _states(discover(SensorSettings(simulated=find_profile("rtx-4090")))) == {"profile:rtx-4090": "present"}


def test_unknown_profile_lists_those_that_exist() -> None:
    """A wrong name is answered with the right ones."""
    with pytest.raises(ConfigError, match="agx-orin-30w"):
        find_profile("orin")


def test_reason_for_unmeasured_names_the_remedy() -> None:
    """What stands in place of joules says who refused, and what to do."""
    refused = ProbeResult("rapl", ProbeState.DENIED, "energy_uj may not be read.", "Use a tmpfiles rule.")
    assert why_unmeasured([refused]) == "rapl is denied: energy_uj may not be read. Use a tmpfiles rule."


def test_reason_for_a_host_without_sensors_is_plain() -> None:
    """Nothing refused: there simply is no sensor."""
    assert "no power sensor" in why_unmeasured([ProbeResult("rapl", ProbeState.ABSENT, "")])
