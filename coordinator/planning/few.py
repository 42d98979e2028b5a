"""Panels of a few members, listed best first: pairs of the free experts, then what each pair can be extended by.

Where only three or four experts fit the budget, shares of experts bound the value worst and listing is cheapest. What
is added to a pair gains at most the sum of what each joining expert gains alone on top of it (submodularity), so most
pairs and most extensions are dropped unseen. Pairs are taken by falling bound: whenever the listing stops, the bound of
the next pair holds for all that was not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moe2.coordinator.planning.candidates import Candidates, Incumbent, tie_width
from moe2.coordinator.planning.values import BoolArray, FloatArray, IntArray

MOST = 4
"""Most experts that may join for listing."""
_CHUNK_STEPS = 1e5
"""Elementwise steps between two looks at the clock: some hundred microseconds."""


def list_panels(
    candidates: Candidates,
    held: list[int],
    free: IntArray,
    most: int,
    incumbent: Incumbent,
    stop: Callable[[], bool],
    *,
    most_steps: float = np.inf,
) -> float | None:
    """Offer the best feasible panels that hold `held` and up to `most` of `free`, more than which cannot join.

    Returns what the panels that were not looked at can be worth at most, -inf where that is none that could be better
    than the incumbent; None where nothing was listed: `most` is above MOST, or elementwise steps above `most_steps`.
    """
    if most > MOST or len(free) == 0:
        return None
    listing = _Listing.of(candidates, held, free)
    if most > 2 and listing.steps > most_steps:
        return None
    listing.offer_singles(incumbent)
    if most == 1:
        return -np.inf
    if stop():
        return np.inf
    pairs = listing.pairs(most - 2)
    pairs.offer(listing, incumbent)
    return -np.inf if most == 2 else _extended(listing, pairs, most - 2, incumbent, stop)


@dataclass(frozen=True, eq=False)
class _Listing:
    """The free experts in the order of falling value, n of them, on top of the held ones.

    states: (n, M) without the held ones. base: (M,) of the held ones. costs: (C, n), used: (C,) by the held ones.
    room: (n,) largest panel for each, the held ones' limit included. alone: (n,) value on top of the held ones.
    """

    candidates: Candidates
    held: list[int]
    free: IntArray
    states: FloatArray
    base: FloatArray
    costs: FloatArray
    used: FloatArray
    room: IntArray
    alone: FloatArray

    @classmethod
    def of(cls, candidates: Candidates, held: list[int], free: IntArray) -> _Listing:
        """Those of `free` that fit beside `held`, the most valuable first."""
        value = candidates.problem.value
        base = value.state_of(candidates.index[held])
        room = int(candidates.largest[held].min()) if held else len(candidates.problem.names)
        alone = value.average(value.combine(base, candidates.states[free]))
        # The stronger come first, so that pairs of weak experts are left with weaker ones to be joined by.
        order = np.argsort(-alone, kind="stable")
        free = free[order]
        return cls(
            candidates=candidates,
            held=held,
            free=free,
            states=candidates.states[free],
            base=base,
            costs=candidates.sums[:, free],
            used=candidates.sums[:, held].sum(axis=1),
            room=np.minimum(candidates.largest[free], room),
            alone=alone[order],
        )

    @property
    def steps(self) -> float:
        """Elementwise steps of extending every pair by every expert."""
        count = float(len(self.free))
        return count * (count - 1) / 2 * count * len(self.base)

    def fits(self, costs: FloatArray, room: IntArray, joining: int) -> BoolArray:
        """Which panels keep every limit. costs: (C, ...) of the `joining` experts of each; room: (...)."""
        size = len(self.held) + joining
        ok = np.asarray(room >= size)
        if size >= self.candidates.ceilings.shape[1]:
            return np.zeros_like(ok)
        for cost, used, ceiling in zip(costs, self.used, self.candidates.ceilings, strict=True):
            ok &= cost + used <= ceiling[size]
        return ok

    def offer(self, values: FloatArray, members: IntArray, incumbent: Incumbent) -> None:
        """Offer the best of panels with values (P,) and members (P, k), places in `free`; ties as preferred."""
        if len(values) == 0:
            return
        peak = float(values.max())
        if peak < incumbent.value - tie_width(incumbent.value):
            return
        tied = members[values >= peak - tie_width(peak)]
        panels = np.zeros((len(tied), self.candidates.count), dtype=np.bool_)
        panels[:, self.held] = True
        panels[np.arange(len(tied))[:, None], self.free[tied]] = True
        chosen = panels[self.candidates.preferred(panels)] if len(tied) > 1 else panels[0]
        incumbent.offer(np.flatnonzero(chosen).tolist())

    def offer_singles(self, incumbent: Incumbent) -> None:
        """Each expert alone beside the held ones."""
        places = np.flatnonzero(self.fits(self.costs, self.room, 1))
        self.offer(self.alone[places], places[:, None], incumbent)

    def pairs(self, more: int) -> _Pairs:
        """All feasible pairs, by falling bound of what they are worth with up to `more` later experts."""
        value = self.candidates.problem.value
        first, last = np.triu_indices(len(self.free), 1)
        costs, room = self.costs[:, first] + self.costs[:, last], np.minimum(self.room[first], self.room[last])
        kept = np.flatnonzero(self.fits(costs, room, 2))
        first, last, costs, room = first[kept], last[kept], costs[:, kept], room[kept]
        states = value.combine(self.states[first], self.states[last])
        values = value.average(value.combine(self.base, states))
        count = len(self.free)
        extendable = np.arange(count) > last[:, None]
        upper = values
        if more:
            extendable &= self.fits(costs[:, :, None] + self.costs[:, None, :], np.minimum(room[:, None], self.room), 3)
            gains = np.full((count, count), np.inf)
            gains[first, last] = values - self.alone[first]
            gains[last, first] = values - self.alone[last]
            # An infinite gain is of a pair that does not fit, whose third expert is not extendable either.
            least = np.where(extendable, np.minimum(gains[first], gains[last]), 0.0)
            upper = values + _largest(least, more)
        order = np.argsort(-upper, kind="stable")
        return _Pairs(
            first[order], last[order], states[order], values[order], costs[:, order], room[order],
            extendable[order], upper[order],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Feasible pairs of free experts, G of them.

    first, last: (G,) places in the listing's order. states: (G, M) without the held ones. values, costs (C, G), room:
    of each pair; values with the held ones. extendable: (G, n) which later experts fit beside it. upper: (G,) bound of
    the value with what can still join.
    """

    first: IntArray
    last: IntArray
    states: FloatArray
    values: FloatArray
    costs: FloatArray
    room: IntArray
    extendable: BoolArray
    upper: FloatArray

    def offer(self, listing: _Listing, incumbent: Incumbent) -> None:
        """Offer the best pair."""
        listing.offer(self.values, np.stack([self.first, self.last], axis=1), incumbent)


def _extended(listing: _Listing, pairs: _Pairs, more: int, incumbent: Incumbent, stop: Callable[[], bool]) -> float:
    """Extend the pairs by one and by two experts; the bound of those not reached, -inf where none is left."""
    value = listing.candidates.problem.value
    prompts, count = len(listing.base), len(listing.free)
    rows = max(1, int(_CHUNK_STEPS / (prompts * count)))
    place_of = np.full((count, count), -1)
    place_of[pairs.first, pairs.last] = np.arange(len(pairs.first))
    for start in range(0, len(pairs.first), rows):
        upper = float(pairs.upper[start])
        if upper <= incumbent.value + tie_width(incumbent.value):
            return -np.inf
        if stop():
            return upper
        part = np.arange(start, min(start + rows, len(pairs.first)))
        base = value.combine(listing.base, pairs.states[part])
        reached = np.where(pairs.extendable[part], value.cross(base, listing.states), -np.inf)
        row, third = np.nonzero(pairs.extendable[part])
        pair = part[row]
        listing.offer(reached[row, third], np.stack([pairs.first[pair], pairs.last[pair], third], axis=1), incumbent)
        if more == 1:
            continue
        gains = np.where(pairs.extendable[part], reached - pairs.values[part, None], 0.0)
        left = np.flatnonzero(pairs.values[part] + _largest(gains, 2) > incumbent.value + tie_width(incumbent.value))
        for at in left.tolist():
            if stop():
                return upper
            _fourth(listing, pairs, int(part[at]), base[at], gains[at], place_of, incumbent)
    return -np.inf


def _fourth(
    listing: _Listing,
    pairs: _Pairs,
    pair: int,
    base: FloatArray,
    gains: FloatArray,
    place_of: IntArray,
    incumbent: Incumbent,
) -> None:
    """Extend one pair with state `base` by the pairs of later experts whose gains (n,) sum to enough."""
    value = listing.candidates.problem.value
    joining = np.flatnonzero(pairs.extendable[pair])
    third, fourth = np.triu_indices(len(joining), 1)
    third, fourth = joining[third], joining[fourth]
    enough = incumbent.value + tie_width(incumbent.value) - pairs.values[pair]
    kept = np.flatnonzero((gains[third] + gains[fourth] > enough) & (place_of[third, fourth] >= 0))
    other = place_of[third[kept], fourth[kept]]
    ok = listing.fits(
        pairs.costs[:, pair, None] + pairs.costs[:, other], np.minimum(pairs.room[pair], pairs.room[other]), 4
    )
    other = other[ok]
    if len(other) == 0:
        return
    members = np.empty((len(other), 4), dtype=np.intp)
    members[:, 0], members[:, 1] = pairs.first[pair], pairs.last[pair]
    members[:, 2], members[:, 3] = pairs.first[other], pairs.last[other]
    listing.offer(value.cross(base[None], pairs.states[other])[0], members, incumbent)


def _largest(gains: FloatArray, count: int) -> FloatArray:
    """(G,) sum of the `count` largest of each row's gains (G, n), none of them negative."""
    if gains.shape[1] <= count:
        return np.asarray(gains.sum(axis=1))
    return np.asarray(np.partition(gains, gains.shape[1] - count, axis=1)[:, -count:].sum(axis=1))
