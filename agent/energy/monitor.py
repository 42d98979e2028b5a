"""This host's energy as the daemon uses it: sampling, accounts and conditions in one running object."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from moe2.agent.energy.account import HostAccount
from moe2.agent.energy.attribution import DeviceAccount
from moe2.agent.energy.blocking import in_daemon_thread
from moe2.agent.energy.catalog import ProbeResult, choose, why_unmeasured
from moe2.agent.energy.conditions import ConditionLog, Conditions, read_conditions
from moe2.agent.energy.nvml import NvmlSensor
from moe2.agent.energy.sampler import EnergySampler
from moe2.agent.energy.simulated import SimulatedSensor
from moe2.agent.engine.protocol import Pace
from moe2.common.energy import Energy
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.messages import SensorReport

_CONDITIONS_EVERY_S = 5.0
# A request's answer waits for its joules, so a sensor that is out of order may hold it up only this long,
_MAX_SETTLE_S = 0.3
# and one that answers, but whose thread gets no turn on a busy host, this long.
_MAX_LATE_S = 1.0


class HostMonitor:
    """Samples the host's sensors, accounts for requests, watches power mode and heat.

    results: of `moe2.agent.energy.catalog.discover`. Request events go to `account`; `settle` hands out what became
    final. All methods belong to the event loop's thread.
    """

    def __init__(
        self,
        results: Sequence[ProbeResult],
        *,
        root: Path = Path("/"),
        clock: Callable[[], float] = monotonic,
        conditions: Conditions | None = None,
        interval_s: float = 0.0,
    ) -> None:
        """interval_s: seconds between two readings of a sensor, where it does not have longer ones of its own."""
        self._results = tuple(results)
        self._root = root
        self._clock = clock
        self._sensors = choose(results)
        self._models: frozenset[str] = frozenset()
        self._profile = next((s.profile for s in self._sensors if isinstance(s, SimulatedSensor)), None)
        self.sampler = EnergySampler(self._sensors, clock=clock, interval_s=interval_s)
        self._devices = tuple(
            DeviceAccount(channel.facts, channel.track, start_s=clock(), max_settle_s=_MAX_SETTLE_S)
            for channel in self.sampler.channels
        )
        self.account = HostAccount(self._devices, why_unmeasured=why_unmeasured(results))
        self._conditions = ConditionLog(
            conditions or read_conditions(root), on_power_mode=lambda _: self._tell_condition()
        )
        for sensor in self._sensors:
            if isinstance(sensor, SimulatedSensor):
                sensor.follow(lambda: self.account.activity)

    @property
    def power_mode(self) -> str | None:
        """The present power mode, a simulated host's own one, marked, if it is simulated; None if unknown."""
        return self._profile.marked_power_mode if self._profile else self._conditions.latest.power_mode

    @property
    def pace(self) -> Pace | None:
        """What a simulated host's engines are slowed down to."""
        return self._profile.pace if self._profile else None

    async def run(self) -> None:
        """Sample and watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.sampler.run())
            tasks.create_task(self._watch_conditions())

    def models_loaded(self, models: frozenset[str]) -> None:
        """The set of loaded models: idle power is kept apart for each."""
        self._models = models
        self._tell_condition()

    def settle(self) -> dict[str, Energy]:
        """The ended requests whose energy became final, by job id, each once. Call it a few times a second."""
        now_s = self._clock()
        for channel, device in zip(self.sampler.channels, self._devices, strict=True):
            device.suspicion = channel.suspicion
            device.patience_s = _MAX_LATE_S if channel.is_well(now_s) else _MAX_SETTLE_S
        return self.account.settle(now_s)

    def power_w(self) -> dict[str, float | None]:
        """Present power per sampled sensor in W; None where it is not known."""
        return self.sampler.power_w()

    def reports(self) -> tuple[SensorReport, ...]:
        """Every sensor that was looked for: sampled ones as they are now, the others as they were found."""
        sampled = {report.name: report for report in self.sampler.reports()}
        return tuple(sampled.get(result.name) or result.report() for result in self._results)

    def warnings(self) -> tuple[HealthWarning, ...]:
        """Sensors that were refused or that fail, throttling, changes of the power mode."""
        now_s = self._clock()
        refused = tuple(
            HealthWarning(
                code=f"sensor_{result.state}",
                severity=Severity.NOTICE,
                message=f"{result.name}: {result.detail}",
                remedy=result.remedy or "Run 'moe2-agent doctor' on this host.",
            )
            for result in self._results
            if result.state in ("denied", "broken")
        )
        return (*refused, *self.sampler.warnings(), *self._conditions.warnings(now_s))

    async def _watch_conditions(self) -> None:
        while True:
            seen, throttling = await in_daemon_thread(self._look)
            self._conditions.update(seen, self._clock(), throttling)
            await asyncio.sleep(_CONDITIONS_EVERY_S)

    def _look(self) -> tuple[Conditions, str | None]:
        boards = [sensor for sensor in self._sensors if isinstance(sensor, NvmlSensor)]
        reasons = [reason for board in boards if (reason := board.throttling())]
        return read_conditions(self._root), ", ".join(reasons) or None

    def _tell_condition(self) -> None:
        self.account.set_condition(self.power_mode, self._models)
