"""The whole decision per request: features, gate, coarse plan, fine choice, exactly as a request causes it.

A gate of the default size is trained on made-up outcomes (or read from `--gate FILE`). Requests come with prompts of
several kinds, lengths and budgets, most of them met once, over a fleet whose load changes: the memo of coarse plans is
mostly missed, and its share of hits is reported. `--large N` (1,000 unless it says otherwise) also decides requests on
N hosts that serve the same models, through the capability table, and before each decision one host has reported other
figures, as a busy fleet's do. `--worst N` decides requests on N experts that are all of different models, where the
planner's time limit can bind, and reports the longest decision: what the event loop may have to wait.

The last line is one JSON object: `decision_p50_ms`, `decision_p99_ms`, `gate_p50_ms` and more.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from moe2.common.cost import EnergyProfile, LatencyProfile, Spread
from moe2.common.energy import Quality
from moe2.common.link.messages import Hello, Report
from moe2.common.link.reports import ExpertReport, ExpertState, HostFacts
from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.request import Budgets, Demand, SelectionRequest, Wish, estimate_prompt_tokens
from moe2.coordinator.choosing.result import NoExpert
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.fleet.table import CapabilityTable, Expert
from moe2.coordinator.gate.checkpoint import load_checkpoint
from moe2.coordinator.gate.gate import Gate
from moe2.coordinator.planning.problem import Quantile
from moe2.coordinator.training.config import TrainingConfig
from moe2.coordinator.training.outcomes import Outcomes, split_of
from moe2.coordinator.training.train import train_gate

KINDS = ("arithmetic", "code", "facts", "chat", "summary", "translation")
SIZES_B = (0.135, 0.36, 0.5, 1.1, 1.5, 1.7, 3.0, 7.0)
FAMILIES = ("smollm", "qwen", "llama", "gemma", "phi", "mistral", "granite", "olmo")
WORDS = (
    *("river", "signal", "engine", "garden", "mountain", "paper", "copper", "window"),
    *("bridge", "winter", "number", "market", "doctor", "planet", "island", "metal"),
    *("forest", "letter", "castle", "silver", "harbour", "pencil", "thunder", "valley"),
    *("machine", "season", "orbit", "kitchen", "ladder", "mirror", "ocean", "train"),
)

HOST = HostFacts(hostname="host", system="Linux", architecture="x86_64")
WARM_UP = 50
"""Decisions on a large fleet that are not timed."""


def model_names(count: int) -> list[str]:
    """Distinct model names of many families and sizes."""
    return [f"{FAMILIES[n % 8]}-v{n // 8}-{SIZES_B[(n * 3 + n // 8) % 8]:g}B" for n in range(count)]


def prompt_of(kind: str, random: np.random.Generator) -> str:
    """One made-up prompt of a kind; summaries are long."""
    words = random.choice(WORDS, 400)
    first, second = random.integers(2, 900, 2)
    match kind:
        case "arithmetic":
            return (
                f"A {words[0]} has {first} {words[1]}s and gets {second} more each day. How many {words[1]}s does it "
                f"have after {random.integers(3, 60)} days? Give the number alone."
            )
        case "code":
            return (
                f"def {words[0]}_{words[1]}(items: list[int]) -> int:\n"
                f'    """Return the {words[2]} of the items above {first}.\n\n'
                f"    >>> {words[0]}_{words[1]}([{first}, {second}])\n"
                f'    {second}\n    """\n'
            )
        case "facts":
            options = "\n".join(f"({letter}) the {word}" for letter, word in zip("ABCD", words[2:6], strict=True))
            return f"Which of these is nearest to a {words[0]} in the {words[1]}?\n{options}\n"
        case "summary":
            return f"Summarise in {random.integers(1, 5)} sentences: " + " ".join(words[: random.integers(120, 400)])
        case "translation":
            return f"Translate into German: {' '.join(words[: random.integers(5, 40)])}."
        case _:
            return f"Tell me something about the {words[0]} that every {words[1]} should know, please."


def made_up_outcomes(models: Sequence[str], rows: int) -> Outcomes:
    """Outcomes where larger models are better, each a little more so on some kinds."""
    random = np.random.default_rng(3)
    kinds = [KINDS[row % len(KINDS)] for row in range(rows)]
    size = np.log2([SIZES_B[SIZES_B.index(float(name.rsplit("-", 1)[1][:-1]))] for name in models])
    liking = random.normal(0.0, 0.8, (len(KINDS), len(models)))
    odds = 0.27 * size[None] + liking[[KINDS.index(kind) for kind in kinds]]
    ids = tuple(str(row) for row in range(rows))
    return Outcomes(
        experts=tuple(models),
        ids=ids,
        prompts=tuple(prompt_of(kind, random) for kind in kinds),
        splits=tuple(split_of(name) for name in ids),
        sources=("made-up",) * rows,
        tasks=tuple(kinds),
        scores=(random.random(odds.shape) < 1 / (1 + np.exp(-odds))).astype(np.float64),
        chars=np.full(odds.shape, np.nan),
    )


def fleet_of(models: Sequence[str]) -> tuple[Expert, ...]:
    """One expert per model, on hosts of different speed, all measured."""
    random = np.random.default_rng(4)
    experts = []
    for place, model in enumerate(models):
        size_b = float(model.rsplit("-", 1)[1][:-1])
        pace = float(random.uniform(0.5, 3.0))
        spread = Spread(p50=-0.02, p95=float(random.uniform(0.1, 0.5)))
        report = ExpertReport(
            model=model,
            state=ExpertState.READY,
            context_tokens=8192,
            slots=4,
            max_queue=16,
            has_chat_template=True,
            parameters=int(size_b * 1e9),
            latency=LatencyProfile(
                prefill=(0.01, 2e-4 * size_b * pace, 1e-6, 1e-5),
                decode=(0.004 + 0.008 * size_b * pace, 1e-3, 1e-4),
                slots=4,
                service_s=2.0,
                ttft=spread,
                inter_token=spread,
                total=spread,
                n_requests=100,
            ),
            energy=EnergyProfile(
                coefficients=(0.002 * size_b, 0.05 + 0.3 * size_b / pace, 0.05, 0.001),
                spread=spread,
                quality=Quality.SIMULATED,
            ),
        )
        agent = f"agent-{place:04d}"
        experts.append(Expert(f"{agent}/{model}", agent, f"host {place}", model, report, rtt_s=0.002))
    return tuple(experts)


def requests_of(count: int, experts: Sequence[Expert]) -> list[tuple[SelectionRequest, dict[str, int]]]:
    """Requests with the load that they meet. Four in five bring budgets of their own; a fifth limits candidates."""
    random = np.random.default_rng(5)
    made = []
    for _ in range(count):
        text = prompt_of(KINDS[int(random.integers(len(KINDS)))], random)
        wish = Wish()
        if random.random() < 0.8:
            wish = Wish(
                energy_budget_j=round(float(random.lognormal(np.log(60), 1.0)), 1) if random.random() < 0.8 else None,
                latency_budget_s=round(float(random.lognormal(np.log(4), 0.8)), 1) if random.random() < 0.7 else None,
                ttft_budget_s=round(float(random.lognormal(np.log(0.8), 0.6)), 2) if random.random() < 0.3 else None,
                quantile=Quantile.P50 if random.random() < 0.2 else None,
                max_experts=int(random.integers(2, 5)) if random.random() < 0.25 else None,
            )
        demand = Demand(estimate_prompt_tokens([text]), int(random.choice([16, 64, 128, 256, 512])))
        busy = random.choice(len(experts), len(experts) // 3, replace=False)
        in_flight = {experts[n].key: int(random.integers(1, 7)) for n in busy}
        made.append((SelectionRequest("moe2", demand, text=text, wish=wish, needs_chat_template=True), in_flight))
    return made


def decided_ms(
    selector: Selector, experts: tuple[Expert, ...], requests: Sequence[tuple[SelectionRequest, dict[str, int]]]
) -> tuple[list[float], list[float], dict[str, float]]:
    """Milliseconds of each decision by the clock and of processor time; shares of hits, refusals, unproven plans."""
    taken, worked, plans, seen, hits, refused, unproven = [], [], [], set(), 0, 0, 0
    for position, (request, in_flight) in enumerate(requests):
        epoch = position // 100  # a fleet that reports now and then
        start, work = time.perf_counter(), time.thread_time()
        decided = selector.select(request, experts, in_flight, epoch)
        worked.append((time.thread_time() - work) * 1e3)
        taken.append((time.perf_counter() - start) * 1e3)
        refused += isinstance(decided, NoExpert)
        plan = decided.plan
        if plan is not None:
            hits += id(plan) in seen
            seen.add(id(plan))
            plans.append(plan)  # kept, so that no other plan gets its id
            unproven += plan.proof.status == "bounded"
    count = len(requests)
    return (
        taken,
        worked,
        {"hit_share": hits / count, "refused_share": refused / count, "unproven_share": unproven / count},
    )


def on_a_busy_fleet(selector: Selector, experts: Sequence[Expert], requests: int) -> dict[str, float]:
    """Milliseconds of decisions on a large fleet, of which one host has reported other figures before each of them."""
    table = CapabilityTable(stale_s=3600.0, evict_s=3600.0)
    random = np.random.default_rng(6)
    for expert in experts:
        hello = Hello(
            protocol_min=1,
            protocol_max=1,
            agent_id=expert.agent_id,
            agent_name=expert.agent_name,
            agent_version="0",
        )
        table.agent_joined(hello, 0.0)
        table.agent_reported(expert.agent_id, Report(seq=0, host=HOST, experts=(expert.report,)), 0.0)
    taken, worked = [], []
    for number, (request, in_flight) in enumerate(requests_of(requests + WARM_UP, experts)):
        changed = experts[int(random.integers(len(experts)))]
        latency = changed.report.latency
        assert latency is not None, "the fleet is measured"
        slower = msgspec.structs.replace(latency, service_s=float(random.uniform(1.0, 4.0)))
        report = msgspec.structs.replace(changed.report, latency=slower)
        start, work = time.perf_counter(), time.thread_time()
        table.agent_reported(changed.agent_id, Report(seq=1, host=HOST, experts=(report,)), 1.0)
        now = table.choosable(1.0)
        selector.select(request, now, in_flight, table.epoch)
        if number >= WARM_UP:
            worked.append((time.thread_time() - work) * 1e3)
            taken.append((time.perf_counter() - start) * 1e3)
    count = len(experts)
    return {
        f"decision_p50_ms_{count}": float(np.percentile(taken, 50)),
        f"decision_p99_ms_{count}": float(np.percentile(taken, 99)),
        f"decision_cpu_p50_ms_{count}": float(np.percentile(worked, 50)),
        f"decision_cpu_p99_ms_{count}": float(np.percentile(worked, 99)),
    }


def selector_of(gate: Gate, kinds: Sequence[str]) -> Selector:
    """A selector with default budgets for two kinds of prompt."""
    categories = {"default": Budgets(latency_budget_s=60.0), "chat": Budgets(energy_budget_j=200.0)}
    return Selector(Scorer(gate, kinds), categories, clock=time.monotonic)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gate", type=Path, metavar="FILE", help="a checkpoint instead of a gate trained here")
    parser.add_argument("--experts", type=int, default=16, metavar="N")
    parser.add_argument("--requests", type=int, default=2000, metavar="N")
    parser.add_argument("--large", type=int, nargs="*", metavar="N", default=[1000], help="also decide on N hosts")
    parser.add_argument("--worst", type=int, metavar="N", help="also find the longest decision on N experts")
    args = parser.parse_args()
    if args.gate:
        gate, manifest = load_checkpoint(args.gate)
        models, kinds = list(manifest.experts), manifest.kinds
        models += [name for name in model_names(args.experts) if name not in models][: args.experts - len(models)]
    else:
        models = model_names(args.experts)
        trained = train_gate(made_up_outcomes(models, 900), config=TrainingConfig(epochs=6))
        gate, kinds = trained.gate, trained.manifest.kinds
    # Training leaves hundreds of thousands of objects, which no coordinator holds, for the collector to walk.
    gc.freeze()
    experts = fleet_of(models)
    requests = requests_of(args.requests, experts)
    selector = selector_of(gate, kinds)
    decided_ms(selector, experts, requests[:100])
    selector = selector_of(gate, kinds)
    taken, worked, shares = decided_ms(selector, experts, requests)
    gated = []
    for request, _ in requests:
        start = time.perf_counter()
        gate.predict(request.text)
        gated.append((time.perf_counter() - start) * 1e3)
    figures = {
        "decision_p50_ms": float(np.percentile(taken, 50)),
        "decision_p99_ms": float(np.percentile(taken, 99)),
        "decision_max_ms": max(taken),
        "decision_cpu_p50_ms": float(np.percentile(worked, 50)),
        "decision_cpu_p99_ms": float(np.percentile(worked, 99)),
        "decision_cpu_max_ms": max(worked),
        "gate_p50_ms": float(np.percentile(gated, 50)),
        **shares,
    }
    for count in args.large:
        hosts = fleet_of([models[n % len(models)] for n in range(count)])
        figures |= on_a_busy_fleet(selector_of(gate, kinds), hosts, 1000)
    if args.worst:
        large = fleet_of([*models, *model_names(args.worst + len(models))][: args.worst])
        longest, large_worked, large_shares = decided_ms(selector_of(gate, kinds), large, requests_of(400, large))
        figures |= {
            "large_experts": args.worst,
            "large_p50_ms": float(np.percentile(longest, 50)),
            "large_p99_ms": float(np.percentile(longest, 99)),
            "large_max_ms": max(longest),
            "large_cpu_max_ms": max(large_worked),
            "large_unproven_share": large_shares["unproven_share"],
        }
    print(f"{len(requests)} requests on {len(experts)} experts; {len(gate.experts)} of them known to the gate")
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
