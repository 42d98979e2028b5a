"""The fleet and the traffic of the provisioning benchmark. Every figure says where it is from; ASSUMED ones are ours.

Two workstations with an RTX 4090 serve Qwen2.5-7B-Instruct, four Jetson AGX Orin (MAXN) serve Llama-3.1-8B-Instruct,
both Q4_K_M. Scores by category are means over public outcomes of both models (ulab-uiuc/LLMRouter, MIT): `code` is
human_eval and mbpp, everything else the mean over the other eleven benchmarks.
"""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from moe2.common.cost import EnergyProfile, LatencyProfile, Spread
from moe2.common.energy import Quality
from moe2.coordinator.provisioning.figures import ExpertFigures, Fleet, HostFigures, Readiness
from moe2.coordinator.provisioning.traffic import Asked

DAY_S = 86_400.0
MIDNIGHT_UNIX_S = 20_790 * DAY_S
HOURLY = (
    0.524, 0.497, 0.318, 0.286, 0.205, 0.190, 0.108, 0.085, 0.099, 0.232, 0.489, 0.716,
    0.971, 0.836, 1.000, 0.780, 0.822, 0.755, 0.658, 0.873, 0.753, 0.654, 0.629, 0.571,
)  # fmt: skip
"""Requests an hour from 0:00, relative to the busiest: a 61-day public trace (BurstGPT, CC-BY 4.0)."""

_NONE = Spread(p50=0.0, p95=0.0)
CODE = {"code": 0.703, "": 0.574}, {"code": 0.622, "": 0.573}
"""Scores of Qwen2.5-7B and of Llama-3.1-8B."""


@dataclass(frozen=True)
class Kind:
    """One kind of host with its only model."""

    name: str
    model: str
    scores: dict[str, float]
    slots: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prefill_j: float
    decode_j: float
    ready_w: float
    cold_w: float
    asleep_w: float
    suspend_s: float
    suspend_j: float
    wake_s: float
    wake_j: float
    load_s: float
    load_j: float


RTX_4090 = Kind(
    name="rtx-4090",
    model="qwen2.5-7b",
    scores=CODE[0],
    slots=4,  # ASSUMED, as configured by default
    prefill_tokens_per_s=8414.0,  # a public 8B figure on a 4090 (Qwen3-VL-8B Q4_K_XL)
    decode_tokens_per_s=127.7,  # Llama 3 8B Q4_K_M (XiongjieDai/GPU-Benchmarks-on-LLM-Inference)
    prefill_j=0.036,  # ASSUMED: 300 W while it reads
    decode_j=2.2,  # ASSUMED: the middle of 2.0 to 2.4; no measured J/token of a 4090 is public
    ready_w=52.0,  # 4090 with a context and nothing to do (JimZeyuYang/GPU_Power_Benchmark)
    cold_w=27.0,  # ASSUMED: 25 W less without the context; 5 to 40 are reported (ollama#8591, llama.cpp#25570)
    asleep_w=3.0,  # ASSUMED: a suspended PC draws 1 to 5 W
    suspend_s=6.0,  # ASSUMED
    suspend_j=180.0,  # ASSUMED: 30 W
    wake_s=14.0,  # ASSUMED: measured wakes take 10 to 70 s
    wake_j=1120.0,  # ASSUMED: 80 W
    load_s=4.0,  # ASSUMED: 4.7 GB from an SSD
    load_j=360.0,  # ASSUMED: 90 W
)
AGX_ORIN = Kind(
    name="agx-orin",
    model="llama-3.1-8b",
    scores=CODE[1],
    slots=4,  # ASSUMED, as configured by default
    prefill_tokens_per_s=711.0,  # jbecirovski/jetson-llm-maxperf (MIT), MAXN
    decode_tokens_per_s=22.0,  # the same
    prefill_j=0.0624,  # the same: 44.4 W at 711 tokens/s
    decode_j=2.17,  # the same
    ready_w=11.2,  # the same: idle with the model in memory
    cold_w=11.2,  # ASSUMED: what a context costs on an Orin is not known, so nothing
    asleep_w=0.5,  # ASSUMED: SC7 draws well under 1 W
    suspend_s=3.0,  # ASSUMED
    suspend_j=34.0,  # ASSUMED: as idle
    wake_s=5.0,  # ASSUMED
    wake_j=75.0,  # ASSUMED: 15 W
    load_s=8.0,  # ASSUMED: 4.9 GB from NVMe
    load_j=160.0,  # ASSUMED: 20 W
)
HOSTS = (RTX_4090, RTX_4090, AGX_ORIN, AGX_ORIN, AGX_ORIN, AGX_ORIN)


def fleet(readiness: tuple[Readiness, ...]) -> Fleet:
    """The fleet with each host's only expert in the given state."""
    hosts, experts = [], []
    for place, (kind, state) in enumerate(zip(HOSTS, readiness, strict=True)):
        key = f"{kind.name}-{place + 1}"
        hosts.append(
            HostFigures(
                key=key,
                name=key,
                awake_w=kind.cold_w,
                asleep_w=kind.asleep_w,
                wake_s=kind.wake_s,
                wake_j=kind.wake_j,
                suspend_s=kind.suspend_s,
                suspend_j=kind.suspend_j,
                may_suspend=True,
                may_unload=True,
            )
        )
        experts.append(
            ExpertFigures(
                key=f"{key}/{kind.model}",
                host=key,
                model=kind.model,
                readiness=state,
                slots=kind.slots,
                latency=LatencyProfile(
                    prefill=(0.02, 1.0 / kind.prefill_tokens_per_s, 0.0, 0.0),
                    decode=(1.0 / kind.decode_tokens_per_s, 0.0, 0.0),
                    slots=kind.slots,
                    service_s=1.0,
                    ttft=_NONE,
                    inter_token=_NONE,
                    total=_NONE,
                ),
                energy=EnergyProfile(
                    coefficients=(kind.prefill_j, kind.decode_j, 0.0, 0.0), spread=_NONE, quality=Quality.SIMULATED
                ),
                scores=kind.scores,
                ready_w=kind.ready_w - kind.cold_w,
                load_s=kind.load_s,
                load_j=kind.load_j,
                unload_j=0.0,
            )
        )
    return Fleet(tuple(hosts), tuple(experts))


@dataclass(frozen=True)
class Trace:
    """The arrivals of one public hour: seconds from its beginning, and tokens of prompt and answer."""

    category: str
    at_s: list[float]
    prompt_tokens: list[int]
    answer_tokens: list[int]


def read_trace(path: Path) -> Trace:
    """Reads a trace of Azure's form, plain or gzipped. Its name after the last `_` is the category.

    Raises SystemExit with what is wrong with the file.
    """
    rows: list[tuple[float, int, int]] = []
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                at = datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp()
                prompt, answer = int(row["ContextTokens"]), int(row["GeneratedTokens"])
                if prompt < 0 or answer < 0:
                    raise ValueError(f"line {line} has a negative number of tokens")
                rows.append((at, prompt, answer))
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise SystemExit(f"{path} is no trace with TIMESTAMP, ContextTokens and GeneratedTokens: {error}") from error
    if not rows:
        raise SystemExit(f"{path} has no requests.")
    rows.sort()
    began = rows[0][0]
    return Trace(
        path.name.split(".")[0].rsplit("_", 1)[-1],
        [at - began for at, _, _ in rows],
        [prompt for _, prompt, _ in rows],
        [answer for _, _, answer in rows],
    )


@dataclass(frozen=True)
class Arrival(Asked):
    """A request of the simulated day, whose lengths are known."""

    prompt_tokens: int
    answer_tokens: int


def days(traces: list[Trace], busiest: float, n_days: int, seed: int) -> list[list[Arrival]]:
    """The requests of some days, the last from `MIDNIGHT_UNIX_S` on.

    Each hour is the traces' hour, thinned to the rate that the hour of the day has.
    busiest: requests in the busiest hour on average. Thinning keeps each request with one probability, so that bursts
    stay bursts. A trace that is longer than an hour is cut, a shorter one leaves the rest of the hour empty.
    """
    rng = np.random.default_rng(seed)
    total = sum(sum(1 for at in trace.at_s if at < 3600.0) for trace in traces)
    found = []
    for day in range(n_days):
        asked = []
        for hour, share in enumerate(HOURLY):
            keep = min(1.0, busiest * share / total)
            for trace in traces:
                kept = rng.random(len(trace.at_s)) < keep
                for place in np.flatnonzero(kept).tolist():
                    if trace.at_s[place] < 3600.0:
                        at_s = MIDNIGHT_UNIX_S + (day + 1 - n_days) * DAY_S + hour * 3600.0 + trace.at_s[place]
                        prompt, answer = trace.prompt_tokens[place], max(1, trace.answer_tokens[place])
                        asked.append(Arrival(at_s, trace.category, None, prompt, answer))
        found.append(sorted(asked, key=lambda one: one.at_unix_s))
    return found
