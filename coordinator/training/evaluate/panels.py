"""The choice of a panel under budgets by the planner, from one prompt's probabilities alone. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moe2.coordinator.planning import search
from moe2.coordinator.planning.problem import Aggregation, Costs, PanelBudgets, Problem
from moe2.coordinator.planning.values import Coverage

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PanelProblem:
    """One request for which a panel is chosen among N experts."""

    probabilities: FloatArray
    """(N,) probability that each expert answers well."""
    energy_j: FloatArray
    """(N,)"""
    delay_s: FloatArray
    """(N,)"""
    available: BoolArray
    """(N,) False where an expert is ruled out."""
    max_energy_j: float
    """Limit on the sum over the panel; inf for none."""
    max_delay_s: float
    """Limit on the slowest member; inf for none."""
    max_experts: int


class PanelSelector(Protocol):
    """A way to choose panels."""

    def select(self, problem: PanelProblem) -> tuple[int, ...]:
        """The members of the chosen panel, ascending; empty where nothing fits."""
        ...


class Planner:
    """The exact planner: the largest 1 - prod(1 - p) wins, ties go to fewer joules, less delay, lower numbers."""

    def select(self, problem: PanelProblem) -> tuple[int, ...]:
        """The members of the best panel, ascending; empty where nothing fits."""
        count = problem.probabilities.size
        names, nothing, aggregation = _frame(count)
        costs = Costs(problem.energy_j, nothing, nothing, nothing, problem.delay_s)
        plan = search.plan(
            Problem(
                names=names,
                value=Coverage(problem.probabilities[None]),
                p50=costs,
                p95=costs,
                aggregation=aggregation,
                budgets=PanelBudgets(
                    energy_j=_limit(problem.max_energy_j),
                    delay_s=_limit(problem.max_delay_s),
                    max_experts=problem.max_experts,
                ),
                ruled_out={names[n]: "does not fit" for n in np.flatnonzero(~problem.available).tolist()},
            )
        )
        return tuple(sorted(plan.members))


def _limit(value: float) -> float | None:
    return None if np.isinf(value) else value


@lru_cache(maxsize=8)
def _frame(count: int) -> tuple[tuple[str, ...], FloatArray, Aggregation]:
    """Names whose alphabetical order is that of the numbers, costs (count,) of 0, and an aggregation without cost."""
    width = len(str(count))
    return tuple(f"{n:0{width}d}" for n in range(count)), np.zeros(count), Aggregation.free(count)
