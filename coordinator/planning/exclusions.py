"""The reasons why experts are not in a panel, worked out when somebody asks: a fleet is large, and few are shown.

`Exclusions` is the sequence of all reasons; `Breached` says which limits experts break, alone or beside a panel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import overload

import numpy as np

from moe2.coordinator.planning.candidates import tie_width
from moe2.coordinator.planning.problem import Limit, PanelLimit, Problem, exceeds
from moe2.coordinator.planning.values import BoolArray, FloatArray, IntArray


class Cause(StrEnum):
    """The cause why an expert is not in the panel."""

    RULED_OUT = "ruled_out"
    """The request or the expert's state excludes it."""
    INFEASIBLE_ALONE = "infeasible_alone"
    """It breaks a limit even as the only member."""
    NO_ROOM = "no_room"
    """It would break a limit together with the chosen experts, which are worth more."""
    NO_GAIN = "no_gain"
    """It would keep the limits together with the chosen experts, but adds no value to them."""
    NOT_EXPLORED = "not_explored"
    """It would keep the limits and add value, but the search was cut short."""


@dataclass(frozen=True)
class Breach:
    """A limit that would be broken, with what is needed and what is allowed, both in the limit's unit."""

    limit: Limit
    needed: float
    allowed: float

    def __str__(self) -> str:
        if self.limit is Limit.POWER:
            return f"would exceed the fleet's cap of {self.allowed:.4g} W ({self.needed:.4g} W with it)"
        name, unit = _LIMIT_TEXTS[self.limit]
        return f"{name} of {self.needed:.4g} {unit} exceeds {self.allowed:.4g} {unit}"


_LIMIT_TEXTS = {
    Limit.ENERGY: ("energy", "J"),
    Limit.DELAY: ("latency", "s"),
    Limit.FIRST_TOKEN: ("time to first token", "s"),
    Limit.PER_TOKEN: ("time per output token", "s"),
    Limit.PANEL_SIZE: ("panel", "experts"),
}
"""Each limit's name and unit in messages; the power limit has a sentence of its own."""


@dataclass(frozen=True)
class Exclusion:
    """The reason why one expert is not in the panel."""

    name: str
    """Name of the expert."""
    cause: Cause
    given: str | None = None
    """The problem's own reason in words, where it rules the expert out."""
    breaches: tuple[Breach, ...] = ()
    """The limits that it breaks alone, or else together with the chosen experts."""
    gain: float | None = None
    """The value that it would add to the chosen panel; None where there is no panel."""

    @property
    def detail(self) -> str:
        """The reason in words."""
        if self.given is not None:
            return self.given
        breaches = ", ".join(map(str, self.breaches))
        return _CAUSE_TEXTS[self.cause] + (f": {breaches}" if breaches else "")


_CAUSE_TEXTS = {
    Cause.RULED_OUT: "it is ruled out",
    Cause.INFEASIBLE_ALONE: "it does not keep the limits even alone",
    Cause.NO_ROOM: "it does not keep the limits together with the chosen experts",
    Cause.NO_GAIN: "it adds nothing to the chosen experts",
    Cause.NOT_EXPLORED: "it would improve the chosen set, but the planner ran out of time before trying it",
}


@dataclass(frozen=True, eq=False)
class Breached:
    """The limits of a problem, and what each of its N experts would need of them in one panel."""

    experts: int
    """N"""
    limits: tuple[PanelLimit, ...]
    needed: tuple[FloatArray, ...]
    """(N,) what a panel with each expert needs of each limit."""

    @classmethod
    def alone(cls, problem: Problem) -> Breached:
        """What each expert needs where it answers alone."""
        limits: tuple[PanelLimit, ...] = (*problem.sum_limits(), *problem.max_limits())
        return cls(len(problem.names), limits, tuple(limit.cost + limit.by_size[1] for limit in limits))

    @classmethod
    def beside(cls, problem: Problem, chosen: IntArray) -> Breached:
        """What each expert needs together with the `chosen` ones; somebody has to be outside."""
        size = len(chosen) + 1
        sums, largest = problem.sum_limits(), problem.max_limits()
        needed = [limit.cost + (float(limit.cost[chosen].sum()) + limit.by_size[size]) for limit in sums]
        for limit in largest:
            held = float(limit.cost[chosen].max(initial=0.0))
            needed.append(np.maximum(limit.cost, held) + limit.by_size[size])
        return cls(len(problem.names), (*sums, *largest), tuple(needed))

    @cached_property
    def over(self) -> tuple[BoolArray, ...]:
        """(N,) True where an expert breaks a limit, for each limit."""
        return tuple(exceeds(needed, limit.limit) for limit, needed in zip(self.limits, self.needed, strict=True))

    def any_but(self, kinds: Collection[Limit] = ()) -> BoolArray:
        """(N,) True where an expert breaks a limit that is of none of these kinds."""
        found = np.zeros(self.experts, dtype=np.bool_)
        for limit, over in zip(self.limits, self.over, strict=True):
            if limit.limit_kind not in kinds:
                found |= over
        return found

    def by(self, n: int) -> tuple[Breach, ...]:
        """The breaches of expert `n`."""
        return tuple(
            Breach(limit.limit_kind, float(needed[n]), limit.limit)
            for limit, needed, over in zip(self.limits, self.needed, self.over, strict=True)
            if over[n]
        )


class Exclusions(Sequence[Exclusion]):
    """The reason for each expert outside a panel, in the problem's order."""

    def __init__(self, problem: Problem, chosen: Sequence[int] | IntArray) -> None:
        """chosen: places of the panel's members in the problem; empty where nothing is feasible."""
        self._problem = problem
        self.chosen: IntArray = np.array(chosen, dtype=np.intp)
        outside = np.ones(len(problem.names), dtype=np.bool_)
        outside[self.chosen] = False
        self._outside: IntArray = outside.nonzero()[0]

    def __len__(self) -> int:
        return len(self._outside)

    @overload
    def __getitem__(self, index: int) -> Exclusion: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Exclusion, ...]: ...

    def __getitem__(self, index: int | slice) -> Exclusion | tuple[Exclusion, ...]:
        if isinstance(index, slice):
            return tuple(self.of(n) for n in self._outside[index].tolist())
        return self.of(int(self._outside[index]))

    def __iter__(self) -> Iterator[Exclusion]:
        return map(self.of, self._outside.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exclusions) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # a sequence that is compared by what it holds

    def __repr__(self) -> str:
        return f"Exclusions({list(self)!r})"

    def are_outside_for(self, cause: Cause) -> BoolArray:
        """(N,) True for the experts of the problem that are outside for this cause."""
        found: BoolArray = self._causes == _CAUSES.index(cause)
        found[self.chosen] = False
        return found

    @cached_property
    def _alone(self) -> Breached:
        return Breached.alone(self._problem)

    @cached_property
    def _beside(self) -> Breached:
        return Breached.beside(self._problem, self.chosen)

    @property
    def _is_full(self) -> bool:
        """True where the panel has no place left."""
        return len(self.chosen) >= self._problem.largest_panel

    @cached_property
    def _gains(self) -> FloatArray | None:
        """(N,) the value that each expert would add to the panel; None where there is no panel."""
        if self.chosen.size == 0:
            return None
        value = self._problem.value
        state = value.state_of(self.chosen)
        return np.asarray(value.cross(state[None], value.states)[0] - float(value.average(state)))

    @cached_property
    def _causes(self) -> IntArray:
        """(N,) places in `_CAUSES`; those of members mean nothing."""
        problem = self._problem
        found = np.full(len(problem.names), _CAUSES.index(Cause.NO_GAIN))
        if len(self._outside) == 0:
            return found
        found[self._beside.any_but() | self._is_full] = _CAUSES.index(Cause.NO_ROOM)
        found[self._alone.any_but()] = _CAUSES.index(Cause.INFEASIBLE_ALONE)
        if problem.ruled_out:
            found[problem.is_ruled_out] = _CAUSES.index(Cause.RULED_OUT)
        fits = self._outside[found[self._outside] == _CAUSES.index(Cause.NO_GAIN)]
        if len(fits) and self._gains is not None:
            gains = self._gains[fits]
            widths = np.array([tie_width(gain) for gain in gains.tolist()])
            found[fits[gains > widths]] = _CAUSES.index(Cause.NOT_EXPLORED)
        return found

    def of(self, n: int) -> Exclusion:
        """Returns why the expert at place `n` of the problem is not in the panel."""
        name, cause = self._problem.names[n], _CAUSES[self._causes[n]]
        breaches: tuple[Breach, ...] = ()
        if cause is Cause.INFEASIBLE_ALONE:
            breaches = self._alone.by(n)
        elif cause is Cause.NO_ROOM:
            breaches = (*self._no_place, *self._beside.by(n))
        return Exclusion(
            name,
            cause,
            self._problem.ruled_out[name] if cause is Cause.RULED_OUT else None,
            breaches=breaches,
            gain=None if self._gains is None else float(self._gains[n]),
        )

    @property
    def _no_place(self) -> tuple[Breach, ...]:
        """The breach of the panel's size by one more member, where it is one."""
        largest = float(self._problem.largest_panel)
        return (Breach(Limit.PANEL_SIZE, len(self.chosen) + 1.0, largest),) if self._is_full else ()


_CAUSES = tuple(Cause)
