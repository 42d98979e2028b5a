"""A device's account with a simulated sensor of given watts."""

from __future__ import annotations

from moe2.agent.energy.attribution import DeviceAccount
from moe2.agent.energy.meter import EnergyTrack
from moe2.agent.energy.sensor import Limits, SensorFacts
from moe2.common.energy import Scope

LOADED = frozenset({"model"})
OWN_JOB = 0
"""Of a random schedule: the host's own work, which is no request."""


def sensor_facts(*, has_counter: bool = False, simulated: bool = False) -> SensorFacts:
    return SensorFacts(
        name="ina3221",
        device="module",
        scope=Scope.MODULE_INPUT,
        source="ina3221",
        has_counter=has_counter,
        limits=Limits(0.1, 500.0, None),
        simulated=simulated,
    )


class Bench:
    """An account over a device whose power a test sets, sampled every 100 ms."""

    def __init__(self, *, has_counter: bool = False, simulated: bool = False) -> None:
        self.track = EnergyTrack()
        self.account = DeviceAccount(
            sensor_facts(has_counter=has_counter, simulated=simulated), self.track, start_s=0.0
        )
        self.account.set_condition((None, LOADED))
        self.track.add_power(0.0, 10.0)
        self._ticks = 0

    def run_until(self, end_s: float, power_w: float) -> None:
        """Sample `power_w` up to `end_s`."""
        while self._ticks * 0.1 < end_s - 1e-9:
            self._ticks += 1
            self.track.add_power(self._ticks * 0.1, power_w)

    def learn_idle(self) -> None:
        """Fifteen seconds at 10 W with nobody active."""
        for second in range(1, 16):
            self.run_until(second, 10.0)
            self.account.settle(float(second))
