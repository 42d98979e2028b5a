"""Synthetic fleets for the planner's benchmark: chances, joules and delays drawn at random, and requests on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from moe2.coordinator.planning.problem import Aggregation, Costs, PanelBudgets, Problem
from moe2.coordinator.planning.proof import Plan
from moe2.coordinator.planning.values import BestOf, Coverage, FloatArray, SetValue
from tests.oracles.free_energy import FreeEnergy

PROMPTS = 256
SHARES = (0.03, 0.06, 0.12, 0.25, 0.5, 0.8)
KINDS = ("coverage", "best_of", "free_energy")
CHARACTERS = ("graded", "decided")
LIMIT_S = 0.02
Clock: TypeAlias = Callable[[], float]
SLICE_S = 0.0195
"""What the planner is told; building the Problem comes on top."""


@dataclass(frozen=True)
class Fleet:
    """One synthetic fleet: calibration figures and one request's predicted costs."""

    chances: FloatArray
    energy_j: FloatArray
    delay_s: FloatArray

    @property
    def experts(self) -> int:
        return len(self.energy_j)

    def value(self, kind: str) -> SetValue:
        if kind == "coverage":
            return Coverage(self.chances)
        if kind == "best_of":
            return BestOf(self.chances)
        return FreeEnergy(-np.log(np.clip(self.chances, 1e-6, 1.0)), 0.3)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names that a coordinator has at hand, too."""
        return tuple(f"expert-{n:04d}" for n in range(self.experts))

    @cached_property
    def patience_s(self) -> float:
        """A delay budget that one expert in ten misses."""
        return float(np.quantile(self.delay_s, 0.9)) + 0.1

    def request(
        self, value: SetValue, share: float, max_experts: int | None = None, *, hurried: bool = True
    ) -> Problem:
        """A request with that share of the fleet's joules; hurried: one expert in ten is too slow for it."""
        nothing = np.zeros(self.experts)
        costs = Costs(self.energy_j, nothing, nothing, self.delay_s * 0.3, self.delay_s * 0.7)
        size = np.maximum(np.arange(self.experts + 1) - 1, 0)
        return Problem(
            names=self.names,
            value=value,
            p50=costs,
            p95=costs,
            aggregation=Aggregation(0.02 * size, 0.005 * size, 0.005 * size),
            budgets=PanelBudgets(
                energy_j=float(self.energy_j.sum() * share),
                delay_s=self.patience_s if hurried else None,
                max_experts=max_experts,
            ),
        )


def fleet(rng: np.random.Generator, experts: int, character: str) -> Fleet:
    """Draw a fleet."""
    if character == "graded":
        logits = rng.normal(0, 1, (PROMPTS, 1)) + rng.normal(0, 0.7, experts)
        chances = 1 / (1 + np.exp(-logits - rng.normal(0, 0.8, (PROMPTS, experts))))
    else:
        good = rng.random((PROMPTS, experts)) < rng.uniform(0.2, 0.7, experts)
        chances = np.where(good, rng.uniform(0.9, 1, good.shape), rng.uniform(0, 0.1, good.shape))
    return Fleet(chances, rng.lognormal(1.0, 0.8, experts), rng.lognormal(0.0, 0.5, experts))


def fleet_of_models(rng: np.random.Generator, experts: int, models: int = 24) -> Fleet:
    """Draw a fleet as they are: the experts serve a few models, each on a host of its own pace and joules."""
    drawn = fleet(rng, models, "graded")
    size = rng.lognormal(0.0, 0.8, models)
    serves = rng.integers(0, models, experts)
    return Fleet(
        drawn.chances[:, serves],
        size[serves] * rng.lognormal(1.0, 0.4, experts),
        size[serves] * rng.lognormal(0.0, 0.3, experts),
    )


def timed(run: Callable[[], Plan], clock: Clock = time.perf_counter) -> tuple[Plan, float]:
    """A plan and its time in milliseconds."""
    started = clock()
    plan = run()
    return plan, (clock() - started) * 1e3


def value_of(plan: Plan) -> float:
    """The plan's value, -inf where nothing is feasible."""
    return -np.inf if plan.proof.value is None else plan.proof.value


def gap_pct(plan: Plan) -> float:
    """The certified gap in percent of the value."""
    share = plan.proof.gap_share
    return 0.0 if share is None else 100.0 * share
