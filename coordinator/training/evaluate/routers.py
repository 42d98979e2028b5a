"""Routers: ways to choose one expert per prompt among those that fit the budgets. PURE.

A `Router` turns the experts' feasibility (rows, N) into shares (rows, N): the chance that each expert is chosen for
each prompt. `Planner` chooses a panel under budgets, from one prompt's probabilities alone; the functions below it make
routers, the last ones compute what baselines choose by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from moe2.coordinator.gate.features import FeatureExtractor
from moe2.coordinator.gate.gate import weighted_counts
from moe2.coordinator.planning import search
from moe2.coordinator.planning.problem import Aggregation, PanelBudgets, Problem
from moe2.coordinator.planning.problem import Costs as PanelCosts
from moe2.coordinator.planning.values import Coverage
from moe2.coordinator.training.evaluate.profiles import Costs

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Router = Callable[[BoolArray], FloatArray]
"""Shares (rows, N) of the experts from their feasibility (rows, N); a row sums to 1, or to 0 where nobody fits."""

ORACLES = ("oracle",)
"""Names of the routers that look at the answers they are judged by."""


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
        costs = PanelCosts(problem.energy_j, nothing, nothing, nothing, problem.delay_s)
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


def by_value(values: FloatArray) -> Router:
    """The router to the feasible expert with the largest value; ties go to the lower number.

    values: (N,), or (rows, N) for values of their own in each row.
    """

    def route(feasible: BoolArray) -> FloatArray:
        ranked = np.where(feasible, np.broadcast_to(values, feasible.shape), -np.inf)
        return _one_hot(ranked.argmax(axis=1), feasible)

    return route


def at_random() -> Router:
    """The router that gives each feasible expert an equal chance."""

    def route(feasible: BoolArray) -> FloatArray:
        return np.asarray(feasible / np.maximum(feasible.sum(axis=1, keepdims=True), 1), dtype=np.float64)

    return route


def round_robin() -> Router:
    """The router that takes feasible experts in turn: row i goes to number i modulo their count."""

    def route(feasible: BoolArray) -> FloatArray:
        chosen = np.zeros(feasible.shape[0], dtype=np.int64)
        for row in range(feasible.shape[0]):
            members = np.flatnonzero(feasible[row])
            chosen[row] = members[row % members.size] if members.size else 0
        return _one_hot(chosen, feasible)

    return route


def by_panel(probabilities: FloatArray, costs: Costs, selector: PanelSelector) -> Router:
    """The router of moe2 with one expert per prompt: the selector's panel of size one.

    probabilities: (rows, N) the gate's. The budgets were applied to make the feasibility, which decides what is
    available.
    """

    def route(feasible: BoolArray) -> FloatArray:
        shares = np.zeros(feasible.shape)
        for row in range(feasible.shape[0]):
            problem = PanelProblem(
                probabilities=probabilities[row],
                energy_j=costs.predicted_energy_j[row],
                delay_s=costs.predicted_delay_s[row],
                available=feasible[row],
                max_energy_j=float("inf"),
                max_delay_s=float("inf"),
                max_experts=1,
            )
            shares[row, list(selector.select(problem))] = 1.0
        return shares

    return route


def label_means(kinds: Sequence[str], scores: FloatArray, wanted: Sequence[str]) -> FloatArray:
    """(len(wanted), N) the mean train score of each expert on each wanted row's kind, or on all kinds for a new one.

    kinds: of the train rows. scores: (train rows, N), NaN where not run.
    """
    overall = np.nanmean(scores, axis=0)
    labels = np.array(kinds)
    means: dict[str, FloatArray] = {}
    for kind in set(wanted):
        rows = scores[labels == kind]
        count = (~np.isnan(rows)).sum(axis=0)
        means[kind] = np.where(count > 0, np.nansum(rows, axis=0) / np.maximum(count, 1), overall)
    return np.stack([means[kind] for kind in wanted])


def neighbour_means(similarity: FloatArray, scores: FloatArray, neighbours: int) -> FloatArray:
    """(rows, N) the mean train score of each expert over the most similar train prompts.

    similarity: (rows, train rows). scores: (train rows, N); the expert's mean stands in for NaN (not run).
    """
    filled = np.where(np.isnan(scores), np.nanmean(scores, axis=0), scores)
    count = min(neighbours, similarity.shape[1])
    nearest = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    return np.asarray(filled[nearest].mean(axis=1), dtype=np.float64)


def score_of(shares: FloatArray, scores: FloatArray) -> FloatArray:
    """(rows,) the expected score under shares (rows, N); 0 where nothing was run.

    scores: (rows, N); those of experts without a share may be NaN.
    """
    return np.asarray(np.where(shares > 0, shares * np.nan_to_num(scores), 0.0).sum(axis=1), dtype=np.float64)


def baseline_routers(
    train_means: FloatArray, labels: FloatArray, neighbours: FloatArray, costs: Costs, scores: FloatArray
) -> Mapping[str, Router]:
    """The baselines' routers by name.

    train_means: (N,) mean train scores. labels, neighbours: (rows, N) as of `label_means` and `neighbour_means`.
    scores: (rows, N) of the reported rows, for the oracle.
    """
    return {
        "best single that fits": by_value(train_means),
        "best per known label": by_value(labels),
        "kNN router": by_value(neighbours),
        "greedy (score per joule)": by_value(train_means / costs.predicted_energy_j),
        "cheapest": by_value(-costs.predicted_energy_j),
        "fastest": by_value(-costs.predicted_delay_s),
        "round robin": round_robin(),
        "random": at_random(),
        "oracle": by_value(np.nan_to_num(scores, nan=-1.0)),
    }


def _one_hot(chosen: npt.NDArray[np.int64], feasible: BoolArray) -> FloatArray:
    shares = np.zeros(feasible.shape)
    shares[np.arange(chosen.size), chosen] = feasible.any(axis=1)
    return shares


def cosine_similarities(
    wanted: Sequence[str], known: Sequence[str], extractor: FeatureExtractor, idf: npt.NDArray[np.float32]
) -> FloatArray:
    """(len(wanted), len(known)) the cosine similarity, 0..1, of prompts by their n-grams; 0 for a prompt without any.

    idf: (buckets,) the weight of each n-gram bucket.
    """
    features = [extractor.extract(prompt) for prompt in known]
    buckets = np.concatenate([entry.buckets for entry in features])
    values = np.concatenate([weighted_counts(entry, idf) for entry in features]).astype(np.float64)
    ends = np.cumsum([entry.buckets.size for entry in features])
    starts = np.concatenate([[0], ends[:-1]])
    similarity = np.empty((len(wanted), len(known)))
    dense = np.zeros(extractor.config.buckets)
    for row, prompt in enumerate(wanted):
        entry = extractor.extract(prompt)
        dense[entry.buckets] = weighted_counts(entry, idf)
        sums = np.concatenate([[0.0], np.cumsum(values * dense[buckets])])
        similarity[row] = sums[ends] - sums[starts]
        dense[entry.buckets] = 0.0
    return similarity
