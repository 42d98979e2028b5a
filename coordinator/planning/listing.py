"""Listing of panels with a few joining experts: pairs of free experts, then pairs extended by one or two more.

Where only three or four experts fit the budget, a relaxation to shares of experts bounds the value worst and listing is
cheapest. Experts that join a pair gain at most the sum of what each gains alone on top of it (submodularity), so most
pairs and most extensions are dropped unseen. Pairs are taken by falling bound: whenever the listing stops, the bound of
the next pair holds for all panels that were not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from moe2.coordinator.planning.candidates import Candidates, Incumbent, tie_width
from moe2.coordinator.planning.values import BoolArray, FloatArray, IntArray

MAX_JOINING = 4
"""Most experts that may join the held ones in a listed panel."""
MAX_PAIRED = 400
"""Most free experts whose pairs are all listed."""
_CHUNK_STEPS = 1e5
"""Elementwise steps between two looks at the clock, which take some hundred microseconds."""
_DENSE_SHARE = 6
"""Up to one pair in so many it is cheaper to value them one by one than all in a matrix."""
_TRIPLES_PAY = 7.0
"""Steps of a listing of triples for each of a listing of larger panels, whose third and fourth experts come on top."""
_PAIR_STEPS = 500
"""Steps that a pair takes whatever joins it."""
_PRODUCT_STEPS = 1e6
"""Steps of a matrix product between two looks at the clock."""
_MATRIX_ENTRIES = 3e4
"""Entries of a matrix of pairs by pairs: memory that is new to the process takes longer than what is computed in it."""
_FRESH_ENTRIES = 2e5
"""Entries of later pairs' states that are made between two looks at the clock, for the same reason."""


@dataclass(frozen=True, eq=False)
class LinearBound:
    """A bound on panels of the held experts and some free ones: `floor` and the sum of the joining ones' `reduced`."""

    floor: float
    reduced: FloatArray
    """(n,) by candidate, or (0,) where there is no bound."""

    def after(self, joined: list[int]) -> LinearBound:
        """The same bound once the `joined` candidates are held, too."""
        return LinearBound(self.floor + float(self.reduced[joined].sum()), self.reduced) if len(self.reduced) else self

    def better(self, free: IntArray, most: int, target: float) -> IntArray:
        """Those of the `free` candidates that may be among up to `most` that join for a value above `target`."""
        reduced = self.of(free)
        others = float(np.maximum(np.sort(reduced)[::-1][: most - 1], 0.0).sum())
        return free[self.floor + reduced + others > target]

    def of(self, free: IntArray) -> FloatArray:
        """(f,) the reduced costs of the `free` candidates."""
        return self.reduced[free] if len(self.reduced) else np.zeros(len(free))


UNBOUNDED = LinearBound(np.inf, np.empty(0))
"""What is known before anything is."""


def list_panels(
    candidates: Candidates,
    held: list[int],
    free: IntArray,
    most: int,
    incumbent: Incumbent,
    stop: Callable[[], bool],
    *,
    max_steps: float = np.inf,
    linear: LinearBound = UNBOUNDED,
) -> float | None:
    """Offer the incumbent the best feasible panels of all `held` experts and up to `most` of the `free` ones.

    most: no more than these can join. Returns an upper bound on the value of the panels that were not looked at, -inf
    where none of them could be better than the incumbent. Returns None where nothing was listed, because `most` is
    above MAX_JOINING, listing would take more elementwise steps than `max_steps`, or too many experts are left.
    linear: a bound on every such panel, which leaves most of them unlisted.
    """
    if most > MAX_JOINING or len(free) == 0:
        return None
    free = linear.better(free, most, incumbent.target)
    if len(free) == 0:
        return -np.inf
    if most > 1 and len(free) > MAX_PAIRED:
        return None
    pays = max_steps * (_TRIPLES_PAY if most == 3 else 1.0)
    if most > 2 and _steps(len(free), candidates.problem.value.prompts) > pays:
        return None
    listing = _Listing.of(candidates, held, free, linear)
    listing.offer_singles(incumbent)
    if most == 1:
        return -np.inf
    listing = listing.of_better_pairs(most - 2, incumbent)
    if len(listing.free) < 2:
        return -np.inf
    pairs = listing.pairs(most - 2, incumbent, stop)
    if pairs is None:
        return np.inf
    pairs.offer(listing, incumbent)
    return -np.inf if most == 2 else _extended(listing, pairs, most - 2, incumbent, stop)


def _steps(count: int, prompts: int) -> float:
    """The elementwise steps of extending every pair of `count` experts by every one of them."""
    return count * (count - 1) / 2.0 * count * prompts


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
    floor: float
    reduced: FloatArray
    """(n,) and `floor`: the linear bound."""

    @classmethod
    def of(cls, candidates: Candidates, held: list[int], free: IntArray, linear: LinearBound) -> _Listing:
        """The listing of the `free` candidates on top of the `held` ones."""
        value = candidates.problem.value
        base = value.state_of(candidates.index[held])
        room = int(candidates.largest[held].min()) if held else len(candidates.problem.names)
        states = candidates.states_of(free)
        joined = value.combine(base, states)
        alone = value.average(joined)
        # The stronger come first, so that pairs of weak experts are left with weaker ones to be joined by.
        order = np.argsort(-alone, kind="stable")
        free = free[order]
        return cls(
            candidates=candidates,
            held=held,
            free=free,
            states=states[order],
            joined=joined[order],
            costs=candidates.sums[:, free],
            used=candidates.sums[:, held].sum(axis=1),
            room=np.minimum(candidates.largest[free], room),
            alone=alone[order],
            floor=linear.floor,
            reduced=linear.of(free),
        )

    def of_better_pairs(self, more: int, incumbent: Incumbent) -> _Listing:
        """The listing of the experts that may be in a better panel of a pair and up to `more` others."""
        if self.floor == np.inf or len(self.free) < 2:
            return self
        first, second = np.sort(self.reduced)[::-1][:2]
        partner = np.where(self.reduced == first, second, first)
        kept = np.flatnonzero(self.floor + self.reduced + partner + self.rest(more) > incumbent.target)
        return replace(
            self,
            free=self.free[kept],
            states=self.states[kept],
            joined=self.joined[kept],
            costs=self.costs[:, kept],
            room=self.room[kept],
            alone=self.alone[kept],
            reduced=self.reduced[kept],
        )

    def rest(self, more: int) -> float:
        """The most that `more` further experts add to the linear bound."""
        return float(np.maximum(np.sort(self.reduced)[::-1][:more], 0.0).sum())

    @property
    def prompts(self) -> int:
        """M, the number of calibration prompts."""
        return int(self.states.shape[1])

    @property
    def steps_at_once(self) -> float:
        """The steps of combining panels between two looks at the clock."""
        return _PRODUCT_STEPS if self.candidates.problem.value.crosses_as_product else _CHUNK_STEPS

    def parts(self, thirds: IntArray) -> Iterator[IntArray]:
        """The places of the pairs that are extended between two looks at the clock, in order; thirds: (G,)."""
        whole = int(self.steps_at_once / (self.prompts * len(self.free)))
        if thirds.sum() * _DENSE_SHARE > len(thirds) * len(self.free):
            ends = np.arange(whole, len(thirds), max(1, whole)) if whole else np.arange(1, len(thirds))
        else:
            # The states of pairs are made one by one, also where panels are valued by a product.
            each = max(_PAIR_STEPS, self.prompts * self.steps_at_once / _CHUNK_STEPS)
            work = np.cumsum(thirds * self.prompts + each)
            _, ends = np.unique(work // self.steps_at_once, return_index=True)
        yield from np.split(np.arange(len(thirds)), ends[ends > 0])

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

    def pairs(self, more: int, incumbent: Incumbent, stop: Callable[[], bool]) -> _Pairs | None:
        """The feasible pairs of better panels, by falling bound on their value with up to `more` later experts.

        None where `stop` returned True before all of them were known.
        """
        first, last = np.triu_indices(len(self.free), 1)
        reduced = self.reduced[first] + self.reduced[last]
        kept = np.flatnonzero(self.floor + reduced + self.rest(more) > incumbent.target)
        first, last, reduced = first[kept], last[kept], reduced[kept]
        costs, room = self.costs[:, first] + self.costs[:, last], np.minimum(self.room[first], self.room[last])
        kept = np.flatnonzero(self.fits(costs, room, 2))
        first, last, costs, room, reduced = first[kept], last[kept], costs[:, kept], room[kept], reduced[kept]
        values = self._pair_values(first, last, stop)
        if values is None:
            return None
        pairs = _Pairs(first, last, values, costs, room, reduced)
        if not more:
            return pairs
        bounds = self._extended_bounds(pairs, more, incumbent, stop)
        if bounds is None:
            return None
        upper, thirds = bounds
        return pairs.by_falling(np.minimum(upper, self.floor + reduced + self.rest(more)), thirds)

    def _pair_values(self, first: IntArray, last: IntArray, stop: Callable[[], bool]) -> FloatArray | None:
        """(G,) the values of the pairs of places `first` and `last` (G,), None where `stop` returned True before."""
        count = len(self.free)
        if len(first) * _DENSE_SHARE > count * count:
            found = self._all_pair_values(stop)
            return None if found is None else found[first, last]
        value = self.candidates.problem.value
        values = np.empty(len(first))
        rows = max(1, int(_CHUNK_STEPS / self.prompts))
        for start in range(0, len(first), rows):
            if stop():
                return None
            part = slice(start, start + rows)
            values[part] = value.average(value.combine(self.joined[first[part]], self.states[last[part]]))
        return values

    def _all_pair_values(self, stop: Callable[[], bool]) -> FloatArray | None:
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

    def better(self, pairs: _Pairs, part: IntArray | slice, more: int, incumbent: Incumbent) -> BoolArray:
        """(P, n) True where the linear bound lets a free expert and up to `more` others make P pairs a better panel."""
        reduced = pairs.reduced[part, None] + self.reduced
        return np.asarray(self.floor + reduced + self.rest(more) > incumbent.target)

    def _extended_bounds(
        self, pairs: _Pairs, more: int, incumbent: Incumbent, stop: Callable[[], bool]
    ) -> tuple[FloatArray, IntArray] | None:
        """(G,) a bound on each pair's value with up to `more` later experts, and (G,) how many can make it better.

        None where `stop` returned True.
        """
        count = len(self.free)
        gains = np.full((count, count), np.inf)
        gains[pairs.first, pairs.last] = pairs.values - self.alone[pairs.first]
        gains[pairs.last, pairs.first] = pairs.values - self.alone[pairs.last]
        upper, thirds = np.empty(len(pairs.first)), np.zeros(len(pairs.first), dtype=np.intp)
        rows = max(1, int(_CHUNK_STEPS / (8 * count)))
        for start in range(0, len(upper), rows):
            if stop():
                return None
            part = slice(start, start + rows)
            least = np.minimum(gains[pairs.first[part]], gains[pairs.last[part]])
            # An infinite gain is of a pair that does not fit or is not better, and no other expert makes it so.
            joining = self.extendable(pairs, part) & self.better(pairs, part, more - 1, incumbent)
            least[~joining | np.isinf(least)] = 0.0
            upper[part] = pairs.values[part] + _largest(least, more)
            thirds[part] = joining.sum(axis=1)
        return upper, thirds

    def reached(self, base: FloatArray, joining: BoolArray) -> FloatArray:
        """(P, n) the values of P panels with the states `base` (P, M) and one more, -inf where it is not `joining`."""
        value = self.candidates.problem.value
        row, third = np.nonzero(joining)
        if len(row) * _DENSE_SHARE > joining.size:
            return np.where(joining, value.cross(base, self.states), -np.inf)
        found = np.full(joining.shape, -np.inf)
        at_once = max(1, int(_CHUNK_STEPS / self.prompts))
        for start in range(0, len(row), at_once):
            some, other = row[start : start + at_once], third[start : start + at_once]
            found[some, other] = value.average(value.combine(base[some], self.states[other]))
        return found


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
    reduced: FloatArray
    """(G,) sum of the pair's reduced costs in the linear bound."""
    upper: FloatArray | None = None
    """(G,) falling bound on the value of the pair with experts that can still join; None where none can."""
    thirds: IntArray | None = None
    """(G,) how many experts can join the pair in a better panel; None where none can."""

    def by_falling(self, upper: FloatArray, thirds: IntArray) -> _Pairs:
        """The pairs with the bounds `upper` (G,) and their `thirds` (G,), sorted by falling bound."""
        order = np.argsort(-upper, kind="stable")
        return _Pairs(
            self.first[order],
            self.last[order],
            self.values[order],
            self.costs[:, order],
            self.room[order],
            self.reduced[order],
            upper[order],
            thirds[order],
        )

    def offer(self, listing: _Listing, incumbent: Incumbent) -> None:
        """Offer the best pair together with the held experts."""
        listing.offer(self.values, np.stack([self.first, self.last], axis=1), incumbent)


def _extended(listing: _Listing, pairs: _Pairs, more: int, incumbent: Incumbent, stop: Callable[[], bool]) -> float:
    """Offer pairs extended by one and by two experts; returns a bound on the pairs not reached, -inf for none."""
    assert pairs.upper is not None and pairs.thirds is not None  # noqa: S101, PT018 - those to extend are bounded
    value = listing.candidates.problem.value
    fourth = _Fourth(listing, pairs, incumbent, stop)
    for part in listing.parts(pairs.thirds):
        upper = float(pairs.upper[part[0]])
        if upper <= incumbent.target:
            return -np.inf
        if stop():
            return upper
        extendable = listing.extendable(pairs, part) & listing.better(pairs, part, more - 1, incumbent)
        usable = extendable.any(axis=1)
        part, extendable = part[usable], extendable[usable]
        base = value.combine(listing.joined[pairs.first[part]], listing.states[pairs.last[part]])
        reached = listing.reached(base, extendable)
        row, third = np.nonzero(extendable)
        pair = part[row]
        listing.offer(reached[row, third], np.stack([pairs.first[pair], pairs.last[pair], third], axis=1), incumbent)
        if more == 1:
            continue
        gains = np.where(extendable, reached - pairs.values[part, None], -np.inf)
        best = pairs.values[part] + _largest(np.maximum(gains, 0.0), 2)
        left = np.flatnonzero(best > incumbent.target)
        rows = max(1, int(_MATRIX_ENTRIES / len(pairs.first))) if value.crosses_as_product else 1
        for start in range(0, len(left), rows):
            some = left[start : start + rows]
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
        upper = gains[:, pairs.first]
        upper += gains[:, pairs.last]
        upper += pairs.values[some, None]
        worth_it = upper > incumbent.target
        np.add(pairs.reduced[some, None], pairs.reduced, out=upper)
        upper += listing.floor
        worth_it &= upper > incumbent.target
        others = np.flatnonzero(worth_it.any(axis=0))
        columns = max(1, int(min(listing.steps_at_once / len(some), _FRESH_ENTRIES) / listing.prompts))
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
