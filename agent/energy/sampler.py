"""Samples every sensor at its own pace, each in a thread of its own: one that hangs silences no other.

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
from moe2.agent.energy.sensor import Reading, Sensor, SensorFacts, SensorFault
from moe2.common.health import HealthWarning
from moe2.common.link.messages import SensorReport

_RETRY_S = 5.0
_JOIN_S = 1.0

Clock = Callable[[], float]
Pace = Callable[[threading.Event, float], bool]
"""Waits for the event, at most so many seconds; whether it is set."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    began_s: float
    ended_s: float
    result: Reading | SensorFault


class _SensorThread:
    """Reads one sensor for ever. A daemon thread: a hung read must not keep the process alive."""

    def __init__(self, sensor: Sensor, facts: SensorFacts, clock: Clock, pace: Pace) -> None:
        self._sensor = sensor
        self._facts = facts
        self._clock = clock
        self._pace = pace
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name=f"sensor-{sensor.name}", daemon=True)
        self.outcomes: deque[_Outcome] = deque(maxlen=1024)
        self.reading_since_s: float | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()

    def read_now(self) -> None:
        self._wake.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            self._sensor.close()

    def _work(self) -> None:
        due_s = self._clock()
        while not self._stopping:
            began_s = self._clock()
            self.reading_since_s = began_s
            outcome = self._read(began_s)
            self.reading_since_s = None
            self.outcomes.append(outcome)
            failed = not isinstance(outcome.result, Reading)
            due_s = max(due_s + self._facts.interval_s, outcome.ended_s)
            if self._pace(self._wake, _RETRY_S if failed else due_s - outcome.ended_s):
                self._wake.clear()
                due_s = self._clock()

    def _read(self, began_s: float) -> _Outcome:
        try:
            result: Reading | SensorFault = self._sensor.read()
        except Exception as error:
            result = fault_of(error, self._sensor.name)
        return _Outcome(began_s, self._clock(), result)


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
        self._drain_s = drain_s
        all_facts = [replace(one.facts, interval_s=max(one.facts.interval_s, interval_s)) for one in sensors]
        self.channels = tuple(SensorChannel(facts, _track(facts), opened_s=clock()) for facts in all_facts)
        self._threads = tuple(
            _SensorThread(sensor, facts, clock, pace) for sensor, facts in zip(sensors, all_facts, strict=True)
        )

    async def run(self) -> None:
        """Sample until cancelled. Stopping is bounded even if a sensor hangs."""
        for thread in self._threads:
            thread.start()
        try:
            while True:
                await asyncio.sleep(self._drain_s)
                self.drain()
        finally:
            for thread in self._threads:
                thread.stop()
            await asyncio.to_thread(self._join)

    def drain(self) -> None:
        """Take over what the threads have read. A reading that came after its deadline does not count."""
        now_s = self._clock()
        for channel, thread in zip(self.channels, self._threads, strict=True):
            while thread.outcomes:
                outcome = thread.outcomes.popleft()
                if outcome.ended_s - outcome.began_s > channel.facts.deadline_s:
                    channel.hung(outcome.began_s)
                elif isinstance(outcome.result, Reading):
                    channel.read(outcome.result, outcome.ended_s)
                else:
                    channel.failed(outcome.result)
            since_s = thread.reading_since_s
            if since_s is not None and now_s - since_s > channel.facts.deadline_s:
                channel.hung(since_s)

    def read_now(self) -> None:
        """Have every sensor read once at once: a request has ended and its energy need not wait for the next turn."""
        for thread in self._threads:
            thread.read_now()

    def power_w(self) -> dict[str, float | None]:
        """Present power per sensor in W; None where it is not known."""
        now_s = self._clock()
        return {channel.facts.name: channel.power_w(now_s) for channel in self.channels}

    def reports(self) -> tuple[SensorReport, ...]:
        """The sampled sensors as they are now."""
        now_s = self._clock()
        return tuple(channel.report(now_s) for channel in self.channels)

    def warnings(self) -> tuple[HealthWarning, ...]:
        """What is wrong with the sampled sensors now."""
        now_s = self._clock()
        return tuple(warning for channel in self.channels for warning in channel.warnings(now_s))

    def _join(self) -> None:
        end_s = monotonic() + _JOIN_S
        for thread in self._threads:
            thread.join(max(0.0, end_s - monotonic()))


def _track(facts: SensorFacts) -> EnergyTrack:
    # Five missed samples in a row are a hole; fewer are bridged by a straight line.
    return EnergyTrack(max_gap_s=5 * facts.interval_s)
