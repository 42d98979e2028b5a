"""Brute force over every panel: the reference for the other solvers, for up to twenty experts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from moe2.coordinator.planning import lattice
from moe2.coordinator.planning.candidates import Candidates, Incumbent
from moe2.coordinator.planning.problem import Problem, ProblemError, exceeds
from moe2.coordinator.planning.proof import Plan, infeasible_plan, proven_plan

_BLOCK_BITS = 12


def plan(problem: Problem, *, clock: Callable[[], float] | None = None) -> Plan:
    """The plan with the best of all 2^N panels, found with none of the shortcuts of the other solvers.

    `Candidates.preference` settles ties over all panels. It takes O(2^N (M + N)) time, in blocks of 2^12 panels. Raises
    ProblemError above 20 experts.
    """
    started = clock() if clock else None
    experts = len(problem.names)
    if experts > lattice.MAX_LISTED:
        raise ProblemError(f"Brute force over {experts} experts would list 2^{experts} panels.")
    order = sorted(range(experts), key=problem.names.__getitem__)
    states = problem.value.states[order]
    held = min(experts, _BLOCK_BITS)
    kept_masks, kept_values = [], []
    for high in range(1 << (experts - held)):
        above = [held + bit for bit in range(experts - held) if high >> bit & 1]
        base = problem.value.state_of([order[n] for n in above])
        block = lattice.states(problem.value, states[:held], base)
        masks = (high << held) + np.arange(1 << held)
        feasible = _feasible(problem, order, masks)
        kept_masks.append(masks[feasible])
        kept_values.append(problem.value.average(block[feasible]))
    masks, values = np.concatenate(kept_masks), np.concatenate(kept_values)
    elapsed_s = clock() - started if clock and started is not None else None
    if len(masks) == 0:
        return infeasible_plan(problem, "exhaustive", elapsed_s)
    candidates = Candidates.of(problem)
    place = {int(n): position for position, n in enumerate(candidates.index)}
    incumbent = Incumbent(candidates, [])
    peak = values.max()
    for mask in masks[values >= peak - 1e-8 * max(1.0, abs(peak))] if np.isfinite(peak) else masks[:1]:
        members = [place[order[bit]] for bit in range(experts) if int(mask) >> bit & 1]
        incumbent.offer(members)
    return proven_plan(
        problem,
        candidates.index[incumbent.members].tolist(),
        method="exhaustive",
        value=incumbent.value,
        upper_bound=incumbent.value,
        nodes=1 << experts,
        elapsed_s=elapsed_s,
    )


def _feasible(problem: Problem, order: list[int], masks: np.typing.NDArray[np.intp]) -> np.typing.NDArray[np.bool_]:
    """True for each panel of `masks` that keeps every limit, straight from the definitions."""
    experts = len(order)
    members = (masks[:, None] >> np.arange(experts) & 1).astype(np.bool_)
    sizes = members.sum(axis=1)
    ok = (sizes >= 1) & (sizes <= problem.largest_panel)
    barred = np.array([problem.names[n] in problem.ruled_out for n in order])
    ok &= ~members[:, barred].any(axis=1)
    for total in problem.sum_limits():
        ok &= ~exceeds(members @ total.cost[order] + total.by_size[sizes], total.limit)
    for most in problem.max_limits():
        slowest = np.where(members, most.cost[order], 0.0).max(axis=1)
        ok &= ~exceeds(slowest + most.by_size[sizes], most.limit)
    return np.asarray(ok)
