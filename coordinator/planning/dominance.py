"""Which experts are worse than another in every way: never worth more on any prompt, never cheaper in any
cost.
"""

from __future__ import annotations

import numpy as np

from moe2.coordinator.planning.candidates import Candidates
from moe2.coordinator.planning.values import Coverage, IntArray


def superiors(candidates: Candidates) -> list[IntArray]:
    """For each candidate the others that can replace it in any panel at no loss of value and no cost.

    Some best panel holds an expert only together with all its superiors. Of two experts equal in everything
    the one with the earlier name is superior, so the relation has no cycles.
    """
    worth = -candidates.states if isinstance(candidates.problem.value, Coverage) else candidates.states
    costs = np.vstack([candidates.sums, candidates.energy_j, candidates.delay_s, -candidates.largest])
    found = []
    for n in range(candidates.count):
        better = np.flatnonzero((costs <= costs[:, n : n + 1]).all(axis=0))
        better = better[better != n]
        if len(better):
            better = better[(worth[better] >= worth[n]).all(axis=1)]
        if len(better):
            same = (worth[better] == worth[n]).all(axis=1) & (costs[:, better] == costs[:, n : n + 1]).all(
                axis=0
            )
            better = better[~same | (better < n)]
        found.append(better)
    return found
