"""The problem of which experts to keep awake, as an immutable value: a set that is worth much and draws few watts.

It is `max F over G ∩ H`, the canonical form of monotonic optimization (Tuy 2000): F never falls when an expert joins.
G, what a set may draw and need, holds with a set all its subsets. H, what a set has to be able to do, holds with a set
all its supersets. An expert alone on a host also pays what the host draws for being awake, so watts do not add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from moe2.coordinator.planning.problem import ROUNDING, ProblemError
from moe2.coordinator.planning.values import BoolArray, FloatArray, IntArray, SetValue


@dataclass(frozen=True, eq=False)
class Room:
    """Room that the members of a set share, such as a host's memory: `use @ members <= most`."""

    label: str
    use: FloatArray
    """(N,) what each expert takes of it, not negative."""
    most: float


@dataclass(frozen=True, eq=False)
class Need:
    """What the members of a set have to bring together, such as requests a second: `share @ members >= least`."""

    label: str
    share: FloatArray
    """(N,) what each expert brings, not negative."""
    least: float


@dataclass(frozen=True, eq=False)
class AwakeProblem:
    """N experts on H hosts, of which a set is kept awake. Raises ProblemError where the fields are inconsistent."""

    names: tuple[str, ...]
    """N distinct names; their alphabetical order settles the last ties."""
    value: SetValue
    """What sets are worth; the empty set is worth 0."""
    expert_w: FloatArray
    """(N,) watts that each expert draws for being kept in memory."""
    host: IntArray
    """(N,) place of each expert's host."""
    host_w: FloatArray
    """(H,) watts that each host draws for being awake, above what it draws asleep."""
    most_w: float | None = None
    """Most watts that the set may draw; None for no limit."""
    rooms: tuple[Room, ...] = ()
    needs: tuple[Need, ...] = ()
    pinned: frozenset[int] = field(default_factory=frozenset)
    """Places of experts that every set holds."""
    ruled_out: frozenset[int] = field(default_factory=frozenset)
    """Places of experts that no set holds."""

    def __post_init__(self) -> None:
        count = len(self.names)
        if count == 0 or len(set(self.names)) != count:
            raise ProblemError("A choice of who is awake needs at least one expert, and distinct names.")
        vectors = {"expert_w": self.expert_w, "host_w": self.host_w}
        vectors |= {f"room {room.label!r}": room.use for room in self.rooms}
        vectors |= {f"need {need.label!r}": need.share for need in self.needs}
        for name, figures in vectors.items():
            if name != "host_w" and figures.shape != (count,):
                raise ProblemError(f"{name} has the shape {figures.shape}, but {count} experts are named.")
            if len(figures) and not (figures.min() >= 0.0 and figures.max() < np.inf):
                raise ProblemError(f"{name} must hold finite numbers that are not negative.")
        if self.value.experts != count or self.host.shape != (count,):
            raise ProblemError(f"value and host must be for the {count} experts that are named.")
        if self.host.min() < 0 or self.host.max() >= len(self.host_w):
            raise ProblemError("host names a host that host_w does not know.")
        if not (self.pinned | self.ruled_out) <= set(range(count)):
            raise ProblemError("pinned and ruled_out must be places of named experts.")
        if self.pinned & self.ruled_out:
            both = sorted(self.names[n] for n in self.pinned & self.ruled_out)
            raise ProblemError(f"Both pinned and ruled out: {', '.join(both)}.")
        if self.most_w is not None and not self.most_w >= 0.0:
            raise ProblemError(f"most_w is {self.most_w}; it must be a number that is not negative.")

    def standing_w(self, members: BoolArray) -> float:
        """The watts that a set (N,) draws above what all hosts asleep draw."""
        hosts = np.unique(self.host[members])
        return float(self.expert_w[members].sum() + self.host_w[hosts].sum())

    def worth(self, members: BoolArray) -> float:
        """The value F of a set (N,)."""
        return float(self.value.of(np.flatnonzero(members)))

    def keeps_limits(self, members: BoolArray) -> bool:
        """True where a set (N,) is in G: its watts and its use of every room are within the limits."""
        if self.most_w is not None and self.standing_w(members) > _loose(self.most_w):
            return False
        return all(float(room.use[members].sum()) <= _loose(room.most) for room in self.rooms)

    def unmet(self, members: BoolArray) -> tuple[Need, ...]:
        """The needs that a set (N,) does not meet; it is in H where there are none."""
        return tuple(need for need in self.needs if float(need.share[members].sum()) < _tight(need.least))

    def is_feasible(self, members: BoolArray) -> bool:
        """True where a set (N,) keeps every limit, meets every need, and holds who is pinned and nobody ruled out."""
        held = set(np.flatnonzero(members).tolist())
        if not (self.pinned <= held) or held & self.ruled_out:
            return False
        return self.keeps_limits(members) and not self.unmet(members)

    def mask(self, places: Iterable[int]) -> BoolArray:
        """The set (N,) of the experts at `places`."""
        members: BoolArray = np.zeros(len(self.names), dtype=np.bool_)
        members[list(places)] = True
        return members


def _loose(limit: float) -> float:
    """A limit that rounding alone does not exceed."""
    return limit + ROUNDING * abs(limit)


def _tight(least: float) -> float:
    """A least sum that rounding alone does not miss."""
    return least - 1e-9 * max(1.0, abs(least))
