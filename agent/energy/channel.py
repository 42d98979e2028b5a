"""One sensor's running state: what it said, what of it counts, what is wrong with it. PURE."""

from __future__ import annotations

from dataclasses import replace

from moe2.agent.energy.crosscheck import CounterCrossCheck, StandingCounter
from moe2.agent.energy.meter import EnergyTrack
from moe2.agent.energy.plausibility import PlausibilityJudge
from moe2.agent.energy.sensor import (
    Reading,
    SensorAbsentError,
    SensorBrokenError,
    SensorDeniedError,
    SensorFacts,
    SensorFault,
    SensorMissedError,
)
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.reports import SensorReport

_SILENT_S = 2.0
_POWER_WINDOW_S = 1.0
_MAX_MISSED = 3
"""So many samples in a row may be missed: the track bridges them, and nobody needs to know."""
_MAX_WAKING_S = 10.0
"""A sensor that was at rest is looked for anew, and its driver may need seconds for that."""
_RESTS = "not asked while no model is in memory, so that it can sleep"
_GENERIC_REMEDY = "The agent looks for it again by itself; energy is reported as unmeasured meanwhile."


class SensorChannel:
    """Takes a sensor's readings and faults, feeds the track, and reports."""

    def __init__(self, facts: SensorFacts, track: EnergyTrack, *, opened_s: float) -> None:
        self.facts = facts
        self.track = track
        self._judge = PlausibilityJudge(facts.limits, lag_s=facts.lag_s)
        self._crosscheck = CounterCrossCheck()
        self._counter = StandingCounter()
        self._missed = 0
        self._fault: SensorFault | None = None
        self._hung_since_s: float | None = None
        self._heard_s = opened_s
        self.is_resting = False
        """It is not read: its device may sleep."""

    @property
    def suspicion(self) -> str | None:
        """Why the sensor's figures, though used, are doubtful; None if they are not."""
        if self._counter.is_standing:
            return "its energy counter stands still while it draws power; joules are integrated from its power"
        return self._crosscheck.suspicion

    def rests(self, is_resting: bool, now_s: float) -> None:
        """Take in that the sensor is not read from now on, or is again."""
        self._fault = None
        self._hung_since_s = None
        self._heard_s = now_s + _MAX_WAKING_S
        self.is_resting = is_resting

    def found_anew(self, facts: SensorFacts) -> None:
        """Go on with a sensor that was lost and is there again, maybe with other facts."""
        self.facts = facts
        self._judge.begin_anew(facts.limits)
        self._crosscheck = CounterCrossCheck()
        self._counter = StandingCounter()

    def read(self, reading: Reading, now_s: float) -> None:
        """Take in what the sensor answered."""
        self._fault = None
        self._missed = 0
        self._hung_since_s = None
        if self._counter.is_standing:
            reading = replace(reading, energy_j=None)
        accepted = self._judge.examine(reading, now_s)
        if accepted is None:
            return
        self._heard_s = max(self._heard_s, accepted.at_s)
        if self.facts.has_counter:
            self._count(accepted)
        elif accepted.power_w is not None:
            self.track.add_power(accepted.at_s, accepted.power_w)

    def _count(self, reading: Reading) -> None:
        self._crosscheck.add(reading)
        if reading.energy_j is None:
            return
        self.track.add_counter(reading.at_s, reading.energy_j, reading.epoch)
        for held in self._counter.add(reading):
            if held.power_w is not None:
                self.track.add_power(held.at_s, held.power_w)
        if self._counter.is_standing:
            self.facts = replace(self.facts, has_counter=False, source=self.facts.power_source or self.facts.source)

    def failed(self, fault: SensorFault) -> None:
        """Take in that the sensor refused, broke, or missed a sample. A few missed ones are no fault."""
        self._missed += 1
        if isinstance(fault, SensorMissedError) and self._missed <= _MAX_MISSED and self._fault is None:
            return
        self._fault = fault
        self._hung_since_s = None

    def hung(self, since_s: float) -> None:
        """Takes in that a read of the sensor has not come back within its deadline."""
        self._hung_since_s = since_s

    def power_w(self, now_s: float) -> float | None:
        """Return the mean power of the last second that is known, in W; None if that is not recent or not trusted."""
        frontier_s = self.track.frontier_s
        if frontier_s is None or self._judge.quarantine_reason:
            return None
        if now_s - frontier_s > max(_SILENT_S, 2 * self.facts.interval_s) + self.facts.lag_s:
            return None
        window = self.track.between(frontier_s - _POWER_WINDOW_S, frontier_s)
        return window.joules / window.covered_s if window.joules is not None else None

    def is_well(self, now_s: float) -> bool:
        """Return whether the sensor answers and is believed, so that a reading that is missing now will come."""
        return self._trouble(now_s) is None

    def report(self, now_s: float) -> SensorReport:
        """Return the sensor as it is now."""
        trouble = self._trouble(now_s)
        if trouble is None:
            return SensorReport(
                name=self.facts.name,
                state="present",
                detail=_RESTS if self.is_resting else self.suspicion,
                power_w=None if self.is_resting else self.power_w(now_s),
                simulated=self.facts.simulated,
            )
        state = "denied" if isinstance(self._fault, SensorDeniedError) else "broken"
        if isinstance(self._fault, SensorAbsentError):
            state = "absent"
        return SensorReport(
            name=self.facts.name,
            state=state,
            detail=trouble.message,
            remedy=trouble.remedy,
            simulated=self.facts.simulated,
        )

    def warnings(self, now_s: float) -> tuple[HealthWarning, ...]:
        """Return what an operator should know of this sensor."""
        trouble = self._trouble(now_s)
        if trouble is not None:
            return (trouble,)
        if self.suspicion:
            return (
                HealthWarning(
                    code="sensor_suspect",
                    severity=Severity.NOTICE,
                    message=f"{self.facts.name}: {self.suspicion}.",
                    remedy="Compare with a metered plug ([[sensors.wall]]); a driver update may repair the counter.",
                ),
            )
        return ()

    def _trouble(self, now_s: float) -> HealthWarning | None:
        if self.is_resting:
            return None
        name = self.facts.name
        if self._hung_since_s is not None:
            return _degraded(
                "sensor_hung",
                f"{name} has not answered for {now_s - self._hung_since_s:.1f} s.",
                "Check the kernel log for its driver; the agent resumes by itself when the sensor answers.",
            )
        if self._fault is not None:
            code = "sensor_denied" if isinstance(self._fault, SensorDeniedError) else "sensor_lost"
            return _degraded(code, f"{name}: {self._fault.message}", self._fault.remedy or _GENERIC_REMEDY)
        if self._judge.quarantine_reason:
            return _degraded(
                "sensor_quarantined",
                f"{name} is not believed: {self._judge.quarantine_reason}.",
                "Its readings count again once they are possible; check its driver and wiring. " + _GENERIC_REMEDY,
            )
        if now_s - self._heard_s > max(_SILENT_S, self.facts.deadline_s + self.facts.interval_s) + self.facts.lag_s:
            return _degraded(
                "sensor_silent",
                f"{name} has given no usable reading for {now_s - self._heard_s:.1f} s.",
                _GENERIC_REMEDY,
            )
        return None


def _degraded(code: str, message: str, remedy: str) -> HealthWarning:
    return HealthWarning(code=code, severity=Severity.DEGRADED, message=message, remedy=remedy)


def fault_of(error: Exception, name: str) -> SensorFault:
    """Return the fault that an exception raised by a sensor's read stands for."""
    if isinstance(error, SensorAbsentError | SensorDeniedError | SensorBrokenError):
        return error
    return SensorBrokenError(f"{name} failed with {type(error).__name__}: {error}.")
