"""The coarse planner on synthetic fleets: time, nodes and gap of every solver, side by side.

`python -m benchmarks.planner [--plots DIR] [--requests 600] [--quick] [--processor-time]`; the last line is
one JSON object. `--large` is for the large fleets alone, of each `--seed`, with the worst figures of all seeds.

What a request costs is timed from the predicted costs of the experts (arrays) to the plan with its
proof and the reason for every excluded expert: building and checking the Problem is inside, and so is
all that the solver does. Outside, and reported on its own, is what depends only on calibration prompts and
fleet: the SetValue and, where the column says `table`, the ValueTable. Lines that say `search` use no table.

Fleets: 256 calibration prompts, log-normal joules, delays and aggregation that grow with the panel. Chances
are `graded` (logistic: prompt difficulty + expert strength + noise) or `decided` (near 0 or near 1, as after
a sharp gate). PanelBudgets run from 3 % to 80 % of the joules of the whole fleet. Gaps are in percent of the
value; for the free energy, which has no zero, in percent of what all experts are worth more than the worst.
HiGHS solves best-of-set, the linear value; the first table has no delay budget, so that it solves the same
problem. On a machine with other work, wall times hold what the scheduler gave away; `--processor-time`
counts, and limits the searches by, this process's time.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

# Matrices here are small: more threads only add noise.
for _threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_threads, "1")

import numpy as np  # noqa: E402

from benchmarks.planner_fleet import (  # noqa: E402
    CHARACTERS,
    KINDS,
    LIMIT_S,
    SHARES,
    SLICE_S,
    Clock,
    Fleet,
    fleet,
    fleet_of_models,
    gap_pct,
    timed,
    value_of,
)
from moe2.coordinator.planning import greedy, search  # noqa: E402
from moe2.coordinator.planning.problem import Problem  # noqa: E402
from moe2.coordinator.planning.proof import Plan, Status  # noqa: E402
from moe2.coordinator.planning.search import Effort  # noqa: E402
from moe2.coordinator.planning.value_table import ValueTable  # noqa: E402
from moe2.coordinator.planning.values import FloatArray, SetValue  # noqa: E402
from tests.oracles import exhaustive, polyblock  # noqa: E402


def best_by_highs(problem: Problem, chances: FloatArray, time_limit_s: float) -> tuple[float, float]:
    """Best-of-S by HiGHS: (value, relative gap); no delays, linear aggregation."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    prompts, experts = chances.shape
    slope = problem.aggregation.energy_j[2] if experts > 1 else 0.0
    allowed = [problem.is_feasible([n]) for n in range(experts)]
    pairs = prompts * experts
    place = np.arange(pairs)
    gain = np.concatenate([np.zeros(experts), -chances.reshape(-1) / prompts])
    once = coo_array((np.ones(pairs), (place // experts, experts + place)), shape=(prompts, experts + pairs))
    chosen = coo_array(
        (
            np.concatenate([np.ones(pairs), -np.ones(pairs)]),
            (np.concatenate([place, place]), np.concatenate([experts + place, place % experts])),
        ),
        shape=(pairs, experts + pairs),
    )
    spent = np.concatenate([problem.costs.energy_j + slope, np.zeros(pairs)])[None]
    energy_j = problem.budgets.energy_j
    assert energy_j is not None
    found = milp(
        gain,
        constraints=[
            LinearConstraint(once.tocsr(), -np.inf, 1.0),
            LinearConstraint(chosen.tocsr(), -np.inf, 0.0),
            LinearConstraint(spent, -np.inf, energy_j + slope),
        ],
        bounds=Bounds(0.0, np.concatenate([np.array(allowed, dtype=float), np.ones(pairs)])),
        integrality=np.concatenate([np.ones(experts), np.zeros(pairs)]),
        options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
    )
    if found.x is None:
        return 0.0, float("inf")
    return float(-found.fun), float(found.mip_gap or 0.0)


def differs(left: Plan, right: Plan) -> bool:
    """True where two plans that both claim to be optimal are not worth the same."""
    return abs(value_of(left) - value_of(right)) > 1e-8 if left.is_feasible else right.is_feasible


def side_by_side(rng: np.random.Generator, sizes: tuple[int, ...], fleets: int) -> int:
    """Every solver on the same problems; prints a table and returns the mismatches with brute force."""
    mismatches = 0
    print("\nEvery solver on the same problems (median ms | median nodes | worst certified gap %)")
    print(f"{'N':>3} {'value':12} {'budget':>6} | brute force | polyblock | search | table | greedy | HiGHS")
    for experts in sizes:
        for kind in KINDS:
            for share in (0.06, 0.25, 0.8):
                cells: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
                for number in range(fleets):
                    drawn = fleet(rng, experts, CHARACTERS[number % 2])
                    value = drawn.value(kind)
                    problem, table = drawn.request(value, share, hurried=False), ValueTable.build(value)
                    oracle, brute_ms = timed(partial(exhaustive.plan, problem))
                    cells["brute force"].append((brute_ms, oracle.proof.nodes, 0.0))
                    runs: dict[str, Callable[[], Plan]] = {
                        "polyblock": partial(polyblock.plan, problem, node_limit=400),
                        "search": partial(search.plan, problem),
                        "table": partial(search.plan, problem, table=table),
                        "greedy": partial(greedy.plan, problem),
                    }
                    for name, run in runs.items():
                        plan, spent_ms = timed(run)
                        cells[name].append((spent_ms, plan.proof.nodes, gap_pct(plan)))
                        proven = plan.proof.status is not Status.BOUNDED
                        mismatches += proven and differs(plan, oracle)
                    if kind == "best_of" and number == 0 and oracle.is_feasible:
                        started = time.perf_counter()
                        best, gap = best_by_highs(problem, drawn.chances, 5.0)
                        cells["HiGHS"].append(((time.perf_counter() - started) * 1e3, 0, 100 * gap))
                        mismatches += gap == 0.0 and abs(best - value_of(oracle)) > 1e-5
                row = [_cell(cells.get(name, [])) for name in (*runs_order, "HiGHS")]
                print(f"{experts:3d} {kind:12} {share:6.0%} | " + " | ".join(row), flush=True)
    return mismatches


runs_order = ("brute force", "polyblock", "search", "table", "greedy")


def _cell(samples: list[tuple[float, float, float]]) -> str:
    if not samples:
        return "-"
    ms, nodes, gap = np.array(samples).T
    return f"{np.median(ms):.2f} {np.median(nodes):.0f} {gap.max():.2f}"


@dataclass(frozen=True)
class Latency:
    """What a stream of requests took."""

    p50_ms: float
    p99_ms: float
    exact_share: float
    build_ms: float
    mismatches: int


def stream(
    rng: np.random.Generator,
    experts: int,
    max_experts: int | None,
    requests: int,
    *,
    tabled: bool,
    checked: int,
    clock: Clock,
) -> Latency:
    """Requests of changing costs and budgets, all three values and both characters in turn."""
    spent, exact, builds, mismatches = [], [], [], 0
    for kind in KINDS:
        for character in CHARACTERS:
            drawn = fleet(rng, experts, character)
            value = drawn.value(kind)
            started = time.perf_counter()
            table = ValueTable.build(value, max_experts) if tabled else None
            builds.append((time.perf_counter() - started) * 1e3)
            search.plan(drawn.request(value, 0.3, max_experts), table=table)  # first call: caches, BLAS
            for number in range(requests // 6):
                # Queues, prompt lengths and power modes move the costs from request to request.
                now = replace(
                    drawn,
                    energy_j=drawn.energy_j * rng.lognormal(0, 0.3, experts),
                    delay_s=drawn.delay_s * rng.lognormal(0, 0.3, experts),
                )
                share, _ = float(rng.choice(SHARES)), now.patience_s  # the budgets are given, not timed
                started = clock()
                problem = now.request(value, share, max_experts)
                plan = search.plan(problem, table=table, clock=clock)
                spent.append((clock() - started) * 1e3)
                exact.append(plan.proof.status is not Status.BOUNDED)
                if number < checked:
                    other = exhaustive.plan(problem) if experts <= 16 else search.plan(problem)
                    mismatches += differs(plan, other)
    return Latency(
        float(np.median(spent)),
        float(np.quantile(spent, 0.99)),
        float(np.mean(exact)),
        float(np.median(builds)),
        mismatches,
    )


@dataclass(frozen=True)
class Sample:
    """One search under the time limit."""

    experts: int
    kind: str
    character: str
    share: float
    time_ms: float
    nodes: int
    gap_pct: float
    members: int


def anytime(
    rng: np.random.Generator, sizes: tuple[int, ...], fleets: int, clock: Clock, max_experts: int | None = None
) -> list[Sample]:
    """Searches without a table, stopped in time for an answer within LIMIT_S."""
    samples = []
    for experts in sizes:
        for kind in KINDS:
            for character in CHARACTERS:
                for _ in range(fleets):
                    drawn = fleet(rng, experts, character)
                    value, _ = drawn.value(kind), drawn.patience_s
                    for share in SHARES:

                        def answer(drawn: Fleet = drawn, value: SetValue = value, share: float = share) -> Plan:
                            effort = Effort(time_limit_s=SLICE_S)
                            return search.plan(drawn.request(value, share, max_experts), effort=effort, clock=clock)

                        plan, time_ms = timed(answer, clock)
                        samples.append(
                            Sample(
                                experts,
                                kind,
                                character,
                                share,
                                time_ms,
                                plan.proof.nodes,
                                gap_pct(plan),
                                len(plan.members),
                            )
                        )
    return samples


GROWTH = (("best_of", 4), ("best_of", None), ("coverage", 4))
"""Values and `max_experts` that large fleets are planned with."""
GROWN = ((128, 8), (1000, 8), (3000, 4))
"""Sizes of large fleets, and how many of each character are drawn."""


@dataclass(frozen=True)
class Growth:
    """What searches on fleets of one size took, all under the time limit."""

    experts: int
    runs: int
    ms_p50: float
    ms_p99: float
    worst_gap_pct: float
    """The widest certified gap of best-of-set, whatever `max_experts`."""
    worst_gap_k4_pct: float
    """The same with `max_experts` 4 only."""
    proven_share: float


def growth(rng: np.random.Generator, experts: int, fleets: int, clock: Clock) -> Growth:
    """Requests on large fleets, of unlike experts and of a few models on many hosts, each of a few shares of joules."""
    spent, gaps, of_four, proven = [], [], [], []
    for number in range(fleets):
        for drawn in (*(fleet(rng, experts, character) for character in CHARACTERS), fleet_of_models(rng, experts)):
            for kind, most in GROWTH:
                value, _ = drawn.value(kind), drawn.patience_s
                search.plan(drawn.request(value, 0.3, most), effort=Effort(time_limit_s=SLICE_S), clock=clock)
                for share in SHARES[number % 2 :: 2]:

                    def answer(
                        drawn: Fleet = drawn, value: SetValue = value, share: float = share, most: int | None = most
                    ) -> Plan:
                        effort = Effort(time_limit_s=SLICE_S)
                        return search.plan(drawn.request(value, share, most), effort=effort, clock=clock)

                    plan, time_ms = timed(answer, clock)
                    spent.append(time_ms)
                    proven.append(plan.proof.status is not Status.BOUNDED)
                    if kind == "best_of":
                        gaps.append(gap_pct(plan))
                        of_four += [gap_pct(plan)] if most == 4 else []
    return Growth(
        experts=experts,
        runs=len(spent),
        ms_p50=float(np.median(spent)),
        ms_p99=float(np.quantile(spent, 0.99)),
        worst_gap_pct=max(gaps),
        worst_gap_k4_pct=max(of_four),
        proven_share=float(np.mean(proven)),
    )


def grown(seeds: Sequence[int], *, quick: bool, clock: Clock) -> dict[str, float]:
    """The worst figures of searches on large fleets, each size drawn anew from each seed; printed as well."""
    load = os.getloadavg()[0]
    print(f"\nLarge fleets, {LIMIT_S * 1e3:.0f} ms at most, unlike experts and few models; load {load:.0f}")
    figures: dict[str, float] = {}
    for experts, fleets in GROWN:
        found = [growth(np.random.default_rng(seed), experts, 1 if quick else fleets, clock) for seed in seeds]
        p50, p99 = (max(getattr(one, name) for one in found) for name in ("ms_p50", "ms_p99"))
        gap, gap_k4 = (max(getattr(one, name) for one in found) for name in ("worst_gap_pct", "worst_gap_k4_pct"))
        proven = min(one.proven_share for one in found)
        print(
            f"N = {experts:4d}: {found[0].runs} runs a seed, p50 {p50:.1f} ms, p99 {p99:.1f} ms, proven {proven:.0%}, "
            f"widest gap of best-of-set {gap:.2f} %, with max_experts 4 {gap_k4:.2f} %",
            flush=True,
        )
        figures |= {f"gap_{experts}": gap, f"gap_{experts}_k4": gap_k4, f"proven_share_{experts}": proven}
        figures |= {f"ms_p50_{experts}": p50, f"ms_p99_{experts}": p99}
    return figures


def show_anytime(samples: list[Sample], note: str = "") -> None:
    """Print the searches under the time limit, one line per size, value, character and budget."""
    print(f"\nSearch without a table, stopped in time for an answer within {LIMIT_S * 1e3:.0f} ms{note}")
    print("  N value        chances  budget | panel |  ms p50   worst | nodes p50 | gap % p50   worst")
    groups: dict[tuple[int, str, str, float], list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.experts, sample.kind, sample.character, sample.share].append(sample)
    for (experts, kind, character, share), group in groups.items():
        spent, gaps = [s.time_ms for s in group], [s.gap_pct for s in group]
        members, nodes = np.median([s.members for s in group]), np.median([s.nodes for s in group])
        print(
            f"{experts:3d} {kind:12} {character:8} {share:6.0%} | {members:5.0f} | "
            f"{np.median(spent):7.2f} {max(spent):7.2f} | {nodes:9.0f} | "
            f"{np.median(gaps):9.3f} {max(gaps):7.3f}"
        )


def plot(samples: list[Sample], folder: Path) -> None:
    """How time, nodes and gap grow with N and with the budget, as PNG and SVG."""
    import matplotlib as mpl  # type: ignore[import-not-found,unused-ignore]

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # type: ignore[import-not-found,unused-ignore]

    folder.mkdir(parents=True, exist_ok=True)
    sizes = sorted({s.experts for s in samples})
    for name, label in (("time_ms", "time, ms"), ("nodes", "nodes"), ("gap_pct", "certified gap, %")):
        figure, axes = plt.subplots(1, 2, figsize=(10, 4))
        for kind in KINDS:
            own = [s for s in samples if s.kind == kind]
            worst = [max(getattr(s, name) for s in own if s.experts == size) for size in sizes]
            middle = [np.median([getattr(s, name) for s in own if s.experts == size]) for size in sizes]
            (line,) = axes[0].plot(sizes, middle, marker="o", label=f"{kind}, median")
            axes[0].plot(sizes, worst, marker="x", linestyle=":", color=line.get_color(), label="worst")
        for size in sizes:
            own = [s for s in samples if s.kind == "coverage" and s.experts == size]
            mean = [np.mean([getattr(s, name) for s in own if s.share == share]) for share in SHARES]
            axes[1].plot([100 * share for share in SHARES], mean, marker="o", label=f"N = {size}")
        axes[0].set(xlabel="experts", ylabel=label, title=f"{len(KINDS)} values, all budgets")
        axes[1].set(xlabel="energy budget, % of the fleet's joules", xscale="log", title="coverage, mean")
        axes[1].set_xticks([100 * share for share in SHARES], [f"{share:.0%}" for share in SHARES])
        axes[1].minorticks_off()
        for axis in axes:
            axis.legend(fontsize=7)
            axis.grid(alpha=0.3)
        figure.tight_layout()
        for ending in ("png", "svg"):
            figure.savefig(folder / f"planner_{name}.{ending}", dpi=120)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, action="append", help="default: 7; several are for large fleets")
    parser.add_argument("--large", action="store_true", help="large fleets alone")
    parser.add_argument("--requests", type=int, default=600, help="requests per stream")
    parser.add_argument("--fleets", type=int, default=4, help="fleets per size, value and character")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, for a first look")
    parser.add_argument("--processor-time", action="store_true", help="time and limit by processor time")
    parser.add_argument("--plots", type=Path, help="folder for PNG and SVG plots (needs matplotlib)")
    options = parser.parse_args()
    seeds = options.seed or [7]
    clock: Clock = time.process_time if options.processor_time else time.perf_counter
    if options.large:
        print(json.dumps(_rounded(grown(seeds, quick=options.quick, clock=clock))))
        return
    rng = np.random.default_rng(seeds[0])
    requests = options.requests // 10 if options.quick else options.requests
    fleets = 1 if options.quick else options.fleets

    mismatches = side_by_side(rng, (8, 12) if options.quick else (8, 12, 16), 1 if options.quick else 2)
    streams = {}
    print("\nStreams of requests (all values and characters)")
    for name, experts, most, tabled in (
        ("n16", 16, None, True),
        ("n16_search", 16, None, False),
        ("n32_k4", 32, 4, True),
        ("n32_k4_search", 32, 4, False),
    ):
        checked = 1 if options.quick else 3
        found = stream(
            rng,
            experts,
            most,
            requests if tabled else requests // 10,
            tabled=tabled,
            checked=checked,
            clock=clock,
        )
        streams[name] = found
        mismatches += found.mismatches
        print(
            f"{name:14} p50 {found.p50_ms:6.3f} ms, p99 {found.p99_ms:6.3f} ms, "
            f"exact {found.exact_share:.1%}, table built in {found.build_ms:.0f} ms, "
            f"mismatches {found.mismatches}",
            flush=True,
        )
    samples = anytime(rng, (8, 16, 24, 32, 48, 64), fleets, clock)
    show_anytime(samples)
    of_four = anytime(rng, (64,), fleets, clock, max_experts=4)
    show_anytime(of_four, ", max_experts 4")
    large = grown(seeds, quick=options.quick, clock=clock)
    if options.plots:
        plot(samples, options.plots)

    def worst(experts: int, *kinds: str) -> float:
        return max(s.gap_pct for s in samples if s.experts == experts and s.kind in kinds)

    def late(experts: int) -> float:
        return float(np.quantile([s.time_ms for s in samples if s.experts == experts], 0.99))

    figures = {
        "p99_ms_n16": streams["n16"].p99_ms,
        "exact_share_n16": streams["n16"].exact_share,
        "p99_ms_n32_k4": streams["n32_k4"].p99_ms,
        "exact_share_n32_k4": streams["n32_k4"].exact_share,
        "worst_gap_pct_n32": worst(32, "coverage"),
        "worst_gap_pct_n64": worst(64, "coverage"),
        "mismatches_with_brute_force": mismatches,
        "p99_ms_n16_search": streams["n16_search"].p99_ms,
        "p99_ms_n32_k4_search": streams["n32_k4_search"].p99_ms,
        "exact_share_n32_k4_search": streams["n32_k4_search"].exact_share,
        "p99_ms_n32": late(32),
        "p99_ms_n64": late(64),
        "p99_ms_n64_k4_search": float(np.quantile([s.time_ms for s in of_four], 0.99)),
        "worst_ms_n64_k4_search": max(s.time_ms for s in of_four),
        "exact_share_n64_k4_search": float(np.mean([s.gap_pct == 0.0 for s in of_four])),
        "worst_gap_pct_n64_k4": max(s.gap_pct for s in of_four),
        "worst_gap_pct_n32_best_of": worst(32, "best_of"),
        "worst_gap_pct_n64_best_of": worst(64, "best_of"),
        "worst_gap_pct_n32_free_energy": worst(32, "free_energy"),
        "worst_gap_pct_n64_free_energy": worst(64, "free_energy"),
        "table_build_ms_n16": streams["n16"].build_ms,
        "table_build_ms_n32_k4": streams["n32_k4"].build_ms,
        **large,
    }
    print(json.dumps(_rounded(figures)))


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(figure, 4) for name, figure in figures.items()}


if __name__ == "__main__":
    main()
