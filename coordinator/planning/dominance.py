"""Dominance between experts: who can replace whom in any panel, so that large fleets shrink before they are searched.

An expert is *superior* to another if it can take its place in any panel at no loss of value and at no further cost. Of
two that are equal in everything the one with the earlier name is superior, so that the relation has no cycles. An
expert with k superiors is in no panel of up to k members that has to be looked at: one of the superiors is outside the
panel and can take its place, and so on until no member has k superiors. Where the best member alone counts, one
superior is enough: beside it the expert adds nothing.
"""

from __future__ import annotations

import numpy as np

from moe2.coordinator.planning.candidates import Candidates
from moe2.coordinator.planning.values import BoolArray, FloatArray, IntArray, rank_among_twins

MIN_REDUCED = 33
"""Fewest candidates of which it pays to drop some before a search."""
MAX_REFERENCES = 128
"""Most candidates that all others are compared with, so that the time grows evenly with the fleet."""


def superiors(candidates: Candidates, expert: int) -> IntArray:
    """The superiors of a candidate, ascending."""
    others = np.arange(candidates.count)
    return others[_is_superior(candidates, others, np.full(candidates.count, expert))]


def inferiors(candidates: Candidates, expert: int, among: IntArray) -> BoolArray:
    """(A,) True where `among` (A,) has the candidate `expert` as a superior."""
    return _is_superior(candidates, np.full(len(among), expert), among)


def undominated(candidates: Candidates, most: int, keep: IntArray, *further: FloatArray) -> IntArray:
    """The candidates, ascending, without those that no best panel of up to `most` members needs.

    keep: candidates that stay in any case. further: (n,) what else superiors must not have more of. Superiors are
    sought among `MAX_REFERENCES` candidates only, so some that could be dropped may stay.
    """
    count = candidates.count
    everyone = np.arange(count)
    if count < MIN_REDUCED or (most >= min(count, MAX_REFERENCES) and not candidates.problem.value.adds_nothing_twice):
        return everyone
    value, index = candidates.problem.value, candidates.index
    if value.adds_nothing_twice:
        most = 1
    reference = _references(candidates)
    costs = (*_costs(candidates), *further)
    is_twin = value.twins[index[reference]][None, :] == value.twins[index][:, None]
    # Experts of different models are rarely better on every prompt, and dear to compare where they are many.
    is_superior = value.kinds_nowhere_worse(index[reference], index) if value.is_of_few_kinds else is_twin
    for cost in costs:
        is_superior = is_superior & (cost[reference][None, :] <= cost[:, None])
    expert, column = np.nonzero(is_superior & is_twin)
    is_equal = np.ones(len(expert), dtype=np.bool_)
    for cost in costs:
        is_equal &= cost[reference[column]] == cost[expert]
    # Candidates are in the order of their names.
    is_superior[expert, column] = ~is_equal | (reference[column] < expert)
    kept = is_superior.sum(axis=1) < most
    kept[keep] = True
    return np.flatnonzero(kept)


def _references(candidates: Candidates) -> IntArray:
    """The candidates that are likely to be superior to many: the cheapest with the same states, then those of value."""
    rank = rank_among_twins(candidates.problem.value.twins[candidates.index], candidates.energy_j)
    return np.asarray(np.lexsort([-candidates.alone, rank])[:MAX_REFERENCES])


def _costs(candidates: Candidates) -> tuple[FloatArray, ...]:
    """All that a superior must not have more of, (n,) each."""
    return (*candidates.sums, candidates.energy_j, candidates.delay_s, -candidates.largest)


def _is_superior(candidates: Candidates, superior: IntArray, expert: IntArray) -> BoolArray:
    """(P,) True where `superior` (P,) is superior to `expert` (P,), pair by pair."""
    value, index = candidates.problem.value, candidates.index
    found = np.ones(len(expert), dtype=np.bool_)
    is_equal = value.twins[index[superior]] == value.twins[index[expert]]
    for cost in _costs(candidates):
        theirs, own = cost[superior], cost[expert]
        found &= theirs <= own
        is_equal &= theirs == own
    # Candidates are in the order of their names.
    found &= ~is_equal | (superior < expert)
    pairs = np.flatnonzero(found)
    found[pairs] = value.nowhere_worse(index[superior[pairs]], index[expert[pairs]])
    return found
