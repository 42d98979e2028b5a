"""Jetson's power monitors through sysfs: no service, no root, no licence question.

Layouts (L4T kernel sources and Jetson documentation):
JetPack 5 to 7: INA3221 under hwmon, `in<N>_label`, `in<N>_input` mV, `curr<N>_input` mA, channels 1 to 3. `in4` to
`in7` are shunt voltages and sums; the kernel's summed `curr4_input` is of no use because the rails' voltages differ.
JetPack 4: INA3221 under industrial I/O, `rail_name_<N>`, `in_power<N>_input` mW, channels 0 to 2.
AGX Thor's kit has an INA238 at the board's input besides: hwmon, `power1_input` µW, the rail `VIN`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from moe2.agent.energy.rails import MODULE_LIMITS, ModuleRails, module_rails
from moe2.agent.energy.sensor import Reading, SensorAbsentError, SensorBrokenError, SensorFacts
from moe2.agent.energy.sysfs import AttributeFile, integer_or_none, text_or_none

_DRIVERS = "sys/bus/i2c/drivers"
_UNCONNECTED = "NC"
_REMEDY = "Let the agent's user read the INA3221 attributes under /sys/bus/i2c (mode 0444 is the kernel's default)."
_BOARD_INPUT = "VIN"
"""What NVIDIA's documentation calls the rail of Thor's INA238, whose driver gives it no label everywhere."""


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
    """A channel that tells its power. scale: from its unit to W."""

    power: AttributeFile
    scale: float

    def power_w(self) -> float:
        return self.power.integer() * self.scale

    def close(self) -> None:
        self.power.close()


_Channel = _VoltageAndCurrent | _Power


class Ina3221Sensor:
    """The module's power as the sum of the rails that make it up (`moe2.agent.energy.rails`).

    monitors: I2C addresses, such as "1-0040", of the monitors to read; all where none is named.
    """

    name = "ina3221"

    def __init__(
        self, root: Path = Path("/"), clock: Callable[[], float] = monotonic, *, monitors: Collection[str] = ()
    ) -> None:
        self._root = root
        self._clock = clock
        self._monitors = frozenset(monitors)
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
        self.close()
        found: dict[str, dict[str, _Channel]] = {}
        twice: set[str] = set()
        for address, rail, channel in _channels(self._root):
            if not self._monitors or address in self._monitors:
                former = found.setdefault(rail, {}).setdefault(address, channel)
                if former is not channel and type(former) is type(channel):
                    twice.add(rail)
        if not found:
            raise _nothing(self._root, self._monitors)
        rails = module_rails(found)
        if unclear := twice.intersection(rails.names):
            raise SensorBrokenError(
                f"two channels of one power monitor are called {', '.join(sorted(unclear))}; which counts is unknown.",
                remedy="Correct the labels in the board's device tree. `grep . /sys/bus/i2c/drivers/ina3221*/*/hwmon/*/"
                "in?_label` lists them.",
            )
        self._channels = {rail: _only_one(rail, found[rail]) for rail in rails.names}
        self._rails = rails
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


def _nothing(root: Path, monitors: Collection[str]) -> Exception:
    there = sorted({address for address, _, _ in _channels(root)})
    if monitors and there:
        return SensorBrokenError(
            f"there is no power monitor {', '.join(sorted(monitors))}; this board has {', '.join(there)}.",
            remedy="Correct sensors.monitors, or remove it to read all of them.",
        )
    unnamed = sorted({folder.parents[1].name for folder in (root / _DRIVERS).glob("ina3221*/*-00*/hwmon/hwmon*")})
    if unnamed:
        return SensorAbsentError(
            f"the power monitor {', '.join(unnamed)} names no rail that is connected, so what it measures is unknown.",
            remedy="Name its channels in the board's device tree (label of each input@N of ti,ina3221); a metered plug "
            "([[sensors.wall]]) can measure the host instead.",
        )
    return SensorAbsentError("no INA3221 power monitor under /sys/bus/i2c/drivers: this is no Jetson.")


def _only_one(rail: str, by_address: dict[str, _Channel]) -> _Channel:
    if len(by_address) > 1:
        addresses = sorted(by_address)
        raise SensorBrokenError(
            f"{len(addresses)} power monitors have a rail {rail} ({', '.join(addresses)}), and only one is the "
            "module's; the other may be a carrier board's.",
            remedy="Say which monitors measure the module, in agent.toml: [sensors] "
            f'monitors = ["{addresses[0]}"]. `cat /sys/bus/i2c/drivers/ina3221*/*/hwmon/*/in1_label` lists them.',
        )
    return next(iter(by_address.values()))


def _channels(root: Path) -> Iterator[tuple[str, str, _Channel]]:
    """Yield the I2C address of the monitor, the rail's name and the channel, of each one that is connected."""
    drivers = root / _DRIVERS
    for folder in sorted(drivers.glob("ina3221*/*-00*/hwmon/hwmon*")):
        for number in (1, 2, 3):
            label = text_or_none(folder / f"in{number}_label")
            if label and label != _UNCONNECTED and integer_or_none(folder / f"in{number}_enable") != 0:
                voltage = AttributeFile(folder / f"in{number}_input", remedy=_REMEDY)
                current = AttributeFile(folder / f"curr{number}_input", remedy=_REMEDY)
                yield folder.parents[1].name, label, _VoltageAndCurrent(voltage, current)
    for folder in sorted(drivers.glob("ina3221*/*-00*/iio:device*")):
        for number in (0, 1, 2):
            label = text_or_none(folder / f"rail_name_{number}")
            if label and label != _UNCONNECTED:
                power = AttributeFile(folder / f"in_power{number}_input", remedy=_REMEDY)
                yield folder.parent.name, label, _Power(power, 1e-3)
    for folder in sorted(drivers.glob("ina2*/*-00*/hwmon/hwmon*")):
        if text_or_none(folder / "name") == "ina238" and (folder / "power1_input").exists():
            label = text_or_none(folder / "label") or text_or_none(folder / "in1_label") or _BOARD_INPUT
            power = AttributeFile(folder / "power1_input", remedy=_REMEDY)
            yield folder.parents[1].name, label, _Power(power, 1e-6)
