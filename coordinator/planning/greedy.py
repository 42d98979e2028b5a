"""Greedy panels: growth by gain per cost, then exchanges. They are the search's first incumbents, and a baseline.

`grow`, `exchange` and `offer_greedy_panels` serve the search; `plan` is the greedy solver by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from moe2.coordinator.planning.candidates import Candidates, Incumbent, tie_width
from moe2.coordinator.planning.problem import Problem
from moe2.coordinator.planning.proof import Plan, infeasible_plan, proven_plan
from moe2.coordinator.planning.values import BoolArray, FloatArray, IntArray

Stop: TypeAlias = Callable[[], bool]
"""Returns True when the time is up."""

_MAX_EXCHANGES = 4
"""A local optimum is usually reached after one or two exchanges."""
_MAX_ENTERING = 128
"""Most candidates that an exchange tries in the place of each member."""
_MAX_GROWN_FROM = 256
"""Most candidates by worth, and most by worth for their cost, that the first panels of a large fleet are grown from."""
_LOOKED_AT = 32
"""Candidates whose gains are looked at first, the most promising; then twice as many, and so on."""


def never() -> bool:
    """A `Stop` for work without a time limit: it always returns False."""
    return False


def burden(candidates: Candidates, cap: int) -> FloatArray:
    """(n,) each candidate's largest share of any sum limit, or of `cap` places in the panel."""
    room = np.maximum(candidates.ceilings[:, 1:2], np.finfo(np.float64).tiny)
    return np.asarray((candidates.sums / room).max(axis=0, initial=1.0 / cap))


def grow(
    candidates: Candidates, members: list[int], pool: BoolArray, weight: FloatArray, stop: Stop = never
) -> list[int]:
    """The panel that grows from `members` by the candidate with the largest gain per weight, as long as one gains.

    pool: (n,) candidates that may join. weight: (n,) positive. `stop` ends the growth early.
    """
    value = candidates.problem.value
    grown = list(members)
    state = value.state_of(candidates.index[grown])
    current, nothing = float(value.average(state)), float(value.average(value.empty_state()))
    # What each would add at most: gains only fall as the panel grows.
    if np.isfinite(nothing):
        gains = candidates.alone - nothing
    else:
        gains = np.full(candidates.count, np.inf) if grown else candidates.alone
    while len(choices := candidates.addable(grown, pool)) and not (grown and stop()):
        place = _largest_gain(candidates, state, current, choices, gains, weight)
        if grown and float(gains[place]) <= tie_width(current):
            break
        grown.append(place)
        state = value.combine(state, candidates.states_of([place])[0])
        if not np.isfinite(current):
            gains[:] = np.inf
        current = float(value.average(state))
    return grown


def _largest_gain(
    candidates: Candidates, state: FloatArray, current: float, choices: IntArray, gains: FloatArray, weight: FloatArray
) -> int:
    """The choice with the largest gain per weight on top of a panel; of equal ones the first.

    state: (M,) of the panel. current: its value; where it is no number, values count without weights. gains: (n,) upper
    bounds on the gains, which become exact for those that are looked at.
    """
    value = candidates.problem.value
    per = weight if np.isfinite(current) else np.ones(candidates.count)
    bound = gains[choices] / per[choices]
    order = choices[np.argsort(-bound, kind="stable")]
    best, rate = -1, -np.inf
    start, count = 0, _LOOKED_AT
    while len(part := order[start : start + count]):
        if gains[part[0]] / per[part[0]] < rate:
            break
        reached = value.cross(state[None], candidates.states_of(part))[0]
        gains[part] = reached - current if np.isfinite(current) else reached
        rates = gains[part] / per[part]
        first = int(part[rates == rates.max()].min())
        if rates.max() > rate or (rates.max() == rate and first < best):
            best, rate = first, float(rates.max())
        start, count = start + count, 2 * count
    return best


def exchange(
    candidates: Candidates, members: list[int], pool: BoolArray, weight: FloatArray, stop: Stop = never
) -> list[int]:
    """The panel that results from swapping one member for one candidate, the best swap first, as long as that gains.

    pool: (n,) candidates that may join. weight: (n,), by which the panel is grown again after each swap. `stop` ends
    the exchanges early.
    """
    value = candidates.problem.value
    panel = sorted(members)
    worth = candidates.value_of(panel)
    for _ in range(_MAX_EXCHANGES):
        entering = np.flatnonzero(pool & (candidates.largest >= len(panel)))
        entering = entering[~np.isin(entering, panel)]
        if len(entering) > _MAX_ENTERING:
            reached = value.cross(value.state_of(candidates.index[panel])[None], candidates.states_of(entering))[0]
            entering = np.sort(entering[np.argsort(-reached, kind="stable")[:_MAX_ENTERING]])
        if len(entering) == 0 or stop():
            return panel
        left = candidates.sums[:, panel]
        fits = np.ones((len(panel), len(entering)), dtype=np.bool_)
        for row, own, ceiling in zip(candidates.sums, left, candidates.ceilings, strict=True):
            fits &= row[entering] <= (ceiling[len(panel)] - own.sum()) + own[:, None]
        reached = np.where(fits, value.cross(candidates.without_each(panel), candidates.states_of(entering)), -np.inf)
        leaving, place = divmod(int(reached.argmax()), len(entering))
        if not reached[leaving, place] > worth + tie_width(worth):
            return panel
        swapped = [*panel[:leaving], *panel[leaving + 1 :], int(entering[place])]
        if not candidates.is_feasible(swapped):  # the sums above were rounded differently
            return panel
        panel = sorted(grow(candidates, swapped, pool, weight, stop))
        worth = candidates.value_of(panel)
    return panel


def offer_greedy_panels(candidates: Candidates, incumbent: Incumbent, stop: Stop = never) -> None:
    """Offer the best single candidates, a greedy panel, and one without candidates that only fit small panels."""
    alone = candidates.alone
    peak = float(alone.max())
    for single in np.flatnonzero(alone >= peak - tie_width(peak)):
        incumbent.offer([int(single)], float(alone[single]))
    most = max(1, candidates.max_joining([], np.arange(candidates.count)))
    weight = burden(candidates, most)
    pool = _shortlist(candidates, weight)
    grown = grow(candidates, [], pool, weight, stop)
    incumbent.offer(grown)
    quick = pool & (candidates.largest >= most)
    if len(grown) < most and quick.any() and quick.sum() < pool.sum() and not stop():
        incumbent.offer(grow(candidates, [], quick, weight, stop))


def _shortlist(candidates: Candidates, weight: FloatArray) -> BoolArray:
    """(n,) True for those candidates that are worth most, and most for their weight; for all where they are few."""
    short: BoolArray = np.zeros(candidates.count, dtype=np.bool_)
    worth = candidates.alone
    if not np.isfinite(worth).all() or candidates.count <= 2 * _MAX_GROWN_FROM:
        return ~short
    for rating in (worth, (worth - worth.min()) / weight):
        short[np.argsort(-rating, kind="stable")[:_MAX_GROWN_FROM]] = True
    return short


def plan(problem: Problem, *, clock: Callable[[], float] | None = None) -> Plan:
    """The greedy solver's plan: a feasible panel whose only bound is the value of all candidates together.

    clock: monotonic seconds, for the time in the proof.
    """
    started = clock() if clock else None
    candidates = Candidates.of(problem)
    elapsed = (lambda: clock() - started) if clock and started is not None else (lambda: None)
    if candidates.count == 0:
        return infeasible_plan(problem, "greedy", elapsed())
    incumbent = Incumbent(candidates, [])
    offer_greedy_panels(candidates, incumbent)
    cap = int(candidates.largest.max())
    pool = np.ones(candidates.count, dtype=np.bool_)
    incumbent.offer(grow(candidates, [], pool, np.ones(candidates.count)))
    incumbent.offer(exchange(candidates, incumbent.members, pool, burden(candidates, cap)))
    return proven_plan(
        problem,
        candidates.index[incumbent.members].tolist(),
        method="greedy",
        value=incumbent.value,
        upper_bound=candidates.value_of(list(range(candidates.count))),
        nodes=0,
        elapsed_s=elapsed(),
    )
