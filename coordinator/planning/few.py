"""All panels of a few members at once: unions of pairs with what else can join.

Where only three or four experts fit the budget, shares of experts bound the value worst and listing is
cheapest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moe2.coordinator.planning.candidates import Candidates, tie_width
from moe2.coordinator.planning.values import BoolArray, Coverage, FloatArray, IntArray

MOST = 4
"""Most experts that may join for listing."""
_PRODUCTS = 9e7
_STEPS = 5e6
"""Most work for one listing: multiplications of a matrix product (coverage), or elementwise steps. A few ms
each.
"""


@dataclass(frozen=True, eq=False)
class _Groups:
    """Feasible groups of up to two free experts, each joined to the held ones.

    first, last: (G,) places of the earliest and latest expert in `free`; n and -1 for nobody. size: (G,)
    experts.
    """

    first: IntArray
    last: IntArray
    size: IntArray

    @classmethod
    def of(cls, free: int, size: int) -> _Groups:
        """All groups of up to `size` experts, 0..2."""
        left, right = np.triu_indices(free, 1)
        first = np.concatenate([np.array([free]), np.arange(free), left])
        last = np.concatenate([np.array([-1]), np.arange(free), right])
        members = np.repeat(np.arange(3), [1, free, len(left)])
        return cls(first, last, members).keep(members <= size)

    def keep(self, wanted: BoolArray) -> _Groups:
        """Some of the groups."""
        return _Groups(self.first[wanted], self.last[wanted], self.size[wanted])

    def total(self, costs: FloatArray) -> FloatArray:
        """Summed costs (n,) of each group's experts; (G,)."""
        padded = np.append(costs, 0.0)
        second = np.where(self.size > 1, padded[self.last], 0.0)
        return np.asarray(padded[self.first] + second)

    def lowest(self, bounds: IntArray, nobody: int) -> IntArray:
        """The lowest of the experts' bounds (n,), `nobody` for a group of none; (G,)."""
        padded = np.append(bounds, nobody)
        return np.asarray(np.minimum(padded[self.first], padded[self.last]))


def best(candidates: Candidates, held: list[int], free: IntArray, most: int) -> tuple[list[int], float] | None:
    """The best feasible panel that holds `held` and up to `most` of `free`, more than which cannot join.

    None where listing is too much work, or `most` is above MOST. Ties as in Candidates.preferred, over all
    panels.
    """
    if most > MOST or len(free) == 0:
        return None
    low, high = _Groups.of(len(free), min(most, 2)), _Groups.of(len(free), max(most - 2, 0))
    low = low.keep(_fits(candidates, held, free, low))
    high = high.keep(_fits(candidates, held, free, high))
    value = candidates.problem.value
    work = float(len(low.size)) * len(high.size) * value.prompts
    if work > (_PRODUCTS if isinstance(value, Coverage) else _STEPS):
        return None
    base = value.state_of(candidates.index[held])
    states = np.vstack([candidates.states[free], value.empty_state()])
    lower, upper = (
        value.combine(states[group.first], states[np.where(group.size > 1, group.last, len(free))])
        for group in (low, high)
    )
    reached = value.cross(value.combine(base, upper), lower).T
    # Each panel once: the two earliest of its experts, then the rest.
    ok = (high.size == 0) | ((low.size == 2)[:, None] & (low.last[:, None] < high.first))
    ok &= _fits(candidates, held, free, low, high)
    size = low.size[:, None] + high.size
    ok &= size + len(held) > 0
    reached = np.where(ok, reached, -np.inf)
    peak = float(reached.max())
    tied = np.argwhere(ok & (reached >= peak - tie_width(peak)))
    if len(tied) == 0:
        return None
    panels = np.zeros((len(tied), candidates.count), dtype=np.bool_)
    panels[:, held] = True
    rows = np.arange(len(tied))
    for group, place in ((low, tied[:, 0]), (high, tied[:, 1])):
        filled = group.size[place] > 0
        panels[rows[filled], free[group.first[place][filled]]] = True
        panels[rows[filled], free[group.last[place][filled]]] = True
    chosen = candidates.preferred(panels)
    return np.flatnonzero(panels[chosen]).tolist(), float(reached[tuple(tied[chosen])])


def _fits(
    candidates: Candidates, held: list[int], free: IntArray, low: _Groups, high: _Groups | None = None
) -> BoolArray:
    """Which groups (G,), or unions of two disjoint groups (G, H), keep every limit beside the held ones."""
    everyone = len(candidates.problem.names)
    held_room = int(candidates.largest[held].min()) if held else everyone
    bounds = np.minimum(candidates.largest[free], held_room)
    size = len(held) + low.size
    room = low.lowest(bounds, held_room)
    if high is not None:
        size = size[:, None] + high.size
        room = np.minimum(room[:, None], high.lowest(bounds, held_room))
    ok = np.asarray(size <= room)
    size = np.minimum(size, everyone)
    for row, ceiling in zip(candidates.sums, candidates.ceilings, strict=True):
        total = low.total(row[free]) + float(row[held].sum())
        if high is not None:
            total = total[:, None] + high.total(row[free])
        ok &= total <= ceiling[size]
    return ok
