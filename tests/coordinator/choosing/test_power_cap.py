"""Tests of the fleet's cap in watts: what counts towards it, who is out under it, and what is said."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.common.energy import Quality
from moe2.common.link.reports import SensorReport
from moe2.coordinator.choosing.explain import Decision, decision_of, refusal_of
from moe2.coordinator.choosing.forecast import Roster
from moe2.coordinator.choosing.power_cap import draw_of
from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.request import Demand, Mode, SelectionRequest, Wish
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.fleet.table import CapabilityTable, Expert, HostPower
from moe2.coordinator.observing.health import cap_warnings
from tests.coordinator.experts import cost, expert, expert_report, hello, report, speed
from tests.coordinator.panels import ALL_MODES
from tests.coordinator.receipts import agent_row

DEMAND = Demand(prompt_tokens=10, max_tokens=1001)
"""1000 steps of 20 ms for `drawing`'s experts: the first token comes with the prefill, which takes next to no time."""
IDLE_W = 10.0


def drawing(number: int, power_w: float | None, *, idle_w: float | None = IDLE_W, **fields: Any) -> Expert:
    """An expert whose host draws so much for each request that runs there; None: its energy was never measured."""
    quality = fields.pop("quality", Quality.MEASURED_COUNTER)
    energy = None
    if power_w is not None:
        energy = msgspec.structs.replace(cost(power_w * 20.0 / 1001, quality=quality), idle_w=idle_w)
    settled = {"latency": speed(1e9, 50.0, slots=4), "slots": 4, "energy": energy, **fields}
    return expert(f"agent-{number}", f"m-{number}B", **settled)


def hosts(*power_w: float | None, simulated: bool = False) -> tuple[HostPower, ...]:
    """The reported power of the hosts of agent-1, agent-2 and so on."""
    return tuple(HostPower(f"agent-{number}", watts, simulated) for number, watts in enumerate(power_w, 1))


def decide(
    cap_w: float | None, experts: tuple[Expert, ...], powers: tuple[HostPower, ...], **fields: Any
) -> Selection | NoExpert:
    in_flight = fields.pop("in_flight", {})
    chooser = Selector(Scorer(None), {}, clock=lambda: 0.0, fleet_watts_cap_w=cap_w)
    asked = SelectionRequest(**{"model": "moe2", "demand": DEMAND, **fields})
    return chooser.select(asked, experts, in_flight, 0, powers)


def chosen(decided: Selection | NoExpert) -> list[str]:
    assert isinstance(decided, Selection), decided
    return sorted(member.expert.agent_id for member in decided.members)


def reasons(decision: Decision | None) -> dict[str, str | None]:
    assert decision is not None
    return {row.model: row.reason for row in decision.experts}


# --- What is drawn ----------------------------------------------------------------------------------------------------


def reported_powers() -> CapabilityTable:
    """A fleet of four: two sensors, none that reads, a simulated one, and one that has left."""
    table = CapabilityTable(stale_s=15.0, evict_s=60.0)
    for agent_id in ("agent-1", "agent-2", "agent-3"):
        table.agent_joined(hello(agent_id), 0.0)
    gpu = SensorReport(name="nvml", state="present", power_w=60.0)
    cpu = SensorReport(name="rapl", state="present", power_w=30.0)
    dumb = SensorReport(name="ina3221", state="absent")
    pretended = SensorReport(name="profile:orin", state="present", power_w=5.0, simulated=True)
    table.agent_reported("agent-1", report(expert_report(), sensors=(gpu, cpu)), 0.0)
    table.agent_reported("agent-2", report(expert_report(), sensors=(dumb,)), 0.0)
    table.agent_reported("agent-3", report(expert_report(), sensors=(pretended,)), 0.0)
    table.agent_joined(hello("agent-4"), 0.0)
    table.agent_left("agent-4", 1.0)
    return table


def test_a_host_counts_with_what_its_sensors_report() -> None:
    """A host's power is the sum of its sensors', and counts only while it is connected."""
    assert reported_powers().host_powers() == (
        HostPower("agent-1", 90.0),
        HostPower("agent-2", None),
        HostPower("agent-3", 5.0, simulated=True),
    )


def test_the_fleets_power_says_what_it_leaves_out() -> None:
    """The fleet's power is the sum over its hosts; those without a figure are counted, a simulated part is marked."""
    power = reported_powers().fleet_power()
    assert (power.power_w, power.n_known, power.n_unknown, power.simulated) == (95.0, 2, 1, True)
    assert CapabilityTable(stale_s=15.0, evict_s=60.0).fleet_power().power_w is None


def test_a_sensor_named_like_a_profile_is_not_thereby_simulated() -> None:
    """The report's own mark decides whether watts are simulated, and only where they are part of the sum."""
    table = CapabilityTable(stale_s=15.0, evict_s=60.0)
    table.agent_joined(hello(), 0.0)
    named = SensorReport(name="profile:orin", state="present", power_w=5.0)
    silent = SensorReport(name="profile:other", state="absent", simulated=True)
    table.agent_reported("agent-1", report(expert_report(), sensors=(named, silent)), 0.0)
    assert not table.fleet_power().simulated


@pytest.mark.parametrize(("reported_w", "drawn_w"), [(10.0, 60.0), (80.0, 80.0)])
def test_what_has_just_begun_counts_before_a_sensor_shows_it(reported_w: float, drawn_w: float) -> None:
    """A host counts with the larger of its reported power and its running requests' predicted power."""
    roster = Roster([drawing(1, 60.0)])
    busy = roster.busy({"agent-1/m-1B": 1})
    draw = draw_of(100.0, hosts(reported_w), roster, busy, roster.host_w(np.array([10]), 1001, busy))
    assert (draw.drawn_w, draw.idle_w) == pytest.approx((drawn_w, IDLE_W), rel=1e-3)


def test_the_second_request_adds_what_the_batch_takes_more() -> None:
    """Two in a batch draw twice the joules over the same seconds here; a queued one adds nothing."""
    roster = Roster([drawing(1, 60.0)])
    added = [
        float(roster.forecast(np.array([10]), 1001, roster.busy({"agent-1/m-1B": busy})).added_w[0])
        for busy in (0, 1, 4)
    ]
    assert added == pytest.approx([50.0, 60.0, 0.0], rel=1e-3)


def test_without_a_known_idle_power_all_that_is_drawn_counts() -> None:
    """Where the idle power is unknown, all the power drawn with a request counts as added."""
    roster = Roster([drawing(1, 60.0, idle_w=None)])
    forecast = roster.forecast(np.array([10]), 1001, roster.busy({}))
    assert float(forecast.added_w[0]) == pytest.approx(60.0, rel=1e-3)


# --- Who is out -------------------------------------------------------------------------------------------------------


def test_without_a_cap_watts_do_not_matter() -> None:
    """Without a cap the larger model answers, whatever power it draws."""
    assert chosen(decide(None, (drawing(1, 60.0), drawing(7, 500.0)), ())) == ["agent-7"]


def test_an_expert_that_would_exceed_the_cap_is_out_and_the_plan_says_so() -> None:
    """20 W are drawn and 490 W would come on top; the cheaper expert answers."""
    decided = decide(100.0, (drawing(1, 60.0), drawing(2, 500.0)), hosts(10.0, 10.0))
    assert chosen(decided) == ["agent-1"]
    assert isinstance(decided, Selection)
    decision = decision_of(decided)
    assert reasons(decision)["m-2B"] == (
        "it does not keep the limits even alone: would exceed the fleet's cap of 100 W (510 W with it)"
    )
    assert decision.fleet_power is not None
    assert (decision.fleet_power.cap_w, decision.fleet_power.drawn_w) == (100.0, 20.0)
    assert [round(row.added_w or 0.0) for row in decision.experts] == [50, 490]


def test_members_of_a_panel_share_what_is_left() -> None:
    """Two of three members fit under the cap together; candidates for one answer need not fit together."""
    three = (drawing(1, 60.0), drawing(2, 60.0), drawing(3, 60.0))
    wish = Wish(mode=Mode.RANK, max_experts=3)
    decided = decide(140.0, three, hosts(10.0, 10.0, 10.0), modes=ALL_MODES, wish=wish)
    assert len(chosen(decided)) == 2
    tried = decide(140.0, three, hosts(10.0, 10.0, 10.0), wish=Wish(max_experts=3, energy_budget_j=1e9))
    assert isinstance(tried, Selection)
    assert len(tried.candidates | {out.name for out in tried.plan.exclusions if not out.breaches}) == 3


def test_other_models_requests_count_too() -> None:
    """Requests that run on other models' experts leave less of the cap."""
    two = (drawing(1, 60.0), drawing(2, 60.0))
    idle = decide(100.0, two, hosts(10.0, 10.0), model="m-1B")
    assert chosen(idle) == ["agent-1"]
    refused = decide(100.0, two, hosts(10.0, 10.0), model="m-1B", in_flight={"agent-2/m-2B": 1})
    assert isinstance(refused, NoExpert)
    assert refused.code == "fleet_capped"


@pytest.mark.parametrize(
    ("unknown", "powers", "why"),
    [
        (drawing(2, None), hosts(10.0, 10.0), "its power has not been measured"),
        (drawing(2, 20.0), hosts(10.0, None), "its host's power is not measured"),
    ],
)
def test_what_is_not_measured_is_not_promised(unknown: Expert, powers: tuple[HostPower, ...], why: str) -> None:
    """Neither an expert of unknown energy nor a host without a sensor gets a request under a cap."""
    decided = decide(1e6, (drawing(1, 60.0), unknown), powers)
    assert chosen(decided) == ["agent-1"]
    assert isinstance(decided, Selection)
    assert (reasons(decision_of(decided))["m-2B"] or "").startswith(why)


@pytest.mark.slow
@given(
    powers=st.lists(st.tuples(st.floats(10.0, 200.0), st.integers(0, 5)), min_size=1, max_size=6),
    cap_w=st.floats(5.0, 800.0),
    mode=st.sampled_from([Mode.ROUTE, Mode.VOTE, Mode.RANK]),
)
@settings(max_examples=60, deadline=None)
def test_no_choice_exceeds_the_cap(powers: list[tuple[float, int]], cap_w: float, mode: Mode) -> None:
    """What is drawn and what all members add stay below it; a higher cap refuses nothing that a lower one allows."""
    experts = tuple(drawing(number, watts) for number, (watts, _) in enumerate(powers, 1))
    in_flight = {found.key: busy for found, (_, busy) in zip(experts, powers, strict=True) if busy}
    asked: dict[str, Any] = {
        "wish": Wish(mode=mode, max_experts=3 if mode.is_panel else None),
        "modes": ALL_MODES,
        "choice_tokens": 4 if mode is Mode.VOTE else None,
        "in_flight": in_flight,
    }
    idle = hosts(*[IDLE_W] * len(experts))
    decided, roomier = (decide(cap, experts, idle, **asked) for cap in (cap_w, 2 * cap_w))
    if isinstance(decided, NoExpert):
        assert decided.code in ("fleet_capped", "fleet_cap_infeasible", "overloaded")
        return
    decision = decision_of(decided)
    assert decision.fleet_power is not None
    added_w = sum(row.added_w or 0.0 for row in decision.experts if row.chosen)
    assert decision.fleet_power.drawn_w + added_w <= cap_w * (1 + 1e-9)
    assert isinstance(roomier, Selection)


# --- Nobody fits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cap_w", "code"),
    [(69.0, "fleet_cap_infeasible"), (75.0, "fleet_capped")],
)
def test_a_cap_without_room_tells_what_is_drawn_and_needed(cap_w: float, code: str) -> None:
    """On an idle fleet of 20 W, the cheaper expert's 50 W would fit the higher cap, and no cap below 70 W."""
    refused = decide(cap_w, (drawing(1, 60.0), drawing(2, 500.0)), hosts(10.0, 50.0))
    assert isinstance(refused, NoExpert)
    assert refused.code == code
    assert f"cap of {cap_w:g} W" in refused.message
    assert "60 W are drawn" in refused.message
    assert "would add 50 W" in refused.message
    decision = refusal_of(refused)
    assert all(f"would exceed the fleet's cap of {cap_w:g} W" in (why or "") for why in reasons(decision).values())


def test_simulated_watts_are_marked() -> None:
    """The message and the decision mark watts that are simulated."""
    simulated = hosts(10.0, simulated=True)
    refused = decide(15.0, (drawing(1, 60.0, quality=Quality.SIMULATED),), simulated)
    assert isinstance(refused, NoExpert)
    assert "10 W (simulated) are drawn" in refused.message
    decision = refusal_of(refused)
    assert decision is not None
    assert decision.fleet_power is not None
    assert decision.fleet_power.simulated


def test_budgets_that_nobody_keeps_are_the_requests_own_fault() -> None:
    """Budgets that fail without the cap too are refused as the request's own."""
    refused = decide(50.0, (drawing(1, 60.0),), hosts(10.0), wish=Wish(latency_budget_s=0.001))
    assert isinstance(refused, NoExpert)
    assert refused.code == "infeasible"


def test_an_operator_is_told_who_gets_no_requests() -> None:
    """Under a cap, hosts without power and models without energy are warned about, with a remedy."""
    sensor = SensorReport(name="nvml", state="present", power_w=60.0)
    bare, unmeasured = agent_row(sensors=()), agent_row(agent_name="nano", sensors=(sensor,))
    known = agent_row(sensors=(sensor,), experts=(expert_report(energy=cost(1.0)),))
    told = cap_warnings((bare, unmeasured, known), 100.0)
    assert [warning.code for warning in told] == ["fleet_cap_unmeasured"] * 2
    assert "orin gets no requests: its power" in told[0].message
    assert "nano gets no requests for tiny" in told[1].message
    assert "bench" in told[1].remedy
    assert cap_warnings((bare, unmeasured), None) == ()


@given(
    st.lists(st.tuples(st.floats(11.0, 40.0), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=5),
    st.floats(10.0, 200.0),
)
def test_what_two_coordinators_add_stays_within_the_cap(loads: list[tuple[float, int, int]], cap_w: float) -> None:
    """Where each of two coordinators keeps its part of the cap, what both have begun keeps the whole of it."""
    roster = Roster([drawing(number, watts) for number, (watts, _, _) in enumerate(loads, 1)])
    powers = hosts(*(IDLE_W for _ in loads))
    draws = []
    for who in (1, 2):
        busy = np.array([load[who] for load in loads])
        running_w = roster.host_w(np.array([10] * len(loads)), 1001, busy)
        draws.append(draw_of(cap_w, powers, roster, busy, running_w, sharers=2))
    idle_w = IDLE_W * len(loads)
    if all(draw.drawn_w <= draw.cap_w for draw in draws):
        added_w = sum(draw.drawn_w - idle_w for draw in draws)
        assert idle_w + added_w <= max(cap_w, idle_w) + 1e-6
