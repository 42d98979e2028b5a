"""The checks of what agents report: of their hosts, experts and sensors, and of what waiting costs."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from moe2.common.cost import LatencyProfile, Spread
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.messages import (
    CommandAnswer,
    CommandOutcome,
    Report,
)
from moe2.common.link.reports import HostFacts, Performance, SensorReport
from moe2.common.link.supply import ModelFile, ModelStore
from moe2.common.placement import DeviceShare
from moe2.common.standby import IdlePower, Standby, StandingEnergy, TransitionCost, WakeAddress
from moe2.coordinator.fleet.bounds import MAX_NAME_CHARACTERS, MAX_TEXT_CHARACTERS
from moe2.coordinator.fleet.checks import AgentChecks
from moe2.coordinator.fleet.report_checks import address_fault, fault_in, sound_report
from tests.common.samples import COST, SMALLEST_HOST, STANDBY
from tests.coordinator.experts import MEASURED, cost, expert_report, report, speed

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


# --- Reports ----------------------------------------------------------------------------------------------------------


def sound(told: Report) -> Report:
    return sound_report(told)[0]


def test_a_sound_report_is_left_alone() -> None:
    """A report with all that agents measure passes as the very same object."""
    emptying = replace(MEASURED, occupancy=(-0.5, 1.0))
    told = report(
        expert_report(energy=cost(0.5), parameters=7, load_s=1.0, performance=Performance(idle_w=-0.01)),
        expert_report("other", latency=None),
        expert_report("third", latency=emptying),
        sensors=(SensorReport(name="rapl", state="present", power_w=3.0),),
        warnings=(HealthWarning(code="throttled", severity=Severity.NOTICE, message="m", remedy="r"),),
    )
    assert sound_report(told) == (told, ())
    assert sound(told) is told


SHOWN = (
    expert_report(measured_age_s=1.0),
    expert_report(measured_age_s=2.0),
    expert_report(measured_age_s=float("inf")),
    expert_report(slots=0),
    expert_report(active=1, load_cost=TransitionCost(duration_s=1.0)),
    expert_report(active=1, load_cost=TransitionCost(duration_s=-1.0)),
    expert_report(active=-1),
    expert_report(queued=3, elsewhere=2),
    expert_report(elsewhere=-2),
    expert_report(performance=Performance(idle_w=float("nan"))),
    expert_report("other"),
)


NAN = float("nan")
HOSTS = tuple(
    replace(SMALLEST_HOST, **fields) for fields in ({}, {"cpu_count": 2}, {"cpu_count": -1}, {"hostname": "a\nb"})
)
SENSORS = tuple(SensorReport(name="s", state="present", power_w=power_w) for power_w in (1.0, 2.0, NAN, None))
WARNINGS = tuple(
    HealthWarning(code=code, severity=Severity.NOTICE, message=text, remedy="r")
    for code, text in (("fine", "m"), ("fine", "m\n"), ("BAD", "m"))
)
STANDBYS = (
    None,
    STANDBY,
    replace(STANDBY, asleep_s=-1.0),
    replace(STANDBY, asleep_s=1.0, idle=(IdlePower(power_w=NAN),)),
    replace(STANDBY, wake_cost=TransitionCost(duration_s=-1.0), suspend_fault="a\nb"),
    replace(STANDBY, energy=StandingEnergy(epoch="a b")),
    replace(STANDBY, energy=StandingEnergy(epoch="a", idle_j=-1.0), wake_addresses=()),
)
FILES = tuple(ModelFile(name="f", size_bytes=1, sha256="ab", origin="o", added_unix_s=at) for at in (1.0, -1.0))
STORES = (None, *(ModelStore(files=(file,)) for file in FILES))
REPORTS = st.builds(
    lambda experts, host, **parts: replace(report(*experts, **parts), host=host),
    st.lists(st.sampled_from(SHOWN), max_size=3),
    st.sampled_from(HOSTS),
    sensors=st.lists(st.sampled_from(SENSORS), max_size=2).map(tuple),
    warnings=st.lists(st.sampled_from(WARNINGS), max_size=2).map(tuple),
    standby=st.sampled_from(STANDBYS),
    models=st.sampled_from(STORES),
)


def test_what_a_report_repeats_is_kept_once() -> None:
    """An equal part becomes that of the former report; of an expert that only works or ages, what it is made of."""
    told = report(
        expert_report(latency=MEASURED), expert_report("other"), sensors=SENSORS[:1], standby=STANDBY, models=STORES[1]
    )
    same, former = (msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=Report) for _ in range(2))
    assert same == former
    again = sound_report(same, former)[0]
    assert all(getattr(again, part) is getattr(former, part) for part in ("host", "experts", "sensors", "models"))
    assert again.standby is not None
    assert former.standby is not None
    assert again.standby.idle is former.standby.idle
    older = replace(
        same,
        experts=(replace(same.experts[0], measured_age_s=5.0, active=1), same.experts[1]),
        sensors=(replace(same.sensors[0], power_w=9.0),),
    )
    passed = sound_report(older, former)[0]
    assert passed == older
    assert passed.experts[0].latency is former.experts[0].latency
    assert passed.experts[1] is former.experts[1]
    assert passed.sensors[0].name is former.sensors[0].name


@given(st.lists(REPORTS, max_size=6))
def test_what_was_sound_before_changes_no_verdict(reports: list[Report]) -> None:
    """Whatever an agent has reported before, its next report is taken as if it were the first."""
    former = None
    for told in reports:
        passed = sound_report(told, former)
        assert repr(passed) == repr(sound_report(told))
        former = passed[0]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"slots": 0}, "0 slots, 4096 tokens of context"),
        ({"slots": 10**9}, "1000000000 slots, 4096 tokens of context"),
        ({"context_tokens": -1}, "2 slots, -1 tokens of context"),
        ({"parameters": -4522}, "parameters is -4522"),
        ({"load_s": float("inf")}, "load_s is inf"),
        ({"latency": speed(float("inf"), -50.0)}, "latency.decode[0] is -0.02"),
        ({"latency": speed(1.0, 1.0, spread=Spread(p50=0.0, p95=1e308))}, "latency.ttft is 1e+308"),
        ({"latency": speed(1.0, 1.0, slots=0)}, "latency.slots is 0"),
        ({"energy": cost(float("nan"))}, "energy.coefficients[1] is nan"),
        ({"latency": replace(MEASURED, occupancy=(float("nan"), 1.0))}, "latency.occupancy[0] is nan"),
    ],
)
def test_a_figure_that_cannot_be_is_named(fields: dict[str, Any], fault: str) -> None:
    """The fault says where in the report the impossible figure is."""
    assert fault_in(expert_report(**fields)) == fault


def test_only_the_unsound_expert_is_left_out() -> None:
    """An expert with an impossible figure is left out, the one beside it serves on, and both sides are told."""
    good, bad = expert_report("good"), expert_report("bad", slots=0)
    checked = AgentChecks().check(report(good, bad))
    [told] = checked.messages
    assert isinstance(told, Report)
    assert told.experts == (good,)
    [warning] = told.warnings
    assert warning.code == "report_unsound"
    assert "'bad'" in warning.message
    assert isinstance(good.latency, LatencyProfile)
    assert len(checked.faults) == 1
    assert not checked.suspends


def test_a_model_that_is_there_twice_is_left_out() -> None:
    """A model that is reported twice is left out, as two experts of one key would break every choice."""
    told = sound(report(expert_report("m"), expert_report("m"), expert_report("other")))
    assert [expert.model for expert in told.experts] == ["other"]
    [warning] = told.warnings
    assert "2 times" in warning.message


@pytest.mark.parametrize("model", ["", "m\x1b[31m", "x" * 129])
def test_a_model_whose_name_cannot_be_is_left_out(model: str) -> None:
    """A model with an unusable name is left out, as names are shown in terminals, logs and metrics."""
    told = sound(report(expert_report(model)))
    assert told.experts == ()
    assert len(told.warnings[0].message) < 300


@pytest.mark.parametrize("power_w", [math.nan, math.inf, -3.0, 1e9])
def test_watts_that_cannot_be_are_unknown(power_w: float) -> None:
    """A sensor's impossible watts become unknown and do not spoil the fleet's sum."""
    told = sound(report(expert_report(), sensors=(SensorReport(name="rapl", state="present", power_w=power_w),)))
    assert told.sensors[0].power_w is None
    assert "'rapl'" in told.warnings[0].message


def test_figures_that_are_only_shown_become_unknown() -> None:
    """An impossible figure that is only shown becomes unknown and costs its expert nothing."""
    bad = expert_report(performance=Performance(decode_tokens_per_s=math.nan, n_requests=2), measured_age_s=math.inf)
    [expert] = sound(report(bad)).experts
    assert expert.performance == Performance(n_requests=2)
    assert expert.measured_age_s is None


def test_a_warning_with_an_odd_code_is_left_out() -> None:
    """A warning with an odd code is left out, as codes are labels of a metric."""
    odd = HealthWarning(code="a\nb", severity=Severity.NOTICE, message="m", remedy="r")
    assert [warning.code for warning in sound(report(warnings=(odd,))).warnings] == ["report_unsound"]


def test_no_text_of_a_report_drives_a_terminal() -> None:
    """Control characters in texts of host, experts, sensors, warnings and files become spaces."""
    odd = "a\x1b[2J\nb"
    file = ModelFile(name=odd, size_bytes=1, sha256=odd, origin=odd, added_unix_s=0.0, served_as=(odd,))
    told = sound(
        report(
            expert_report(last_error=odd, file_sha256=odd, placement=(DeviceShare(device=odd),)),
            host=HostFacts(hostname=odd, system=odd, architecture=odd),
            sensors=(SensorReport(name=odd, state=odd, detail=odd),),
            warnings=(HealthWarning(code="c", severity=Severity.NOTICE, message=odd, remedy=odd),),
            models=ModelStore(files=(file,), swapping=(odd,)),
        )
    )
    written = msgspec.json.encode(told).decode()
    assert "\\u001b" not in written
    assert "\\n" not in written
    assert written.count("a [2J b") == 16
    assert [expert.model for expert in told.experts] == ["m"]


def test_texts_of_a_report_are_short() -> None:
    """A host's facts are as short as names; others are longer."""
    long = "x" * 9000
    told = sound(
        report(
            expert_report(last_error=long),
            host=HostFacts(hostname=long, system="s", architecture="a"),
            sensors=(SensorReport(name="s", state="broken", remedy=long),),
        )
    )
    assert len(told.host.hostname) == MAX_NAME_CHARACTERS
    assert len(told.experts[0].last_error or "") == len(told.sensors[0].remedy or "") == MAX_TEXT_CHARACTERS
