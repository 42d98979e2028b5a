"""The choice of a panel under budgets, as evaluation needs it. Pure.

`PanelSelector` is what the planner offers; `Enumeration` looks at every subset, for fleets of at most ten experts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

ENUMERATION_LIMIT: Final = 10


@dataclass(frozen=True)
class PanelProblem:
    """One request. probabilities, energy_j, delay_s: (N,); available: (N,) False where an expert is ruled out.

    max_energy_j bounds the sum over the panel, max_delay_s the slowest member; inf where there is no limit.
    """

    probabilities: FloatArray
    energy_j: FloatArray
    delay_s: FloatArray
    available: BoolArray
    max_energy_j: float
    max_delay_s: float
    max_experts: int


class PanelSelector(Protocol):
    """Chooses a panel: the members' numbers, ascending; empty where nothing fits."""

    def select(self, problem: PanelProblem) -> tuple[int, ...]: ...


class Enumeration:
    """Every panel is looked at; the largest 1 - prod(1 - p) wins, ties go to fewer joules, then lower numbers."""

    def select(self, problem: PanelProblem) -> tuple[int, ...]:
        """The best panel. Raises ValueError above `ENUMERATION_LIMIT` experts."""
        size = problem.probabilities.size
        if size > ENUMERATION_LIMIT:
            raise ValueError(f"enumeration is for at most {ENUMERATION_LIMIT} experts, not {size}")
        alone = (
            problem.available & (problem.delay_s <= problem.max_delay_s) & (problem.energy_j <= problem.max_energy_j)
        )
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
