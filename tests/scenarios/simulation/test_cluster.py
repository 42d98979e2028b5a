"""A fleet under random faults on the virtual clock, checked after every event."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from tests.scenarios.simulation.cluster import FAULTS, Cluster, Scale, outcome_name
from tests.scenarios.simulation.conftest import SEED_VARIABLE
from tests.scenarios.simulation.invariants import Invariants
from tests.scenarios.simulation.world import World
from tests.virtualclock import VirtualClockLoop

SMALL = Scale(agents=12, requests=100, seconds=40.0, fault_every_s=1.5)
ROUGH = replace(SMALL, tampering=0.01, coordinator_crashes=1)
LARGE = Scale(agents=200, requests=2000, seconds=120.0, fault_every_s=0.5, coordinator_crashes=2)


def simulate(seed: int, scale: Scale) -> Cluster:
    """One run. Prints its seed and what came of it, which pytest shows where the run fails."""
    print(f"{SEED_VARIABLE}={seed} {scale}")

    async def run() -> Cluster:
        world = World(seed)
        cluster = Cluster(world, scale)
        invariants = Invariants(cluster)
        world.check = invariants.check
        await cluster.run()
        invariants.check_end()
        return cluster

    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        cluster = runner.run(run())
    ends = Counter(outcome_name(end) for client in cluster.clients for end in client.ends)
    print(f"{cluster.world.n_events} events, trace {cluster.world.trace}, {dict(ends)}, {dict(cluster.faults)}")
    return cluster


@pytest.mark.slow
def test_a_cluster_survives_faults(first_seed: int) -> None:
    """One terminal outcome each, true counters, kept deadlines, accounted joules, nothing left; most are answered."""
    cluster = simulate(first_seed, SMALL)
    answered = [client for client in cluster.clients if outcome_name(client.ends[0]) == "completed"]
    assert len(answered) > SMALL.requests / 2
    assert sum(cluster.faults.values()) > 10


def test_a_cluster_survives_a_coordinator_and_a_broken_middlebox(first_seed: int) -> None:
    """A coordinator that is killed, and frames that come twice or late, break no invariant either."""
    cluster = simulate(first_seed, ROUGH)
    assert cluster.faults["coordinator_crash"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("offset", range(20))
def test_many_small_clusters(first_seed: int, offset: int) -> None:
    """The same with other seeds."""
    simulate(first_seed + 1 + offset, replace(ROUGH, tampering=0.01 * (offset % 2)))


@pytest.mark.slow
def test_a_large_cluster(first_seed: int) -> None:
    """Hundreds of agents, thousands of requests, every kind of fault."""
    cluster = simulate(first_seed, LARGE)
    assert len(cluster.faults) == len(FAULTS) + 1


@pytest.mark.slow
def test_the_same_seed_is_the_same_run(first_seed: int) -> None:
    """In every process, whatever its hash seed: a printed seed can be run again."""
    traces = set()
    for hash_seed in ("1", "2"):
        program = (
            "import structlog, logging\n"
            "structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))\n"
            "from tests.scenarios.simulation import test_cluster as cases\n"
            f"cases.simulate({first_seed}, cases.ROUGH)"
        )
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        ran = subprocess.run(
            (sys.executable, "-c", program), env=environment, capture_output=True, text=True, timeout=100, check=True
        )
        traces.add(ran.stdout)
    assert len(traces) == 1


@pytest.mark.slow
def test_another_seed_is_another_run(first_seed: int) -> None:
    """The trace tells runs apart, and repeats itself."""
    scale = replace(SMALL, requests=20, seconds=10.0)
    first, again, other = (simulate(seed, scale).world.trace for seed in (first_seed, first_seed, first_seed + 1))
    assert first == again != other
