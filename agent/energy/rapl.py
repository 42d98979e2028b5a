"""Processor energy through Linux powercap (RAPL), Intel and, since kernel 5.8, AMD under the same names.

One level only: the packages are added up; their `core` and `uncore` parts are inside them, `psys` contains
them, and the `intel-rapl-mmio` zones are the same counters again. `dram` is a domain of its own and not part
of `cpu_package`.
Kernel documentation: Documentation/power/powercap/powercap.rst. Root-only since CVE-2020-8694.
"""

from __future__ import annotations

import grp
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from moe2.agent.energy.meter import CounterUnwrapper
from moe2.agent.energy.sensor import Limits, Reading, SensorAbsentError, SensorBrokenError, SensorFacts
from moe2.agent.energy.sysfs import AttributeFile, integer_or_none, text_or_none
from moe2.common.energy import Scope

_PACKAGE = re.compile(r"package-\d+(-die-\d+)?")
_MAX_PACKAGE_W = 1000.0
_LIMITS_PER_PACKAGE = Limits(min_power_w=0.05, max_power_w=_MAX_PACKAGE_W, stuck_after_s=5.0)


@dataclass(frozen=True, slots=True)
class _Zone:
    name: str
    energy: AttributeFile
    unwrapper: CounterUnwrapper


class RaplSensor:
    """The sum of the processor packages' energy counters."""

    name = "rapl"

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = monotonic) -> None:
        self._root = root
        self._clock = clock
        self._zones: tuple[_Zone, ...] = ()

    @property
    def facts(self) -> SensorFacts:
        count = max(1, len(self._zones))
        return SensorFacts(
            name=self.name,
            device="cpu",
            scope=Scope.CPU_PACKAGE,
            source="rapl",
            has_counter=True,
            limits=Limits(
                min_power_w=_LIMITS_PER_PACKAGE.min_power_w * count,
                max_power_w=_LIMITS_PER_PACKAGE.max_power_w * count,
                stuck_after_s=_LIMITS_PER_PACKAGE.stuck_after_s,
            ),
        )

    def probe(self) -> str:
        self.close()
        zones = [
            _Zone(
                name,
                AttributeFile(folder / "energy_uj", remedy=_remedy()),
                CounterUnwrapper(_range_j(folder), _MAX_PACKAGE_W),
            )
            for folder in sorted((self._root / "sys/class/powercap").glob("intel-rapl:*"))
            if (name := text_or_none(folder / "name")) and _PACKAGE.fullmatch(name)
        ]
        if not zones:
            raise SensorAbsentError(
                "no RAPL package under /sys/class/powercap: none in this processor, or a virtual machine."
            )
        names = [zone.name for zone in zones]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise SensorBrokenError(
                f"several RAPL zones are called {', '.join(twice)}; whether one counter is told twice is unknown.",
                remedy="Report what `grep . /sys/class/powercap/intel-rapl:*/name` lists; a metered plug "
                "([[sensors.wall]]) can measure the host instead.",
            )
        self._zones = tuple(zones)
        self.read()
        return " + ".join(zone.name for zone in zones)

    def read(self) -> Reading:
        if not self._zones:
            raise RuntimeError("probe the sensor first")
        energy_j = 0.0
        before_s = self._clock()
        raw_j = [zone.energy.integer() * 1e-6 for zone in self._zones]
        at_s = (before_s + self._clock()) / 2
        for zone, zone_j in zip(self._zones, raw_j, strict=True):
            if zone_j < 0:
                raise SensorBrokenError(f"{zone.energy.path} counts {zone_j} J, which cannot be.")
            energy_j += zone.unwrapper.advance(at_s, zone_j)
        return Reading(at_s=at_s, energy_j=energy_j, epoch=sum(zone.unwrapper.epoch for zone in self._zones))

    def close(self) -> None:
        for zone in self._zones:
            zone.energy.close()


def _range_j(folder: Path) -> float | None:
    range_uj = integer_or_none(folder / "max_energy_range_uj")
    return range_uj * 1e-6 if range_uj else None


def _remedy() -> str:
    """Return what lets this process's group read the counters, in words for this host."""
    try:
        group = grp.getgrgid(os.getegid()).gr_name
    except KeyError:
        group = str(os.getegid())
    return (
        "RAPL is readable by root only (CVE-2020-8694). To allow the agent's group, put the line"
        f" 'z /sys/devices/virtual/powercap/intel-rapl/intel-rapl:*/energy_uj 0440 root {group} -' into"
        " /etc/tmpfiles.d/moe2-rapl.conf and run 'sudo systemd-tmpfiles --create moe2-rapl.conf'. In a container,"
        " mount /sys/devices/virtual/powercap as well."
    )
