"""All subsets of a few experts at once, by doubling: entry `mask` of an array belongs to the panel of its set
bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moe2.coordinator.planning.candidates import Candidates, tie_width
from moe2.coordinator.planning.values import FloatArray, IntArray, SetValue

MAX_LISTED = 20
"""Most experts whose subsets are ever listed: a million."""
_PART = 1 << 18
"""Elementwise steps between two looks at the clock."""
_EVEN = 8 * float(np.finfo(np.float64).eps)
"""Steps of aggregation that differ by less, relative to the limit, are equal but for rounding."""


@lru_cache(maxsize=MAX_LISTED + 1)
def sizes(width: int) -> NDArray[np.int8]:
    """Number of members of each of the 2^width panels; read-only."""
    counts = np.zeros(1 << width, dtype=np.int8)
    for bit in range(width):
        counts[1 << bit : 2 << bit] = counts[: 1 << bit] + 1
    counts.flags.writeable = False
    return counts


def masks(places: IntArray) -> NDArray[np.int32]:
    """For each panel of n experts, its mask when expert i sits at bit `places[i]`; shape (2^n,)."""
    moved = np.zeros(1 << len(places), dtype=np.int32)
    for bit, place in enumerate(places.tolist()):
        np.bitwise_or(moved[: 1 << bit], 1 << place, out=moved[1 << bit : 2 << bit])
    return moved


def sums(costs: FloatArray, base: float = 0.0) -> FloatArray:
    """`base` plus the sum of the members' costs, for each panel; shape (2^n,)."""
    totals = np.empty(1 << len(costs))
    totals[0] = base
    for bit, cost in enumerate(costs):
        np.add(totals[: 1 << bit], cost, out=totals[1 << bit : 2 << bit])
    return totals


def minima(bounds: IntArray, base: int) -> NDArray[np.int8]:
    """The least of `base` and the members' bounds, for each panel; shape (2^n,)."""
    least = np.empty(1 << len(bounds), dtype=np.int8)
    least[0] = min(base, 127)
    for bit, bound in enumerate(np.minimum(bounds, 127).astype(np.int8)):
        np.minimum(least[: 1 << bit], bound, out=least[1 << bit : 2 << bit])
    return least


def states(value: SetValue, rows: FloatArray, base: FloatArray) -> FloatArray:
    """State of each panel of the experts with states `rows` (n, M) on top of `base` (M,); (2^n, M)."""
    combined = np.empty((1 << len(rows), len(base)))
    combined[0] = base
    for bit, row in enumerate(rows):
        combined[1 << bit : 2 << bit] = value.combine(combined[: 1 << bit], row)
    return combined


def values(value: SetValue, rows: FloatArray, base: FloatArray) -> FloatArray:
    """Value of each panel on top of `base`, from the states of two halves; shape (2^n,).

    Only 2^(n/2) states are formed per half; for coverage all 2^n values are then one matrix product.
    """
    high, low = _halves(value, rows, base)
    return value.cross(high, low).reshape(-1)


def values_in_time(value: SetValue, rows: FloatArray, base: FloatArray, stop: Callable[[], bool]) -> FloatArray | None:
    """The same, a part at a time; None where `stop` said so before all of them were known."""
    high, low = _halves(value, rows, base)
    step = max(1, _PART // low.size)
    found = np.empty((len(high), len(low)))
    for start in range(0, len(high), step):
        if stop():
            return None
        found[start : start + step] = value.cross(high[start : start + step], low)
    return found.reshape(-1)


def _halves(value: SetValue, rows: FloatArray, base: FloatArray) -> tuple[FloatArray, FloatArray]:
    """States of the panels of the later experts on top of `base`, and of those of the earlier ones."""
    middle = (len(rows) + 1) // 2
    return states(value, rows[middle:], base), states(value, rows[:middle], value.empty_state())


def best(
    candidates: Candidates, forced: list[int], free: IntArray, panel_values: FloatArray
) -> tuple[list[int], float] | None:
    """The best feasible panel that holds `forced` and any of `free`, given the values of all 2^|free| of
    them.

    Equal values are settled by Candidates.preferred over *all* the tied panels. None where nothing is
    feasible.
    """
    held = np.array(forced, dtype=np.intp)
    count = sizes(len(free))
    ok = np.ones(len(count), dtype=np.bool_)
    ok[0] = bool(forced)
    for row, ceiling in zip(candidates.sums, candidates.ceilings, strict=True):
        base, first = float(row[held].sum()), 0 if forced else 1
        line = ceiling[len(held) + first : len(held) + len(free) + 1]
        slope = float(line[0] - line[-1]) / max(len(line) - 1, 1)
        if np.abs(line[1:] - line[:-1] + slope).max(initial=0.0) <= _EVEN * abs(float(ceiling[0])):
            # Aggregation that grows evenly is charged to each member: no ceiling to look up per panel.
            ok &= sums(row[free] + slope, base) <= float(line[0]) + slope * first
        else:
            ok &= sums(row[free], base) <= ceiling[len(held) + count.astype(np.intp)]
    largest = candidates.largest
    cap = int(largest[held].min()) if forced else len(candidates.problem.names)
    tightest = min(cap, int(largest[free].min())) if len(free) else cap
    if tightest < len(held) + len(free):
        loosest = min(cap, int(largest[free].max())) if len(free) else cap
        room = tightest if tightest == loosest else minima(largest[free], cap)
        ok &= count <= room - len(held)
    reached = np.where(ok, panel_values, -np.inf)
    top = int(reached.argmax())
    if not ok[top]:
        hits = np.flatnonzero(ok)  # every feasible panel is worth -inf, or there is none
        if len(hits) == 0:
            return None
        top = int(hits[0])
    peak = float(reached[top])
    tied = np.flatnonzero(reached >= peak - tie_width(peak))
    if len(tied) == 1 or not np.isfinite(peak):
        tied = np.array([top])
    panels = np.zeros((len(tied), candidates.count), dtype=np.bool_)
    panels[:, held] = True
    panels[:, free] = tied[:, None] >> np.arange(len(free)) & 1
    chosen = candidates.preferred(panels)
    return np.flatnonzero(panels[chosen]).tolist(), float(panel_values[tied[chosen]])
