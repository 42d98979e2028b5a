"""Which sensors this host has: all families probed at once, each with a deadline, each failing alone.

Drivers come and go, so a host can be searched again: `SensorSearch` keeps what is in use and looks for the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
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
from moe2.agent.energy.wall import Plug, WallSensor
from moe2.common.energy import Scope
from moe2.common.link.reports import SensorReport

_MODULE_FAMILIES = frozenset({"ina3221", "jtop"})
"""Families that measure the same module: while one of them is in use, the other need not be looked for."""


class ProbeState(StrEnum):
    """What a search has found of a sensor."""

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
    devices: tuple[str, ...] = ()
    """Devices to measure, such as "gpu1" or a GPU's UUID; all where none is named. Plugs are always among them."""
    plugs: tuple[Plug, ...] = ()
    """The metered plugs in front of the host."""
    by_wall: bool = False
    """What the plugs measure is the host's energy, instead of what its own sensors do."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One sensor as found. `sensor` is set if, and only if, it is present.

    unwanted: it is there, and the settings do not name its device: it is not looked at again.
    owner: who measures its device, where that is another agent.
    """

    name: str
    state: ProbeState
    detail: str
    remedy: str | None = None
    sensor: Sensor | None = None
    unwanted: bool = False
    owner: str | None = None

    def report(self) -> SensorReport:
        """Return the probed sensor as the wire reports it."""
        return SensorReport(name=self.name, state=self.state, detail=self.detail, remedy=self.remedy)


Finder = Callable[[Collection[str]], Sequence[Sensor]]
"""Makes a family's sensors, but for those whose names are given: they are in use."""


class SensorSearch:
    """A search of one host, which can be repeated. Every method blocks: call it from a thread, one at a time.

    finders: by family; those of the settings where none are given.
    """

    def __init__(self, settings: SensorSettings, finders: Sequence[tuple[str, Finder]] | None = None) -> None:
        self._settings = settings
        self._finders = _finders(settings) if finders is None else finders
        self._probes: dict[str, _FamilyProbe] = {}
        self._found: dict[str, tuple[ProbeResult, ...]] = {}

    def look(self, in_use: Collection[str] = ()) -> tuple[ProbeResult, ...]:
        """Probe all families side by side, within about `deadline_s`; return what is known of each sensor now.

        One that does not answer in time is broken and delays nobody; its answer is part of a later look.
        in_use: names of sensors that an earlier look found and that are sampled: they are left alone.
        """
        unwanted = {result.name for results in self._found.values() for result in results if result.unwanted}
        in_use = unwanted.union(in_use)
        sought = [(family, find) for family, find in self._finders if not _is_served(family, in_use)]
        for family, find in sought:
            if family not in self._probes:
                self._probes[family] = _FamilyProbe(family, lambda find=find: find(in_use), self._settings)  # type: ignore[misc]
        end_s = monotonic() + self._settings.deadline_s
        for family, _ in sought:
            self._probes[family].thread.join(max(0.0, end_s - monotonic()))
            self._take(family, in_use)
        return tuple(result for family, _ in self._finders for result in self._found.get(family, ()))

    def _take(self, family: str, in_use: Collection[str]) -> None:
        probe = self._probes[family]
        kept = tuple(result for result in self._found.get(family, ()) if result.name in in_use)
        if probe.found is not None:
            del self._probes[family]
        found = probe.found if probe.found is not None else (probe.unanswered(),)
        if kept and all(result.state is ProbeState.ABSENT for result in found):
            # There is no second board beside the one in use.
            found = ()
        self._found[family] = (*kept, *found)


def discover(settings: SensorSettings = SensorSettings()) -> tuple[ProbeResult, ...]:
    """Probe everything once. Blocking, at most about `deadline_s`: call it from a thread."""
    return SensorSearch(settings).look()


def choose(results: Sequence[ProbeResult], taken: Collection[str] = ()) -> tuple[Sensor, ...]:
    """Return the sensors to sample: of each device the first one found. The others are closed.

    taken: devices that are measured already.
    """
    chosen: dict[str, Sensor] = {}
    for result in results:
        if result.sensor is None:
            continue
        device = result.sensor.facts.device
        if device in taken or chosen.setdefault(device, result.sensor) is not result.sensor:
            result.sensor.close()
    return tuple(chosen.values())


def why_unmeasured(results: Sequence[ProbeResult]) -> str:
    """Return the sentence that stands in place of joules on a host without a usable sensor."""
    refused = [result for result in results if result.state in (ProbeState.DENIED, ProbeState.BROKEN)]
    if not refused:
        return "this host has no power sensor that moe2 knows"
    return "; ".join(f"{result.name} is {result.state}: {_sentence(result)}" for result in refused)


def _sentence(result: ProbeResult) -> str:
    return f"{result.detail} {result.remedy}" if result.remedy else result.detail


def _finders(settings: SensorSettings) -> list[tuple[str, Finder]]:
    root, simulated = settings.root, settings.simulated
    if simulated is not None:
        return [("simulated", lambda in_use: [] if in_use else [SimulatedSensor(simulated)])]
    on_jetson = is_jetson(root)
    finders: dict[str, Finder] = {
        "ina3221": lambda _: [Ina3221Sensor(root, monitors=settings.monitors)],
        "jtop": lambda _: [JtopSensor()],
        "nvml": lambda in_use: [
            sensor
            for index in range(max(1, len(board_names())))
            if (sensor := NvmlSensor(index, root=root, on_jetson=on_jetson)).name not in in_use
        ],
        "rapl": lambda _: [RaplSensor(root)],
    }
    found: list[tuple[str, Finder]] = [(family, finders[family]) for family in settings.families]
    if settings.plugs:
        found.append(("wall", partial(_plugs, settings.plugs)))
    return found


def _plugs(plugs: Sequence[Plug], in_use: Collection[str]) -> list[Sensor]:
    return [sensor for sensor in map(WallSensor, plugs) if sensor.name not in in_use]


def _is_served(family: str, in_use: Collection[str]) -> bool:
    """Return whether all that the family could find is in use; further boards may appear beside those in use."""
    if family in _MODULE_FAMILIES:
        return not _MODULE_FAMILIES.isdisjoint(in_use)
    return family in in_use


class _FamilyProbe:
    """One family's probe in a daemon thread, which may never return. It starts at once."""

    def __init__(self, family: str, find: Callable[[], Sequence[Sensor]], settings: SensorSettings) -> None:
        self._family = family
        self._settings = settings
        self._find = find
        self._began_s = monotonic()
        self.found: tuple[ProbeResult, ...] | None = None
        self.thread = threading.Thread(target=self._work, name=f"probe-{family}", daemon=True)
        self.thread.start()

    def unanswered(self) -> ProbeResult:
        """Return what is to be said while there is no answer."""
        return ProbeResult(
            self._family,
            ProbeState.BROKEN,
            f"it has not answered for {monotonic() - self._began_s:.0f} s.",
            "It is used as soon as it answers. "
            + (
                "Without persistence each board's driver takes seconds: sudo systemctl enable --now nvidia-persistenced"
                if self._family == "nvml"
                else "If it never does, check the kernel log for its driver."
            ),
        )

    def _work(self) -> None:
        if self._family == "jtop" and find_spec("jtop") is None:
            # Saves the start of a process that could only say the same.
            remedy = INSTALL_REMEDY if is_jetson(self._settings.root) else None
            self.found = (ProbeResult("jtop", ProbeState.ABSENT, "jetson-stats is not installed.", remedy),)
            return
        try:
            self.found = tuple(_probe(sensor, self._settings.devices) for sensor in self._find())
        except Exception as error:
            self.found = (_defect(self._family, error),)


def _probe(sensor: Sensor, devices: Collection[str]) -> ProbeResult:
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
    facts = sensor.facts
    asked_for = {facts.device, facts.hardware} & set(devices)
    if devices and not asked_for and not facts.simulated and facts.scope is not Scope.WALL:
        sensor.close()
        known_as = facts.device if facts.hardware is None else f"{facts.device} or {facts.hardware}"
        told = f"{detail}: not among sensors.devices, as {known_as}."
        return ProbeResult(sensor.name, ProbeState.ABSENT, told, unwanted=True)
    return ProbeResult(sensor.name, ProbeState.PRESENT, detail, sensor=sensor)


def _defect(name: str, error: Exception) -> ProbeResult:
    return ProbeResult(
        name,
        ProbeState.BROKEN,
        f"it failed with {type(error).__name__}: {error}.",
        "This is a defect of moe2: please report it.",
    )
