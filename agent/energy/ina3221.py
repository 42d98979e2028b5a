"""Jetson's INA3221 power monitors through sysfs: no service, no root, no licence question.

Layouts (L4T kernel sources and Jetson documentation):
JetPack 5 and 6: hwmon, `in<N>_label`, `in<N>_input` mV, `curr<N>_input` mA, channels 1 to 3. `in4` to `in7`
are shunt voltages and sums; the kernel's summed `curr4_input` is of no use because the rails' voltages
differ.
JetPack 4: industrial I/O, `rail_name_<N>`, `in_power<N>_input` mW, channels 0 to 2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from moe2.agent.energy.rails import MODULE_LIMITS, ModuleRails, module_rails
from moe2.agent.energy.sensor import Reading, SensorAbsentError, SensorFacts
from moe2.agent.energy.sysfs import AttributeFile, integer_or_none, text_or_none

_DRIVERS = "sys/bus/i2c/drivers"
_UNCONNECTED = "NC"
_REMEDY = "Let the agent's user read the INA3221 attributes under /sys/bus/i2c (mode 0444 is the kernel's default)."


@dataclass(frozen=True, slots=True)
class _VoltageAndCurrent:
    """A hwmon channel: mV and mA."""

    voltage: AttributeFile
    current: AttributeFile

    def power_w(self) -> float:
        return self.voltage.integer() * self.current.integer() * 1e-6

    def close(self) -> None:
        self.voltage.close()
        self.current.close()


@dataclass(frozen=True, slots=True)
class _Power:
    """An industrial I/O channel: mW."""

    power: AttributeFile

    def power_w(self) -> float:
        return self.power.integer() * 1e-3

    def close(self) -> None:
        self.power.close()


_Channel = _VoltageAndCurrent | _Power


class Ina3221Sensor:
    """The module's power as the sum of the rails that make it up (`moe2.agent.energy.rails`)."""

    name = "ina3221"

    def __init__(self, root: Path = Path("/"), clock: Callable[[], float] = monotonic) -> None:
        self._root = root
        self._clock = clock
        self._channels: dict[str, _Channel] = {}
        self._rails: ModuleRails | None = None

    @property
    def facts(self) -> SensorFacts:
        if self._rails is None:
            raise RuntimeError("probe the sensor first")
        return SensorFacts(
            name=self.name,
            device="module",
            scope=self._rails.scope,
            source="ina3221",
            has_counter=False,
            limits=MODULE_LIMITS,
        )

    def probe(self) -> str:
        channels = _hwmon_channels(self._root) | _iio_channels(self._root)
        if not channels:
            raise SensorAbsentError("no INA3221 power monitor under /sys/bus/i2c/drivers: this is no Jetson.")
        rails = module_rails(channels)
        self._rails = rails
        self._channels = {name: channels[name] for name in rails.names}
        reading = self.read()
        return f"{' + '.join(rails.names)} = {reading.power_w:.1f} W"

    def read(self) -> Reading:
        if self._rails is None:
            raise RuntimeError("probe the sensor first")
        before_s = self._clock()
        rails_w = {name: channel.power_w() for name, channel in self._channels.items()}
        return Reading(at_s=(before_s + self._clock()) / 2, power_w=self._rails.power_w(rails_w))

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()


def _hwmon_channels(root: Path) -> dict[str, _Channel]:
    channels: dict[str, _Channel] = {}
    for folder in sorted((root / _DRIVERS).glob("ina3221*/*-00*/hwmon/hwmon*")):
        for number in (1, 2, 3):
            label = text_or_none(folder / f"in{number}_label")
            if label in (None, "", _UNCONNECTED) or integer_or_none(folder / f"in{number}_enable") == 0:
                continue
            channels[label] = _VoltageAndCurrent(
                AttributeFile(folder / f"in{number}_input", remedy=_REMEDY),
                AttributeFile(folder / f"curr{number}_input", remedy=_REMEDY),
            )
    return channels


def _iio_channels(root: Path) -> dict[str, _Channel]:
    channels: dict[str, _Channel] = {}
    for folder in sorted((root / _DRIVERS).glob("ina3221*/*-00*/iio:device*")):
        for number in (0, 1, 2):
            label = text_or_none(folder / f"rail_name_{number}")
            if label in (None, "", _UNCONNECTED):
                continue
            channels[label] = _Power(AttributeFile(folder / f"in_power{number}_input", remedy=_REMEDY))
    return channels
