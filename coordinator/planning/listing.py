"""Listing of panels with a few joining experts: pairs of free experts, then pairs extended by one or two more.

Where only three or four experts fit the budget, a relaxation to shares of experts bounds the value worst and listing is
cheapest. Experts that join a pair gain at most the sum of what each gains alone on top of it (submodularity), so most
pairs and most extensions are dropped unseen. Pairs are taken by falling bound: whenever the listing stops, the bound of
the next pair holds for all panels that were not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moe2.coordinator.planning.candidates import Candidates, Incumbent, tie_width
from moe2.coordinator.planning.values import BoolArray, FloatArray, IntArray

MAX_JOINING = 4
"""Most experts that may join the held ones in a listed panel."""
_CHUNK_STEPS = 1e5
"""Elementwise steps between two looks at the clock, which take some hundred microseconds."""
_PRODUCT_STEPS = 1e6
"""Steps of a matrix product between two looks at the clock."""


def list_panels(
    candidates: Candidates,
    held: list[int],
    free: IntArray,
    most: int,
    incumbent: Incumbent,
    stop: Callable[[], bool],
    *,
    max_steps: float = np.inf,
) -> float | None:
    """Offer the incumbent the best feasible panels of all `held` experts and up to `most` of the `free` ones.

    most: no more than these can join. Returns an upper bound on the value of the panels that were not looked at, -inf
    where none of them could be better than the incumbent. Returns None where nothing was listed, because `most` is
    above MAX_JOINING or listing would take more elementwise steps than `max_steps`.
    """
    if most > MAX_JOINING or len(free) == 0:
        return None
    listing = _Listing.of(candidates, held, free)
    if most > 2 and listing.steps > max_steps:
        return None
    listing.offer_singles(incumbent)
    if most == 1:
        return -np.inf
    pairs = listing.pairs(most - 2, stop)
    if pairs is None:
        return np.inf
    pairs.offer(listing, incumbent)
    return -np.inf if most == 2 else _extended(listing, pairs, most - 2, incumbent, stop)


@dataclass(frozen=True, eq=False)
class _Listing:
    """The n free experts that may join the held ones, in the order of falling value."""

    candidates: Candidates
    held: list[int]
    free: IntArray
    """(n,) candidates."""
    states: FloatArray
    """(n, M) state of each free expert alone."""
    joined: FloatArray
    """(n, M) state of each free expert together with the held ones."""
    costs: FloatArray
    """(C, n) costs of each free expert under the sum limits."""
    used: FloatArray
    """(C,) costs of the held experts."""
    room: IntArray
    """(n,) size of the largest panel that each free expert may be in, together with the held ones."""
    alone: FloatArray
    """(n,) value of each free expert together with the held ones."""

    @classmethod
    def of(cls, candidates: Candidates, held: list[int], free: IntArray) -> _Listing:
        """The listing of the `free` candidates on top of the `held` ones."""
        value = candidates.problem.value
        base = value.state_of(candidates.index[held])
        room = int(candidates.largest[held].min()) if held else len(candidates.problem.names)
        joined = value.combine(base, candidates.states[free])
        alone = value.average(joined)
        # The stronger come first, so that pairs of weak experts are left with weaker ones to be joined by.
        order = np.argsort(-alone, kind="stable")
        free = free[order]
        return cls(
            candidates=candidates,
            held=held,
            free=free,
            states=candidates.states[free],
            joined=joined[order],
            costs=candidates.sums[:, free],
            used=candidates.sums[:, held].sum(axis=1),
            room=np.minimum(candidates.largest[free], room),
            alone=alone[order],
        )

    @property
    def steps(self) -> float:
        """The elementwise steps of extending every pair by every free expert."""
        count = float(len(self.free))
        return count * (count - 1) / 2 * count * self.prompts

    @property
    def prompts(self) -> int:
        """M, the number of calibration prompts."""
        return int(self.states.shape[1])

    @property
    def steps_at_once(self) -> float:
        """The steps of combining panels between two looks at the clock."""
        return _PRODUCT_STEPS if self.candidates.problem.value.crosses_as_product else _CHUNK_STEPS

    def fits(self, costs: FloatArray, room: IntArray, joining: int) -> BoolArray:
        """(...) True where a panel of the held experts and `joining` more keeps every limit.

        costs: (C, ...) sum of the joining experts' costs. room: (...) largest panel that all of them may be in.
        """
        size = len(self.held) + joining
        ok = np.asarray(room >= size)
        if size >= self.candidates.ceilings.shape[1]:
            return np.zeros_like(ok)
        for cost, used, ceiling in zip(costs, self.used, self.candidates.ceilings, strict=True):
            ok &= cost + used <= ceiling[size]
        return ok

    def offer(self, values: FloatArray, members: IntArray, incumbent: Incumbent) -> None:
        """Offer the best of P panels; `Candidates.preferred` settles ties.

        values: (P,). members: (P, k) places in `free`; the held experts are in every panel.
        """
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
        """Offer the best panel of the held experts and one more."""
        places = np.flatnonzero(self.fits(self.costs, self.room, 1))
        self.offer(self.alone[places], places[:, None], incumbent)

    def pairs(self, more: int, stop: Callable[[], bool]) -> _Pairs | None:
        """All feasible pairs, by falling bound on their value with up to `more` later experts.

        None where `stop` returned True before all of them were known.
        """
        found = self._pair_values(stop)
        if found is None:
            return None
        first, last = np.triu_indices(len(self.free), 1)
        costs, room = self.costs[:, first] + self.costs[:, last], np.minimum(self.room[first], self.room[last])
        kept = np.flatnonzero(self.fits(costs, room, 2))
        first, last, costs, room = first[kept], last[kept], costs[:, kept], room[kept]
        pairs = _Pairs(first, last, found[first, last], costs, room)
        if not more:
            return pairs
        upper = self._extended_bounds(pairs, more, stop)
        return None if upper is None else pairs.by_falling(upper)

    def _pair_values(self, stop: Callable[[], bool]) -> FloatArray | None:
        """(n, n) the values of all pairs, set above the diagonal only; None where `stop` returned True."""
        value, count = self.candidates.problem.value, len(self.free)
        found = np.empty((count, count))
        rows = max(1, int(self.steps_at_once / (count * self.prompts)))
        for start in range(0, count - 1, rows):
            if stop():
                return None
            found[start : start + rows, start + 1 :] = value.cross(
                self.joined[start : start + rows], self.states[start + 1 :]
            )
        return found

    def extendable(self, pairs: _Pairs, part: IntArray | slice) -> BoolArray:
        """(P, n) True where a free expert comes after both of a pair and fits together with it; for P pairs."""
        later = np.arange(len(self.free)) > pairs.last[part, None]
        costs = pairs.costs[:, part, None] + self.costs[:, None, :]
        return np.asarray(later & self.fits(costs, np.minimum(pairs.room[part, None], self.room), 3))

    def _extended_bounds(self, pairs: _Pairs, more: int, stop: Callable[[], bool]) -> FloatArray | None:
        """(G,) a bound on each pair's value with up to `more` later experts; None where `stop` returned True."""
        count = len(self.free)
        gains = np.full((count, count), np.inf)
        gains[pairs.first, pairs.last] = pairs.values - self.alone[pairs.first]
        gains[pairs.last, pairs.first] = pairs.values - self.alone[pairs.last]
        upper = np.empty(len(pairs.first))
        rows = max(1, int(_CHUNK_STEPS / (8 * count)))
        for start in range(0, len(upper), rows):
            if stop():
                return None
            part = slice(start, start + rows)
            # An infinite gain is of a pair that does not fit, whose third expert is not extendable either.
            least = np.minimum(gains[pairs.first[part]], gains[pairs.last[part]])
            least[~self.extendable(pairs, part)] = 0.0
            upper[part] = pairs.values[part] + _largest(least, more)
        return upper


@dataclass(frozen=True, eq=False)
class _Pairs:
    """The G feasible pairs of free experts of a listing."""

    first: IntArray
    """(G,) the pair's earlier place in the listing."""
    last: IntArray
    """(G,) the pair's later place in the listing."""
    values: FloatArray
    """(G,) value of the pair together with the held experts."""
    costs: FloatArray
    """(C, G) sum of the pair's costs."""
    room: IntArray
    """(G,) size of the largest panel that both may be in."""
    upper: FloatArray | None = None
    """(G,) falling bound on the value of the pair with experts that can still join; None where none can."""

    def by_falling(self, upper: FloatArray) -> _Pairs:
        """The pairs with the bounds `upper` (G,), sorted by falling bound."""
        order = np.argsort(-upper, kind="stable")
        return _Pairs(
            self.first[order],
            self.last[order],
            self.values[order],
            self.costs[:, order],
            self.room[order],
            upper[order],
        )

    def offer(self, listing: _Listing, incumbent: Incumbent) -> None:
        """Offer the best pair together with the held experts."""
        listing.offer(self.values, np.stack([self.first, self.last], axis=1), incumbent)


def _extended(listing: _Listing, pairs: _Pairs, more: int, incumbent: Incumbent, stop: Callable[[], bool]) -> float:
    """Offer pairs extended by one and by two experts; returns a bound on the pairs not reached, -inf for none."""
    assert pairs.upper is not None  # noqa: S101 - those that can be extended are bounded
    value = listing.candidates.problem.value
    fourth = _Fourth(listing, pairs, incumbent, stop)
    rows = max(1, int(listing.steps_at_once / (listing.prompts * len(listing.free))))
    for start in range(0, len(pairs.first), rows):
        upper = float(pairs.upper[start])
        if upper <= incumbent.value + tie_width(incumbent.value):
            return -np.inf
        if stop():
            return upper
        part = np.arange(start, min(start + rows, len(pairs.first)))
        base = value.combine(listing.joined[pairs.first[part]], listing.states[pairs.last[part]])
        extendable = listing.extendable(pairs, part)
        reached = np.where(extendable, value.cross(base, listing.states), -np.inf)
        row, third = np.nonzero(extendable)
        pair = part[row]
        listing.offer(reached[row, third], np.stack([pairs.first[pair], pairs.last[pair], third], axis=1), incumbent)
        if more == 1:
            continue
        gains = np.where(extendable, reached - pairs.values[part, None], -np.inf)
        best = pairs.values[part] + _largest(np.maximum(gains, 0.0), 2)
        left = np.flatnonzero(best > incumbent.value + tie_width(incumbent.value))
        for some in [left] if value.crosses_as_product and len(left) else left[:, None]:
            if not fourth.offer(part[some], base[some], gains[some]):
                return upper
    return -np.inf


class _Fourth:
    """Extends pairs by pairs of later experts, and remembers the states of the later pairs that it has used."""

    def __init__(self, listing: _Listing, pairs: _Pairs, incumbent: Incumbent, stop: Callable[[], bool]) -> None:
        self._listing, self._pairs, self._incumbent, self._stop = listing, pairs, incumbent, stop
        self._states = np.empty((len(pairs.first), listing.prompts))
        self._met = np.zeros(len(pairs.first), dtype=np.bool_)

    def offer(self, some: IntArray, base: FloatArray, gains: FloatArray) -> bool:
        """Offer the best panels of `some` (P,) pairs and a later pair; False where the time was up before the end.

        base: (P, M) states of the pairs. gains: (P, n) what each expert adds to each pair, -inf where it cannot join.
        """
        listing, pairs, incumbent = self._listing, self._pairs, self._incumbent
        value = listing.candidates.problem.value
        target = incumbent.value - tie_width(incumbent.value)
        upper = pairs.values[some, None] + gains[:, pairs.first] + gains[:, pairs.last]
        worth_it = upper > incumbent.value + tie_width(incumbent.value)
        others = np.flatnonzero(worth_it.any(axis=0))
        columns = max(1, int(listing.steps_at_once / (listing.prompts * len(some))))
        for start in range(0, len(others), columns):
            if self._stop():
                return False
            other = others[start : start + columns]
            reached = np.asarray(value.cross(base, self._state_of(other)))
            row, column = np.nonzero(worth_it[:, other] & (reached >= target))
            pair, late = some[row], other[column]
            costs, room = pairs.costs[:, pair] + pairs.costs[:, late], np.minimum(pairs.room[pair], pairs.room[late])
            fit = listing.fits(costs, room, 4)
            pair, late = pair[fit], late[fit]
            members = [pairs.first[pair], pairs.last[pair], pairs.first[late], pairs.last[late]]
            listing.offer(reached[row, column][fit], np.stack(members, axis=1), incumbent)
        return True

    def _state_of(self, others: IntArray) -> FloatArray:
        """(O, M) the states of `others` (O,) pairs, without the held experts."""
        fresh = others[~self._met[others]]
        states = self._listing.states
        combine = self._listing.candidates.problem.value.combine
        self._states[fresh] = combine(states[self._pairs.first[fresh]], states[self._pairs.last[fresh]])
        self._met[fresh] = True
        return np.asarray(self._states[others])


def _largest(gains: FloatArray, count: int) -> FloatArray:
    """(G,) the sum of the `count` largest of each row's gains (G, n), none of them negative."""
    if gains.shape[1] <= count:
        return np.asarray(gains.sum(axis=1))
    return np.asarray(np.partition(gains, gains.shape[1] - count, axis=1)[:, -count:].sum(axis=1))
