"""What agents report becomes figures: measured watts as differences, and what is not measured stays unknown."""

from __future__ import annotations

import pytest

from moe2.common.link.reports import ExpertReport, ExpertState
from moe2.common.standby import IdlePower, Standby, TransitionCost, WakeAddress
from moe2.common.status import AgentRow
from moe2.coordinator.provisioning.figures import Fleet, Readiness, fleet_of

ADDRESS = WakeAddress(interface="eth0", mac="3c:6d:66:01:02:03", network="10.0.0.0/24", broadcast="10.0.0.255")
COST = TransitionCost(duration_s=4.0, energy_j=300.0)


def row(
    standby: Standby | None, *models: str, state: ExpertState = ExpertState.READY, asleep: bool = False
) -> AgentRow:
    experts = tuple(
        ExpertReport(model=model, state=state, context_tokens=1024, slots=2, load_cost=COST, unload_cost=COST)
        for model in models
    )
    return AgentRow(
        agent_id="a",
        agent_name="pc",
        version="1",
        connected=not asleep,
        draining=False,
        report_age_s=1.0,
        rtt_s=None,
        host=None,
        experts=experts,
        sensors=(),
        warnings=(),
        standby=standby,
        asleep=asleep,
    )


def read(standby: Standby | None, *models: str, state: ExpertState = ExpertState.READY, asleep: bool = False) -> Fleet:
    return fleet_of((row(standby, *models, state=state, asleep=asleep),), lambda _: {"": 0.5})


def test_a_models_watts_are_those_with_it_less_those_without() -> None:
    """52 W with the model and 27 W without are 25 W for it."""
    idle = (IdlePower(power_w=27.0), IdlePower(power_w=52.0, models=("m",)))
    fleet = read(Standby(idle=idle), "m")
    assert fleet.hosts[0].awake_w == 27.0
    assert fleet.experts[0].ready_w == 25.0


def test_models_that_were_never_alone_are_told_apart_by_sets() -> None:
    """Of two models that were measured together and one without the other, the other is the difference."""
    idle = (IdlePower(power_w=20.0), IdlePower(power_w=50.0, models=("m", "n")), IdlePower(power_w=35.0, models=("n",)))
    fleet = read(Standby(idle=idle), "m", "n")
    assert {one.model: one.ready_w for one in fleet.experts} == {"m": 15.0, "n": 15.0}


def test_a_host_that_was_never_without_models_does_not_know_what_one_adds() -> None:
    """Where the host cannot sleep either, nothing is known of what unloading saves."""
    fleet = read(Standby(idle=(IdlePower(power_w=52.0, models=("m",)),), allow_unload=True), "m")
    assert fleet.experts[0].ready_w is None


def test_a_host_that_can_sleep_is_known_as_a_whole() -> None:
    """Where the host may sleep, its watts with all models are enough to know what sleep saves."""
    idle = (IdlePower(power_w=52.0, models=("m",)), IdlePower(power_w=2.0, asleep=True))
    standby = Standby(allow_suspend=True, idle=idle, suspend_cost=COST, wake_cost=COST, wake_addresses=(ADDRESS,))
    fleet = read(standby, "m")
    assert fleet.hosts[0].can_sleep
    assert (fleet.hosts[0].awake_w, fleet.hosts[0].asleep_w, fleet.experts[0].ready_w) == (52.0, 2.0, 0.0)


@pytest.mark.parametrize(
    ("standby", "by_command", "may"),
    [
        (Standby(allow_suspend=True, wake_addresses=(ADDRESS,)), False, True),
        (Standby(allow_suspend=True), False, False),
        (Standby(allow_suspend=True), True, True),
        (Standby(allow_suspend=True, suspend_fault="no swap", wake_addresses=(ADDRESS,)), False, False),
        (Standby(wake_addresses=(ADDRESS,)), False, False),
        (None, True, False),
    ],
)
def test_a_host_sleeps_only_where_it_may_can_and_can_be_woken(
    standby: Standby | None, by_command: bool, may: bool
) -> None:
    """An agent that forbids it, a fault, or no way to wake the host keep it awake."""
    fleet = fleet_of((row(standby, "m"),), lambda _: {}, wakes_by_command=by_command)
    assert fleet.hosts[0].may_suspend is may


def test_sleeping_agents_are_part_of_the_fleet_and_failed_experts_are_not() -> None:
    """A sleeping host's experts are asleep, whatever they were before; what has failed cannot be kept in memory."""
    assert read(None, "m", asleep=True).experts[0].readiness is Readiness.ASLEEP
    assert read(None, "m", state=ExpertState.FAILED).experts == ()
    assert fleet_of((), lambda _: {}) == Fleet((), ())
