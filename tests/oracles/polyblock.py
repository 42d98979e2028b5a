"""Discrete polyblock outer approximation: the textbook method for monotonic optimization, kept as a reference.

Tuy, Minoux, Hoai-Phuong, "Discrete monotonic optimization with application to a discrete location problem",
SIAM J. Optim. 17 (2006): maximise an increasing f over {x in S : g(x) <= 0}, g increasing. A polyblock (a
union of boxes [0, v] over vertices v) covers the feasible set. Take the vertex with the largest f; if it is
feasible it is optimal; else project it on the boundary of the feasible set along the ray from 0 (by
bisection), lower the projection to the next point of S (lower S-adjustment), cut the cone above that point
off, and replace the vertex by its n children.

On S = {0, 1}^n the adjusted point of an infeasible vertex is 0 (the ray scales all coordinates below 1), so a
vertex's children are the vertex with one 1 turned to 0: best-first search downwards from the full set.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np

from moe2.coordinator.planning.candidates import Candidates, Incumbent, tie_width
from moe2.coordinator.planning.problem import Problem
from moe2.coordinator.planning.proof import Plan, infeasible_plan, proven_plan
from moe2.coordinator.planning.values import FloatArray

_BISECTIONS = 30


def _keeps_limits(candidates: Candidates, x: FloatArray) -> bool:
    """True where x in [0, 1]^n keeps the limits: sums are linear, sizes and delays count experts with a share."""
    support = np.flatnonzero(x > 0.0)
    if len(support) == 0:
        return True
    if len(support) > int(candidates.largest[support].min()):
        return False
    return bool((candidates.sums @ x <= candidates.ceilings[:, len(support)]).all())


def project(candidates: Candidates, vertex: FloatArray) -> FloatArray:
    """The last point on the ray from 0 to the infeasible `vertex` that keeps the limits, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if _keeps_limits(candidates, middle * vertex):
            low = middle
        else:
            high = middle
    return low * vertex


def adjust(point: FloatArray) -> FloatArray:
    """Lower S-adjustment: the largest 0/1 point that is not above `point` anywhere."""
    return np.floor(point)


def plan(
    problem: Problem,
    *,
    node_limit: int | None = None,
    time_limit_s: float | None = None,
    clock: Callable[[], float] | None = None,
) -> Plan:
    """The plan found by polyblocks; it is exact unless a limit cuts it short, and then its bound is valid.

    Vertices that were met before, or whose value cannot beat the best panel met, are dropped. `Candidates.preference`
    settles ties among the vertices that the search visits.
    """
    started = clock() if clock else 0.0
    candidates = Candidates.of(problem)
    if candidates.count == 0:
        return infeasible_plan(problem, "polyblock", clock() - started if clock else None)
    incumbent = Incumbent(candidates, [])
    for n in range(candidates.count):
        incumbent.offer([n])
    top = tuple(range(candidates.count))
    heap = [(-candidates.value_of(list(top)), top)]
    met = {top}
    nodes = 0
    while heap and -heap[0][0] > incumbent.value + tie_width(incumbent.value):
        if node_limit is not None and nodes >= node_limit:
            break
        if time_limit_s is not None and clock and clock() - started >= time_limit_s:
            break
        negative, members = heapq.heappop(heap)
        nodes += 1
        if candidates.is_feasible(list(members)):
            incumbent.offer(list(members), -negative)
            continue
        vertex = np.zeros(candidates.count)
        vertex[list(members)] = 1.0
        adjusted = adjust(project(candidates, vertex))
        for member in members:
            if adjusted[member] > 0.0:
                continue
            child = tuple(n for n in members if n != member)
            if child and child not in met:
                met.add(child)
                value = candidates.value_of(list(child))
                if value > incumbent.value + tie_width(incumbent.value):
                    heapq.heappush(heap, (-value, child))
    bound = max(incumbent.value, -heap[0][0]) if heap else incumbent.value
    incumbent.thin()
    return proven_plan(
        problem,
        candidates.index[incumbent.members].tolist(),
        method="polyblock",
        value=incumbent.value,
        upper_bound=bound,
        nodes=nodes,
        elapsed_s=clock() - started if clock else None,
    )
