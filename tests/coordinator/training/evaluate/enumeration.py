"""The panel of one request by looking at every subset: what the planner's choices are held against."""

from __future__ import annotations

import itertools

import numpy as np

from moe2.coordinator.training.evaluate.routers import PanelProblem


def best_panel(problem: PanelProblem) -> tuple[int, ...]:
    """The largest 1 - prod(1 - p) wins, ties go to fewer joules, then lower numbers; empty where nothing fits."""
    alone = problem.available & (problem.delay_s <= problem.max_delay_s) & (problem.energy_j <= problem.max_energy_j)
    members = [int(n) for n in np.flatnonzero(alone)]
    best: tuple[int, ...] = ()
    best_rank = (0.0, 0.0)
    for count in range(1, min(problem.max_experts, len(members)) + 1):
        for panel in itertools.combinations(members, count):
            chosen = list(panel)
            energy_j = float(problem.energy_j[chosen].sum())
            if energy_j > problem.max_energy_j:
                continue
            rank = (1 - float(np.prod(1 - problem.probabilities[chosen])), -energy_j)
            if not best or rank > best_rank:
                best, best_rank = panel, rank
    return best
