"""This host's energy as the daemon uses it: sampling, accounts and conditions in one running object."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic

import msgspec
import structlog

from moe2.agent.energy.account import HostAccount
from moe2.agent.energy.attribution import DeviceAccount
from moe2.agent.energy.blocking import in_daemon_thread
from moe2.agent.energy.catalog import ProbeResult, ProbeState, SensorSearch, choose, why_unmeasured
from moe2.agent.energy.channel import SensorChannel
from moe2.agent.energy.comparison import (
    AsleepPower,
    PlugReading,
    WallComparison,
    last_before_sleep,
    power_asleep,
)
from moe2.agent.energy.conditions import ConditionLog, Conditions, read_conditions
from moe2.agent.energy.nvml import BoardUse, NvmlSensor, use_by_board
from moe2.agent.energy.ownership import DeviceLocks
from moe2.agent.energy.processes import strangers
from moe2.agent.energy.profiles import Profile
from moe2.agent.energy.sampler import EnergySampler
from moe2.agent.energy.sensor import Sensor
from moe2.agent.energy.simulated import SimulatedSensor
from moe2.agent.energy.wall import WallSensor
from moe2.agent.engine.protocol import Pace
from moe2.common.energy import Energy, Scope
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.reports import SensorReport

log = structlog.get_logger()

_CONDITIONS_EVERY_S = 5.0
_PROCESSES_EVERY_S = 1.0
_COMPARED_S = 10.0
_PLUG_READINGS = 64
_FULL_COVERAGE = 0.98
_FIRST_SEARCH_S = 5.0
_MAX_SEARCH_S = 300.0
"""Sensors that were not found are looked for again after the first of these times, then ever more rarely."""
# A request's answer waits for its joules, so a sensor that is out of order may hold it up only this long,
_MAX_SETTLE_S = 0.3
# and one that answers, but whose thread gets no turn on a busy host, this long.
_MAX_LATE_S = 1.0


@dataclass(frozen=True, slots=True)
class _BoardLook:
    """One look at who uses the boards: other programs in words, and the boards of each model."""

    strangers: Mapping[str, str] = field(default_factory=dict)
    placement: Mapping[str, frozenset[str]] = field(default_factory=dict)


class HostMonitor:
    """Samples the host's sensors, accounts for requests, watches power mode and heat.

    results: of `moe2.agent.energy.catalog.discover`. search: looks for what was not found again, while it runs.
    locks: who measures which device on this host. Request events go to `account`; `settle` hands out what became
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
        search: SensorSearch | None = None,
        locks: DeviceLocks | None = None,
        engine_pids: Callable[[], Mapping[str, int | None]] = dict,
        by_wall: bool = False,
    ) -> None:
        """interval_s: seconds between two readings of a sensor, where it does not have longer ones of its own.

        engine_pids: the process of each model, to know which board it is on. by_wall: metered plugs are what counts.
        """
        self._results: tuple[ProbeResult, ...] = ()
        self._root = root
        self._clock = clock
        self._search = search
        self._locks = locks
        self._engine_pids = engine_pids
        self._sensors: tuple[Sensor, ...] = ()
        self._models: frozenset[str] = frozenset()
        self._strangers: Mapping[str, str] = {}
        self._profile: Profile | None = None
        self.sampler = EnergySampler((), clock=clock, interval_s=interval_s)
        self._devices: list[tuple[SensorChannel, DeviceAccount]] = []
        self.account = HostAccount((), why_unmeasured="", by_wall=by_wall)
        self._comparison = WallComparison()
        self._plug_readings: deque[PlugReading] = deque(maxlen=_PLUG_READINGS)
        self._sleep: tuple[float, float, PlugReading] | None = None
        self._conditions = ConditionLog(
            conditions or read_conditions(root), on_power_mode=lambda _: self._tell_condition()
        )
        self._take_in(results)

    def _take_in(self, results: Sequence[ProbeResult]) -> None:
        """Sample what was found and is not sampled yet, unless another agent measures that device."""
        seen, at_s = list(results), self._clock()
        for sensor in choose(results, {channel.facts.device for channel, _ in self._devices}):
            facts = sensor.facts
            owner = None
            if self._locks is not None and not facts.simulated:
                owner = self._locks.claim(facts.hardware or facts.device)
            if owner is not None:
                sensor.close()
                seen = [_owned(one, owner) if one.sensor is sensor else one for one in seen]
                continue
            self._sensors = (*self._sensors, sensor)
            channel = self.sampler.add(sensor)
            device = DeviceAccount(channel.facts, channel.track, start_s=at_s, max_settle_s=_MAX_SETTLE_S)
            self._devices.append((channel, device))
            self.account.add_device(device, at_s)
            if isinstance(sensor, SimulatedSensor):
                self._profile = sensor.profile
                sensor.follow(lambda: self.account.activity)
        self._results = tuple(seen)
        self.account.why_unmeasured = why_unmeasured(seen)

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
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.sampler.run())
                tasks.create_task(self._watch_conditions())
                tasks.create_task(self._watch_boards())
                tasks.create_task(self._compare_with_wall())
                if self._search is not None:
                    tasks.create_task(self._search_again(self._search))
        finally:
            if self._locks is not None:
                self._locks.release()

    def models_loaded(self, models: frozenset[str]) -> None:
        """Take in the set of loaded models: idle power is kept apart for each."""
        self._models = models
        self._tell_condition()

    def boards_used(self, are_used: bool) -> None:
        """Take in whether a model is in memory, or on its way there or out: else cards that may sleep are not asked."""
        self.sampler.rest(not are_used)

    def settle(self) -> dict[str, Energy]:
        """Return the ended requests whose energy became final, by job id, each once. Call it a few times a second."""
        now_s = self._clock()
        for channel, device in self._devices:
            device.facts = channel.facts
            device.suspicion = channel.suspicion
            late_s = _MAX_LATE_S + channel.facts.lag_s
            device.patience_s = late_s if channel.is_well(now_s) else _MAX_SETTLE_S
        return self.account.settle(now_s)

    def power_w(self) -> dict[str, float | None]:
        """Return the present power per sampled sensor in W; None where it is not known."""
        return self.sampler.power_w()

    def note_plugs(self) -> None:
        """Remember what the plugs tell now, to know later what was drawn while the host slept."""
        plugs = [sensor for sensor in self._sensors if isinstance(sensor, WallSensor)]
        told = [sensor.latest for sensor in plugs if sensor.latest is not None]
        energies_j = [figures.energy_j for _, figures in told]
        if not plugs or len(told) < len(plugs) or None in energies_j:
            return
        at_s = min(at_s for at_s, _ in told)
        if not self._plug_readings or at_s > self._plug_readings[-1].at_s:
            power_w = sum(figures.power_w for _, figures in told)
            step_j = sum(sensor.step_j for sensor in plugs)
            self._plug_readings.append(PlugReading(at_s, power_w, sum(one or 0.0 for one in energies_j), step_j))

    def awoke(self, slept_s: float) -> None:
        """Take in that the host has slept: what it drew meanwhile is known once the plugs have answered again."""
        awake_s = self._clock()
        before = last_before_sleep(self._plug_readings, awake_s)
        self._sleep = (awake_s, slept_s, before) if before is not None else None

    def power_asleep(self) -> AsleepPower | None:
        """Return what was drawn during the last sleep, once, as soon as it is known; None otherwise."""
        self.note_plugs()
        if self._sleep is None:
            return None
        awake_s, slept_s, before = self._sleep
        after = next((one for one in self._plug_readings if one.at_s > awake_s), None)
        if after is None:
            return None
        self._sleep = None
        return power_asleep(before, after, slept_s)

    def reports(self) -> tuple[SensorReport, ...]:
        """Return every sensor that was looked for: sampled ones as they are now, the others as they were found.

        The power of those whose joules do not count is apart, so that nobody adds it to that of the others.
        """
        now_s = self._clock()
        sampled = {channel.facts.name: self._report(channel, device, now_s) for channel, device in self._devices}
        return tuple(sampled.get(result.name) or result.report() for result in self._results)

    def _report(self, channel: SensorChannel, device: DeviceAccount, now_s: float) -> SensorReport:
        report = channel.report(now_s)
        if channel.facts.scope is Scope.WALL and report.state == ProbeState.PRESENT:
            report = msgspec.structs.replace(report, detail=self._comparison.sentence or report.detail)
        if self._locks is not None and self._locks.holds(channel.facts.hardware or channel.facts.device):
            report = msgspec.structs.replace(report, owned=True)
        if not self.account.counts(device):
            report = msgspec.structs.replace(report, power_w=None, uncounted_w=report.power_w)
        return report

    def warnings(self) -> tuple[HealthWarning, ...]:
        """Return what is wrong: sensors that were refused or fail, other programs, throttling, a new power mode."""
        now_s = self._clock()
        refused = tuple(
            HealthWarning(
                code="device_owned" if result.owner is not None else f"sensor_{result.state}",
                severity=Severity.NOTICE,
                message=f"{result.name}: {result.detail}",
                remedy=result.remedy or "Run 'moe2-agent doctor' on this host.",
            )
            for result in self._results
            if result.state in ("denied", "broken")
        )
        return (*refused, *self.sampler.warnings(), *self._stranger_warnings(), *self._conditions.warnings(now_s))

    def _stranger_warnings(self) -> tuple[HealthWarning, ...]:
        return tuple(
            HealthWarning(
                code="device_shared",
                severity=Severity.NOTICE,
                message=f"Other programs are on {device}: {names}. Joules of requests are called partial meanwhile, "
                "because theirs are among them.",
                remedy="Run them elsewhere, measure other boards only ([sensors] devices), or switch MIG off where it "
                "divides the board.",
            )
            for device, names in self._strangers.items()
        )

    async def _watch_conditions(self) -> None:
        while True:
            seen, throttling = await in_daemon_thread(self._look)
            self._conditions.update(seen, self._clock(), throttling)
            await asyncio.sleep(_CONDITIONS_EVERY_S)

    def _look(self) -> tuple[Conditions, str | None]:
        boards = [] if self._is_board_resting() else self._boards()
        reasons = [reason for board in boards if (reason := board.throttling())]
        return read_conditions(self._root), ", ".join(reasons) or None

    async def _search_again(self, search: SensorSearch) -> None:
        """Look again for what was not found; soon at first, then ever more rarely, until something changes."""
        pause_s = _FIRST_SEARCH_S
        while True:
            await asyncio.sleep(pause_s)
            in_use = [sensor.name for sensor in self._sensors]
            if self._is_board_resting():
                # To count the boards would wake them.
                in_use.append("nvml")
            results = await in_daemon_thread(partial(search.look, in_use))
            before = {result.name: result.state for result in self._results}
            self._take_in(results)
            changed = before != {result.name: result.state for result in self._results}
            pause_s = _FIRST_SEARCH_S if changed else min(2 * pause_s, _MAX_SEARCH_S)
            for result in self._results if changed else ():
                log.info("sensor_probed", sensor=result.name, state=result.state, detail=result.detail)

    async def _compare_with_wall(self) -> None:
        while True:
            await asyncio.sleep(_COMPARED_S)
            self._compare(self._clock())

    def _compare(self, now_s: float) -> None:
        """Compare the plugs with the other sensors over the newest ten seconds that both can know."""
        plugs = [channel for channel, _ in self._devices if channel.facts.scope is Scope.WALL]
        others = [channel for channel, _ in self._devices if channel.facts.scope is not Scope.WALL]
        if not plugs or not others:
            return
        end_s = now_s - max(channel.facts.lag_s + channel.facts.deadline_s for channel in plugs)
        wall_w, sensors_w = (_mean_w(channels, end_s - _COMPARED_S, end_s) for channels in (plugs, others))
        if wall_w is not None and sensors_w is not None:
            self._comparison.add(sensors_w, wall_w)

    async def _watch_boards(self) -> None:
        while True:
            if self._is_board_resting():
                self._boards_seen(_BoardLook())
            elif self._boards():
                self._boards_seen(await in_daemon_thread(partial(_look_at_boards, dict(self._engine_pids()))))
            await asyncio.sleep(_PROCESSES_EVERY_S)

    def _boards(self) -> list[NvmlSensor]:
        return [sensor for sensor in self._sensors if isinstance(sensor, NvmlSensor)]

    def _is_board_resting(self) -> bool:
        """Return whether a board is left alone: the driver starts all of them together, so that none may be asked."""
        names = {sensor.name for sensor in self._boards()}
        return any(channel.is_resting and channel.facts.name in names for channel in self.sampler.channels)

    def _boards_seen(self, seen: _BoardLook) -> None:
        self.account.placement = seen.placement
        now_s = self._clock()
        measured = {channel.facts.device for channel, _ in self._devices}
        self._strangers = {device: names for device, names in seen.strangers.items() if device in measured}
        for channel, device in self._devices:
            device.strangers_seen(now_s, self._strangers.get(channel.facts.device))

    def _tell_condition(self) -> None:
        self.account.set_condition(self.power_mode, self._models)


def _mean_w(channels: Sequence[SensorChannel], start_s: float, end_s: float) -> float | None:
    """Return the power of all of them together in W; None where one of them has not seen the whole time."""
    windows = [channel.track.between(start_s, end_s) for channel in channels]
    if any(window.joules is None or window.coverage < _FULL_COVERAGE for window in windows):
        return None
    return sum(window.joules or 0.0 for window in windows) / (end_s - start_s)


def _owned(result: ProbeResult, owner: str) -> ProbeResult:
    """Return the result for a sensor of a device that another agent measures."""
    return replace(
        result,
        state=ProbeState.DENIED,
        detail=f"{result.detail}: its device is measured by {owner} on this host; two would each report all of it.",
        remedy="Let one agent serve all models of this device, or name other devices in [sensors] devices. This one "
        "takes it over when the other ends.",
        sensor=None,
        owner=owner,
    )


def _others(use: BoardUse) -> tuple[str, ...]:
    """Return who else is, or may be, on a board, in words."""
    seen = strangers(use.processes)
    return (*seen, f"whoever uses its {use.mig_instances} MIG instances") if use.is_shared_by_mig else seen


def _look_at_boards(engine_pids: Mapping[str, int | None]) -> _BoardLook:
    """Look at the processes on all boards. Blocking."""
    boards = use_by_board()
    found = {device: _others(use) for device, use in boards.items()}
    placement = {
        model: frozenset(device for device, use in boards.items() if pid in use.processes)
        for model, pid in engine_pids.items()
        if pid is not None
    }
    return _BoardLook(
        strangers={device: ", ".join(names) for device, names in found.items() if names},
        placement={model: devices for model, devices in placement.items() if devices},
    )
