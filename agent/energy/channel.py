"""One sensor's running state: what it said, what of it counts, what is wrong with it. PURE."""

from __future__ import annotations

from moe2.agent.energy.crosscheck import CounterCrossCheck
from moe2.agent.energy.meter import EnergyTrack
from moe2.agent.energy.plausibility import PlausibilityJudge
from moe2.agent.energy.sensor import (
    Reading,
    SensorAbsentError,
    SensorBrokenError,
    SensorDeniedError,
    SensorFacts,
    SensorFault,
)
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.messages import SensorReport

_SILENT_S = 2.0
_POWER_WINDOW_S = 1.0
_GENERIC_REMEDY = "Run 'moe2-agent doctor' on this host; energy is reported as unmeasured meanwhile."


class SensorChannel:
    """Takes a sensor's readings and faults, feeds the track, and reports."""

    def __init__(self, facts: SensorFacts, track: EnergyTrack, *, opened_s: float) -> None:
        self.facts = facts
        self.track = track
        self._judge = PlausibilityJudge(facts.limits)
        self._crosscheck = CounterCrossCheck()
        self._fault: SensorFault | None = None
        self._hung_since_s: float | None = None
        self._heard_s = opened_s

    @property
    def suspicion(self) -> str | None:
        """Why the sensor's figures, though used, are doubtful; None if they are not."""
        return self._crosscheck.suspicion

    def read(self, reading: Reading, now_s: float) -> None:
        """The sensor answered."""
        self._fault = None
        self._hung_since_s = None
        accepted = self._judge.examine(reading, now_s)
        if accepted is None:
            return
        self._heard_s = max(self._heard_s, accepted.at_s)
        self._crosscheck.add(accepted)
        if self.facts.has_counter and accepted.energy_j is not None:
            self.track.add_counter(accepted.at_s, accepted.energy_j, accepted.epoch)
        elif not self.facts.has_counter and accepted.power_w is not None:
            self.track.add_power(accepted.at_s, accepted.power_w)

    def failed(self, fault: SensorFault) -> None:
        """The sensor refused or broke."""
        self._fault = fault
        self._hung_since_s = None

    def hung(self, since_s: float) -> None:
        """Takes in that a read of the sensor has not come back within its deadline."""
        self._hung_since_s = since_s

    def power_w(self, now_s: float) -> float | None:
        """Mean power of the last second that is known, in W; None if that is not recent or not trusted."""
        frontier_s = self.track.frontier_s
        if frontier_s is None or self._judge.quarantine_reason:
            return None
        if now_s - frontier_s > max(_SILENT_S, 2 * self.facts.interval_s):
            return None
        window = self.track.between(frontier_s - _POWER_WINDOW_S, frontier_s)
        return window.joules / window.covered_s if window.joules is not None else None

    def is_well(self, now_s: float) -> bool:
        """Whether the sensor answers and is believed, so that a reading that is missing now will come."""
        return self._trouble(now_s) is None

    def report(self, now_s: float) -> SensorReport:
        """The sensor as it is now."""
        trouble = self._trouble(now_s)
        if trouble is None:
            return SensorReport(
                name=self.facts.name,
                state="present",
                detail=self.suspicion,
                power_w=self.power_w(now_s),
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
        """What an operator should know of this sensor."""
        trouble = self._trouble(now_s)
        if trouble is not None:
            return (trouble,)
        if self.suspicion:
            return (
                HealthWarning(
                    code="sensor_suspect",
                    severity=Severity.NOTICE,
                    message=f"{self.facts.name}: {self.suspicion}.",
                    remedy="Compare with an external meter; a driver update may repair the counter.",
                ),
            )
        return ()

    def _trouble(self, now_s: float) -> HealthWarning | None:
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
        if now_s - self._heard_s > max(_SILENT_S, self.facts.deadline_s + self.facts.interval_s):
            return _degraded(
                "sensor_silent",
                f"{name} has given no usable reading for {now_s - self._heard_s:.1f} s.",
                _GENERIC_REMEDY,
            )
        return None


def _degraded(code: str, message: str, remedy: str) -> HealthWarning:
    return HealthWarning(code=code, severity=Severity.DEGRADED, message=message, remedy=remedy)


def fault_of(error: Exception, name: str) -> SensorFault:
    """The fault that an exception raised by a sensor's read stands for."""
    if isinstance(error, SensorAbsentError | SensorDeniedError | SensorBrokenError):
        return error
    return SensorBrokenError(f"{name} failed with {type(error).__name__}: {error}.")
