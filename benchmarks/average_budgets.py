"""What a learned price of a joule gains over rivals that are set without and with hindsight, on held-out outcomes.

    python -m benchmarks.average_budgets --outcomes FILE --source NAME --experts A,B,... [--fifths 5]

For each fifth of the train rows in turn a gate is trained without it, and judged on it, on the default simulated hosts:
a thousand requests in random order, twenty orders, the price learned from nothing on, for targets of mean joules that
lie at the same shares between the cheapest answers and what free choice takes. Scores are of the one expert that
answers, differences are paired by prompt, pooled over the fifths, and told in points (hundredths of a score) with one
standard error. The rivals are

- `best limit`: of 400 limits of each request the one that scores best on the very rows that are judged (hindsight),
- `expected limit`: the one that the gate expects most of, which anybody could set,
- `limit of others`: the one whose place among the 400 scored best on the other fifths,
- `fixed price`: one price for all, which meets the target on these rows (hindsight).

None takes more than the target, or more than the learned price where that took more. The best of 400 limits often
leads by chance: how often it leads by more than one standard error, over fifths and targets, is told beside how often
it would if none truly led (prompts are drawn anew 200 times, each limit that leads set back to where it does not). The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe2.coordinator.cli.train import add_pool_arguments, chosen_pool
from moe2.coordinator.training.evaluate.averages import Case, Fixed, caps, paced, targets, with_hindsight
from moe2.coordinator.training.evaluate.profiles import default_hosts, fleet_costs
from moe2.coordinator.training.evaluate.report import FIFTHS
from moe2.coordinator.training.evaluate.routers import score_of
from moe2.coordinator.training.evaluate.study import split_for_report, with_seeds, without_reported
from moe2.coordinator.training.outcomes import Outcomes, read_outcomes
from moe2.coordinator.training.train import train_gate

FloatArray = npt.NDArray[np.float64]
DRAWS = 200
RIVALS = ("best limit", "expected limit", "limit of others", "fixed price")


@dataclass(frozen=True)
class Fifth:
    """One held-out fifth: its prompts, and the limits of each request with what each would have scored."""

    case: Case
    limits: tuple[Fixed, ...]
    expected: FloatArray
    """The score that the gate expects of each limit."""

    def best_limit(self, allowed_j: float, worth: Callable[[int], float]) -> int | None:
        """The place of the limit that is worth most among those that take no more than allowed; None where none is."""
        allowed = [place for place, limit in enumerate(self.limits) if limit.mean_j <= allowed_j]
        return max(allowed, key=worth, default=None)


def held_out(pool: Outcomes, others: Outcomes | None, fifth: int, seeds: int) -> Fifth:
    """Train without one fifth and take its prompts with what the gate says of them."""
    parts = split_for_report(pool, fifth)
    train = parts.learn.take(parts.learn.rows_of("train"))
    gate = train_gate(
        parts.learn, auxiliary=without_reported(others, parts.report), config=with_seeds(seeds), source=None
    ).gate
    probabilities = np.stack([gate.predict(prompt).probabilities for prompt in parts.report.prompts])
    case = Case(
        probabilities, parts.report.scores, fleet_costs(parts.report, train, default_hosts(pool.experts), 128.0)
    )
    limits = caps(case)
    believed = caps(Case(probabilities, probabilities, case.costs))
    return Fifth(case, limits, np.array([limit.score.mean() for limit in believed]))


def judged(fifths: Sequence[Fifth], number: int, target_j: float) -> tuple[dict[str, FloatArray], float, float]:
    """Returns the gains over each rival (rows,) on one fifth at its target, the learned price's mean joules, and the
    chance that the best limit leads by more than one standard error."""
    this = fifths[number]
    counts, mean_j, _ = paced(this.case, target_j, 0)
    score = score_of(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), this.case.scores)
    allowed_j = max(target_j, mean_j)

    def of_others(place: int) -> float:
        return float(np.mean([other.limits[place].score.mean() for n, other in enumerate(fifths) if n != number]))

    places = {
        "best limit": this.best_limit(allowed_j, lambda place: float(this.limits[place].score.mean())),
        "expected limit": this.best_limit(allowed_j, lambda place: float(this.expected[place])),
    }
    if len(fifths) > 1:
        places["limit of others"] = this.best_limit(allowed_j, of_others)
    gains = {name: score - (0.0 if place is None else this.limits[place].score) for name, place in places.items()}
    gains["fixed price"] = score - with_hindsight(this.case, this.case.probabilities, allowed_j).score
    allowed = [limit.score - score for limit in this.limits if limit.mean_j <= allowed_j]
    return gains, mean_j, chance_of_a_lead(np.stack(allowed, axis=1)) if allowed else 0.0


def leads(differences: FloatArray) -> bool:
    """Whether a mean (rows,) is above nothing by more than one standard error."""
    return bool(differences.mean() > differences.std(ddof=1) / np.sqrt(differences.size))


def chance_of_a_lead(differences: FloatArray) -> float:
    """Returns how often the best of M limits seems to lead although none does. differences: (rows, M)."""
    random, rows = np.random.default_rng(0), len(differences)
    even = differences - np.maximum(differences.mean(axis=0), 0.0)
    found = 0
    for _ in range(DRAWS):
        drawn = even[random.integers(0, rows, rows)]
        found += leads(drawn[:, drawn.mean(axis=0).argmax()])
    return found / DRAWS


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_pool_arguments(parser)
    parser.add_argument("--seeds", type=int, default=1, help="networks trained and folded into one")
    parser.add_argument("--fifths", type=int, default=FIFTHS, choices=range(1, FIFTHS + 1), help="fifths held out")
    args = parser.parse_args()
    pool, others = chosen_pool(read_outcomes(args.outcomes), args.source, args.experts)
    fifths = [held_out(pool, others, number, args.seeds) for number in range(args.fifths)]
    aims = [targets(fifth.case) for fifth in fifths]
    rows, seen, by_chance, compared = [], 0, 0.0, 0
    for share in range(min(map(len, aims))):
        found = [judged(fifths, number, aims[number][share]) for number in range(len(fifths))]
        seen += sum(leads(-gains["best limit"]) for gains, *_ in found)
        by_chance, compared = by_chance + sum(chance for *_, chance in found), compared + len(found)
        off = [100 * (mean_j / aims[number][share] - 1) for number, (_, mean_j, _) in enumerate(found)]
        furthest = max(off) if max(off) > -min(off) else min(off)
        row: dict[str, object] = {
            "target_j": round(float(np.mean([aim[share] for aim in aims])), 1),
            "furthest_percent": round(furthest, 2),
        }
        text = []
        for rival in RIVALS:
            if any(rival not in gains for gains, *_ in found):
                continue
            gain = 100 * np.concatenate([gains[rival] for gains, *_ in found])
            points, error = float(gain.mean()), float(gain.std(ddof=1) / np.sqrt(gain.size))
            row[rival] = {"points": round(points, 2), "se": round(error, 2)}
            text.append(f"{rival} {points:+.2f} ± {error:.2f}")
        rows.append(row)
        print(f"{row['target_j']} J, at most {row['furthest_percent']:+} % off: {', '.join(text)}", flush=True)
    print(
        f"The best limit leads by more than its standard error in {seen} of {compared} comparisons; by chance it would "
        f"in {by_chance:.1f}."
    )
    told = {"compared": compared, "seen": seen, "by_chance": round(by_chance, 1)}
    n_rows = sum(len(fifth.case.scores) for fifth in fifths)
    print(json.dumps({"rows": n_rows, "targets": rows, "best_limit_leads": told}))


if __name__ == "__main__":
    main()
