"""Whether a device's energy counter agrees with its own power readings, or even stands still beside them. PURE.

Counters have been seen to run 40 % below the integrated power of the same GPU (Zeus issue 181: 187 J against
327 J over 5 s of idling), so the first seconds of every counter are compared.
"""

from __future__ import annotations

from moe2.agent.energy.meter import EnergyTrack
from moe2.agent.energy.sensor import Reading

_TOLERANCE = 0.10
_WINDOW_S = 3.0
_MAX_STANDING_S = 2.0
"""Counters move about ten times a second; one that has not for so long counts nothing."""


class CounterCrossCheck:
    """A comparison of counter and integrated power over the first three seconds that have both."""

    def __init__(self) -> None:
        self._counter = EnergyTrack()
        self._power = EnergyTrack()
        self._done = False
        self.disagreement: float | None = None
        """counter / integrated power - 1, once known."""

    @property
    def suspicion(self) -> str | None:
        """What is wrong with the counter, for people; None while nothing is known to be."""
        if self.disagreement is None or abs(self.disagreement) <= _TOLERANCE:
            return None
        return (
            f"counter is suspect: it differs by {self.disagreement:+.0%} from the power integrated over {_WINDOW_S:g} s"
        )

    def add(self, reading: Reading) -> None:
        """Take in a reading. It is ignored once the comparison is made, or if it lacks one of the two figures."""
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


class StandingCounter:
    """A watch for a counter that stands still while the power of the same device is live.

    Readings are held back as long as the counter does not move, so that nothing of that time is lost once the power has
    to stand in for it.
    """

    def __init__(self) -> None:
        self._moved: Reading | None = None
        self._held: list[Reading] = []
        self.is_standing = False
        """The counter counts nothing: only power is to be used, until the sensor is found anew."""

    def add(self, reading: Reading) -> tuple[Reading, ...]:
        """Take in a reading; return those whose power is to be integrated, which is none while the counter moves."""
        if self.is_standing:
            return (reading,)
        moved = self._moved
        if moved is None or (reading.energy_j, reading.epoch) != (moved.energy_j, moved.epoch):
            self._moved = reading
            self._held = [reading]
            return ()
        if reading.power_w is None:
            return ()
        self._held.append(reading)
        if reading.at_s - moved.at_s < _MAX_STANDING_S:
            return ()
        self.is_standing = True
        held, self._held = self._held, []
        return tuple(held)
