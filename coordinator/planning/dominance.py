"""Which experts are worse than another in every way: nowhere worth more, and never cheaper in any cost."""

from __future__ import annotations

import numpy as np

from moe2.coordinator.planning.candidates import Candidates
from moe2.coordinator.planning.values import IntArray


def superiors(candidates: Candidates) -> list[IntArray]:
    """For each candidate the others that can replace it in any panel at no loss of value and no cost.

    Some best panel holds an expert only together with all its superiors. Of two experts equal in everything
    the one with the earlier name is superior, so the relation has no cycles.
    """
    places = np.ix_(candidates.index, candidates.index)
    superior = candidates.problem.value.nowhere_worse[places]
    for cost in (*candidates.sums, candidates.energy_j, candidates.delay_s, -candidates.largest):
        superior &= cost[None, :] <= cost[:, None]
    later = np.arange(candidates.count)
    superior &= ~(superior.T & (later[None, :] >= later[:, None]))
    return [np.flatnonzero(row) for row in superior]
