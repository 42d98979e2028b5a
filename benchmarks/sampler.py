"""What sampling costs: CPU time of the energy monitor as a share of one core, at 10 Hz per sensor.

`python -m benchmarks.sampler [--seconds S]` runs the monitor over files laid out like an AGX Orin's INA3221 (six files
per sample) and a PC's RAPL counter, with four requests that decode 30 tokens/s each, and `settle` four times a second.
Ordinary files stand in for the kernel's; what the I2C bus itself takes is spent waiting, not computing.
The last line is one JSON object; `sampler_core_pct` is CPU seconds of the whole process per second with the monitor
(threads, event loop, accounts, watching conditions), less those of the same traffic without it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from moe2.agent.energy.catalog import SensorSettings, discover
from moe2.agent.energy.conditions import Conditions
from moe2.agent.energy.monitor import HostMonitor
from tests.fakes import sysfs

_REQUESTS = 4
_TOKEN_S = 1 / 30
_SETTLE_S = 0.25


async def _serve(monitor: HostMonitor, package: Path, seconds: float) -> None:
    """Requests as an agent sees them: token events, one end and one start per second, settling."""
    clock = time.monotonic
    end_s = clock() + seconds
    jobs = [f"job-{number}" for number in range(_REQUESTS)]
    for job in jobs:
        monitor.account.request_started(job, 200, clock())
    settle_s, turn_s, turn, counted_uj = clock(), clock() + 1.0, 0, 1_000_000
    while clock() < end_s:
        await asyncio.sleep(_TOKEN_S)
        counted_uj += 2_000_000
        (package / "energy_uj").write_text(f"{counted_uj}\n")
        for job in jobs:
            monitor.account.tokens_decoded(job, 1, clock())
        if clock() >= turn_s:
            monitor.account.request_ended(jobs[turn % _REQUESTS], clock())
            jobs[turn % _REQUESTS] = f"job-{_REQUESTS + turn}"
            monitor.account.request_started(jobs[turn % _REQUESTS], 200, clock())
            turn_s, turn = turn_s + 1.0, turn + 1
        if clock() >= settle_s:
            monitor.settle()
            settle_s += _SETTLE_S


async def _core_share(root: Path, package: Path, seconds: float, *, measure: bool) -> tuple[float, int]:
    """CPU seconds per second, and the number of sensors sampled."""
    results = discover(SensorSettings(root=root, families=("ina3221", "rapl") if measure else ()))
    monitor = HostMonitor(results, root=root, conditions=Conditions())
    running = asyncio.create_task(monitor.run() if measure else asyncio.sleep(2 * seconds))
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    await _serve(monitor, package, seconds)
    share = (time.process_time() - began_cpu_s) / (time.monotonic() - began_s)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    return share, len(monitor.sampler.channels)


def core_pct(seconds: float, rounds: int) -> tuple[float, int]:
    """Percent of a core that sampling takes, the median over pairs of runs of `seconds`, and the number of sensors."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sysfs.agx_orin(root)
        package = sysfs.intel_host(root)
        shares: list[float] = []
        for number in range(rounds):
            without, _ = asyncio.run(_core_share(root, package, seconds, measure=False))
            with_sensors, count = asyncio.run(_core_share(root, package, seconds, measure=True))
            shares.append(with_sensors - without)
            print(
                f"round {number + 1}: {with_sensors:.2%} of a core with {count} sensors at 10 Hz, {without:.2%} without"
            )
    return round(100 * statistics.median(shares), 3), count


def main() -> None:
    """Measure with and without sensors, side by side, and print the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, metavar="S", help="length of each of the runs")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="pairs of runs; the median counts")
    arguments = parser.parse_args()
    percent, count = core_pct(arguments.seconds, arguments.rounds)
    print(json.dumps({"sampler_core_pct": percent, "sensors": count}))


if __name__ == "__main__":
    main()
