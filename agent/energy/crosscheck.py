"""Does a device's energy counter agree with its own power readings? PURE.

Counters have been seen to run 40 % below the integrated power of the same GPU (Zeus issue 181: 187 J against
327 J over 5 s of idling), so the first seconds of every counter are compared.
"""

from __future__ import annotations

from moe2.agent.energy.meter import EnergyTrack
from moe2.agent.energy.sensor import Reading

_TOLERANCE = 0.10
_WINDOW_S = 3.0


class CounterCrossCheck:
    """Compares counter and integrated power over the first three seconds that have both."""

    def __init__(self) -> None:
        self._counter = EnergyTrack()
        self._power = EnergyTrack()
        self._done = False
        self.disagreement: float | None = None
        """counter / integrated power - 1, once known."""

    @property
    def suspicion(self) -> str | None:
        """What is wrong, for people; None while nothing is known to be."""
        if self.disagreement is None or abs(self.disagreement) <= _TOLERANCE:
            return None
        return (
            f"counter is suspect: it differs by {self.disagreement:+.0%} from the power integrated over {_WINDOW_S:g} s"
        )

    def add(self, reading: Reading) -> None:
        """A reading of the sensor. Ignored once the comparison is made, or if it lacks one of the two
        figures."""
        if self._done or reading.energy_j is None or reading.power_w is None:
            return
        self._counter.add_counter(reading.at_s, reading.energy_j, reading.epoch)
        self._power.add_power(reading.at_s, reading.power_w)
        frontier_s = self._counter.frontier_s
        if frontier_s is None:
            return
        counted = self._counter.between(frontier_s - _WINDOW_S, frontier_s)
        integrated = self._power.between(frontier_s - _WINDOW_S, frontier_s)
        if counted.coverage < 0.98 or integrated.coverage < 0.98 or counted.joules is None or not integrated.joules:
            return
        self.disagreement = counted.joules / integrated.joules - 1
        self._done = True
