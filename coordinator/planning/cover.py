"""Minimal infeasible subsets: sets of experts that no panel can hold together, each member being needed for
that.
"""

from __future__ import annotations

from moe2.coordinator.planning.candidates import Candidates
from moe2.coordinator.planning.values import FloatArray, IntArray


def minimal_infeasible(
    candidates: Candidates, held: list[int], free: IntArray, wish: FloatArray, cap: int
) -> list[int]:
    """A minimal C within `free` such that `held` and C together keep no limits or exceed `cap` members.

    `held` and all of `free` together must be infeasible. Any feasible panel that holds `held` lacks a member
    of C, so it is enough to branch on C. `wish` (n,) says how much a relaxation wants each candidate: the
    least wanted leave first, so C is a set that the relaxation violates most.
    """
    kept = sorted(free.tolist(), key=lambda n: (float(wish[n]), n))
    for expert in list(kept):
        rest = [n for n in kept if n != expert]
        panel = [*held, *rest]
        if len(panel) > cap or not (candidates.is_feasible(panel) or not panel):
            kept = rest
    return kept
