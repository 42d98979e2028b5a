"""The coarse level of a choice: it states and solves which experts a request may use as a planning problem. PURE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from moe2.coordinator.choosing.forecast import Forecast, Range
from moe2.coordinator.choosing.panel_cost import Work
from moe2.coordinator.choosing.power_cap import FleetDraw
from moe2.coordinator.choosing.quality import SetWorth
from moe2.coordinator.choosing.request import Budgets
from moe2.coordinator.planning import lattice, search
from moe2.coordinator.planning.candidates import Candidates
from moe2.coordinator.planning.problem import Aggregation, Costs, PanelBudgets, Problem, Quantile
from moe2.coordinator.planning.proof import Plan, infeasible_plan, proven_plan
from moe2.coordinator.planning.values import FloatArray, IntArray, Listed

TIME_LIMIT_S = 0.02
"""A request waits this long for its plan at most; the plan's proof then states the gap that is left."""


def problem_of(
    forecast: Forecast,
    worth: SetWorth,
    budgets: Budgets,
    ruled_out: Mapping[str, str],
    work: Work | None = None,
    draw: FleetDraw | None = None,
) -> Problem:
    """The planning problem whose feasible panels are the sets of experts that keep the request's budgets.

    ruled_out: reasons by expert key. work: what a panel does; None where one expert answers. draw: what the fleet draws
    already; None without a cap.

    Where one expert answers, each candidate keeps the energy budget alone; with `max_experts` all of them keep it
    together, for the case that they have to be tried one after the other (see `best_first`). Members of a panel always
    keep it together. The fleet's cap holds likewise: for each candidate alone, or for a panel's members
    together. An expert whose cost is unknown is ruled out where a budget bounds that cost: what was not measured cannot
    be promised.
    """
    quantile = budgets.quantile or Quantile.P95
    costs = _costs(forecast, quantile)
    # An answer that comes at once has no time per token.
    per_token_s = None if work is not None and work.delivers_at_once else budgets.tpot_budget_s
    return Problem(
        names=forecast.roster.keys,
        value=worth.value,
        # The budgets hold for one quantile, and no solver looks at the other.
        p50=costs,
        p95=costs,
        aggregation=_panel_overhead(work, len(forecast.roster), quantile),
        budgets=PanelBudgets(
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


def solve(problem: Problem, worth: SetWorth, *, clock: Callable[[], float]) -> Plan:
    """The plan with the best candidate set, or with the best found within `TIME_LIMIT_S` and its proven gap.

    clock: monotonic seconds.
    """
    if isinstance(problem.value, Listed):
        return _listed(problem, clock)
    if problem.budgets.max_experts is None and problem.budgets.one_runs:
        return _uncoupled(problem, clock)
    return search.plan(problem, table=worth.table, effort=search.Effort(time_limit_s=TIME_LIMIT_S), clock=clock)


def _listed(problem: Problem, clock: Callable[[], float]) -> Plan:
    """The plan for a value that lists all panels of a few candidates; its proof is a look at every panel."""
    started_s = clock()
    candidates = Candidates.of(problem)
    value = problem.value
    found = None
    if candidates.count:
        worth = lattice.values(value, candidates.states_of(np.arange(candidates.count)), value.empty_state())
        found = lattice.best(candidates, [], np.arange(candidates.count), worth)
    if found is None:
        return infeasible_plan(problem, "listed", clock() - started_s)
    members, best = found
    return proven_plan(
        problem,
        candidates.index[members].tolist(),
        method="listed",
        value=best,
        upper_bound=best,
        nodes=1 << candidates.count,
        elapsed_s=clock() - started_s,
    )


def _uncoupled(problem: Problem, clock: Callable[[], float]) -> Plan:
    """The plan where no limit couples the candidates: every expert that keeps the budgets alone is a candidate.

    It is optimal because the value never falls when a candidate joins.
    """
    started_s = clock()
    candidates = Candidates.of(problem)
    if candidates.count == 0:
        return infeasible_plan(problem, "uncoupled", clock() - started_s)
    value = problem.value.of(candidates.index)
    return proven_plan(
        problem,
        candidates.index.tolist(),
        method="uncoupled",
        value=value,
        upper_bound=value,
        nodes=1,
        elapsed_s=clock() - started_s,
    )


def best_first(problem: Problem, best: Callable[[IntArray], int], *, clock: Callable[[], float]) -> Plan:
    """The plan where one expert answers and the others stand by: the best for this prompt, then the next best, ….

    best: the place of the best expert among those at some places. Each expert joins if all so far keep the limits
    together with it. It is optimal by the order of `best`: no feasible set holds an expert that comes before its first.
    clock: monotonic seconds.
    """
    started_s = clock()
    candidates = Candidates.of(problem)
    if candidates.count == 0:
        return infeasible_plan(problem, "best_first", clock() - started_s)
    members: list[int] = []
    joining = np.arange(candidates.count)
    while joining.size:
        place = best(candidates.index[joining])
        members.append(int(np.flatnonzero(candidates.index == place)[0]))
        joining = candidates.addable(members, np.ones(candidates.count, dtype=bool))
    value = candidates.value_of(members[:1])
    return proven_plan(
        problem,
        candidates.index[members].tolist(),
        method="best_first",
        value=value,
        upper_bound=value,
        nodes=len(members),
        elapsed_s=clock() - started_s,
    )


@lru_cache(maxsize=64)
def _no_aggregation(experts: int) -> Aggregation:
    return Aggregation.free(experts)


def _panel_overhead(work: Work | None, experts: int, quantile: Quantile) -> Aggregation:
    """What a panel of two and more members takes on top of its slowest member, by the panel's size."""
    if work is None:
        return _no_aggregation(experts)
    seconds = work.overhead_s.p50 if quantile is Quantile.P50 else work.overhead_s.p95
    delay_s = np.where(np.arange(experts + 1) < 2, 0.0, seconds)
    first_s = delay_s if work.delivers_at_once else np.zeros(experts + 1)
    return Aggregation(energy_j=np.zeros(experts + 1), delay_s=delay_s, first_token_s=first_s)


def _costs(forecast: Forecast, quantile: Quantile) -> Costs:
    """The experts' costs at one quantile, each (N,).

    An unknown cost counts as the most expensive known one. It matters only where no budget bounds it, and there a tie
    should not go to the expert that nobody has measured.
    """
    first_s, total_s = _known(forecast.ttft_s, quantile), _known(forecast.total_s, quantile)
    transmit_s = np.minimum(forecast.roster.transmit_s, first_s)
    return Costs(
        energy_j=_known(forecast.energy_j, quantile),
        queue_s=np.zeros(len(first_s)),
        transmit_s=transmit_s,
        # The agent's model predicts queue and prefill together, as the time to the first token.
        prefill_s=first_s - transmit_s,
        decode_s=np.maximum(total_s - first_s, 0.0),
        per_token_s=_known(forecast.per_token_s, quantile),
    )


def _known(cost: Range, quantile: Quantile) -> FloatArray:
    """(N,) one cost at one quantile, with the most expensive known figure in place of the unknown ones."""
    figures = cost.p50 if quantile is Quantile.P50 else cost.p95
    unknown = np.isnan(figures)
    if not unknown.any():
        return figures
    most_expensive = 0.0 if unknown.all() else float(figures[~unknown].max())
    return np.where(unknown, most_expensive, figures)


def _unmeasured(forecast: Forecast, budgets: Budgets) -> dict[str, str]:
    """Experts without a measurement of what the budgets bound, with the reason."""
    roster = forecast.roster
    reasons: dict[str, str] = {}
    if budgets.bounds_time and not roster.speed_known.all():
        for place in np.flatnonzero(~roster.speed_known):
            reasons[roster.keys[place]] = "its speed has not been measured yet, and the request limits time"
    if budgets.energy_budget_j is not None and not roster.energy_known.all():
        for place in np.flatnonzero(~roster.energy_known):
            reasons[roster.keys[place]] = "its energy has not been measured yet, and the request limits energy"
    return reasons


def _unmetered(forecast: Forecast, draw: FleetDraw | None) -> dict[str, str]:
    """Experts whose power is unknown while the fleet's power is capped, with the reason; none without a cap."""
    if draw is None:
        return {}
    reasons: dict[str, str] = {}
    for place in np.flatnonzero(np.isnan(forecast.added_w)):
        reasons[forecast.roster.keys[place]] = (
            "its power has not been measured, and the fleet's power is capped; `moe2-agent bench` measures it"
        )
    for expert in forecast.roster.experts if draw.unmeasured else ():
        if expert.agent_id in draw.unmeasured:
            reasons[expert.key] = "its host's power is not measured, and the fleet's power is capped"
    return reasons
