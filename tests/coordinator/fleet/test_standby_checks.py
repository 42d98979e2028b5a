"""The checks of what agents say about waiting."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace

from moe2.common.link.messages import CommandAnswer, CommandOutcome, Report
from moe2.common.standby import IdlePower, Standby, StandingEnergy, TransitionCost, WakeAddress
from moe2.coordinator.fleet.bounds import MAX_TEXT_CHARACTERS
from moe2.coordinator.fleet.checks import AgentChecks
from moe2.coordinator.fleet.report_checks import address_fault
from tests.common.samples import COST, STANDBY
from tests.coordinator.experts import expert_report, report

IDLE, SLEEPING = STANDBY.idle
[ADDRESS] = STANDBY.wake_addresses
ENERGY = STANDBY.energy
assert ENERGY is not None


def checked(standby: Standby) -> Report:
    """Returns what is left of a report with this standby."""
    [told] = AgentChecks().check(report(expert_report(), standby=standby)).messages
    assert isinstance(told, Report)
    return told


def test_a_sound_standby_passes_as_the_very_same_report() -> None:
    """With everything that an agent measures."""
    told = report(expert_report(load_cost=COST, unload_cost=COST), standby=STANDBY)
    assert AgentChecks().check(told).messages[0] is told


@pytest.mark.parametrize(
    "idle",
    [
        IdlePower(power_w=math.nan),
        IdlePower(power_w=math.inf),
        IdlePower(power_w=-1.0),
        IdlePower(power_w=1e7),
        IdlePower(power_w=1.0, spread_w=math.nan),
        IdlePower(power_w=1.0, measured_s=-1.0),
        IdlePower(power_w=1.0, age_s=math.nan),
        IdlePower(power_w=1.0, models=("m", "m")),
        IdlePower(power_w=1.0, models=("a\x1b[2J",)),
        IdlePower(power_w=1.0, models=("m",), asleep=True),
    ],
)
def test_an_impossible_idle_power_is_unknown(idle: IdlePower) -> None:
    """The other states stay known, and the operator is told."""
    told = checked(replace(STANDBY, idle=(idle, SLEEPING)))
    assert told.standby == replace(STANDBY, idle=(SLEEPING,))
    assert [warning.code for warning in told.warnings] == ["report_unsound"]


@pytest.mark.parametrize(
    "cost",
    [
        TransitionCost(duration_s=math.nan),
        TransitionCost(duration_s=-1.0),
        TransitionCost(duration_s=1.0, max_duration_s=math.inf),
        TransitionCost(duration_s=1.0, energy_j=-0.1),
        TransitionCost(duration_s=1.0, energy_j=1e13),
        TransitionCost(duration_s=1.0, n=0),
        TransitionCost(duration_s=1.0, n=-(2**63)),
        TransitionCost(duration_s=1.0, age_s=math.nan),
    ],
)
def test_an_impossible_cost_of_a_transition_is_unknown(cost: TransitionCost) -> None:
    """It costs neither the host its standby nor the expert its requests."""
    told = report(expert_report(load_cost=cost, unload_cost=COST), standby=replace(STANDBY, suspend_cost=cost))
    [passed] = AgentChecks().check(told).messages
    assert isinstance(passed, Report)
    assert passed.standby == replace(STANDBY, suspend_cost=None)
    assert passed.experts == (expert_report(load_cost=None, unload_cost=COST),)


@pytest.mark.parametrize(
    "fields",
    [
        {"epoch": ""},
        {"epoch": "a b"},
        {"idle_j": math.nan},
        {"loading_j": -1.0},
        {"waking_j": math.inf},
        {"other_j": 1e13},
        {"requests_j": -math.inf},
        {"measured_s": math.nan},
    ],
)
def test_impossible_standing_energy_is_not_booked(fields: dict[str, Any]) -> None:
    """One NaN in a sum would spoil the books of everybody."""
    assert isinstance(ENERGY, StandingEnergy)
    told = checked(replace(STANDBY, energy=replace(ENERGY, **fields)))
    assert told.standby == replace(STANDBY, energy=None)


@pytest.mark.parametrize(
    ("fields", "is_sound"),
    [
        ({}, True),
        ({"network": None, "broadcast": None}, True),
        ({"network": "10.0.0.0/8", "broadcast": "10.255.255.255"}, True),
        ({"network": None}, False),
        ({"broadcast": None}, False),
        ({"broadcast": "8.8.8.8"}, False),
        ({"network": "192.168.1.7/24"}, False),
        ({"network": "fe80::/64", "broadcast": "ff02::1"}, False),
        ({"network": "everywhere"}, False),
        ({"mac": "3C:6D:66:01:02:03"}, False),
        ({"mac": "3c:6d:66:01:02"}, False),
        ({"mac": "ff:ff:ff:ff:ff:ff"}, False),
        ({"mac": "00:00:00:00:00:00"}, False),
        ({"interface": ""}, False),
        ({"interface": "eth0\n"}, False),
    ],
)
def test_a_wake_address_is_one_hosts_on_one_network(fields: dict[str, Any], is_sound: bool) -> None:
    """A magic packet is sent nowhere but to a broadcast address of the network that it goes with."""
    address: WakeAddress = replace(ADDRESS, **fields)
    assert (address_fault(address) is None) == is_sound
    told = checked(replace(STANDBY, wake_addresses=(address, ADDRESS)))
    assert told.standby is not None
    assert told.standby.wake_addresses == ((address, ADDRESS) if is_sound else (ADDRESS,))


def test_the_length_of_the_last_sleep_and_its_hindrance_are_bounded() -> None:
    """Neither an impossible number nor a text that would break a terminal passes."""
    told = checked(replace(STANDBY, asleep_s=-1.0, suspend_fault="no\x1b[2J" + "x" * 9000))
    assert told.standby is not None
    assert told.standby.asleep_s is None
    assert told.standby.suspend_fault is not None
    assert told.standby.suspend_fault.startswith("no [2J")
    assert len(told.standby.suspend_fault) == 500


def test_an_answer_is_bounded_and_has_a_code_that_is_known() -> None:
    """A later release's code is an internal one; a text is short and has no control characters."""
    answer = CommandAnswer(
        command_id="c", outcome=CommandOutcome.FAILED, code="gravity", message="\x1b[2J" + "x" * 9000
    )
    [told] = AgentChecks().check(answer).messages
    assert isinstance(told, CommandAnswer)
    assert told.code == "internal"
    assert told.message is not None
    assert told.message.startswith(" [2J")
    assert len(told.message) == MAX_TEXT_CHARACTERS
