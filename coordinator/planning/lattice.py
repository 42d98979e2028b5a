"""Arrays over all 2^n panels of a few experts, made by doubling: entry `mask` belongs to the panel of the set bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moe2.coordinator.planning.candidates import Candidates, tie_width
from moe2.coordinator.planning.values import FloatArray, IntArray, SetValue

MAX_LISTED = 20
"""Most experts whose subsets are ever listed, which are a million."""
_PART = 1 << 18
"""Elementwise steps between two looks at the clock."""
_EVEN = 8 * float(np.finfo(np.float64).eps)
"""Increments of the aggregation cost that differ by less, relative to the limit, are equal but for rounding."""


@lru_cache(maxsize=MAX_LISTED + 1)
def sizes(width: int) -> NDArray[np.int8]:
    """(2^width,) the number of members of each panel of `width` experts; read-only."""
    counts = np.zeros(1 << width, dtype=np.int8)
    for bit in range(width):
        counts[1 << bit : 2 << bit] = counts[: 1 << bit] + 1
    counts.flags.writeable = False
    return counts


def masks(places: IntArray) -> NDArray[np.int32]:
    """(2^n,) the mask of each panel of n experts once expert i sits at bit `places[i]`."""
    moved = np.zeros(1 << len(places), dtype=np.int32)
    for bit, place in enumerate(places.tolist()):
        np.bitwise_or(moved[: 1 << bit], 1 << place, out=moved[1 << bit : 2 << bit])
    return moved


def sums(costs: FloatArray, base: float = 0.0) -> FloatArray:
    """(2^n,) `base` plus the sum of the members' costs, for each panel."""
    totals = np.empty(1 << len(costs))
    totals[0] = base
    for bit, cost in enumerate(costs):
        np.add(totals[: 1 << bit], cost, out=totals[1 << bit : 2 << bit])
    return totals


def minima(bounds: IntArray, base: int) -> NDArray[np.int8]:
    """(2^n,) the least of `base` and the members' bounds, for each panel; cut at 127."""
    least = np.empty(1 << len(bounds), dtype=np.int8)
    least[0] = min(base, 127)
    for bit, bound in enumerate(np.minimum(bounds, 127).astype(np.int8)):
        np.minimum(least[: 1 << bit], bound, out=least[1 << bit : 2 << bit])
    return least


def states(value: SetValue, rows: FloatArray, base: FloatArray) -> FloatArray:
    """(2^n, M) the state of each panel of the experts with states `rows` (n, M), on top of the state `base` (M,)."""
    combined = np.empty((1 << len(rows), len(base)))
    combined[0] = base
    for bit, row in enumerate(rows):
        combined[1 << bit : 2 << bit] = value.combine(combined[: 1 << bit], row)
    return combined


def values(value: SetValue, rows: FloatArray, base: FloatArray) -> FloatArray:
    """(2^n,) the value of each panel of the experts with states `rows` (n, M), on top of the state `base` (M,).

    Only the 2^(n/2) states of either half are formed; for coverage all 2^n values are then one matrix product.
    """
    high, low = _halves(value, rows, base)
    return value.cross(high, low).reshape(-1)


def values_in_time(value: SetValue, rows: FloatArray, base: FloatArray, stop: Callable[[], bool]) -> FloatArray | None:
    """The values of `values`, computed in parts; None where `stop` returned True before all of them were known."""
    high, low = _halves(value, rows, base)
    step = max(1, _PART // low.size)
    found = np.empty((len(high), len(low)))
    for start in range(0, len(high), step):
        if stop():
            return None
        found[start : start + step] = value.cross(high[start : start + step], low)
    return found.reshape(-1)


def _halves(value: SetValue, rows: FloatArray, base: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The states of all panels of the later half of the experts on top of `base`, and of those of the earlier half."""
    middle = (len(rows) + 1) // 2
    return states(value, rows[middle:], base), states(value, rows[:middle], value.empty_state())


def best(
    candidates: Candidates, forced: list[int], free: IntArray, panel_values: FloatArray
) -> tuple[list[int], float] | None:
    """The best feasible panel of all `forced` candidates and any of the `free` ones, and its value.

    panel_values: (2^|free|,) the value of each such panel. `Candidates.preferred` settles ties over *all* tied panels.
    None where no such panel is feasible.
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
