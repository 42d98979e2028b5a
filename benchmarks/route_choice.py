"""What two rules of `route` gain on held-out outcomes: candidates by this prompt's scores, the residual by its choices.

    python -m benchmarks.route_choice --outcomes FILE --source NAME --experts A,B,... [--fifths 5]

For each fifth of the train rows in turn a gate is trained without it, and judged on it; scores are of the one expert
that answers, differences are paired by prompt and told in points (hundredths of a score) with one standard error.

- `max_experts` 1 to 3, through the selector itself, against no `max_experts`; and against the former rule, which kept
  the candidates that were worth most over all kinds of prompts and then took the best of them for the prompt.
- The gate's residual: scaled as validation rows prefer by choices made (what training does), by log loss, or not used.

Every expert costs the same here, and no budget is set. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.request import Demand, SelectionRequest, Wish
from moe2.coordinator.choosing.result import Selection
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.cli.train import add_pool_arguments, chosen_pool
from moe2.coordinator.gate.calibration import binary_log_loss, sigmoid
from moe2.coordinator.gate.features import FeatureConfig
from moe2.coordinator.gate.fleet_gate import FleetGate
from moe2.coordinator.gate.gate import Gate
from moe2.coordinator.gate.prior import facts_from_name
from moe2.coordinator.planning import search
from moe2.coordinator.planning.problem import Aggregation, Costs, PanelBudgets, Problem
from moe2.coordinator.planning.values import Coverage
from moe2.coordinator.training.evaluate.report import FIFTHS
from moe2.coordinator.training.evaluate.study import split_for_report, with_seeds, without_reported
from moe2.coordinator.training.gain import best_single, chosen_scores, gain_of
from moe2.coordinator.training.outcomes import Outcomes, read_outcomes
from moe2.coordinator.training.train import RESIDUAL_SCALES, chosen_on_validation, fitted, log_odds_on
from tests.coordinator.experts import cost, expert, speed

FloatArray = npt.NDArray[np.float64]
LIMITS = (1, 2, 3)
"""Values of `max_experts` that are compared with none."""


@dataclass(frozen=True)
class Judged:
    """The scores of one held-out fifth, (rows,) each, by what was done."""

    scores: dict[str, FloatArray]
    scales: dict[str, float]
    """The residual's scale by each rule."""


def judged(pool: Outcomes, others: Outcomes | None, fifth: int, seeds: int) -> Judged:
    """Train without one fifth and score the choices on it."""
    parts = split_for_report(pool, fifth)
    config = with_seeds(seeds)
    raw, rows = fitted(
        parts.learn, auxiliary=without_reported(others, parts.report), config=config, features=FeatureConfig()
    )
    train, val = (parts.learn.take(parts.learn.rows_of(split)) for split in ("train", "val"))
    single = best_single(train.scores)
    chosen, metrics, _ = chosen_on_validation(raw, val, single)
    mean, residual = log_odds_on(raw, val)
    by_loss = min(RESIDUAL_SCALES, key=lambda scale: binary_log_loss(sigmoid(mean + scale * residual), val.scores))
    gates = {
        "residual by choices": chosen,
        "residual by log loss": chosen_on_validation(raw, val, single, by_loss)[0],
        "no residual": chosen_on_validation(raw, val, single, 0.0)[0],
    }
    probabilities = {name: predicted(gate, parts.report) for name, gate in gates.items()}
    scores = {name: chosen_scores(found, parts.report.scores) for name, found in probabilities.items()}
    scores["best single"] = parts.report.scores[:, single]
    for limit in (None, *LIMITS):
        scores[f"max_experts {limit}"] = selected(chosen, rows.kinds, parts.report, limit)
    worth = FleetGate(chosen, [facts_from_name(name) for name in pool.experts]).by_kind()
    for limit in LIMITS:
        out = np.full(len(pool.experts), -1.0)
        out[best_on_average(worth, limit)] = 0.0
        former = np.maximum(probabilities["residual by choices"], 0.0) + out
        scores[f"max_experts {limit}, former rule"] = chosen_scores(former, parts.report.scores)
    return Judged(scores, {"by choices": metrics["residual_scale"], "by log loss": by_loss})


def predicted(gate: Gate, table: Outcomes) -> FloatArray:
    """(rows, N) the gate's probabilities for a table's prompts."""
    return np.stack([gate.predict(prompt).probabilities for prompt in table.prompts])


def selected(gate: Gate, kinds: tuple[str, ...], table: Outcomes, limit: int | None) -> FloatArray:
    """(rows,) the scores of the experts that the selector takes with `max_experts` as the `limit`."""
    experts = tuple(
        expert(f"agent-{number}", name, latency=speed(1000.0, 100.0), energy=cost(1.0))
        for number, name in enumerate(table.experts)
    )
    selector = Selector(Scorer(gate, kinds), {}, clock=time.perf_counter)
    scores = np.full(len(table), np.nan)
    for row, prompt in enumerate(table.prompts):
        request = SelectionRequest(model="moe2", demand=Demand(100, 128), text=prompt, wish=Wish(max_experts=limit))
        decided = selector.select(request, experts, {}, 0)
        assert isinstance(decided, Selection)
        scores[row] = table.scores[row, table.experts.index(decided.members[0].expert.model)]
    return scores


def best_on_average(by_kind: FloatArray, limit: int) -> list[int]:
    """The places of the `limit` experts that are worth most over all kinds of prompts. by_kind: (K, N)."""
    count = by_kind.shape[1]
    nothing = np.zeros(count)
    costs = Costs(nothing, nothing, nothing, nothing, nothing)
    return list(
        search.plan(
            Problem(
                names=tuple(f"{place:03d}" for place in range(count)),
                value=Coverage(by_kind),
                p50=costs,
                p95=costs,
                aggregation=Aggregation.free(count),
                budgets=PanelBudgets(max_experts=limit),
            )
        ).members
    )


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pool_arguments(parser)
    parser.add_argument("--seeds", type=int, default=1, help="networks trained and folded into one")
    parser.add_argument("--fifths", type=int, default=FIFTHS, choices=range(1, FIFTHS + 1), help="fifths held out")
    parser.add_argument("--no-other-sources", action="store_true", help="do not learn from other sources' prompts")
    args = parser.parse_args()
    pool, others = chosen_pool(read_outcomes(args.outcomes), args.source, args.experts)
    found: dict[str, list[FloatArray]] = defaultdict(list)
    scales = []
    for fifth in range(args.fifths):
        one = judged(pool, None if args.no_other_sources else others, fifth, args.seeds)
        scales.append(one.scales)
        print(f"fifth {fifth}: residual {one.scales}", flush=True)
        for name, values in one.scores.items():
            found[name].append(values)
    scores = {name: np.concatenate(values) for name, values in found.items()}
    base = "max_experts None"
    pairs = [
        *((f"max_experts {limit}", base) for limit in LIMITS),
        *((f"max_experts {limit}, former rule", base) for limit in LIMITS),
        ("residual by choices", "residual by log loss"),
        ("residual by choices", "no residual"),
        ("residual by choices", "best single"),
    ]
    figures = {}
    for name, other in pairs:
        gain = gain_of(scores[name], scores[other])
        error = 100 * (gain.standard_error or 0.0)
        figures[f"{name} over {other}"] = {"points": round(100 * gain.gain, 2), "se": round(error, 2)}
        print(f"{name:28s} {gain.score:.4f}  {other:20s} {gain.other:.4f}  {100 * gain.gain:+.2f} ± {error:.2f} points")
    print(json.dumps({"rows": len(scores[base]), "experts": len(pool.experts), "scales": scales, "gains": figures}))


if __name__ == "__main__":
    main()
