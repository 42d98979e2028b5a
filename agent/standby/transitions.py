"""What loading, unloading, suspending and waking take here: seconds and joules, as measured the last times. PURE.

Moments are monotonic seconds; ages are told in wall time, since a suspended host's monotonic clock stands still.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import fmean

import msgspec

from moe2.common.energy import Energy, Quality, worst_quality
from moe2.common.standby import TransitionCost

MAX_REMEMBERED = 8
"""The number of measurements of one transition that its mean is taken over."""
ENERGY_PATIENCE_S = 5.0
"""How long a transition that has ended waits for the sensors to cover its end."""
_ENOUGH_COVERAGE = 0.9


class Transition(StrEnum):
    LOAD = "load"
    UNLOAD = "unload"
    SUSPEND = "suspend"
    WAKE = "wake"


Key = tuple[Transition, str | None]
"""A transition, and its model; None where it is the whole host's."""


class Measured(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One transition that was measured. model: None where it was the whole host's.

    file_sha256: of the model's file, whatever its name; None where it was not known, as in what older releases stored.
    """

    transition: Transition
    model: str | None = None
    file_sha256: str | None = None
    duration_s: float
    energy_j: float | None = None
    at_unix_s: float
    quality: Quality = Quality.UNMEASURED


@dataclass
class _Running:
    began_s: float
    is_alone: bool
    """Whether all joules since its begin are its own: no request ran, nothing else was loaded."""


@dataclass
class _Ended:
    key: Key
    began_s: float
    ended_s: float
    at_unix_s: float
    is_alone: bool
    file_sha256: str | None


@dataclass
class TransitionLog:
    """Follows which transitions run, and keeps what the last ones took."""

    _running: dict[Key, _Running] = field(default_factory=dict)
    _ended: list[_Ended] = field(default_factory=list)
    _measured: dict[Key, deque[Measured]] = field(default_factory=dict)

    @property
    def running(self) -> frozenset[Key]:
        """The transitions that run now."""
        return frozenset(self._running)

    @property
    def measured(self) -> tuple[Measured, ...]:
        """All that is remembered, for the state file."""
        return tuple(one for several in self._measured.values() for one in several)

    def restore(self, measured: Iterable[Measured]) -> None:
        """Takes in what an earlier run of the agent measured."""
        for one in measured:
            self._remember(one)

    def began(self, key: Key, at_s: float, *, is_alone: bool = True) -> None:
        """A transition begins. is_alone: no request runs on this host now."""
        if self._running:
            self.disturbed()
            is_alone = False
        self._running.setdefault(key, _Running(at_s, is_alone))

    def disturbed(self) -> None:
        """Something else uses the host meanwhile: the joules of what runs now are not its own."""
        for running in self._running.values():
            running.is_alone = False

    def ended(self, key: Key, at_s: float, at_unix_s: float, file_sha256: str | None = None) -> None:
        """A transition has come to its end; its seconds count, and its joules once they are known.

        file_sha256: of its model's file, where that is known.
        """
        running = self._running.pop(key, None)
        if running is not None:
            self._ended.append(_Ended(key, running.began_s, at_s, at_unix_s, running.is_alone, file_sha256))

    def given_up(self, key: Key) -> None:
        """A transition did not come to its end: nothing is learned from it."""
        self._running.pop(key, None)

    def give_up_older(self, key: Key, began_before_s: float) -> bool:
        """Gives up a transition that began before a moment; True if one has been given up."""
        running = self._running.get(key)
        if running is None or running.began_s >= began_before_s:
            return False
        self.given_up(key)
        return True

    def settle(self, between: Callable[[float, float], Energy | None], now_s: float) -> bool:
        """Takes in the joules that are known by now; True if something became known.

        between: the host's energy from one moment to another, None as long as the sensors have not covered its end.
        """
        waiting: list[_Ended] = []
        for ended in self._ended:
            energy = between(ended.began_s, ended.ended_s) if ended.is_alone else Energy()
            if energy is None and now_s - ended.ended_s < ENERGY_PATIENCE_S:
                waiting.append(ended)
                continue
            self._remember(_measurement(ended, energy or Energy()))
        has_news = len(waiting) < len(self._ended)
        self._ended = waiting
        return has_news

    def cost(self, key: Key, now_unix_s: float, file_sha256: str | None = None) -> TransitionCost | None:
        """Returns what the transition takes; None before it was measured.

        file_sha256: of its model's file: what was measured of that file counts, under whatever name, and what was
        measured of another one does not. Where one of the two is unknown, the name tells.
        """
        several = self._of(key, file_sha256)
        if not several:
            return None
        with_energy = [one for one in several if one.energy_j is not None]
        energies_j = [one.energy_j for one in with_energy if one.energy_j is not None]
        return TransitionCost(
            duration_s=fmean(one.duration_s for one in several),
            max_duration_s=max(one.duration_s for one in several),
            energy_j=fmean(energies_j) if energies_j else None,
            n=len(several),
            age_s=max(0.0, now_unix_s - max(one.at_unix_s for one in several)),
            quality=worst_quality(one.quality for one in with_energy),
        )

    def _of(self, key: Key, file_sha256: str | None) -> list[Measured]:
        """The latest measurements of a transition of this file, the newest last."""
        transition, model = key
        found = [
            one
            for one in self.measured
            if one.transition is transition
            and (
                one.model == model if file_sha256 is None or one.file_sha256 is None else one.file_sha256 == file_sha256
            )
        ]
        return sorted(found, key=lambda one: one.at_unix_s)[-MAX_REMEMBERED:]

    def _remember(self, one: Measured) -> None:
        key = (one.transition, one.model)
        self._measured.setdefault(key, deque(maxlen=MAX_REMEMBERED)).append(one)


def _measurement(ended: _Ended, energy: Energy) -> Measured:
    transition, model = ended.key
    is_covered = energy.joules is not None and (energy.coverage is None or energy.coverage >= _ENOUGH_COVERAGE)
    return Measured(
        transition=transition,
        model=model,
        file_sha256=ended.file_sha256,
        duration_s=max(0.0, ended.ended_s - ended.began_s),
        energy_j=max(0.0, energy.joules or 0.0) if is_covered else None,
        at_unix_s=ended.at_unix_s,
        quality=energy.quality if is_covered else Quality.UNMEASURED,
    )
