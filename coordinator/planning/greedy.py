"""Good panels fast: greedy growth by gain and by gain per cost, then exchanges. First incumbents, and a
baseline.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moe2.coordinator.planning.candidates import Candidates, Incumbent, tie_width
from moe2.coordinator.planning.certificate import Plan, certified, infeasible
from moe2.coordinator.planning.problem import Problem
from moe2.coordinator.planning.values import BoolArray, FloatArray

_EXCHANGES = 12
"""Most improving exchanges; a local optimum is usually met after two or three."""


def burden(candidates: Candidates) -> FloatArray:
    """Each candidate's largest share of any sum limit, (n,); 0 where there is none."""
    if len(candidates.sums) == 0:
        return np.zeros(candidates.count)
    room = np.maximum(candidates.ceilings[:, 1:2], np.finfo(np.float64).tiny)
    return np.asarray((candidates.sums / room).max(axis=0))


def grow(
    candidates: Candidates, members: list[int], pool: BoolArray, weight: FloatArray | None = None
) -> list[int]:
    """Add the candidate of `pool` with the largest gain (over `weight`) until none fits or gains."""
    value, states = candidates.problem.value, candidates.states
    grown = list(members)
    state = value.state_of(candidates.index[grown])
    current = float(value.average(state))
    while len(choices := candidates.addable(grown, pool)):
        reached = value.average(value.combine(state, states[choices]))
        gains = reached - current if np.isfinite(current) else reached
        if grown and float(gains.max()) <= tie_width(current):
            break
        if weight is not None and np.isfinite(current):
            gains = gains / weight[choices]
        best = int(choices[int(gains.argmax())])
        grown.append(best)
        state = value.combine(state, states[best])
        current = float(value.average(state))
    return grown


def exchange(candidates: Candidates, members: list[int], pool: BoolArray) -> list[int]:
    """Swap one member for one candidate of `pool` while that gains, and refill; first-best over all swaps."""
    value = candidates.problem.value
    panel = list(members)
    for _ in range(_EXCHANGES):
        worth = candidates.value_of(panel)
        best: tuple[float, list[int]] | None = None
        for leaving in panel:
            rest = [member for member in panel if member != leaving]
            choices = candidates.addable(rest, pool)
            choices = choices[choices != leaving]
            if len(choices) == 0:
                continue
            state = value.state_of(candidates.index[rest])
            reached = value.average(value.combine(state, candidates.states[choices]))
            top = int(reached.argmax())
            if float(reached[top]) > worth + tie_width(worth) and (best is None or reached[top] > best[0]):
                best = (float(reached[top]), [*rest, int(choices[top])])
        if best is None:
            return panel
        panel = grow(candidates, best[1], pool)
    return panel


def start(candidates: Candidates, incumbent: Incumbent) -> None:
    """Offer greedy panels for every panel size that the delay limits distinguish, the better one improved by
    swaps.
    """
    weight = np.maximum(burden(candidates), 1e-9)
    alone = candidates.problem.value.average(candidates.states)
    peak = float(alone.max())
    for single in np.flatnonzero(alone >= peak - tie_width(peak)):
        incumbent.offer([int(single)], float(alone[single]))
    for cap in sorted(set(candidates.largest.tolist())):
        pool = candidates.largest >= cap
        panels = [grow(candidates, [], pool), grow(candidates, [], pool, weight)]
        panel = max(panels, key=candidates.value_of)
        for grown in panels:
            incumbent.offer(grown)
        incumbent.offer(exchange(candidates, panel, pool))


def plan(problem: Problem, *, clock: Callable[[], float] | None = None) -> Plan:
    """Greedy alone: a feasible panel with the trivial bound (all candidates together), no proof."""
    started = clock() if clock else None
    candidates = Candidates.of(problem)
    elapsed = (lambda: clock() - started) if clock and started is not None else (lambda: None)
    if candidates.count == 0:
        return infeasible(problem, "greedy", elapsed())
    incumbent = Incumbent(candidates, [])
    start(candidates, incumbent)
    return certified(
        problem,
        candidates.index[incumbent.members].tolist(),
        method="greedy",
        value=incumbent.value,
        upper_bound=candidates.value_of(list(range(candidates.count))),
        nodes=0,
        elapsed_s=elapsed(),
    )
