"""Samples every sensor at its own pace, each in a thread of its own: one that hangs silences no other.

A sensor that fails is read again at the next turn, then ever more rarely, and after its first failure it is looked for
anew each time: its driver may have come back under another name.

Threads hand their readings over through a queue; all state (`SensorChannel`) belongs to the event loop's
thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic

from moe2.agent.energy.channel import SensorChannel, fault_of
from moe2.agent.energy.meter import EnergyTrack
from moe2.agent.energy.sensor import Reading, Sensor, SensorFacts, SensorFault, SensorMissedError
from moe2.common.health import HealthWarning
from moe2.common.link.reports import SensorReport

_MAX_RETRY_S = 30.0
_MAX_MISSED = 5
"""So many readings may be missed in a row before the sensor is looked for anew."""
_JOIN_S = 1.0

Clock = Callable[[], float]
Pace = Callable[[threading.Event, float], bool]
"""Waits for the event, at most so many seconds; whether it is set."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one turn. facts: of the sensor, where it was found anew in this turn."""

    began_s: float
    ended_s: float
    result: Reading | SensorFault
    facts: SensorFacts | None = None


class _SensorThread:
    """Reads one sensor for ever. A daemon thread: a hung read must not keep the process alive."""

    def __init__(self, sensor: Sensor, interval_s: float, clock: Clock, pace: Pace) -> None:
        self._sensor = sensor
        self._interval_s = interval_s
        self.facts = self._paced(sensor.facts)
        self._clock = clock
        self._pace = pace
        self._wake = threading.Event()
        self._stopping = False
        self._is_resting = False
        self._thread = threading.Thread(target=self._work, name=f"sensor-{sensor.name}", daemon=True)
        self._failures = 0
        self._is_lost = False
        self.outcomes: deque[_Outcome] = deque(maxlen=1024)
        self.reading_since_s: float | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def rest(self, is_resting: bool) -> None:
        """Leave the sensor alone, or read it again."""
        self._is_resting = is_resting
        self._wake.set()

    def read_now(self) -> None:
        # One that fails keeps to its back-off, however many requests end meanwhile.
        if not self._failures:
            self._wake.set()

    def join(self, timeout_s: float) -> None:
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._sensor.close()

    def _paced(self, facts: SensorFacts) -> SensorFacts:
        return replace(facts, interval_s=max(facts.interval_s, self._interval_s))

    def _work(self) -> None:
        due_s = self._clock()
        while not self._stopping:
            if self._is_resting:
                # Whoever holds the driver open keeps the device awake.
                self._sensor.close()
                self._is_lost = True
                if self._pace(self._wake, _MAX_RETRY_S):
                    self._wake.clear()
                due_s = self._clock()
                continue
            outcome = self._turn()
            self.outcomes.append(outcome)
            due_s = max(due_s + self.facts.interval_s, outcome.ended_s)
            if self._pace(self._wake, self._pause_s(due_s - outcome.ended_s)):
                self._wake.clear()
                due_s = self._clock()

    def _turn(self) -> _Outcome:
        """Read the sensor, looking for it first where it was lost."""
        began_s = self._clock()
        facts = None
        try:
            if self._is_lost:
                # Takes as long as it takes: a driver that is initialised may need seconds.
                self._sensor.close()
                self._sensor.probe()
                facts = self.facts = self._paced(self._sensor.facts)
                began_s = self._clock()
            self.reading_since_s = began_s
            result: Reading | SensorFault = self._sensor.read()
        except Exception as error:
            result = fault_of(error, self._sensor.name)
        self.reading_since_s = None
        self._note(result)
        return _Outcome(began_s, self._clock(), result, facts)

    def _note(self, result: Reading | SensorFault) -> None:
        if isinstance(result, Reading):
            self._failures = 0
            self._is_lost = False
            return
        self._failures += 1
        if not isinstance(result, SensorMissedError) or self._failures > _MAX_MISSED:
            self._is_lost = True

    def _pause_s(self, until_due_s: float) -> float:
        """Return how long to wait: until the next turn, or, of a sensor that is lost, twice as long each time."""
        if not self._is_lost:
            return until_due_s
        return min(_MAX_RETRY_S, self.facts.interval_s * 2.0 ** min(self._failures - 1, 16))


class EnergySampler:
    """Runs the sensors; `channels` hold what they said.

    sensors: probed ones, one per device (`moe2.agent.energy.catalog.choose`).
    drain_s: how often the readings are taken over from the threads.
    interval_s: between two readings of a sensor, where its own interval is not longer.
    """

    def __init__(
        self,
        sensors: Sequence[Sensor],
        *,
        clock: Clock = monotonic,
        pace: Pace = threading.Event.wait,
        drain_s: float = 0.1,
        interval_s: float = 0.0,
    ) -> None:
        self._clock = clock
        self._pace = pace
        self._drain_s = drain_s
        self._interval_s = interval_s
        self._is_running = False
        self._is_resting = False
        self._pairs: list[tuple[SensorChannel, _SensorThread]] = []
        for sensor in sensors:
            self.add(sensor)

    @property
    def channels(self) -> tuple[SensorChannel, ...]:
        """What each sensor said, in the order in which they were added."""
        return tuple(channel for channel, _ in self._pairs)

    def add(self, sensor: Sensor) -> SensorChannel:
        """Sample one more sensor, which was probed, from now on; return what it will say."""
        thread = _SensorThread(sensor, self._interval_s, self._clock, self._pace)
        channel = SensorChannel(thread.facts, _track(thread.facts), opened_s=self._clock())
        self._pairs.append((channel, thread))
        if self._is_resting and channel.facts.may_sleep:
            thread.rest(True)
            channel.rests(True, self._clock())
        if self._is_running:
            thread.start()
        return channel

    async def run(self) -> None:
        """Sample until cancelled. Stopping is bounded even if a sensor hangs."""
        self._is_running = True
        for _, thread in self._pairs:
            thread.start()
        try:
            while True:
                await asyncio.sleep(self._drain_s)
                self.drain()
        finally:
            self._is_running = False
            for _, thread in self._pairs:
                thread.stop()
            await asyncio.to_thread(self._join)

    def drain(self) -> None:
        """Take over what the threads have read. A reading that came after its deadline does not count."""
        now_s = self._clock()
        for channel, thread in self._pairs:
            while thread.outcomes:
                outcome = thread.outcomes.popleft()
                if outcome.facts is not None:
                    channel.found_anew(outcome.facts)
                if outcome.ended_s - outcome.began_s > channel.facts.deadline_s:
                    channel.hung(outcome.began_s)
                elif isinstance(outcome.result, Reading):
                    channel.read(outcome.result, outcome.ended_s)
                else:
                    channel.failed(outcome.result)
            since_s = thread.reading_since_s
            if since_s is not None and now_s - since_s > channel.facts.deadline_s:
                channel.hung(since_s)

    def rest(self, is_resting: bool) -> None:
        """Leave the devices that may sleep alone, or read them again: nothing of ours uses them, or is about to."""
        if is_resting == self._is_resting:
            return
        self.drain()
        self._is_resting = is_resting
        for channel, thread in self._pairs:
            if channel.facts.may_sleep:
                thread.rest(is_resting)
                channel.rests(is_resting, self._clock())

    def read_now(self) -> None:
        """Have every sensor read once at once: a request has ended and its energy need not wait for the next turn."""
        for _, thread in self._pairs:
            thread.read_now()

    def power_w(self) -> dict[str, float | None]:
        """Return the present power per sensor in W; None where it is not known."""
        now_s = self._clock()
        return {channel.facts.name: channel.power_w(now_s) for channel in self.channels}

    def reports(self) -> tuple[SensorReport, ...]:
        """Return the sampled sensors as they are now."""
        now_s = self._clock()
        return tuple(channel.report(now_s) for channel in self.channels)

    def warnings(self) -> tuple[HealthWarning, ...]:
        """Return what is wrong with the sampled sensors now."""
        now_s = self._clock()
        return tuple(warning for channel in self.channels for warning in channel.warnings(now_s))

    def _join(self) -> None:
        end_s = monotonic() + _JOIN_S
        for _, thread in self._pairs:
            thread.join(max(0.0, end_s - monotonic()))


def _track(facts: SensorFacts) -> EnergyTrack:
    # Five missed samples in a row are a hole; fewer are bridged by a straight line.
    return EnergyTrack(max_gap_s=5 * facts.interval_s)
