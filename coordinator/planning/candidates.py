"""The candidates of a problem: the experts that can be in a panel at all, in the arrays that every solver works on.

`Candidates` drops the experts that are infeasible alone; `Incumbent` holds the best panel of them found so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import isfinite

import numpy as np

from moe2.coordinator.planning.problem import ROUNDING, MaxLimit, Problem
from moe2.coordinator.planning.values import BoolArray, FloatArray, IntArray, SetValue

TIE = 1e-9
"""Values closer than this, relative to the larger of 1 and their size, count as equal."""


def tie_width(value: float) -> float:
    """How much two values near `value` may differ and still count as equal."""
    return TIE * max(1.0, abs(value)) if isfinite(value) else 0.0


@lru_cache(maxsize=64)
def _alphabetical(names: tuple[str, ...]) -> IntArray:
    """(N,) the places of the names in alphabetical order; read-only."""
    order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.intp)
    order.flags.writeable = False
    return order


@lru_cache(maxsize=64)
def by_name(names: tuple[str, ...]) -> IntArray:
    """(N,) where each of the names comes in alphabetical order; read-only."""
    ranks = np.argsort(_alphabetical(names))
    ranks.flags.writeable = False
    return ranks


def _largest_panels(limit: MaxLimit, most: int) -> IntArray:
    """(N,) the size of the largest panel of up to `most` members that each expert keeps the limit in; 0 for none."""
    ceiling = limit.limit + ROUNDING * abs(limit.limit)
    # by_size never falls, so the sizes that an expert may be in are a prefix of 1..most.
    grown = limit.by_size[1 : most + 1]
    if grown[-1] == grown[0]:
        return np.where(limit.cost + grown[0] <= ceiling, most, 0)
    # The last size at each level: one step of rounding must not cost all the sizes of a level.
    last = np.flatnonzero(np.append(grown[1:] > grown[:-1], True))
    level = np.searchsorted(grown[last], ceiling - limit.cost, side="right")
    # The difference above and the sum that counts are rounded differently, by one level at most.
    padded = np.concatenate([[-np.inf], grown[last], [np.inf]])
    level = np.where(limit.cost + padded[level + 1] <= ceiling, level + 1, level)
    level = np.where(limit.cost + padded[level] <= ceiling, level, level - 1)
    return np.asarray(np.append(0, last + 1)[level])


@dataclass(frozen=True, eq=False)
class Candidates:
    """The n experts of a problem that are feasible alone, in the alphabetical order of their names."""

    problem: Problem
    index: IntArray
    """(n,) places of the candidates in the problem."""
    largest: IntArray
    """(n,) size of the largest panel that each may be in, from max_experts and from delays that grow with the panel."""
    sums: FloatArray
    """(C, n) costs under the C sum limits."""
    ceilings: FloatArray
    """(C, N + 1) most that the members' costs may sum to in a panel of k = 0..N, rounding included."""
    energy_j: FloatArray
    """(n,) joules, which settle ties first."""
    delay_s: FloatArray
    """(n,) seconds, which settle ties next."""

    @classmethod
    def of(cls, problem: Problem) -> Candidates:
        """The candidates of a problem: its experts, less those that are ruled out or infeasible alone, by name."""
        names = problem.names
        experts = len(names)
        order = _alphabetical(names)
        largest = np.full(experts, problem.largest_panel, dtype=np.intp)
        for limit in problem.max_limits():
            largest = np.minimum(largest, _largest_panels(limit, problem.largest_panel))
        limits = problem.sum_limits()
        sums = np.array([limit.cost for limit in limits]).reshape(len(limits), experts)
        ceilings = np.array([limit.limit + ROUNDING * abs(limit.limit) - limit.by_size for limit in limits]).reshape(
            len(limits), experts + 1
        )
        fit = largest >= 1
        if limits:
            fit &= (sums <= ceilings[:, 1:2]).all(axis=0)
        if problem.ruled_out:
            fit &= ~problem.is_ruled_out
        index = order[fit[order]]
        return cls(
            problem=problem,
            index=index,
            largest=largest[index],
            sums=sums[:, index],
            ceilings=ceilings,
            energy_j=problem.costs.energy_j[index],
            delay_s=problem.costs.delay_s[index],
        )

    def only(self, places: IntArray) -> Candidates:
        """The candidates at `places`, ascending, without the others."""
        return replace(
            self,
            index=self.index[places],
            largest=self.largest[places],
            sums=self.sums[:, places],
            energy_j=self.energy_j[places],
            delay_s=self.delay_s[places],
        )

    def valued(self, value: SetValue) -> Candidates:
        """The same candidates where panels are worth what another set value says."""
        return replace(self, problem=replace(self.problem, value=value))

    @property
    def count(self) -> int:
        """n, the number of candidates."""
        return len(self.index)

    def states_of(self, members: IntArray | list[int]) -> FloatArray:
        """(k, M) the states of some candidates; those of all of a large fleet are megabytes, and seldom needed."""
        return np.asarray(self.problem.value.states[self.index[members]])

    @property
    def alone(self) -> FloatArray:
        """(n,) the value of each candidate alone."""
        return np.asarray(self.problem.value.alone[self.index])

    def without_each(self, panel: list[int]) -> FloatArray:
        """(k, M) the state of a panel without each of its k members in turn, from running unions from both ends."""
        value = self.problem.value
        states = self.states_of(panel)
        empty = value.empty_state()[None]
        before = np.concatenate([empty, value.union.accumulate(states, axis=0)[:-1]])
        after = np.concatenate([value.union.accumulate(states[::-1], axis=0)[::-1][1:], empty])
        return value.combine(before, after)

    def value_of(self, members: IntArray | list[int]) -> float:
        """The value of a panel of candidates, its members combined in alphabetical order."""
        return self.problem.value.of(self.index[np.sort(np.asarray(members, dtype=np.intp))])

    def is_feasible(self, members: IntArray | list[int]) -> bool:
        """True where a non-empty panel of candidates keeps every limit."""
        size = len(members)
        if size == 0 or size > self.largest[members].min():
            return False
        return bool((self.sums[:, members].sum(axis=1) <= self.ceilings[:, size]).all())

    def max_joining(self, held: list[int], free: IntArray) -> int:
        """An upper bound on how many of the `free` candidates can join the `held` ones, each limit taken alone."""
        # k more need k experts that may be in panels of that size.
        largest = np.sort(self.largest[free])[::-1] - len(held)
        most = int((largest >= np.arange(1, len(free) + 1)).sum())
        if held:
            most = min(most, int(self.largest[held].min()) - len(held))
        for row, ceiling in zip(self.sums, self.ceilings, strict=True):
            totals = np.cumsum(np.sort(row[free])[:most]) + float(row[held].sum())
            fits = totals <= ceiling[len(held) + 1 : len(held) + most + 1] * (1 + ROUNDING)
            most = int(np.flatnonzero(fits)[-1]) + 1 if fits.any() else 0
        return most

    def addable(self, members: list[int], pool: BoolArray) -> IntArray:
        """The candidates of `pool` (n,) outside `members` that can each join the panel alone, in ascending order."""
        size = len(members) + 1
        if size > len(self.problem.names) or (members and self.largest[members].min() < size):
            return np.empty(0, dtype=np.intp)
        used = self.sums[:, members].sum(axis=1)
        fits = pool & (self.largest >= size)
        fits &= (used[:, None] + self.sums <= self.ceilings[:, size : size + 1]).all(axis=0)
        fits[members] = False
        return np.flatnonzero(fits)

    def joining_in_turn(self, members: list[int], order: IntArray) -> list[int]:
        """Those of the candidates in `order` that join the panel, each where it still fits when its turn comes."""
        panel = list(members)
        while len(order):
            size = len(panel) + np.arange(1, len(order) + 1)
            room = int(self.largest[panel].min(initial=len(self.problem.names)))
            fits = size <= np.minimum(np.minimum.accumulate(self.largest[order]), room)
            for row, ceiling in zip(self.sums, self.ceilings, strict=True):
                fits &= float(row[panel].sum()) + np.cumsum(row[order]) <= ceiling[size]
            count = len(order) if fits.all() else int(fits.argmin())
            panel += order[:count].tolist()
            # Whoever does not fit now never will.
            order = order[count + 1 :]
            pool: BoolArray = np.zeros(self.count, dtype=np.bool_)
            pool[order] = True
            order = order[np.isin(order, self.addable(panel, pool))]
        return panel[len(members) :]

    def total_energy_j(self, members: IntArray | list[int]) -> float:
        """The joules of a panel, aggregation included."""
        return float(self.energy_j[members].sum() + self.problem.aggregation.energy_j[len(members)])

    def preference(self, members: list[int]) -> tuple[float, float, int, tuple[int, ...]]:
        """The key that settles ties, the smallest wins: joules, seconds, members, then names in alphabetical order.

        Joules and seconds are rounded to ten digits, so that the order of additions cannot decide.
        """
        energy = float(f"{self.total_energy_j(members):.9e}")
        delay = float(self.delay_s[members].max() + self.problem.aggregation.delay_s[len(members)])
        return energy, float(f"{delay:.9e}"), len(members), tuple(sorted(int(member) for member in members))

    def preferred(self, panels: BoolArray) -> int:
        """The row of the panel that `preference` puts first among tied non-empty ones; panels: (T, n) membership."""
        aggregation, size = self.problem.aggregation, panels.sum(axis=1)
        left = np.arange(len(panels))
        energy = panels @ self.energy_j + aggregation.energy_j[size]
        left = left[energy <= energy.min() * (1 + TIE)]
        delay = np.where(panels[left], self.delay_s, 0.0).max(axis=1) + aggregation.delay_s[size[left]]
        left = left[delay <= delay.min() * (1 + TIE)]
        left = left[size[left] == size[left].min()]
        for member in range(self.count):
            # Of two panels of one size, the earlier holds the first expert that is in one of them only.
            if len(left) == 1:
                break
            holders = left[panels[left, member]]
            left = holders if len(holders) else left
        return int(left[0])


@dataclass
class Incumbent:
    """The best panel found so far; `Candidates.preference` settles ties."""

    candidates: Candidates
    members: list[int]
    """Candidates of the panel, ascending; empty at first."""
    value: float = -np.inf
    """Value of the panel."""

    @property
    def target(self) -> float:
        """The value above which a panel is better."""
        return self.value + tie_width(self.value)

    def offer(self, members: list[int], value: float | None = None) -> bool:
        """Take a feasible panel if it is better, or equal and preferred; True where it was taken."""
        value = self.candidates.value_of(members) if value is None else value
        width = tie_width(max(value, self.value))
        if self.members:
            if value < self.value - width:
                return False
            tied = value <= self.value + width
            prefer = self.candidates.preference
            if tied and prefer(members) >= prefer(self.members):
                return False
        self.members, self.value = sorted(int(member) for member in members), value
        return True

    def thin(self) -> None:
        """Drop members that add nothing, the one with the most joules first.

        One pass is enough, because a member's gain only grows as others leave.
        """
        candidates, value = self.candidates, self.candidates.problem.value
        order = sorted(self.members, key=lambda n: (-candidates.energy_j[n], -n))
        floor = self.value - tie_width(self.value)
        # Who is needed beside all others is needed beside fewer.
        is_needed = value.average(candidates.without_each(order)) < floor
        kept = [n for n, needed in zip(order, is_needed, strict=True) if needed]
        doubted = [n for n in order if n not in kept]
        if not doubted:
            return
        # Unions of each member with all that come later in the order, and of nobody.
        later = [*value.union.accumulate(candidates.states_of(doubted[::-1]), axis=0)[::-1], value.empty_state()]
        state = value.state_of(candidates.index[kept])
        for place, member in enumerate(doubted):
            without = value.combine(state, later[place + 1])
            if (kept or place + 1 < len(doubted)) and float(value.average(without)) >= floor:
                continue
            kept.append(member)
            state = value.combine(state, candidates.states_of([member])[0])
        if len(kept) < len(order):
            self.members = sorted(kept)
            self.value = candidates.value_of(self.members)
