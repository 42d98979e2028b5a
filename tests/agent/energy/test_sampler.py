"""Threads that read, and one that hangs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from moe2.agent.energy.sampler import EnergySampler
from moe2.agent.energy.sensor import Reading, SensorAbsentError, SensorDeniedError, SensorMissedError
from tests.fakes.clock import ManualClock
from tests.fakes.sensors import HangingSensor, ReplayedSensor, ScriptedSensor


class Turns:
    """Lets the sampler's threads read once per turn, instead of at times."""

    def __init__(self, sensors: int) -> None:
        self._sensors = sensors
        self.pauses_s: list[float] = []
        self._turn = threading.Condition()
        self._granted = 0
        self._waiting = 0

    def pace(self, stop: threading.Event, seconds: float) -> bool:
        """Called by a thread between two reads."""
        with self._turn:
            self.pauses_s.append(seconds)
            mine = self._granted
            self._waiting += 1
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._granted > mine or stop.is_set())
            return stop.is_set()

    def wait_for_all(self) -> None:
        """Until every thread that does not hang has read in this turn."""
        with self._turn:
            self._turn.wait_for(lambda: self._waiting >= self._sensors)

    def next(self) -> None:
        """Let every thread read once more."""
        with self._turn:
            self._waiting = 0
            self._granted += 1
            self._turn.notify_all()

    def end(self) -> None:
        """Wake the threads so that they see the stop."""
        with self._turn:
            self._turn.notify_all()


@asynccontextmanager
async def _running(sampler: EnergySampler, turns: Turns, *hanging: HangingSensor) -> AsyncIterator[None]:
    task = asyncio.create_task(sampler.run())
    await asyncio.to_thread(turns.wait_for_all)
    yield
    task.cancel()
    for _, thread in sampler._pairs:
        thread.stop()
    turns.end()
    for sensor in hanging:
        sensor.release.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _turns(turns: Turns, clock: ManualClock, count: int, after: Callable[[], object] = lambda: None) -> None:
    for _ in range(count):
        clock.advance(0.1)
        turns.next()
        await asyncio.to_thread(turns.wait_for_all)
        after()


def _powers(clock: ManualClock, powers: Iterable[float]) -> Callable[[], Reading]:
    rest = iter(powers)
    return lambda: Reading(at_s=clock(), power_w=next(rest))


def test_sensors_are_read_as_rarely_as_asked_but_no_oftener_than_they_can_be() -> None:
    """The wanted interval, where the sensor's own is not longer."""
    sensor = ScriptedSensor("a", lambda: Reading(at_s=0.0, power_w=1.0))
    own_s = sensor.facts.interval_s
    intervals_s = [
        EnergySampler([sensor], interval_s=wanted_s).channels[0].facts.interval_s for wanted_s in (own_s / 2, own_s * 5)
    ]
    assert intervals_s == [own_s, own_s * 5]


async def test_readings_reach_the_track() -> None:
    """What a sensor reads turns into energy."""
    clock, turns = ManualClock(), Turns(1)
    sensor = ScriptedSensor("a", _powers(clock, (20.0 + step / 1000 for step in range(99))))
    sampler = EnergySampler([sensor], clock=clock, pace=turns.pace)
    async with _running(sampler, turns):
        await _turns(turns, clock, 20, sampler.drain)
        power_w = sampler.power_w()["a"]
    assert power_w == pytest.approx(20.0, abs=0.1)


async def test_hung_sensor_silences_no_other() -> None:
    """While one read hangs, the other sensor goes on, and the hung one is reported as hung."""
    clock, turns = ManualClock(), Turns(1)
    stuck = HangingSensor("stuck", lambda: Reading(at_s=clock(), power_w=50.0))
    well = ScriptedSensor("well", _powers(clock, (20.0 + step / 1000 for step in range(99))))
    sampler = EnergySampler([stuck, well], clock=clock, pace=turns.pace)
    async with _running(sampler, turns, stuck):
        await asyncio.to_thread(stuck.entered.wait)
        await _turns(turns, clock, 30, sampler.drain)
        warnings = sampler.warnings()
        powers = sampler.power_w()
    assert powers["well"] is not None
    assert powers["stuck"] is None
    assert [warning.code for warning in warnings] == ["sensor_hung"]


async def test_answer_after_the_deadline_does_not_count() -> None:
    """A read that took longer than its deadline tells nothing about a known time."""
    clock, turns = ManualClock(), Turns(1)

    def slow() -> Reading:
        clock.advance(5.0)
        return Reading(at_s=clock(), power_w=20.0)

    sampler = EnergySampler([ScriptedSensor("slow", slow)], clock=clock, pace=turns.pace)
    async with _running(sampler, turns):
        sampler.drain()
        frontier_s = sampler.channels[0].track.frontier_s
        codes = [warning.code for warning in sampler.warnings()]
    assert frontier_s is None
    assert codes == ["sensor_hung"]


async def test_failing_sensor_is_reported_and_comes_back() -> None:
    """A refusal is a report, the next good answer ends it."""
    clock, turns = ManualClock(), Turns(1)
    answers: list[Reading | Exception] = [SensorDeniedError("no.", remedy="do this")]
    answers += [Reading(at_s=1000.0 + step / 10, power_w=20.0 + step) for step in range(1, 4)]

    def answer() -> Reading:
        one = answers.pop(0)
        if isinstance(one, Exception):
            raise one
        return one

    sampler = EnergySampler([ScriptedSensor("a", answer)], clock=clock, pace=turns.pace)
    async with _running(sampler, turns):
        sampler.drain()
        refused = sampler.reports()[0].state
        await _turns(turns, clock, 2, sampler.drain)
        recovered = sampler.reports()[0].state
    assert (refused, recovered) == ("denied", "present")


async def test_stopping_closes_the_sensors() -> None:
    """Cancelling the sampler ends its threads and releases the hardware."""
    clock, turns = ManualClock(), Turns(1)
    sensor = ScriptedSensor("a", _powers(clock, [20.0, 21.0, 22.0]))
    async with _running(EnergySampler([sensor], clock=clock, pace=turns.pace), turns):
        pass
    assert sensor.closed


async def test_recorded_trace_is_replayed_with_the_clock() -> None:
    """A trace sampled at 5 Hz and polled at 10 Hz gives its own energy: 2 s from 10 W to 50 W."""
    clock, turns = ManualClock(), Turns(1)
    trace = [(step / 5, 10.0 + 4.0 * step) for step in range(11)]
    sampler = EnergySampler([ReplayedSensor("trace", trace, clock)], clock=clock, pace=turns.pace)
    async with _running(sampler, turns):
        await _turns(turns, clock, 20, sampler.drain)
        window = sampler.channels[0].track.between(1000.0, 1002.0)
    assert window.joules == pytest.approx(60.0, rel=1e-6)


async def test_a_missed_sample_costs_one_interval() -> None:
    """One EBUSY in 8 s at 47 W: the next turn comes a tenth of a second later, and no joule is lost."""
    clock, turns = ManualClock(), Turns(1)
    reads = 0

    def answer() -> Reading:
        nonlocal reads
        reads += 1
        if reads == 30:
            raise SensorMissedError("busy.")
        return Reading(at_s=clock(), power_w=47.0 + reads * 1e-4)

    sampler = EnergySampler([ScriptedSensor("a", answer)], clock=clock, pace=turns.pace)
    async with _running(sampler, turns):
        await _turns(turns, clock, 80, sampler.drain)
        window = sampler.channels[0].track.between(1000.0, 1008.0)
    assert max(turns.pauses_s) <= 0.1 + 1e-6
    assert window.coverage == pytest.approx(1.0)
    assert window.joules == pytest.approx(8 * 47.0, rel=1e-3)


async def test_a_lost_sensor_is_looked_for_ever_more_rarely() -> None:
    """The pauses double up to half a minute."""
    clock, turns = ManualClock(), Turns(1)

    def gone() -> Reading:
        raise SensorAbsentError("gone.")

    sampler = EnergySampler([ScriptedSensor("a", gone)], clock=clock, pace=turns.pace)
    async with _running(sampler, turns):
        await _turns(turns, clock, 11, sampler.drain)
    assert turns.pauses_s[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert turns.pauses_s[11] == 30.0


async def test_a_lost_sensor_is_probed_again_and_comes_back_as_what_it_is_now() -> None:
    """Its driver was loaded again and has another source: figures and reports go on with that."""
    clock, turns = ManualClock(), Turns(1)
    answers: list[Exception | None] = [SensorAbsentError("gone."), SensorAbsentError("gone.")]
    probes = []

    def answer() -> Reading:
        fault = answers.pop() if answers else None
        if fault is not None:
            raise fault
        return Reading(at_s=clock(), power_w=20.0 + clock() * 1e-3)

    class Rebound(ScriptedSensor):
        def probe(self) -> str:
            probes.append(clock())
            self.facts = replace(self.facts, source="another")
            return "found"

    sampler = EnergySampler([Rebound("a", answer)], clock=clock, pace=turns.pace)
    async with _running(sampler, turns):
        await _turns(turns, clock, 15, sampler.drain)
        assert sampler.reports()[0].state == "present"
        assert sampler.power_w()["a"] == pytest.approx(21.0, abs=0.1)
    assert len(probes) == 2
    assert sampler.channels[0].facts.source == "another"


async def test_a_request_that_ends_does_not_hurry_a_lost_sensor() -> None:
    """Back-off holds however often a reading is asked for."""
    clock, turns = ManualClock(), Turns(1)

    def gone() -> Reading:
        raise SensorAbsentError("gone.")

    sampler = EnergySampler([ScriptedSensor("a", gone)], clock=clock, pace=turns.pace)
    async with _running(sampler, turns):
        ((_, thread),) = sampler._pairs
        sampler.read_now()
        assert not thread._wake.is_set()


async def test_a_sensor_may_be_added_while_others_are_sampled() -> None:
    """A card whose driver came late is read from then on."""
    clock, turns = ManualClock(), Turns(0)
    sampler = EnergySampler([], clock=clock, pace=turns.pace)
    async with _running(sampler, turns):
        turns._sensors = 1
        sampler.add(ScriptedSensor("late", lambda: Reading(at_s=clock(), power_w=20.0 + clock() * 1e-3)))
        await _turns(turns, clock, 20, sampler.drain)
        assert sampler.power_w()["late"] == pytest.approx(21.0, abs=0.1)


async def test_a_device_that_may_sleep_is_left_alone_until_it_is_used() -> None:
    """Closed and not read; present, without watts and without a complaint; then looked for anew and read again."""
    clock, turns = ManualClock(), Turns(2)
    probes: list[float] = []

    class Card(ScriptedSensor):
        def probe(self) -> str:
            probes.append(clock())
            return "found"

    card = Card("card", lambda: Reading(at_s=clock(), power_w=40.0 + clock() * 1e-3), device="gpu0")
    card.facts = replace(card.facts, may_sleep=True)
    other = ScriptedSensor("other", lambda: Reading(at_s=clock(), power_w=20.0 + clock() * 1e-3))
    sampler = EnergySampler([card, other], clock=clock, pace=turns.pace)
    async with _running(sampler, turns):
        await _turns(turns, clock, 5, sampler.drain)
        sampler.rest(True)
        await _turns(turns, clock, 1, sampler.drain)
        n_read = card.read_count
        await _turns(turns, clock, 200, sampler.drain)
        assert (card.read_count, card.closed) == (n_read, True)
        assert other.read_count > 200
        report = sampler.reports()[0]
        assert (report.state, report.power_w) == ("present", None)
        assert "can sleep" in (report.detail or "")
        assert sampler.warnings() == ()
        sampler.rest(False)
        await _turns(turns, clock, 15, sampler.drain)
        assert sampler.power_w()["card"] == pytest.approx(41.0, abs=0.2)
        assert sampler.warnings() == ()
    assert len(probes) == 1


async def test_a_card_that_does_not_come_back_from_its_rest_is_told() -> None:
    """Not at once: its driver may need seconds."""
    clock, turns = ManualClock(), Turns(1)

    def answer() -> Reading:
        if sampler._is_resting or clock() < 1001.0:
            return Reading(at_s=clock(), power_w=40.0 + clock() * 1e-3)
        raise SensorAbsentError("gone.")

    card = ScriptedSensor("card", answer)
    card.facts = replace(card.facts, may_sleep=True)
    sampler = EnergySampler([card], clock=clock, pace=turns.pace)
    async with _running(sampler, turns):
        sampler.rest(True)
        await _turns(turns, clock, 20, sampler.drain)
        sampler.rest(False)
        await _turns(turns, clock, 3, sampler.drain)
        assert [warning.code for warning in sampler.warnings()] == ["sensor_lost"]
