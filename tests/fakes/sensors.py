"""Sensors that do what a test tells them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from moe2.agent.energy.sensor import Limits, Reading, SensorFacts
from moe2.common.energy import Scope


def facts(name: str = "fake", device: str = "module", *, has_counter: bool = False) -> SensorFacts:
    """Facts of a well-behaved module sensor."""
    return SensorFacts(
        name=name,
        device=device,
        scope=Scope.MODULE_INPUT,
        source=name,
        has_counter=has_counter,
        limits=Limits(min_power_w=0.5, max_power_w=200.0, stuck_after_s=120.0),
    )


class ScriptedSensor:
    """Calls `answer` for every read; whatever that raises is the sensor's fault."""

    def __init__(
        self, name: str, answer: Callable[[], Reading], *, device: str = "module", deadline_s: float = 1.0
    ) -> None:
        self.name = name
        self._answer = answer
        known = facts(name, device)
        self.facts = SensorFacts(
            name=known.name,
            device=known.device,
            scope=known.scope,
            source=known.source,
            has_counter=False,
            limits=known.limits,
            deadline_s=deadline_s,
        )
        self.closed = False
        self.read_count = 0

    def probe(self) -> str:
        return f"{self._answer().power_w} W"

    def read(self) -> Reading:
        self.read_count += 1
        return self._answer()

    def close(self) -> None:
        self.closed = True


class HangingSensor(ScriptedSensor):
    """A read enters (`entered` is set) and does not return before `release` is set."""

    def __init__(self, name: str, answer: Callable[[], Reading], *, device: str = "gpu0") -> None:
        super().__init__(name, answer, device=device)
        self.entered = threading.Event()
        self.release = threading.Event()

    def read(self) -> Reading:
        self.entered.set()
        self.release.wait()
        return super().read()


class ReplayedSensor:
    """A recorded trace of (seconds, W): the sample that was newest at the clock's time."""

    def __init__(self, name: str, trace: Sequence[tuple[float, float]], clock: Callable[[], float]) -> None:
        self.name = name
        self.facts = facts(name)
        self._trace = trace
        self._clock = clock
        self._start_s = clock()

    def probe(self) -> str:
        return f"{len(self._trace)} recorded samples"

    def read(self) -> Reading:
        elapsed_s = self._clock() - self._start_s
        at_s, power_w = max((sample for sample in self._trace if sample[0] <= elapsed_s), key=lambda sample: sample[0])
        return Reading(at_s=self._start_s + at_s, power_w=power_w)

    def close(self) -> None:
        """Nothing is open."""
