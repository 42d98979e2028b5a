"""Which sensors this host has: all families probed at once, each with a deadline, each failing alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

from moe2.agent.energy.ina3221 import Ina3221Sensor
from moe2.agent.energy.jtop import JtopSensor
from moe2.agent.energy.jtop_helper import INSTALL_REMEDY
from moe2.agent.energy.nvml import NvmlSensor, board_names
from moe2.agent.energy.profiles import Profile
from moe2.agent.energy.rapl import RaplSensor
from moe2.agent.energy.sensor import (
    FAMILIES,
    Family,
    Sensor,
    SensorAbsentError,
    SensorBrokenError,
    SensorDeniedError,
)
from moe2.agent.energy.simulated import SimulatedSensor
from moe2.agent.energy.sysfs import is_jetson
from moe2.common.link.messages import SensorReport


class ProbeState(StrEnum):
    PRESENT = "present"
    ABSENT = "absent"
    DENIED = "denied"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class SensorSettings:
    """The settings of the search for sensors: where to look, and for which.

    root: of the file system; another one than "/" in tests. simulated: a host that is not there, whose sensor is then
    the only one. families: of `FAMILIES`. deadline_s: for all probes together.
    """

    root: Path = Path("/")
    simulated: Profile | None = None
    families: tuple[Family, ...] = FAMILIES
    deadline_s: float = 5.0
    monitors: tuple[str, ...] = ()
    """I2C addresses of the power monitors that measure a Jetson's module; all where none is named."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One sensor as found. `sensor` is set if, and only if, it is present."""

    name: str
    state: ProbeState
    detail: str
    remedy: str | None = None
    sensor: Sensor | None = None

    def report(self) -> SensorReport:
        """The probed sensor as the wire reports it."""
        return SensorReport(name=self.name, state=self.state, detail=self.detail, remedy=self.remedy)


def discover(settings: SensorSettings = SensorSettings()) -> tuple[ProbeResult, ...]:
    """Probe everything. Blocking, at most about `deadline_s`: call it from a thread."""
    if settings.simulated is not None:
        return (_probe(SimulatedSensor(settings.simulated)),)
    finders: dict[str, Callable[[], Sequence[Sensor]]] = {
        "ina3221": lambda: [Ina3221Sensor(settings.root, monitors=settings.monitors)],
        "jtop": lambda: [JtopSensor()],
        "nvml": lambda: [NvmlSensor(index) for index in range(max(1, len(board_names())))],
        "rapl": lambda: [RaplSensor(settings.root)],
    }
    return probe_all([(family, finders[family]) for family in settings.families], settings.deadline_s, settings.root)


def probe_all(
    families: Sequence[tuple[str, Callable[[], Sequence[Sensor]]]], deadline_s: float, root: Path = Path("/")
) -> tuple[ProbeResult, ...]:
    """Probe families side by side; one that does not answer in time is broken and delays nobody."""
    probes = [_FamilyProbe(family, find, root) for family, find in families]
    end_s = monotonic() + deadline_s
    for probe in probes:
        probe.thread.start()
    for probe in probes:
        probe.thread.join(max(0.0, end_s - monotonic()))
    return tuple(result for probe in probes for result in probe.results(deadline_s))


def choose(results: Sequence[ProbeResult]) -> tuple[Sensor, ...]:
    """The sensors to sample: of each device the first one found. The others are closed."""
    chosen: dict[str, Sensor] = {}
    for result in results:
        if result.sensor is None:
            continue
        if chosen.setdefault(result.sensor.facts.device, result.sensor) is not result.sensor:
            result.sensor.close()
    return tuple(chosen.values())


def why_unmeasured(results: Sequence[ProbeResult]) -> str:
    """The sentence that stands in place of joules on a host without a usable sensor."""
    refused = [result for result in results if result.state in (ProbeState.DENIED, ProbeState.BROKEN)]
    if not refused:
        return "this host has no power sensor that moe2 knows"
    return "; ".join(f"{result.name} is {result.state}: {_sentence(result)}" for result in refused)


def _sentence(result: ProbeResult) -> str:
    return f"{result.detail} {result.remedy}" if result.remedy else result.detail


class _FamilyProbe:
    """One family's probe in a daemon thread, which may never return."""

    def __init__(self, family: str, find: Callable[[], Sequence[Sensor]], root: Path) -> None:
        self._family = family
        self._root = root
        self._find = find
        self._found: tuple[ProbeResult, ...] | None = None
        self.thread = threading.Thread(target=self._work, name=f"probe-{family}", daemon=True)

    def results(self, deadline_s: float) -> tuple[ProbeResult, ...]:
        if self._found is not None:
            return self._found
        hung = ProbeResult(
            self._family,
            ProbeState.BROKEN,
            f"it did not answer within {deadline_s:g} s.",
            "Check the kernel log for its driver.",
        )
        return (hung,)

    def _work(self) -> None:
        if self._family == "jtop" and find_spec("jtop") is None:
            # Saves the start of a process that could only say the same.
            self._found = (
                ProbeResult(
                    "jtop",
                    ProbeState.ABSENT,
                    "jetson-stats is not installed.",
                    INSTALL_REMEDY if is_jetson(self._root) else None,
                ),
            )
            return
        try:
            self._found = tuple(_probe(sensor) for sensor in self._find())
        except Exception as error:
            self._found = (_defect(self._family, error),)


def _probe(sensor: Sensor) -> ProbeResult:
    try:
        detail = sensor.probe()
    except SensorAbsentError as fault:
        return ProbeResult(sensor.name, ProbeState.ABSENT, fault.message, fault.remedy)
    except SensorDeniedError as fault:
        return ProbeResult(sensor.name, ProbeState.DENIED, fault.message, fault.remedy)
    except SensorBrokenError as fault:
        return ProbeResult(sensor.name, ProbeState.BROKEN, fault.message, fault.remedy)
    except Exception as error:
        return _defect(sensor.name, error)
    return ProbeResult(sensor.name, ProbeState.PRESENT, detail, sensor=sensor)


def _defect(name: str, error: Exception) -> ProbeResult:
    return ProbeResult(
        name,
        ProbeState.BROKEN,
        f"it failed with {type(error).__name__}: {error}.",
        "This is a defect of moe2: please report it.",
    )
