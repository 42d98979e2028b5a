"""How good the predictions are, with a real model. Run as `python -m benchmarks.calibration --model FILE.gguf`.

A real coordinator and a real agent in processes of their own, and clients that never rest for long: each sends a prompt
of 15 to 150 words, asks for 32 to 128 tokens, waits for the answer, pauses for a moment, and sends the next. After a
warm-up in which the agent learns, the coordinator's own calibration of all later requests is taken
(`moe2-coordinator status --calibration`): what it predicted when it chose, for the tokens that were then decoded.

Where the host has no power sensor that can be read, the agent pretends to be an AGX Orin: the joules are then simulated
from that board's published power at this host's real activity, and the output says so. What sampling costs is measured
as in `benchmarks.sampler`. The last line is one JSON object. Takes about 3 minutes.

The host should have nothing else to do: what others take from the model cannot be predicted. How steady it was is
measured beside it, by a fixed piece of work done twice a second: `host_unsteadiness_pct` is the median deviation of its
duration from its own median. How good a prediction could be is beside it as well (`benchmarks.calibration_bound`): the
median error of the best line in what is known when a request comes, and of one that knows who came later. What of the
errors is the models' and not the host's, `tests/scenarios/test_prediction_quality.py` shows in virtual time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import aiohttp
import msgspec

from benchmarks.calibration_bound import Answered, Bounds, bounds
from benchmarks.sampler import core_pct
from moe2.agent.energy.catalog import SensorSettings, choose, discover
from moe2.agent.energy.profiles import PROFILES
from moe2.common.errors import Moe2Error
from moe2.common.localclient import NotRunningError, fetch
from moe2.common.status import CoordinatorStatus
from moe2.coordinator.observing.accuracy import Agreement, CalibrationReport, Comparison

PROFILE = "agx-orin-maxn"
PROMPT_WORDS = (15, 40, 80, 150)
ANSWER_TOKENS = (32, 64, 96, 128)
PAUSE_S = 0.3
"""Mean of the pauses of a client between two requests, exponentially distributed."""
POLL_S = 0.1
START_S = 120.0
SAMPLER_S = 3.0
PROBE_EVERY_S = 0.5
PROBE_STEPS = 200_000
_WORDS = ("river", "stone", "lamp", "cloud", "seven", "paper", "green", "door", "music", "winter", "table", "bread")


@dataclass(frozen=True)
class Service:
    api_url: str
    socket: Path

    async def calibration(self, last: int) -> CalibrationReport:
        """Of the last so many answers."""
        body = await asyncio.to_thread(fetch, self.socket, f"/calibration?last={last}")
        return msgspec.json.decode(body, type=CalibrationReport)

    async def status(self) -> CoordinatorStatus:
        return msgspec.json.decode(await asyncio.to_thread(fetch, self.socket, "/status"), type=CoordinatorStatus)


@asynccontextmanager
async def serving(model: Path, *, slots: int, threads: int, profile: str | None) -> AsyncIterator[Service]:
    """Coordinator and agent with the model loaded, ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="moe2-calibration-") as folder:
        root = Path(folder)
        (root / "token").write_text("benchmark")
        (root / "coordinator.toml").write_text(
            f'[coordinator]\nstate_dir = "{root}"\nsocket = "{root}/c.sock"\n[api]\nport = 0\n'
            f'[agents]\nport = 0\ntoken_file = "{root}/token"\n[log]\nlevel = "warning"\n'
        )
        processes = [_start("moe2.coordinator", root / "coordinator.toml")]
        try:
            service = Service("", root / "c.sock")
            status = await _until(service, processes, lambda status: bool(status.agents_url))
            (root / "agent.toml").write_text(
                f'[agent]\nstate_dir = "{root}/agent"\nsocket = "{root}/a.sock"\n'
                f'[coordinator]\nurl = "{status.agents_url}"\ntoken_file = "{root}/token"\n'
                + (f'[sensors]\nprofile = "{profile}"\n' if profile else "")
                + f'[[models]]\nname = "model"\npath = "{model}"\nslots = {slots}\nthreads = {threads}\n'
                'context_tokens = 4096\n[log]\nlevel = "warning"\n'
            )
            processes.append(_start("moe2.agent", root / "agent.toml"))
            status = await _until(service, processes, _has_expert)
            yield Service(status.api_url, service.socket)
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait()


def _start(program: str, config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", program, "run", "--config", str(config)])


def _has_expert(status: CoordinatorStatus) -> bool:
    return any(expert.state == "ready" for row in status.agents for expert in row.experts)


async def _until(service: Service, processes: list[subprocess.Popen[bytes]], holds: Any) -> CoordinatorStatus:
    """The status once it satisfies `holds`."""
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s and all(process.poll() is None for process in processes):
        try:
            status = await service.status()
        except NotRunningError:
            pass
        else:
            if holds(status):
                return status
        await asyncio.sleep(POLL_S)
    raise Moe2Error("Coordinator and agent did not come up; what they say of it is printed above.")


async def _client(service: Service, http: aiohttp.ClientSession, random: Random, answers: list[Answered]) -> None:
    """One client, for ever. Its answers are added to `answers`."""
    while True:
        # Prompts differ from the first word on, so that no cached prefix shortens them.
        words = [str(random.randrange(10**6)), *random.choices(_WORDS, k=random.choice(PROMPT_WORDS))]
        body = {
            "model": "moe2",
            "messages": [{"role": "user", "content": " ".join(words)}],
            "max_tokens": random.choice(ANSWER_TOKENS),
            "seed": random.randrange(10**6),
        }
        began_s = time.monotonic()
        async with http.post(f"{service.api_url}/v1/chat/completions", json=body) as answer:
            if answer.status != 200:
                raise Moe2Error(f"A request was refused: {await answer.text()}")
            receipt = (await answer.json())["moe2"]
        tokens, seconds = receipt["tokens"], receipt["seconds"]
        if tokens["decoded"]:
            answers.append(
                Answered(
                    began_s=began_s,
                    first_s=began_s + seconds["ttft"],
                    ended_s=began_s + seconds["total"],
                    prompt_tokens=tokens["prompt"] - (tokens["cached"] or 0),
                    decoded_tokens=tokens["decoded"],
                )
            )
        await asyncio.sleep(random.expovariate(1 / PAUSE_S))


async def _probe(durations_s: list[float]) -> None:
    """Time a fixed piece of work of a few milliseconds, twice a second, for ever."""
    while True:
        began_s = time.perf_counter()
        sum(range(PROBE_STEPS))
        durations_s.append(time.perf_counter() - began_s)
        await asyncio.sleep(PROBE_EVERY_S)


def _unsteadiness_pct(durations_s: list[float]) -> float:
    usual_s = median(durations_s)
    return 100 * median(abs(one_s - usual_s) for one_s in durations_s) / usual_s


async def measure(
    service: Service, *, clients: int, warm_up_s: float, seconds: float
) -> tuple[CalibrationReport, Bounds, float]:
    """The calibration of the requests that ended after the warm-up, its bounds, and how unsteady the host was, in %."""
    durations_s: list[float] = []
    answers: list[Answered] = []
    async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as tasks:
        load = [tasks.create_task(_client(service, http, Random(number), answers)) for number in range(clients)]
        load.append(tasks.create_task(_probe(durations_s)))
        await asyncio.sleep(warm_up_s)
        before = (await service.status()).requests_finished
        print(f"{before} requests to warm up; now measuring for {seconds:.0f} s", flush=True)
        await asyncio.sleep(seconds)
        count = (await service.status()).requests_finished - before
        if not count:
            raise Moe2Error("No request ended while it was measured.", remedy="Measure for longer: --seconds.")
        report = await service.calibration(count)
        for task in load:
            task.cancel()
    return report, bounds(answers[-count:]), _unsteadiness_pct(durations_s)


def _print(name: str, comparison: Comparison) -> None:
    for word, agreement in (("for the tokens decoded", comparison.decoded), ("as planned", comparison.planned)):
        if agreement.n:
            print(
                f"{name:12} {word:22} n {agreement.n:4}  median error {agreement.median_abs_error_pct:5.1f} %"
                f"  within p50 {agreement.p50_coverage_pct:5.1f} %  within p95 {agreement.p95_coverage_pct:5.1f} %"
            )
    print(f"{name:12} left out: {comparison.n_unmeasured} unmeasured, {comparison.n_unpredicted} not predicted")


def _figures(name: str, agreement: Agreement) -> dict[str, float | int | None]:
    return {
        f"{name}_median_abs_error_pct": _rounded(agreement.median_abs_error_pct),
        f"{name}_p50_coverage_pct": _rounded(agreement.p50_coverage_pct),
        f"{name}_p95_coverage_pct": _rounded(agreement.p95_coverage_pct),
        f"{name}_n": agreement.n,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


async def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures, by name."""
    sensors = choose(discover(SensorSettings()))
    profile = None if sensors and not arguments.profile else arguments.profile or PROFILE
    sensor = f"profile:{profile} (simulated)" if profile else ", ".join(sensor.facts.name for sensor in sensors)
    print(f"Energy from {sensor}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs", flush=True)
    async with serving(arguments.model, slots=arguments.slots, threads=arguments.threads, profile=profile) as service:
        report, bound, unsteadiness_pct = await measure(
            service, clients=arguments.clients, warm_up_s=arguments.warm_up, seconds=arguments.seconds
        )
    overall = report.overall
    for name, comparison in (
        ("first token", overall.ttft_s),
        ("whole answer", overall.total_s),
        ("joules", overall.energy_j),
    ):
        _print(name, comparison)
    print(
        f"whole answer by the best line in what is known at the start: median error {bound.known_pct:.1f} %; with the "
        f"prompts that came beside it: {bound.hindsight_pct:.1f} %"
    )
    sampled_pct, sampled = await asyncio.to_thread(core_pct, SAMPLER_S, 1)
    return {
        **_figures("latency", overall.total_s.decoded),
        **_figures("ttft", overall.ttft_s.decoded),
        **_figures("energy", overall.energy_j.decoded),
        "latency_best_known_pct": round(bound.known_pct, 2),
        "latency_best_hindsight_pct": round(bound.hindsight_pct, 2),
        "energy_sensor": sensor,
        "energy_quality": overall.energy_quality,
        "energy_unmeasured": overall.energy_j.n_unmeasured,
        "sampler_core_pct": sampled_pct,
        "sampler_sensors": f"{sampled} at 10 Hz (AGX Orin's INA3221 and RAPL, from files)",
        "host_unsteadiness_pct": round(unsteadiness_pct, 1),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--clients", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--slots", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="default: all CPUs")
    parser.add_argument("--warm-up", type=float, default=60.0, metavar="S", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=90.0, metavar="S", help="default: %(default)s")
    parser.add_argument("--profile", choices=sorted(PROFILES), help="simulate this host's power also if it has sensors")
    print(json.dumps(asyncio.run(run(parser.parse_args()))))


if __name__ == "__main__":
    main()
