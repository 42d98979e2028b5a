"""Finding the host's sensors."""

from __future__ import annotations

import threading
from collections.abc import Collection
from pathlib import Path

import pytest

from moe2.agent.energy.catalog import (
    Finder,
    ProbeResult,
    ProbeState,
    SensorSearch,
    SensorSettings,
    choose,
    discover,
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


def _look(*finders: tuple[str, Finder], deadline_s: float = 5.0) -> tuple[ProbeResult, ...]:
    return SensorSearch(SensorSettings(deadline_s=deadline_s), finders).look()


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
    results = _look(
        ("refused", lambda _: [ScriptedSensor("refused", _denied)]),
        ("defect", lambda _: [ScriptedSensor("defect", _defect)]),
        ("good", lambda _: [_good("good", "cpu")]),
    )
    assert _states(results) == {"refused": "denied", "defect": "broken", "good": "present"}
    assert results[0].remedy == "Join the group."
    assert "RuntimeError" in results[1].detail


def test_probe_that_hangs_delays_nobody() -> None:
    """A driver that never answers is broken after the deadline; the others are found."""
    never = threading.Event()

    def hang(_: Collection[str]) -> list[ScriptedSensor]:
        never.wait()
        return []

    results = _look(("hung", hang), ("good", lambda _: [_good("good", "cpu")]), deadline_s=0.05)
    never.set()
    assert _states(results) == {"hung": "broken", "good": "present"}
    assert "has not answered" in results[0].detail


def test_search_that_fails_is_broken() -> None:
    """A defect while looking for sensors is reported as such, not as silence."""

    def defective(_: Collection[str]) -> list[ScriptedSensor]:
        raise RuntimeError("oh")

    (result,) = _look(("nvml", defective))
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


def test_a_driver_that_answers_late_is_found_by_the_next_look() -> None:
    """nvmlInit of several boards outlasts the deadline: the same probe goes on, and none is started beside it."""
    ready, started = threading.Event(), []

    def slow(_: Collection[str]) -> list[ScriptedSensor]:
        started.append(True)
        ready.wait()
        return [_good("nvml:0", "gpu0")]

    search = SensorSearch(SensorSettings(deadline_s=0.02), [("nvml", slow)])
    (unanswered,) = search.look()
    assert (unanswered.name, unanswered.state) == ("nvml", "broken")
    assert "nvidia-persistenced" in (unanswered.remedy or "")
    search.look()
    ready.set()
    search._probes["nvml"].thread.join()
    assert _states(search.look()) == {"nvml:0": "present"}
    assert len(started) == 1


def test_a_second_board_is_found_beside_the_one_in_use() -> None:
    """What is sampled is not probed again."""
    boards = [_good("nvml:0", "gpu0")]
    search = SensorSearch(
        SensorSettings(), [("nvml", lambda in_use: [board for board in boards if board.name not in in_use])]
    )
    search.look()
    reads = boards[0].read_count
    boards.append(_good("nvml:1", "gpu1"))
    assert _states(search.look(["nvml:0"])) == {"nvml:0": "present", "nvml:1": "present"}
    assert boards[0].read_count == reads


def test_a_board_that_is_not_asked_for_is_told_and_left_alone() -> None:
    """`sensors.devices` names others: it is closed, not looked at again, and the report says how to name it."""
    mine, other = _good("nvml:0", "gpu0"), _good("nvml:1", "gpu1")
    probed: list[str] = []

    def find(in_use: Collection[str]) -> list[ScriptedSensor]:
        found = [board for board in (mine, other) if board.name not in in_use]
        probed.extend(board.name for board in found)
        return found

    search = SensorSearch(SensorSettings(devices=("gpu0",)), [("nvml", find)])
    results = search.look()
    assert _states(results) == {"nvml:0": "present", "nvml:1": "absent"}
    assert "as gpu1" in results[1].detail
    assert other.closed
    search.look(["nvml:0"])
    assert probed == ["nvml:0", "nvml:1"]


def test_jtop_is_not_started_beside_a_module_that_is_measured(tmp_path: Path) -> None:
    """Its helper process would tell the same once more."""
    looked: list[str] = []

    def found(family: str) -> Finder:
        def find(_: Collection[str]) -> list[ScriptedSensor]:
            looked.append(family)
            return []

        return find

    SensorSearch(SensorSettings(), [("ina3221", found("ina3221")), ("jtop", found("jtop"))]).look(["ina3221"])
    assert looked == []
