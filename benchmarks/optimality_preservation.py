"""Does a gate trained once on all experts serve subsets as well as a gate trained on each subset alone?

For each of many subsets: the full-set gate restricted to the subset, against a gate trained on the subset alone, by the
score of the likeliest expert on held-out rows. Regret is the latter less the former, in points (hundredths of a score);
below zero the full-set gate is the better one. The rows reported on are used for nothing else. Last line, JSON:
`mean_regret_points`, `max_regret_points`, `standard_error_points` (of the mean, paired by prompt) and
`max_standard_error_points` (of the subset with the largest regret).
"""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from rich.progress import track

from moe2.coordinator.cli.train import add_pool_arguments, chosen_pool
from moe2.coordinator.gate.gate import Gate
from moe2.coordinator.training.config import TrainingConfig
from moe2.coordinator.training.evaluate.study import split_for_report
from moe2.coordinator.training.outcomes import Outcomes, read_outcomes
from moe2.coordinator.training.train import train_gate


def chosen_subsets(size: int, count: int) -> list[tuple[int, ...]]:
    """All subsets of two to size - 1 experts, or an even sample of `count` of them, the same each time."""
    everything = [s for k in range(2, size) for s in itertools.combinations(range(size), k)]
    if len(everything) <= count:
        return everything
    picked = np.random.default_rng(0).choice(len(everything), count, replace=False)
    return [everything[n] for n in sorted(picked)]


def top1_scores(gate: Gate, report: Outcomes, members: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """(rows,) score of the expert with the largest logit among `members`, names of which the gate must know."""
    columns = [gate.experts.index(report.experts[n]) for n in members]
    logits = np.stack([gate.predict(prompt).logits[columns] for prompt in report.prompts])
    scores = report.scores[:, list(members)]
    logits = np.where(np.isnan(scores), -np.inf, logits)
    picked = scores[np.arange(len(report)), logits.argmax(axis=1)]
    return np.asarray(np.nan_to_num(picked), dtype=np.float64)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_pool_arguments(parser)
    parser.add_argument("--subsets", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=TrainingConfig.epochs)
    args = parser.parse_args()
    pool, _ = chosen_pool(read_outcomes(args.outcomes), args.source, args.experts)
    parts = split_for_report(pool)
    config = replace(TrainingConfig(), seeds=tuple(range(args.seeds)), epochs=args.epochs)
    full = train_gate(parts.learn, config=config).gate
    regrets = []
    subsets = chosen_subsets(len(pool.experts), args.subsets)
    for members in track(subsets, description="training on subsets"):
        alone = train_gate(parts.learn.with_experts([pool.experts[n] for n in members]), config=config).gate
        regrets.append(top1_scores(alone, parts.report, members) - top1_scores(full, parts.report, members))
    table = np.stack(regrets) * 100
    means = table.mean(axis=1)
    errors = table.std(axis=1, ddof=1) / np.sqrt(table.shape[1])
    per_prompt = table.mean(axis=0)
    for members, mean, error in zip(subsets, means, errors, strict=True):
        print(f"{mean:+6.2f} ± {error:.2f}  {', '.join(pool.experts[n] for n in members)}")
    print(
        json.dumps(
            {
                "mean_regret_points": round(float(means.mean()), 4),
                "max_regret_points": round(float(means.max()), 4),
                "standard_error_points": round(float(per_prompt.std(ddof=1) / np.sqrt(per_prompt.size)), 4),
                "max_standard_error_points": round(float(errors[means.argmax()]), 4),
                "subsets": len(subsets),
                "rows": len(parts.report),
                "reported_on": parts.reported_on,
            }
        )
    )


if __name__ == "__main__":
    main()
