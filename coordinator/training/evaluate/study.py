"""The evaluation: it trains a gate, and compares it with baselines on rows that neither training nor choice has seen.

`split_for_report` keeps rows apart for the report; `evaluate` trains on the rest and fills the report.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe2.common.errors import Moe2Error
from moe2.coordinator.gate.calibration import expected_calibration_error, log_odds_of, sigmoid
from moe2.coordinator.gate.features import FeatureConfig
from moe2.coordinator.gate.gate import Gate
from moe2.coordinator.training.config import TrainingConfig
from moe2.coordinator.training.evaluate.averages import Case, average_figures, day_figures, targets
from moe2.coordinator.training.evaluate.profiles import (
    PROFILES,
    Budget,
    Costs,
    budget_grid,
    default_hosts,
    feasible_under,
    fleet_costs,
)
from moe2.coordinator.training.evaluate.report import FIFTHS, BudgetFigures, EvaluationReport, RouterFigures
from moe2.coordinator.training.evaluate.routers import (
    ORACLES,
    PanelSelector,
    Planner,
    Router,
    baseline_routers,
    by_panel,
    cosine_similarities,
    label_means,
    neighbour_means,
    score_of,
)
from moe2.coordinator.training.network import kinds_of
from moe2.coordinator.training.outcomes import Outcomes
from moe2.coordinator.training.train import Progress, TrainedGate, train_gate

FloatArray = npt.NDArray[np.float64]

MOE2 = "moe2"
MOE2_TOLD = "moe2, category given"
"""moe2 for requests that name their category, which the best expert per known label knows as well."""
ALL_EXPERTS = "all experts (median)"
"""All experts run; the median of their scores stands for a vote, which scores alone cannot replay."""
_NEIGHBOURS = 40


class EvaluationError(Moe2Error):
    """The outcomes cannot be evaluated."""


@dataclass(frozen=True)
class Parts:
    """The pool's rows, split into those to learn from and those to report on."""

    learn: Outcomes
    """Rows of the splits "train" and "val"."""
    report: Outcomes
    """Rows that nothing is learnt from."""
    reported_on: str
    """Where the reported rows come from, in words."""


def split_for_report(pool: Outcomes, fifth: int = 0) -> Parts:
    """Split the pool into rows to learn from and rows to report on.

    Test rows are reported on; without any, a fifth of the train rows is held out by a hash of the id: the one with the
    number `fifth`, 0 to 4. Train and val rows whose prompt also occurs in the reported rows are dropped. Raises
    EvaluationError for too few rows, and for a fifth of a file that has test rows.
    """
    if fifth not in range(FIFTHS):
        raise EvaluationError(f"There is no fifth number {fifth}.", remedy=f"They are 0 to {FIFTHS - 1}.")
    test = [int(row) for row in pool.rows_of("test")]
    reported_on = "test"
    if test and fifth:
        raise EvaluationError(f"The file has {len(test)} test rows, so that no other rows are held out.")
    if not test:
        place = [zlib.crc32(f"held out {row_id}".encode()) % FIFTHS for row_id in pool.ids]
        test = [int(row) for row in pool.rows_of("train") if place[row] == fifth]
        reported_on = f"held-out fifth {fifth} of the train rows (by hash of id)"
    scored = [row for row in test if not np.isnan(pool.scores[row]).all()]
    if len(scored) < 10:
        raise EvaluationError(
            f"Only {len(scored)} scored rows are left to report on; at least 10 are needed.",
            remedy="Collect more outcomes.",
        )
    unseen = {pool.prompts[row] for row in scored}
    held = set(test)
    learn = [
        row
        for row in range(len(pool))
        if row not in held and pool.splits[row] != "test" and pool.prompts[row] not in unseen
    ]
    return Parts(pool.take(learn), pool.take(scored), reported_on)


def evaluate(
    pool: Outcomes,
    *,
    auxiliary: Outcomes | None = None,
    hosts: Mapping[str, str] | None = None,
    answer_tokens: float = 128.0,
    training: TrainingConfig | None = None,
    features: FeatureConfig | None = None,
    selector: PanelSelector | None = None,
    source: str | None = None,
    progress: Progress | None = None,
    fifth: int = 0,
) -> EvaluationReport:
    """Train a gate and compare it with the baselines on the budget grid.

    hosts: host profile by expert; by default the profiles in turn. answer_tokens: assumed length of answers whose
    length is unknown. fifth: as in `split_for_report`. Raises EvaluationError, TrainingError or ProfileError.
    """
    parts = split_for_report(pool, fifth)
    hosts = dict(hosts or default_hosts(pool.experts))
    train = parts.learn.take(parts.learn.rows_of("train"))
    costs = fleet_costs(parts.report, train, hosts, answer_tokens)
    helpers = without_reported(auxiliary, parts.report)
    trained = train_gate(
        parts.learn, auxiliary=helpers, config=training, features=features, source=source, progress=progress
    )
    probabilities = np.stack([trained.gate.predict(prompt).probabilities for prompt in parts.report.prompts])
    told = _told(trained, parts.report)
    labels = label_means(kinds_of(train), train.scores, kinds_of(parts.report))
    case = Case(probabilities, parts.report.scores, costs)
    routers = _routers(parts, trained.gate, probabilities, told, labels, costs, selector or Planner())
    budgets = tuple(_under(budget, routers, parts.report, costs) for budget in budget_grid(costs))
    return EvaluationReport(
        experts=pool.experts,
        source=source,
        data_sha256=pool.digest,
        rows={**trained.manifest.rows, "reported": len(parts.report)},
        reported_on=parts.reported_on,
        hosts=hosts,
        host_marks={name: dict(PROFILES[name].marks) for name in sorted(set(hosts.values()))},
        answer_lengths_known=costs.lengths_known,
        assumed_answer_tokens=answer_tokens,
        gate_calibration_error=expected_calibration_error(probabilities, parts.report.scores),
        gate_calibration_error_uncalibrated=expected_calibration_error(
            _uncalibrated(trained.gate, probabilities), parts.report.scores
        ),
        gate_metrics=trained.manifest.metrics,
        budgets=budgets,
        average=average_figures(case, labels),
        day=tuple(day_figures(case, request_j) for request_j in targets(case)),
        baselines_ahead=tuple(
            _under_budget(name, budget)
            for budget in budgets
            for name, figures in budget.routers.items()
            if _is_ahead(name, figures.lead, figures.lead_standard_error)
        ),
        baselines_ahead_of_told=tuple(
            _under_budget(name, budget)
            for budget in budgets
            for name, lead in budget.leads_over_told.items()
            if _is_ahead(name, *lead)
        ),
    )


def without_reported(auxiliary: Outcomes | None, report: Outcomes) -> Outcomes | None:
    """The rows of other sources, without prompts that are reported on; None where there are no other sources."""
    if auxiliary is None:
        return None
    unseen = set(report.prompts)
    return auxiliary.take([row for row in range(len(auxiliary)) if auxiliary.prompts[row] not in unseen])


def _told(trained: TrainedGate, report: Outcomes) -> FloatArray:
    """(rows, N) the gate's probabilities where each prompt's kind is given; the gate finds kinds it does not know."""
    number = {name: place for place, name in enumerate(trained.manifest.kinds)}
    told = [
        trained.gate.predict(prompt, number.get(kind)).probabilities
        for prompt, kind in zip(report.prompts, kinds_of(report), strict=True)
    ]
    return np.stack(told)


def _uncalibrated(gate: Gate, probabilities: FloatArray) -> FloatArray:
    """The probabilities as they were before the gate's calibration."""
    p = gate.parameters
    return sigmoid((log_odds_of(probabilities, 1e-9) - p.calibration_offset) / p.calibration_slope)


def _routers(
    parts: Parts,
    gate: Gate,
    probabilities: FloatArray,
    told: FloatArray,
    labels: FloatArray,
    costs: Costs,
    selector: PanelSelector,
) -> dict[str, Router]:
    train = parts.learn.take(parts.learn.rows_of("train"))
    similarity = cosine_similarities(parts.report.prompts, train.prompts, gate.extractor, gate.parameters.idf)
    neighbours = neighbour_means(similarity, train.scores, _NEIGHBOURS)
    baselines = baseline_routers(np.nanmean(train.scores, axis=0), labels, neighbours, costs, parts.report.scores)
    return {
        MOE2: by_panel(probabilities, costs, selector),
        MOE2_TOLD: by_panel(told, costs, selector),
        **baselines,
    }


def _under(budget: Budget, routers: Mapping[str, Router], report: Outcomes, costs: Costs) -> BudgetFigures:
    runnable = ~np.isnan(report.scores)
    feasible = feasible_under(budget, costs, runnable)
    shares = {name: route(feasible) for name, route in routers.items()}
    scores = {name: score_of(share, report.scores) for name, share in shares.items()}
    shares[ALL_EXPERTS], scores[ALL_EXPERTS] = _everyone(budget, report, costs, runnable)
    mine = scores[MOE2]
    figures = {}
    for name, score in scores.items():
        lead = score - mine
        figures[name] = RouterFigures(
            score=float(score.mean()),
            standard_error=_standard_error(score),
            answered=float(shares[name].any(axis=1).mean()),
            lead=float(lead.mean()),
            lead_standard_error=_standard_error(lead),
            energy_j=float((shares[name] * costs.actual_energy_j).sum(axis=1).mean()),
            delay_s=float(_delay(name, shares[name], costs).mean()),
        )
    return BudgetFigures(
        axis=budget.axis,
        max_energy_j=budget.max_energy_j,
        max_delay_s=budget.max_delay_s,
        routers=figures,
        leads_over_told={
            name: (float((score - scores[MOE2_TOLD]).mean()), _standard_error(score - scores[MOE2_TOLD]))
            for name, score in scores.items()
        },
    )


def _everyone(
    budget: Budget, report: Outcomes, costs: Costs, runnable: npt.NDArray[np.bool_]
) -> tuple[FloatArray, FloatArray]:
    """The shares (rows, N) and scores (rows,) of running all experts, where together they fit the budget; else 0."""
    energy = np.where(runnable, costs.predicted_energy_j, 0.0).sum(axis=1)
    delay = np.where(runnable, costs.predicted_delay_s, 0.0).max(axis=1)
    fits = np.ones(len(report), dtype=bool)
    if budget.max_energy_j is not None:
        fits &= energy <= budget.max_energy_j
    if budget.max_delay_s is not None:
        fits &= delay <= budget.max_delay_s
    shares = np.where(fits[:, None] & runnable, 1.0, 0.0)
    return shares, np.where(fits, np.nanmedian(report.scores, axis=1), 0.0)


def _delay(name: str, shares: FloatArray, costs: Costs) -> FloatArray:
    """(rows,) the expected delay of one chosen expert, or of the slowest one where all run at once."""
    each = shares * costs.actual_delay_s
    return np.asarray(each.max(axis=1) if name == ALL_EXPERTS else each.sum(axis=1), dtype=np.float64)


def _standard_error(values: FloatArray) -> float:
    return float(values.std(ddof=1) / np.sqrt(values.size))


def is_baseline(router: str) -> bool:
    """True for a router that moe2 is compared with: neither moe2 itself nor an oracle."""
    return router not in (MOE2, MOE2_TOLD, *ORACLES)


def _is_ahead(router: str, lead: float, standard_error: float) -> bool:
    return is_baseline(router) and lead > standard_error + 1e-12


def _under_budget(router: str, budget: BudgetFigures) -> str:
    return f"{router} under energy {budget.max_energy_j} J, delay {budget.max_delay_s} s"


def with_seeds(count: int, training: TrainingConfig | None = None) -> TrainingConfig:
    """The training configuration with the seeds 0 to `count` - 1."""
    return replace(training or TrainingConfig(), seeds=tuple(range(count)))
