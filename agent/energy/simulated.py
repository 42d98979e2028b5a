"""The sensor of a simulated host."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from moe2.agent.energy.account import Activity
from moe2.agent.energy.profiles import Profile
from moe2.agent.energy.sensor import Limits, Reading, SensorFacts


class SimulatedSensor:
    """The power that a profile's host would draw at the present activity."""

    def __init__(self, profile: Profile, clock: Callable[[], float] = monotonic) -> None:
        self.name = f"profile:{profile.profile_id}"
        self.profile = profile
        self._clock = clock
        self._activity: Callable[[], Activity] = Activity

    @property
    def facts(self) -> SensorFacts:
        return SensorFacts(
            name=self.name,
            device="simulated",
            scope=self.profile.scope,
            source=self.name,
            has_counter=False,
            limits=Limits(min_power_w=0.0, max_power_w=2000.0, stuck_after_s=None),
            simulated=True,
        )

    def follow(self, activity: Callable[[], Activity]) -> None:
        """Makes the simulated host draw power according to `activity` from now on."""
        self._activity = activity

    def probe(self) -> str:
        return f"simulated {self.profile.board}, {self.profile.power_mode}"

    def read(self) -> Reading:
        return Reading(at_s=self._clock(), power_w=self.profile.power_w(self._activity()))

    def close(self) -> None:
        """Does nothing: a simulated sensor holds no file open."""
