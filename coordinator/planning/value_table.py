"""Tables of the values of all panels of a fleet, which are computed once because they do not depend on requests.

With a table a request costs a few vector operations: which of the listed panels keep the limits, and which of those is
the best.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

from moe2.common.errors import Moe2Error
from moe2.coordinator.planning import lattice
from moe2.coordinator.planning.candidates import Candidates, tie_width
from moe2.coordinator.planning.values import BoolArray, FloatArray, IntArray, SetValue

MAX_PANELS = 1 << 20
"""Most panels of a table, which takes about 16 MB of values and members."""
_CHUNK = 1 << 13
"""Panels looked at together, best first."""


class TableError(Moe2Error):
    """A table of values would be too large, or does not list panels."""


@dataclass(frozen=True, eq=False)
class ValueTable:
    """The value of every panel of up to `largest_panel` experts: by mask in small fleets, else as a list of panels."""

    value: SetValue
    """The set value that the table was computed from."""
    largest_panel: int
    by_mask: FloatArray | None
    """(2^N,) values of all panels, where bit n of the place is expert n; None in a table that lists panels."""
    members: NDArray[np.int16] | None
    """(K, T) experts of the T panels of 1..K members, the best value first, padded with N; None beside `by_mask`."""
    sizes: NDArray[np.int16] | None
    """(T,) number of members of each listed panel; None beside `by_mask`."""
    values: FloatArray | None
    """(T,) value of each listed panel; None beside `by_mask`."""

    @classmethod
    def build(cls, value: SetValue, largest_panel: int | None = None) -> ValueTable:
        """The table of all panels, or of those of up to `largest_panel` experts.

        Raises TableError where these are more than MAX_PANELS.
        """
        experts = value.experts
        largest = min(largest_panel or experts, experts)
        count = sum(comb(experts, size) for size in range(1, largest + 1))
        if count > MAX_PANELS:
            raise TableError(
                f"A table of all panels of up to {largest} of {experts} experts would hold {count} values, "
                f"more than {MAX_PANELS}.",
                remedy="Limit max_experts, or plan without a table.",
            )
        if experts <= 16:
            by_mask = lattice.values(value, value.states, value.empty_state())
            by_mask.flags.writeable = False
            return cls(value, experts, by_mask, None, None, None)
        members = np.full((largest, count), experts, dtype=np.int16)
        sizes = np.empty(count, dtype=np.int16)
        values = np.empty(count)
        _list_panels(value, largest, members, sizes, values)
        order = np.argsort(-values, kind="stable")
        members, sizes, values = np.ascontiguousarray(members[:, order]), sizes[order], values[order]
        for array in (members, sizes, values):
            array.flags.writeable = False
        return cls(value, largest, None, members, sizes, values)

    def covers(self, candidates: Candidates) -> bool:
        """True where every feasible panel of these candidates is listed."""
        return candidates.problem.value is self.value and (
            self.by_mask is not None or int(candidates.largest.max(initial=0)) <= self.largest_panel
        )

    def best(self, candidates: Candidates) -> tuple[list[int], float, int] | None:
        """The best feasible panel of candidates, its value, and the number of panels looked at; None where none is.

        `Candidates.preferred` settles ties over all listed panels.
        """
        if self.by_mask is not None:
            values = self.by_mask
            if not np.array_equal(candidates.index, np.arange(self.value.experts)):
                values = values[lattice.masks(candidates.index)]
            found = lattice.best(candidates, [], np.arange(candidates.count), values)
            return None if found is None else (*found, len(values))
        return self._scan(candidates)

    def _scan(self, candidates: Candidates) -> tuple[list[int], float, int] | None:
        """The answer of `best` from listed panels, taken from the best down until none can tie with a feasible one."""
        if self.members is None or self.sizes is None or self.values is None:
            raise TableError("This table lists no panels.")
        experts = self.value.experts
        # One more place for the padding: it costs nothing and fits panels of any size.
        sums = np.full((len(candidates.sums), experts + 1), np.inf)
        sums[:, candidates.index] = candidates.sums
        sums[:, experts] = 0.0
        largest = np.zeros(experts + 1, dtype=np.int16)
        largest[candidates.index] = candidates.largest
        largest[experts] = experts
        tied: list[IntArray] = []
        floor, scanned = -np.inf, 0
        for start in range(0, len(self.values), _CHUNK):
            part = slice(start, start + _CHUNK)
            if self.values[start] < floor:
                break
            scanned += len(self.values[part])
            hits = self._feasible(part, candidates, sums, largest) + start
            if len(hits) and floor == -np.inf:
                peak = float(self.values[hits[0]])
                floor = peak - tie_width(peak)
            tied.append(hits[self.values[hits] >= floor])
        panels = self._panels(np.concatenate(tied), candidates)
        if len(panels) == 0:
            return None
        chosen = np.flatnonzero(panels[candidates.preferred(panels)])
        return chosen.tolist(), candidates.value_of(chosen), scanned

    def _panels(self, places: IntArray, candidates: Candidates) -> BoolArray:
        """(T, n) the membership of the candidates in the listed panels at `places` (T,)."""
        if self.members is None:
            return np.empty((0, candidates.count), dtype=np.bool_)
        fleet = np.zeros((len(places), self.value.experts + 1), dtype=np.bool_)
        fleet[np.arange(len(places))[None], self.members[:, places]] = True
        return fleet[:, candidates.index]

    def _feasible(self, part: slice, candidates: Candidates, sums: FloatArray, largest: NDArray[np.int16]) -> IntArray:
        """Places within `part` of the listed panels that keep all limits. sums: (C, N + 1), largest: (N + 1,)."""
        if self.members is None or self.sizes is None:
            return np.empty(0, dtype=np.intp)
        rows, sizes = self.members[:, part], self.sizes[part]
        room = largest[rows[0]]
        for row in rows[1:]:
            room = np.minimum(room, largest[row])
        ok = sizes <= room
        for cost, ceiling in zip(sums, candidates.ceilings, strict=True):
            total = cost[rows[0]]
            for row in rows[1:]:
                total = total + cost[row]
            ok &= total <= ceiling[sizes]
        return np.flatnonzero(ok)


def _list_panels(
    value: SetValue,
    largest: int,
    members: NDArray[np.int16],
    sizes: NDArray[np.int16],
    values: FloatArray,
) -> None:
    """Fill the arrays with all panels, depth first; each prefix is extended by all later experts in one call."""
    experts, filled = value.experts, 0
    stack: list[tuple[list[int], FloatArray]] = [([], value.empty_state())]
    while stack:
        prefix, state = stack.pop()
        start = prefix[-1] + 1 if prefix else 0
        if start == experts:
            continue
        unions = value.combine(state, value.states[start:])
        part = slice(filled, filled + len(unions))
        for depth, expert in enumerate(prefix):
            members[depth, part] = expert
        members[len(prefix), part] = np.arange(start, experts)
        sizes[part] = len(prefix) + 1
        values[part] = value.average(unions)
        filled = part.stop
        if len(prefix) + 1 < largest:
            stack.extend(([*prefix, start + offset], union) for offset, union in enumerate(unions))
