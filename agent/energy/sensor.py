"""The contract of a power sensor, and the three ways in which there can be none.

A sensor is blocking and may hang: only the sampler's threads and the catalogue's bounded probes call it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from moe2.common.energy import Scope
from moe2.common.errors import Moe2Error

Family = Literal["ina3221", "jtop", "nvml", "rapl"]
"""A kind of power sensor."""
FAMILIES: tuple[Family, ...] = ("ina3221", "jtop", "nvml", "rapl")
"""All kinds of power sensors, in order of preference where two measure the same device."""


class SensorAbsentError(Moe2Error):
    """This host has no such sensor. Nothing is wrong."""


class SensorDeniedError(Moe2Error):
    """The sensor exists but this user may not read it; `remedy` says which group or rule allows it."""


class SensorBrokenError(Moe2Error):
    """The sensor exists and may be read, but gives no usable figure."""


class SensorMissedError(SensorBrokenError):
    """One reading failed, and the next one may well succeed: the bus was busy, or the value was not ready."""


SensorFault = SensorAbsentError | SensorDeniedError | SensorBrokenError


@dataclass(frozen=True, slots=True)
class Reading:
    """A sensor reading: what the hardware said at one moment.

    at_s: monotonic time at which the hardware was read.
    energy_j: cumulative energy counter in J, already free of wrap-around; None if the sensor has no counter.
    power_w: power in W; None if the sensor only counts.
    epoch: counter generation. Counters of different epochs have no difference (the counter was reset in
    between).
    """

    at_s: float
    energy_j: float | None = None
    power_w: float | None = None
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Limits:
    """What this kind of device can physically report; anything else is a lie or a unit slip.

    stuck_after_s: no real sensor of this kind repeats itself to the last digit for longer; None: may repeat
    for ever.
    """

    min_power_w: float
    max_power_w: float
    stuck_after_s: float | None


@dataclass(frozen=True, slots=True)
class SensorFacts:
    """What a probed sensor is.

    name: unique on the host, such as "ina3221" or "nvml:0".
    device: what it measures, such as "module", "gpu0" or "cpu". Only one sensor per device is used.
    source: as written into energy records, such as "nvml.total_energy".
    has_counter: readings carry `energy_j`.
    power_source: what the source is called where only `power_w` of the readings is used; None where that is the same.
    hardware: the device's own name for itself, such as a GPU's UUID; None where it has none.
    lag_s: how long before it is told a figure was measured, such as by a metered plug.
    may_sleep: the kernel puts the device to sleep while nobody asks it, as a laptop's card; to ask it wakes it.
    """

    name: str
    device: str
    scope: Scope
    source: str
    has_counter: bool
    limits: Limits
    interval_s: float = 0.1
    deadline_s: float = 1.0
    simulated: bool = False
    power_source: str | None = None
    lag_s: float = 0.0
    hardware: str | None = None
    may_sleep: bool = False


class Sensor(Protocol):
    """One source of power or energy figures."""

    @property
    def name(self) -> str:
        """The name under which the sensor is reported even where it could not be probed."""

    @property
    def facts(self) -> SensorFacts:
        """What the sensor is. Defined after a successful `probe`."""

    def probe(self) -> str:
        """Look for the hardware, anew each time, and read it once; return a short description of what was found.

        Raises SensorAbsentError, SensorDeniedError or SensorBrokenError.
        """

    def read(self) -> Reading:
        """Read the hardware. Raises what `probe` raises; SensorAbsentError means that it went away."""

    def close(self) -> None:
        """Release what `probe` opened. Harmless when called twice."""
