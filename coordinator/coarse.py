"""The coarse level: which experts a request may use, as a planning problem. PURE."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moe2.common.cost import Quantiles
from moe2.coordinator.appraisal import FloatArray
from moe2.coordinator.budgets import Budgets
from moe2.coordinator.planning import branch
from moe2.coordinator.planning import problem as planning
from moe2.coordinator.planning.certificate import Plan
from moe2.coordinator.planning.values import BestOf
from moe2.coordinator.predict import Prediction
from moe2.coordinator.table import Expert

TIME_LIMIT_S = 0.02

Pick = Callable[[Prediction], Quantiles | None]


def problem_of(
    experts: Sequence[Expert],
    predictions: Sequence[Prediction],
    on_the_whole: FloatArray,
    budgets: Budgets,
    ruled_out: Mapping[str, str],
) -> planning.Problem:
    """The problem whose feasible panels are the candidate sets that keep the budgets.

    on_the_whole: (K, N) scores per kind of prompt. The value is that of the best member per kind, since one expert
    answers. Without `max_experts` each candidate has to keep the energy budget alone; with it, all of them together,
    for the case that they have to be tried one after the other. An expert whose cost is unknown is ruled out where the
    budget bounds that cost: what was not measured cannot be promised.
    """
    names = tuple(expert.key for expert in experts)
    return planning.Problem(
        names=names,
        value=BestOf(on_the_whole),
        p50=_costs(predictions, "p50"),
        p95=_costs(predictions, "p95"),
        aggregation=planning.Aggregation.free(len(names)),
        budgets=planning.Budgets(
            energy_j=budgets.energy_budget_j,
            delay_s=budgets.latency_budget_s,
            first_token_s=budgets.ttft_budget_s,
            per_token_s=budgets.tpot_budget_s,
            max_experts=budgets.max_experts,
            quantile=budgets.quantile or planning.Quantile.P95,
            one_runs=budgets.max_experts is None,
        ),
        ruled_out={**_unmeasured(experts, predictions, budgets), **ruled_out},
    )


def solve(problem: planning.Problem, *, clock: Callable[[], float]) -> Plan:
    """The exact best candidate set, or the best found within `TIME_LIMIT_S` with its certified gap."""
    return branch.plan(problem, effort=branch.Effort(time_limit_s=TIME_LIMIT_S), clock=clock)


def _costs(predictions: Sequence[Prediction], quantile: str) -> planning.Costs:
    """Costs at one quantile. Unknown ones count as the dearest known: they only matter where nothing bounds them, and
    there a tie should not go to the expert that nobody has measured.
    """
    nothing = np.zeros(len(predictions))
    first_s = _column(predictions, lambda prediction: prediction.ttft_s, quantile)
    total_s = _column(predictions, lambda prediction: prediction.total_s, quantile)
    transmit_s = np.array([prediction.transmit_s for prediction in predictions])
    return planning.Costs(
        energy_j=_column(predictions, lambda prediction: prediction.energy_j, quantile),
        queue_s=nothing,
        transmit_s=np.minimum(transmit_s, first_s),
        # The agent's model predicts queue and prefill together, as the time to the first token.
        prefill_s=np.maximum(first_s - transmit_s, 0.0),
        decode_s=np.maximum(total_s - first_s, 0.0),
        per_token_s=_column(predictions, lambda prediction: prediction.per_token_s, quantile),
    )


def _column(predictions: Sequence[Prediction], pick: Pick, quantile: str) -> FloatArray:
    known = [None if (value := pick(prediction)) is None else getattr(value, quantile) for prediction in predictions]
    dearest = max((value for value in known if value is not None), default=0.0)
    return np.array([dearest if value is None else value for value in known])


def _unmeasured(experts: Sequence[Expert], predictions: Sequence[Prediction], budgets: Budgets) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for expert, prediction in zip(experts, predictions, strict=True):
        if budgets.energy_budget_j is not None and prediction.energy_j is None:
            reasons[expert.key] = "its energy has not been measured, and the request bounds energy"
        elif budgets.bounds_time and prediction.total_s is None:
            reasons[expert.key] = "its speed has not been measured, and the request bounds time"
    return reasons
