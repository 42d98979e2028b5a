"""The slow level over a day of real arrivals: joules per answer with waiting, against simpler policies and hindsight.

`python -m benchmarks.provisioning --traffic FILE... [--frontier] [--plots DIR]`; the last line is one JSON object.

Traffic: public hours of LLM requests (Azure/AzurePublicDataset, CC-BY 4.0), thinned to 60 and to 180 requests in the
busiest hour, with the shape of a day of a 61-day trace. Each file is one category, named by the end of its name. Seven
days before the day that counts are what the slow level has learned from; they are drawn apart. Fleet: two RTX 4090 and
four AGX Orin, in virtual time; all joules are SIMULATED, from figures that `benchmarks/provisioning_fleet.py` cites or
marks as ASSUMED.

Policies keep a person's patience and a disk's life: the first token within 4 s for 95 % of requests, no host more than
24 changes of state a day, mean score within 0.5 points of everybody awake.

always on: everybody has the model in memory. best fixed time: unload and suspend after the idle time, and wake the kind
of host, that are best in hindsight of those that keep all this. moe2: the product's cores. clairvoyant: the same
requests on the same hosts as with moe2, or as with the best fixed time, whichever is less, with each idle gap of each
host decided in hindsight. lower bound: no schedule of all hosts stays below it, even knowing every prompt's length.

Keys of the last line, the worse of the two loads: `j_per_answer_ratio_always_on` (floor 0.5), `..._best_ttl` (1.0),
`..._clairvoyant` (1.25), `..._lower_bound` (none), `late_share` (0.05), `transitions_per_host_day` (24),
`quality_points_vs_always_on` (-0.5), `solve_p99_ms` of this process's time for one decision.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.provisioning_bound import bound_j, hindsight_j
from benchmarks.provisioning_fleet import DAY_S, HOURLY, MIDNIGHT_UNIX_S, Arrival, Trace, days, read_trace
from benchmarks.provisioning_policies import MAX_TRANSITIONS, AlwaysOn, Ours, fixed_times
from benchmarks.provisioning_sim import Day, Result
from moe2.coordinator.provisioning.decision import Tolerances
from moe2.coordinator.provisioning.problem import Limits
from moe2.coordinator.provisioning.traffic import Traffic

LOADS = (60.0, 180.0)
LEARNED_DAYS = 7
TOLERANCES = Tolerances()
FRONTIER = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04)


@dataclass(frozen=True)
class Comparison:
    """The policies' results under one load."""

    busiest: float
    always_on: Result
    best_ttl: Result
    ours: Result
    clairvoyant_j: float
    """Joules per answer."""
    bound_j: float
    """Joules per answer."""
    solve_ms: list[float]
    frontier: list[tuple[float, Result]]


def compare(
    traces: list[Trace], busiest: float, *, seed: int, frontier: bool, hourly_late_share: float = 1.0
) -> Comparison:
    """All policies on one day."""
    *learned, day = days(traces, busiest, LEARNED_DAYS + 1, seed)
    always_on = Day(day).run(AlwaysOn())
    fixed = [Day(day).run(policy) for policy in fixed_times()]
    kept = [one for one in fixed if _keeps(one, always_on)]
    best_ttl = min((always_on, *kept), key=lambda one: one.j_per_answer)
    policy = Ours(_learned(learned), TOLERANCES, Limits(hourly_late_share=hourly_late_share))
    ours = Day(day).run(policy)
    n = max(1, len(day))
    return Comparison(
        busiest,
        always_on,
        best_ttl,
        ours,
        min(hindsight_j(day, one.takers) for one in (ours, best_ttl)) / n,
        bound_j(day, quality_loss=TOLERANCES.quality_loss, late_share=TOLERANCES.late_share) / n,
        policy.solve_ms,
        [
            (loss, Day(day).run(Ours(_learned(learned), Tolerances(quality_loss=loss))))
            for loss in (FRONTIER if frontier else ())
        ],
    )


def _learned(learned: list[list[Arrival]]) -> Traffic:
    traffic = Traffic()
    traffic.passed(MIDNIGHT_UNIX_S - LEARNED_DAYS * DAY_S)
    for day in learned:
        traffic.note_all(day)
    traffic.passed(MIDNIGHT_UNIX_S)
    return traffic


def _keeps(one: Result, always_on: Result) -> bool:
    return (
        one.late_share <= TOLERANCES.late_share
        and one.transitions_per_host_day <= MAX_TRANSITIONS
        and one.score >= always_on.score - TOLERANCES.quality_loss
    )


def _print(found: Comparison) -> None:
    on = found.always_on
    print(f"\n{found.busiest:.0f} requests in the busiest hour, {on.n} in the day; joules are simulated")
    print(f"{'policy':44s} {'J/answer':>9s} {'ratio':>6s} {'late':>6s} {'points':>7s} {'changes':>8s}")
    for one in (on, found.best_ttl, found.ours):
        print(
            f"{one.name:44s} {one.j_per_answer:9.0f} {one.j_per_answer / on.j_per_answer:6.3f} {one.late_share:6.3f} "
            f"{100 * (one.score - on.score):+7.2f} {one.transitions_per_host_day:8d}"
        )
    for name, joules in (("clairvoyant, gaps in hindsight", found.clairvoyant_j), ("lower bound", found.bound_j)):
        print(f"{name:44s} {joules:9.0f} {joules / on.j_per_answer:6.3f}")
    print(f"of which the answers themselves: {found.ours.answers_j_per_answer:.0f} J")
    print(
        "hosts awake by hour:", " ".join(f"{sum(found.ours.awake[h * 60 : h * 60 + 60]) / 60:.1f}" for h in range(24))
    )
    for loss, one in found.frontier:
        print(
            f"  {100 * loss:4.2f} points allowed: {one.j_per_answer:6.0f} J/answer, "
            f"{100 * (one.score - on.score):+.2f} points, late {one.late_share:.3f}"
        )


def last_line(found: list[Comparison]) -> dict[str, float]:
    """The figures of the last line: the worse of the loads."""

    def worst(of: list[float]) -> float:
        return round(max(of), 4)

    return {
        "j_per_answer_ratio_always_on": worst([one.ours.j_per_answer / one.always_on.j_per_answer for one in found]),
        "j_per_answer_ratio_best_ttl": worst([one.ours.j_per_answer / one.best_ttl.j_per_answer for one in found]),
        "j_per_answer_ratio_clairvoyant": worst([one.ours.j_per_answer / one.clairvoyant_j for one in found]),
        "j_per_answer_ratio_lower_bound": worst([one.ours.j_per_answer / one.bound_j for one in found]),
        "late_share": worst([one.ours.late_share for one in found]),
        "transitions_per_host_day": worst([float(one.ours.transitions_per_host_day) for one in found]),
        "quality_points_vs_always_on": round(min(100 * (one.ours.score - one.always_on.score) for one in found), 4),
        "solve_p99_ms": worst([float(np.percentile(one.solve_ms, 99)) for one in found]),
    }


def plot(found: list[Comparison], folder: Path) -> None:
    """Draws watts, awake hosts and joules per answer over the day, and the frontier where it was asked for."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SystemExit("Plots need matplotlib: install moe2[plots], or leave --plots out.") from error
    folder.mkdir(parents=True, exist_ok=True)
    for one in found:
        figure = Figure(figsize=(10, 9), layout="constrained")
        watts, awake, joules = figure.subplots(3, 1, sharex=True)
        for result in (one.always_on, one.best_ttl, one.ours):
            hours = np.arange(len(result.watts)) / 60
            window = np.ones(15)
            # Fewer minutes are known on one side at both ends of the day.
            smooth = np.convolve(result.watts, window, "same") / np.convolve(np.ones(len(result.watts)), window, "same")
            watts.plot(hours, smooth, label=result.name, linewidth=1)
            awake.step(np.arange(len(result.awake)) / 60, result.awake, label=result.name, linewidth=1)
            by_hour = np.array(result.watts).reshape(24, 60).sum(axis=1) * 60
            rate = np.maximum(one.always_on.n * np.array(HOURLY) / sum(HOURLY), 1.0)
            joules.step(np.arange(24) + 0.5, by_hour / rate, where="mid", label=result.name)
        watts.set(ylabel="W, mean of 15 min", title=f"{one.busiest:.0f} requests in the busiest hour (simulated)")
        awake.set(ylabel="hosts awake")
        joules.set(ylabel="J an answer, expected rate", xlabel="hour of the day", yscale="log")
        watts.legend()
        figure.savefig(folder / f"provisioning_{one.busiest:.0f}.png", dpi=120)
        if one.frontier:
            figure = Figure(figsize=(7, 5), layout="constrained")
            axes = figure.add_subplot()
            results = [result for _, result in one.frontier]
            axes.plot([r.j_per_answer for r in results], [r.score for r in results], "o-", label="moe2")
            for result in (one.always_on, one.best_ttl):
                axes.plot(result.j_per_answer, result.score, "s", label=result.name)
            axes.set(xlabel="J an answer, waiting included (simulated)", ylabel="mean score")
            axes.legend()
            figure.savefig(folder / f"provisioning_frontier_{one.busiest:.0f}.png", dpi=120)


def main() -> None:
    """Compares the policies and prints the figures."""
    parser = argparse.ArgumentParser(description="Joules per answer, waiting included, over a day of real arrivals.")
    parser.add_argument(
        "--traffic", nargs="+", type=Path, required=True, metavar="FILE", help="traces, .csv or .csv.gz"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the thinning")
    parser.add_argument("--frontier", action="store_true", help="score over joules as more score may be given up, too")
    parser.add_argument(
        "--hourly-late-share", type=float, default=1.0, metavar="SHARE", help="patience of each hour and category"
    )
    parser.add_argument("--plots", type=Path, metavar="DIR", help="folder for plots")
    arguments = parser.parse_args()
    traces = [read_trace(path) for path in arguments.traffic]
    found = []
    for busiest in LOADS:
        found.append(
            compare(
                traces,
                busiest,
                seed=arguments.seed,
                frontier=arguments.frontier,
                hourly_late_share=arguments.hourly_late_share,
            )
        )
        _print(found[-1])
    if arguments.plots:
        plot(found, arguments.plots)
    print(json.dumps(last_line(found)))


if __name__ == "__main__":
    main()
