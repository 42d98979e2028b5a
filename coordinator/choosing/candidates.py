"""The coarse level: which experts a request may use, as a planning problem. PURE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from moe2.coordinator.choosing.forecast import Forecast, Range
from moe2.coordinator.choosing.panel_cost import Work
from moe2.coordinator.choosing.power_cap import FleetDraw
from moe2.coordinator.choosing.quality import Worth
from moe2.coordinator.choosing.request import Budgets
from moe2.coordinator.planning import problem as planning
from moe2.coordinator.planning import search
from moe2.coordinator.planning.candidates import Candidates
from moe2.coordinator.planning.proof import Plan, certified, infeasible
from moe2.coordinator.planning.values import FloatArray

TIME_LIMIT_S = 0.02


def problem_of(
    forecast: Forecast,
    worth: Worth,
    budgets: Budgets,
    ruled_out: Mapping[str, str],
    work: Work | None = None,
    draw: FleetDraw | None = None,
) -> planning.Problem:
    """The problem whose feasible panels are the sets that keep the budgets.

    work: None where one expert answers. Without `max_experts` each candidate then has to keep the energy budget alone;
    with it, all of them together, for the case that they have to be tried one after the other. With work, all members
    together always do. An expert whose cost is unknown is ruled out where the budget bounds that cost: what was not
    measured cannot be promised.

    draw: what the fleet draws, where it is capped. Each candidate has to keep the cap beside it; with work, all members
    together.
    """
    quantile = budgets.quantile or planning.Quantile.P95
    costs = _costs(forecast, quantile)
    # An answer that comes at once has no time per token.
    per_token_s = None if work is not None and work.delivers_at_once else budgets.tpot_budget_s
    return planning.Problem(
        names=forecast.roster.keys,
        value=worth.value,
        # The budgets hold for one quantile, and no solver looks at the other.
        p50=costs,
        p95=costs,
        aggregation=_joining(work, len(forecast.roster), quantile),
        budgets=planning.Budgets(
            energy_j=budgets.energy_budget_j,
            delay_s=budgets.latency_budget_s,
            first_token_s=budgets.ttft_budget_s,
            per_token_s=per_token_s,
            power_w=draw.cap_w if draw else None,
            drawn_w=draw.drawn_w if draw else 0.0,
            max_experts=work.size if work else budgets.max_experts,
            quantile=quantile,
            one_runs=work is None and budgets.max_experts is None,
            one_at_a_time=work is None,
        ),
        power_w=np.nan_to_num(forecast.added_w) if draw else None,
        ruled_out={**_unmeasured(forecast, budgets), **_unmetered(forecast, draw), **ruled_out},
    )


def solve(problem: planning.Problem, worth: Worth, *, clock: Callable[[], float]) -> Plan:
    """The exact best candidate set, or the best found within `TIME_LIMIT_S` with its certified gap."""
    if problem.budgets.max_experts is None and problem.budgets.one_runs:
        return _all_that_fit(problem, clock)
    return search.plan(problem, table=worth.table, effort=search.Effort(time_limit_s=TIME_LIMIT_S), clock=clock)


def _all_that_fit(problem: planning.Problem, clock: Callable[[], float]) -> Plan:
    """The plan where no limit couples the candidates: every expert that keeps the budgets alone is one.

    Optimal because the value never falls when a candidate joins.
    """
    started_s = clock()
    candidates = Candidates.of(problem)
    if candidates.count == 0:
        return infeasible(problem, "uncoupled", clock() - started_s)
    value = candidates.value_of(list(range(candidates.count)))
    return certified(
        problem,
        candidates.index.tolist(),
        method="uncoupled",
        value=value,
        upper_bound=value,
        nodes=1,
        elapsed_s=clock() - started_s,
    )


@lru_cache(maxsize=64)
def _no_aggregation(experts: int) -> planning.Aggregation:
    return planning.Aggregation.free(experts)


def _joining(work: Work | None, experts: int, quantile: planning.Quantile) -> planning.Aggregation:
    """What a panel's members take on top of their own parts, once they are two."""
    if work is None:
        return _no_aggregation(experts)
    seconds = work.joining_s.p50 if quantile is planning.Quantile.P50 else work.joining_s.p95
    delay_s = np.where(np.arange(experts + 1) < 2, 0.0, seconds)
    first_s = delay_s if work.delivers_at_once else np.zeros(experts + 1)
    return planning.Aggregation(energy_j=np.zeros(experts + 1), delay_s=delay_s, first_token_s=first_s)


def _costs(forecast: Forecast, quantile: planning.Quantile) -> planning.Costs:
    """Costs at one quantile. Unknown ones count as the most expensive known: they matter only where nothing bounds them
    there a tie should not go to the expert that nobody has measured.
    """
    first_s, total_s = _known(forecast.ttft_s, quantile), _known(forecast.total_s, quantile)
    transmit_s = np.minimum(forecast.roster.transmit_s, first_s)
    return planning.Costs(
        energy_j=_known(forecast.energy_j, quantile),
        queue_s=np.zeros(len(first_s)),
        transmit_s=transmit_s,
        # The agent's model predicts queue and prefill together, as the time to the first token.
        prefill_s=first_s - transmit_s,
        decode_s=np.maximum(total_s - first_s, 0.0),
        per_token_s=_known(forecast.per_token_s, quantile),
    )


def _known(cost: Range, quantile: planning.Quantile) -> FloatArray:
    """(N,) with the most expensive known in place of unknown."""
    figures = cost.p50 if quantile is planning.Quantile.P50 else cost.p95
    unknown = np.isnan(figures)
    if not unknown.any():
        return figures
    most_expensive = 0.0 if unknown.all() else float(figures[~unknown].max())
    return np.where(unknown, most_expensive, figures)


def _unmeasured(forecast: Forecast, budgets: Budgets) -> dict[str, str]:
    roster = forecast.roster
    reasons: dict[str, str] = {}
    if budgets.bounds_time and not roster.speed_known.all():
        for place in np.flatnonzero(~roster.speed_known):
            reasons[roster.keys[place]] = "its speed has not been measured, and the request bounds time"
    if budgets.energy_budget_j is not None and not roster.energy_known.all():
        for place in np.flatnonzero(~roster.energy_known):
            reasons[roster.keys[place]] = "its energy has not been measured, and the request bounds energy"
    return reasons


def _unmetered(forecast: Forecast, draw: FleetDraw | None) -> dict[str, str]:
    """Experts whose watts nobody knows, where the fleet's are capped."""
    if draw is None:
        return {}
    reasons: dict[str, str] = {}
    for place in np.flatnonzero(np.isnan(forecast.added_w)):
        reasons[forecast.roster.keys[place]] = (
            "its power has not been measured, and the fleet's is capped; `moe2-agent bench` measures it"
        )
    for expert in forecast.roster.experts if draw.unmeasured else ():
        if expert.agent_id in draw.unmeasured:
            reasons[expert.key] = "its host's power is not measured, and the fleet's is capped"
    return reasons
