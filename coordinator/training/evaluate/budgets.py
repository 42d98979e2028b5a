"""The grid of budgets under which routers are compared. PURE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from moe2.coordinator.training.evaluate.profiles import Costs

_QUANTILES: Final = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
_CROSSED: Final = (0.2, 0.5, 0.8)


@dataclass(frozen=True)
class Budget:
    """Limits on one request's predicted joules and seconds; None is no limit."""

    axis: str
    """The sweep that it belongs to: "none", "energy", "delay" or "both"."""
    max_energy_j: float | None
    max_delay_s: float | None


def budget_grid(costs: Costs) -> tuple[Budget, ...]:
    """The budgets of an evaluation: no limit, a sweep over energy, a sweep over delay, and both limits crossed.

    The limits are quantiles of the predicted costs of single answers, so that tight ones leave few experts and loose
    ones nearly all.
    """
    energies = _levels(costs.predicted_energy_j, _QUANTILES)
    delays = _levels(costs.predicted_delay_s, _QUANTILES)
    crossed = [
        Budget("both", energy, delay)
        for energy in _levels(costs.predicted_energy_j, _CROSSED)
        for delay in _levels(costs.predicted_delay_s, _CROSSED)
    ]
    return (
        Budget("none", None, None),
        *(Budget("energy", energy, None) for energy in energies),
        *(Budget("delay", None, delay) for delay in delays),
        *crossed,
    )


def feasible_under(budget: Budget, costs: Costs, runnable: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(rows, N) True where a single expert fits the budget by its predicted costs and is `runnable` (rows, N)."""
    fits = runnable.copy()
    if budget.max_energy_j is not None:
        fits &= costs.predicted_energy_j <= budget.max_energy_j
    if budget.max_delay_s is not None:
        fits &= costs.predicted_delay_s <= budget.max_delay_s
    return fits


def _levels(values: npt.NDArray[np.float64], quantiles: tuple[float, ...]) -> list[float]:
    return [float(f"{level:.3g}") for level in np.quantile(values, quantiles)]
