"""Minimal infeasible subsets: experts that no panel can hold together, each being needed for that."""

from __future__ import annotations

from collections import Counter

from moe2.coordinator.planning.candidates import Candidates
from moe2.coordinator.planning.values import FloatArray, IntArray


def minimal_infeasible(candidates: Candidates, held: list[int], free: IntArray, wish: FloatArray) -> list[int]:
    """A minimal C within `free` such that `held` and C together break a limit.

    `held` and all of `free` together must be infeasible. Any feasible panel that holds `held` lacks a member
    of C, so it is enough to branch on C. `wish` (n,) says how much a relaxation wants each candidate: the
    least wanted leave first, so the relaxation violates C most.
    """
    limits = [
        (row[free].tolist(), float(row[held].sum() + row[free].sum()), ceiling.tolist())
        for row, ceiling in zip(candidates.sums, candidates.ceilings, strict=True)
    ]
    totals = [total for _, total, _ in limits]
    size = len(held) + len(free)
    largest = candidates.largest[free].tolist()
    caps = Counter([*largest, *candidates.largest[held].tolist()])
    wanted = wish[free].tolist()
    kept = []
    for place in sorted(range(len(free)), key=lambda place: (wanted[place], place)):
        left = [total - cost[place] for total, (cost, _, _) in zip(totals, limits, strict=True)]
        caps[largest[place]] -= 1
        cap = min((cap for cap, count in caps.items() if count), default=size)
        broken = size - 1 > cap or any(
            total > ceiling[size - 1] for total, (_, _, ceiling) in zip(left, limits, strict=True)
        )
        if broken:
            totals, size = left, size - 1
        else:
            caps[largest[place]] += 1
            kept.append(int(free[place]))
    return kept
