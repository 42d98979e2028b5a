"""Planning problems for tests: random fleets, adversarial ones, and the values by definition."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from moe2.coordinator.planning.problem import Aggregation, Costs, PanelBudgets, Problem, Quantile
from moe2.coordinator.planning.values import BestOf, Coverage, FloatArray, SetValue
from tests.oracles.free_energy import FreeEnergy

KINDS = ("coverage", "best_of", "free_energy")
TEMPERATURE = 0.3


def set_value(kind: str, probabilities: FloatArray) -> SetValue:
    """The set value of that kind; losses are negative log-probabilities."""
    if kind == "coverage":
        return Coverage(probabilities)
    if kind == "best_of":
        return BestOf(probabilities)
    return FreeEnergy(-np.log(np.clip(probabilities, 1e-9, 1.0)), TEMPERATURE)


def problem(
    probabilities: FloatArray,
    energy_j: FloatArray,
    delay_s: FloatArray | None = None,
    *,
    kind: str = "coverage",
    budgets: PanelBudgets | None = None,
    aggregation: Aggregation | None = None,
    power_w: FloatArray | None = None,
    names: tuple[str, ...] | None = None,
    ruled_out: dict[str, str] | None = None,
    value: SetValue | None = None,
) -> Problem:
    """A problem whose p50 costs are half of its p95 costs."""
    count = probabilities.shape[1]
    delay = np.zeros(count) if delay_s is None else delay_s

    def costs(factor: float) -> Costs:
        return Costs(
            energy_j=energy_j * factor,
            queue_s=delay * 0.1 * factor,
            transmit_s=delay * 0.1 * factor,
            prefill_s=delay * 0.2 * factor,
            decode_s=delay * 0.6 * factor,
            per_token_s=delay * 0.01 * factor,
        )

    return Problem(
        names=names or tuple(f"expert-{n:02d}" for n in range(count)),
        value=value or set_value(kind, probabilities),
        p50=costs(0.5),
        p95=costs(1.0),
        aggregation=aggregation or Aggregation.free(count),
        budgets=budgets or PanelBudgets(),
        power_w=power_w,
        ruled_out=ruled_out or {},
    )


def probabilities(rng: np.random.Generator, prompts: int, experts: int) -> FloatArray:
    """Chances of one of three characters: graded, nearly certain either way, or exactly 0 and 1."""
    character = rng.integers(3)
    if character == 0:
        logits = rng.normal(0, 1, (prompts, 1)) + rng.normal(0, 0.8, experts)
        return np.asarray(1 / (1 + np.exp(-logits - rng.normal(0, 0.8, (prompts, experts)))))
    good = rng.random((prompts, experts)) < rng.uniform(0.1, 0.7, experts)
    return np.where(good, 0.97, 0.02) if character == 1 else good.astype(np.float64)


def random_problem(rng: np.random.Generator, kind: str, experts: int, prompts: int = 24) -> Problem:
    """Every kind of limit, each present or absent, tight or loose, with aggregation costs that grow with the
    panel.
    """
    energy = rng.lognormal(1.0, rng.uniform(0.1, 1.5), experts)
    delay = rng.lognormal(0.0, 0.6, experts)
    power = rng.uniform(5, 60, experts)

    def limit(most: float) -> float | None:
        return float(most * rng.uniform(0.02, 1.1)) if rng.random() < 0.7 else None

    growth = np.cumsum(np.concatenate([[0.0, 0.0], rng.uniform(0, 0.3, experts - 1)]))
    budgets = PanelBudgets(
        energy_j=limit(float(energy.sum())),
        delay_s=limit(float(delay.max() * 1.5)),
        first_token_s=limit(float(delay.max())),
        power_w=limit(float(power.sum())),
        max_experts=int(rng.integers(1, experts + 1)) if rng.random() < 0.4 else None,
        quantile=Quantile.P50 if rng.random() < 0.3 else Quantile.P95,
        drawn_w=float(rng.uniform(0, 40)) if rng.random() < 0.3 else 0.0,
        one_at_a_time=bool(rng.random() < 0.3),
    )
    barred = {f"expert-{n:02d}": "draining" for n in range(experts) if rng.random() < 0.1}
    return problem(
        probabilities(rng, prompts, experts),
        energy,
        delay,
        kind=kind,
        budgets=budgets,
        aggregation=Aggregation(energy_j=growth, delay_s=growth * 0.3, first_token_s=growth * 0.1),
        power_w=power,
        ruled_out=barred,
    )


def adversarial(rng: np.random.Generator, kind: str, experts: int) -> Iterator[Problem]:
    """Ties, zero budgets, duplicates, nothing feasible, identical costs, huge spreads."""
    chances = probabilities(rng, 12, experts)
    energy = rng.lognormal(1.0, 0.7, experts)
    half = PanelBudgets(energy_j=float(energy.sum() / 2))
    same = np.repeat(chances[:, :1], experts, axis=1)
    yield problem(same, np.ones(experts), kind=kind, budgets=PanelBudgets(energy_j=experts / 2))
    yield problem(same, energy, kind=kind, budgets=half)
    yield problem(chances, energy, kind=kind, budgets=PanelBudgets(energy_j=0.0))
    yield problem(chances, np.zeros(experts), kind=kind, budgets=PanelBudgets(energy_j=0.0))
    yield problem(chances, np.full(experts, 0.1), kind=kind, budgets=PanelBudgets(energy_j=0.1 * (experts // 2)))
    yield problem(chances, energy + 10.0, kind=kind, budgets=PanelBudgets(energy_j=9.0))
    yield problem(chances, 10.0 ** rng.uniform(-9, 9, experts), kind=kind, budgets=PanelBudgets(energy_j=1.0))
    doubled = np.repeat(chances[:, : (experts + 1) // 2], 2, axis=1)[:, :experts]
    yield problem(doubled, np.repeat(energy, 2)[:experts], kind=kind, budgets=half)
    yield problem(np.zeros((3, experts)), energy, kind=kind, budgets=half)
    yield problem(np.ones((3, experts)), energy, kind=kind, budgets=half)
    names = {f"expert-{n:02d}": "stale" for n in range(experts)}
    yield problem(chances, energy, kind=kind, ruled_out=names)
    if kind == "free_energy":
        losses = 10.0 ** rng.uniform(-6, 5, (12, experts))
        yield problem(chances, energy, budgets=half, value=FreeEnergy(losses, 0.01))


def naive_value(kind: str, chances: list[list[float]], members: tuple[int, ...]) -> float:
    """The set value by its definition, one prompt at a time."""
    total = 0.0
    for row in chances:
        if kind == "coverage":
            total += 1.0 - math.prod(1.0 - row[n] for n in members)
        elif kind == "best_of":
            total += max(row[n] for n in members)
        else:
            losses = [-math.log(min(max(row[n], 1e-9), 1.0)) for n in members]
            total += TEMPERATURE * math.log(sum(math.exp(-loss / TEMPERATURE) for loss in losses))
    return total / len(chances)
