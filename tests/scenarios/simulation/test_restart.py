"""A coordinator that comes back to hundreds of agents, on the virtual clock."""

from __future__ import annotations

import pytest

from tests.scenarios.simulation.agent import FIRST_S, MAX_S
from tests.scenarios.simulation.cluster import Cluster, Scale
from tests.scenarios.simulation.coordinator import REPORT_S
from tests.scenarios.simulation.world import World
from tests.virtualclock import on_virtual_clock

AGENTS = 300
WINDOW_S = 0.05


async def reconnected(down_s: float, first_seed: int) -> tuple[Cluster, list[float]]:
    """A fleet whose coordinator was away for so long; when its agents connected, from its return on, in order."""
    world = World(first_seed)
    cluster = Cluster(world, Scale(agents=AGENTS, requests=0, seconds=0.0, fault_every_s=1e9))
    for agent in cluster.agents.values():
        world.later(world.random.uniform(0, 1), agent.start)
    await world.pass_time(4.0)
    assert cluster.coordinator.choosable() == AGENTS
    # All at the same instant: only the agents' own jitter spreads them.
    cluster.stop_coordinator(down_s=down_s, told_within_s=0.0)
    await world.pass_time(down_s)
    returned_s = world.now_s
    cluster.connected_s.clear()
    # The longest delay of the back-off.
    await world.pass_time(min(MAX_S, 2 * down_s + 4 * FIRST_S))
    return cluster, [at_s - returned_s for at_s in cluster.connected_s]


@pytest.mark.parametrize("down_s", [0.01, *(pytest.param(s, marks=pytest.mark.slow) for s in (2.0, 30.0))])
@on_virtual_clock
async def test_agents_come_back_spread_out(first_seed: int, down_s: float) -> None:
    """No thundering herd: no moment has far more than its share of the jitter's whole width."""
    _, back_s = await reconnected(down_s, first_seed)
    assert len(back_s) == AGENTS
    most = max(sum(start_s <= at_s < start_s + WINDOW_S for at_s in back_s) for start_s in back_s)
    # The first delay is drawn from the upper half of FIRST_S; later ones are wider.
    assert most < 2 * AGENTS * WINDOW_S / (FIRST_S / 2)


@on_virtual_clock
@pytest.mark.slow
async def test_the_table_is_warm_within_one_report_interval(first_seed: int) -> None:
    """After a short restart every expert can be chosen again no later than one interval after the return."""
    cluster, back_s = await reconnected(0.5, first_seed)
    assert back_s[-1] < REPORT_S
    assert cluster.coordinator.choosable() == AGENTS
    warm_s = [agent.report_s for agent in cluster.coordinator.table._agents.values() if agent.report_s is not None]
    assert len(warm_s) == AGENTS
