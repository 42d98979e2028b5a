"""The live capability table."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.link.reports import ExpertReport, ExpertState, Performance, SensorReport
from moe2.common.standby import Standby, StandingEnergy
from moe2.coordinator.fleet.table import CapabilityTable, Expert
from tests.coordinator.experts import expert_report, hello, report
from tests.coordinator.fleet.tables import EVICT_S, READY, STALE_S, join, keys

# --- Who can be chosen ------------------------------------------------------------------------------------------------


def test_an_empty_table_has_nobody(table: CapabilityTable) -> None:
    """An empty table has no expert to choose and no row to show."""
    assert (table.choosable(0.0), table.models(), table.rows(0.0)) == ((), (), ())


def test_an_agent_counts_once_it_has_reported(table: CapabilityTable) -> None:
    """An agent's experts count once it has reported, as joining alone says nothing about them."""
    table.agent_joined(hello(), 0.0)
    assert keys(table) == []
    table.agent_reported("agent-1", report(READY), 0.0)
    [expert] = table.choosable(0.0)
    assert (expert.key, expert.agent_id, expert.agent_name, expert.model, expert.report) == (
        "agent-1/m",
        "agent-1",
        "name of agent-1",
        "m",
        READY,
    )


@pytest.mark.parametrize("state", [state for state in ExpertState if state is not ExpertState.READY])
def test_only_ready_experts_can_be_chosen(table: CapabilityTable, state: ExpertState) -> None:
    """Experts that are not ready are shown and known, but cannot be chosen."""
    table.agent_joined(hello(), 0.0)
    table.agent_reported("agent-1", report(expert_report(state=state)), 0.0)
    assert keys(table) == []
    assert table.models() == ("m",)
    assert table.knows_expert("agent-1/m")


def test_the_largest_context_of_a_model_follows_reports(table: CapabilityTable) -> None:
    """The largest context of each model is that of the hosts that are there, whether they can be chosen or not."""
    join(table)
    table.agent_joined(hello("agent-2"), 0.0)
    larger = expert_report(context_tokens=2 * READY.context_tokens, state=ExpertState.COLD)
    table.agent_reported("agent-2", report(larger), 0.0)
    assert table.largest_contexts() == {"m": 2 * READY.context_tokens}
    table.agent_left("agent-2", 1.0)
    assert table.largest_contexts() == {"m": READY.context_tokens}
    table.agent_reported("agent-1", report(expert_report(context_tokens=7)), 2.0)
    assert table.largest_contexts() == {"m": 7}


def test_requests_do_not_look_at_all_hosts_for_the_largest_context(table: CapabilityTable) -> None:
    """The largest contexts are worked out once for all requests until their models change, not again for each."""
    join(table)
    before = table.largest_contexts()
    table.agent_reported("agent-1", report(READY), 1.0)
    table.agent_reported("agent-1", report(expert_report(slots=READY.slots + 1)), 2.0)
    table.rtt_measured("agent-1", 0.1)
    assert table.largest_contexts() is before


@pytest.mark.parametrize("state", [ExpertState.COLD, ExpertState.LOADING])
def test_an_expert_that_is_loaded_on_demand_can_be_chosen(table: CapabilityTable, state: ExpertState) -> None:
    """An expert that is loaded on demand can be chosen, and its request waits for it."""
    table.agent_joined(hello(), 0.0)
    table.agent_reported("agent-1", report(expert_report(state=state, on_demand=True)), 0.0)
    assert keys(table) == ["agent-1/m"]
    table.agent_reported("agent-1", report(expert_report(state=ExpertState.FAILED, on_demand=True)), 0.0)
    assert keys(table) == []


def test_a_draining_agent_gets_no_requests(table: CapabilityTable) -> None:
    """A draining agent gets no requests, as it would refuse them."""
    join(table)
    table.agent_reported("agent-1", report(READY, draining=True), 1.0)
    assert keys(table, 1.0) == []
    assert table.rows(1.0)[0].draining


def test_an_agent_that_left_gets_no_requests(table: CapabilityTable) -> None:
    """An agent that left gets no requests, and its models are not offered any more."""
    join(table)
    table.agent_left("agent-1", 1.0)
    assert keys(table, 1.0) == []
    assert table.models() == ()
    assert not table.knows_expert("agent-1/m")


def test_a_stale_agent_gets_no_requests_until_it_reports_again(table: CapabilityTable) -> None:
    """A report holds for `stale_s` and not a moment longer."""
    join(table)
    assert keys(table, STALE_S - 0.001) == ["agent-1/m"]
    assert keys(table, STALE_S) == []
    table.agent_reported("agent-1", report(READY), STALE_S + 1)
    assert keys(table, STALE_S + 1) == ["agent-1/m"]


def test_each_agent_turns_stale_by_itself(table: CapabilityTable) -> None:
    """An agent that keeps reporting stays choosable while another one turns stale."""
    join(table, "agent-1")
    join(table, "agent-2")
    table.agent_reported("agent-2", report(READY), 5.0)
    assert keys(table, STALE_S) == ["agent-2/m"]
    assert keys(table, STALE_S + 5.0) == []


def test_a_fresher_report_prolongs_without_being_asked_twice(table: CapabilityTable) -> None:
    """The cached answer holds exactly as long as the reports that it is made of."""
    join(table)
    assert keys(table, 1.0) == ["agent-1/m"]
    table.agent_reported("agent-1", report(READY), 9.0)
    assert keys(table, STALE_S + 5.0) == ["agent-1/m"]


def test_experts_are_sorted_by_key(table: CapabilityTable) -> None:
    """Experts are sorted by key, so that choices do not depend on who joined first."""
    for agent_id in ("agent-2", "agent-1"):
        table.agent_joined(hello(agent_id), 0.0)
        table.agent_reported(agent_id, report(expert_report("z"), expert_report("a")), 0.0)
    assert keys(table) == ["agent-1/a", "agent-1/z", "agent-2/a", "agent-2/z"]
    assert table.models() == ("a", "z")


def test_a_reconnected_agent_starts_afresh(table: CapabilityTable) -> None:
    """What an agent reported in an earlier session no longer counts in the next one."""
    join(table)
    table.agent_left("agent-1", 1.0)
    table.agent_joined(hello(), 2.0)
    assert keys(table, 2.0) == []


def test_reports_of_strangers_are_ignored(table: CapabilityTable) -> None:
    """A report from an agent that has not joined is ignored."""
    table.agent_reported("agent-1", report(READY), 0.0)
    table.rtt_measured("agent-1", 0.1)
    table.agent_left("agent-1", 0.0)
    assert table.rows(0.0) == ()


@pytest.mark.parametrize("key", ["agent-1/other", "agent-2/m", "m", "agent-1", "", "/"])
def test_unknown_keys_are_unknown(table: CapabilityTable, key: str) -> None:
    """A key that is not made of a known agent and a known model names no expert."""
    join(table)
    assert not table.knows_expert(key)


# --- Eviction ---------------------------------------------------------------------------------------------------------


def test_an_agent_that_is_gone_for_long_is_forgotten(table: CapabilityTable) -> None:
    """An agent is forgotten some time after it left; until then it is shown as disconnected."""
    join(table)
    table.agent_left("agent-1", 50.0)
    assert table.evict(50.0 + EVICT_S - 0.001) == []
    assert [row.connected for row in table.rows(60.0)] == [False]
    assert table.evict(50.0 + EVICT_S) == ["agent-1"]
    assert table.rows(1000.0) == ()


def test_a_connected_agent_is_never_evicted(table: CapabilityTable) -> None:
    """A connected agent is never evicted, however long it has been silent."""
    join(table)
    assert table.evict(1e9) == []


# --- Epoch ------------------------------------------------------------------------------------------------------------


def test_the_epoch_grows_when_choices_could_change(table: CapabilityTable) -> None:
    """Joining, a first report, a changed report, draining, leaving and turning stale raise the epoch."""
    epochs = [table.epoch]

    def note(now_s: float) -> None:
        table.choosable(now_s)
        epochs.append(table.epoch)

    table.agent_joined(hello(), 0.0)
    note(0.0)
    table.agent_reported("agent-1", report(READY), 0.0)
    note(0.0)
    table.agent_reported("agent-1", report(expert_report(slots=7)), 1.0)
    note(1.0)
    note(1.0 + STALE_S)
    table.agent_reported("agent-1", report(READY), 20.0)
    note(20.0)
    table.agent_reported("agent-1", report(READY, draining=True), 21.0)
    note(21.0)
    table.agent_left("agent-1", 22.0)
    note(22.0)
    assert epochs == sorted(set(epochs))


def test_the_epoch_stays_when_nothing_changed(table: CapabilityTable) -> None:
    """A steady report, a trembling round trip, sensors and time alone leave the epoch as it is."""
    join(table)
    table.rtt_measured("agent-1", 0.1)
    table.choosable(0.0)
    epoch = table.epoch
    table.agent_reported("agent-1", report(READY, sensors=(SensorReport(name="x", state="present"),)), 1.0)
    table.rtt_measured("agent-1", 0.11)
    table.choosable(2.0)
    table.evict(2.0)
    assert table.epoch == epoch


def test_a_slow_word_among_quick_ones_raises_no_epoch(table: CapabilityTable) -> None:
    """A round trip in which a busy daemon waited leaves the epoch as it is; a path that stays slower is noticed."""
    join(table)
    table.rtt_measured("agent-1", 0.002)
    [known] = table.choosable(0.0)
    epoch = table.epoch
    for rtt_s in (0.04, 0.02, 0.03, 0.04, 0.02, 0.03, 0.04):
        table.rtt_measured("agent-1", rtt_s)
        [now] = table.choosable(1.0)
        assert (now.rtt_s, table.epoch) == (known.rtt_s, epoch) == (0.002, epoch)
    table.rtt_measured("agent-1", 0.02)
    [now] = table.choosable(1.0)
    assert now.rtt_s == 0.02
    assert table.epoch > epoch


def test_a_quicker_path_is_noticed_at_once(table: CapabilityTable) -> None:
    """A first round trip that is much too long, as when all hosts return at once, is put right by the next one."""
    join(table)
    table.rtt_measured("agent-1", 0.5)
    table.rtt_measured("agent-1", 0.01)
    [now] = table.choosable(0.0)
    assert now.rtt_s == 0.01


def test_a_report_of_ages_and_figures_for_people_raises_no_epoch(table: CapabilityTable) -> None:
    """Ages, load, progress and shown speeds change the row, but neither the epoch nor the choosable experts."""
    join(table)
    choosable, epoch = table.choosable(0.0), table.epoch
    aged = expert_report(active=1, queued=2, measured_age_s=4.0, performance=Performance(decode_tokens_per_s=9.0))
    table.agent_reported("agent-1", report(aged), 1.0)
    assert (table.choosable(1.0) is choosable, table.epoch) == (True, epoch)
    assert table.rows(1.0)[0].experts == (aged,)
    assert table.choosable(STALE_S + 0.5) is choosable


def test_a_changed_report_touches_nobody_elses_expert(table: CapabilityTable) -> None:
    """Of a thousand agents one reports anew: its expert changes, all others stay the very same objects in place."""
    for number in range(1000):
        join(table, f"agent-{number:04d}")
    before = table.choosable(0.0)
    table.agent_reported("agent-0500", report(expert_report(slots=7)), 1.0)
    after = table.choosable(1.0)
    assert [place for place, (old, new) in enumerate(zip(before, after, strict=True)) if old is not new] == [500]
    assert after[500].report.slots == 7


REPORTS = [READY, expert_report(slots=3), expert_report(active=1), expert_report(state=ExpertState.LOADING)]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["join", "report", "drain", "leave", "sleep", "break", "remove", "evict", "ages", "rtt"]),
        st.sampled_from(["agent-1", "agent-2", "agent-3"]),
        st.sampled_from(REPORTS),
        st.sampled_from([0.0, 0.5, 4.0, 11.0, 70.0]),
    ),
    max_size=30,
)


@given(EVENTS)
def test_changes_in_place_show_what_a_look_at_all_shows(
    events: list[tuple[str, str, ExpertReport, float]],
) -> None:
    """After any events the experts are those that a table finds which looks at all agents each time."""
    table, anew = (CapabilityTable(stale_s=STALE_S, evict_s=EVICT_S) for _ in range(2))
    now_s, evict_s = 0.0, EVICT_S
    for event, agent_id, what, passed_s in events:
        now_s += passed_s
        epoch, shown = table.epoch, table.choosable(now_s)
        for each in (table, anew):
            happen(each, event, agent_id, what, now_s)
        evict_s += 1e-6  # other ages have a table look at everybody
        anew.set_ages(stale_s=STALE_S, evict_s=evict_s)
        assert [comparable(each) for each in table.choosable(now_s)] == [
            comparable(each) for each in anew.choosable(now_s)
        ]
        assert [each.key for each in table.loading(now_s)] == [each.key for each in anew.loading(now_s)]
        assert table.choosable(now_s) == shown or table.epoch > epoch


def comparable(expert: Expert) -> Expert:
    """An expert without what no choice depends on."""
    passing = ("active", "queued", "performance", "measured_age_s", "load_progress", "last_error", "unload_cost")
    usual = {field.name: field.default for field in msgspec.structs.fields(ExpertReport) if field.name in passing}
    return replace(expert, report=msgspec.structs.replace(expert.report, **usual))


def happen(table: CapabilityTable, event: str, agent_id: str, what: ExpertReport, now_s: float) -> None:
    match event:
        case "join":
            table.agent_joined(hello(agent_id), now_s)
        case "report" | "drain":
            table.agent_reported(agent_id, report(what, draining=event == "drain"), now_s)
        case "leave" | "sleep":
            table.agent_left(agent_id, now_s, asleep=event == "sleep")
        case "break":
            table.agent_broke_rules(agent_id, "it lies", now_s)
        case "remove":
            table.agent_removed(agent_id)
        case "evict":
            table.evict(now_s)
        case "ages":
            table.set_ages(stale_s=STALE_S, evict_s=EVICT_S)
        case _:
            table.rtt_measured(agent_id, now_s / 10)


# --- Rows -------------------------------------------------------------------------------------------------------------


def test_rows_show_what_is_known_and_leave_the_rest_unknown(table: CapabilityTable) -> None:
    """Before the first report a row has no host, no age and no round trip."""
    table.agent_joined(hello(), 0.0)
    [row] = table.rows(3.0)
    assert (row.connected, row.host, row.report_age_s, row.rtt_s, row.experts) == (True, None, None, None, ())
    table.agent_reported("agent-1", report(READY), 4.0)
    table.rtt_measured("agent-1", 0.25)
    [row] = table.rows(6.0)
    assert (row.report_age_s, row.rtt_s, row.experts) == (2.0, 0.25, (READY,))


def test_rows_are_sorted_by_name(table: CapabilityTable) -> None:
    """Rows are sorted by the agent's name."""
    for agent_id in ("c", "a", "b"):
        table.agent_joined(hello(agent_id), 0.0)
    assert [row.agent_name for row in table.rows(0.0)] == ["name of a", "name of b", "name of c"]


def test_a_round_trip_is_forgotten_with_its_session(table: CapabilityTable) -> None:
    """A round trip is forgotten with the session that it was measured in."""
    join(table)
    table.rtt_measured("agent-1", 0.25)
    table.agent_left("agent-1", 1.0)
    assert table.rows(1.0)[0].rtt_s is None


AGENTS = st.sampled_from(["a", "b"])
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["join", "leave", "report", "drain", "load", "evict", "look"]), AGENTS, st.floats(0, STALE_S)
    ),
    max_size=30,
)


@given(STEPS)
def test_the_cached_answer_is_the_one_that_a_fresh_table_would_give(steps: list[tuple[str, str, float]]) -> None:
    """Whatever happens, the cached answer is that of a fresh table, and an equal epoch means an equal answer."""
    now_s = 0.0
    model: dict[str, float | None] = {}
    table = CapabilityTable(stale_s=STALE_S, evict_s=EVICT_S)
    seen: dict[int, object] = {}
    for kind, agent_id, wait_s in steps:
        now_s += wait_s
        match kind:
            case "join":
                table.agent_joined(hello(agent_id), now_s)
                model[agent_id] = None
            case "leave":
                table.agent_left(agent_id, now_s)
                model.pop(agent_id, None)
            case "evict":
                table.evict(now_s)
            case "look":
                table.choosable(now_s)
            case _ if agent_id in model:
                state = ExpertState.LOADING if kind == "load" else ExpertState.READY
                table.agent_reported(agent_id, report(expert_report(state=state), draining=kind == "drain"), now_s)
                model[agent_id] = (now_s + STALE_S) if kind == "report" else None
        expected = sorted(f"{name}/m" for name, until_s in model.items() if until_s is not None and now_s < until_s)
        choosable = table.choosable(now_s)
        assert [expert.key for expert in choosable] == expected
        assert seen.setdefault(table.epoch, choosable) == choosable


def test_a_removed_agent_is_gone_at_once(table: CapabilityTable) -> None:
    """A removed agent is gone at once, and its experts are chosen no more."""
    join(table)
    epoch = table.epoch
    table.agent_removed("agent-1")
    assert table.rows(0.0) == ()
    table.agent_removed("agent-1")
    assert table.epoch == epoch + 1


def test_a_model_is_remembered_until_its_agent_is_evicted(table: CapabilityTable) -> None:
    """Whoever asks for it meanwhile is told that it is away, also while its agent is back and has not reported yet."""
    join(table)
    table.agent_left("agent-1", 1.0)
    assert table.models() == ()
    assert table.remembers(READY.model)
    assert table.remembers(f"agent-1/{READY.model}")
    table.agent_joined(hello("agent-1"), 2.0)
    assert table.remembers(READY.model)
    assert not table.remembers("other")
    assert not table.remembers("agent-1/other")
    table.agent_left("agent-1", 3.0)
    table.evict(3.0 + EVICT_S)
    assert not table.remembers(READY.model)


def test_a_model_that_an_agent_has_given_up_is_forgotten(table: CapabilityTable) -> None:
    """What counts is the latest report."""
    join(table)
    table.agent_reported("agent-1", report(), 1.0)
    assert not table.remembers(READY.model)


def test_an_expert_that_is_being_loaded_is_known_to_come(table: CapabilityTable) -> None:
    """Unless its agent has left; one that takes requests meanwhile can be chosen already."""
    join(table)
    loading = msgspec.structs.replace(READY, state=ExpertState.LOADING)
    table.agent_reported("agent-1", report(loading), 1.0)
    assert keys(table, 1.0) == []
    assert [expert.key for expert in table.loading(1.0)] == [f"agent-1/{READY.model}"]
    table.agent_reported("agent-1", report(msgspec.structs.replace(loading, on_demand=True)), 2.0)
    assert table.loading(2.0) == ()
    table.agent_reported("agent-1", report(loading), 3.0)
    table.agent_left("agent-1", 4.0)
    assert table.loading(4.0) == ()


def test_an_agent_that_sleeps_is_asleep_and_kept(table: CapabilityTable) -> None:
    """It is not choosable, not evicted, and found again after a restart, but not where it is awake by then."""
    join(table)
    table.agent_left("agent-1", 1.0, asleep=True)
    assert [(row.asleep, row.connected) for row in table.rows(2.0)] == [(True, False)]
    assert table.choosable(2.0) == ()
    assert table.evict(1e9) == []
    assert len(table.sleepers()) == 1
    [sleeper] = table.sleepers()
    other = CapabilityTable(stale_s=15.0, evict_s=600.0)
    other.restore_sleeper(sleeper, 5.0)
    assert [row.asleep for row in other.rows(6.0)] == [True]
    other.agent_joined(sleeper.hello, 7.0)
    other.restore_sleeper(sleeper, 8.0)
    assert [row.asleep for row in other.rows(9.0)] == [False]


def test_agents_are_expected_back_for_a_while(table: CapabilityTable) -> None:
    """After a start, until all that are known have reported, or the time is up."""
    assert not table.is_expecting(0.0)
    table.expect(("agent-1", "agent-2"), until_s=60.0)
    join(table)
    table.agent_joined(hello("agent-2"), 1.0)
    assert table.is_expecting(1.0)
    assert not table.is_expecting(60.0)
    table.agent_reported("agent-2", report(READY), 2.0)
    assert not table.is_expecting(2.0)


def test_standing_joules_are_those_of_the_latest_report_also_of_agents_that_left(table: CapabilityTable) -> None:
    """An agent that counts none has no entry, and one that has left keeps its last counters."""
    for agent_id in ("agent-1", "agent-2"):
        join(table, agent_id)
    assert table.standing_energy() == ()
    for idle_j in (1.0, 2.0):
        energy = StandingEnergy(epoch="e", idle_j=idle_j)
        table.agent_reported("agent-1", report(expert_report(), standby=Standby(energy=energy)), 0.0)
    table.agent_reported("agent-2", report(expert_report(), standby=Standby()), 0.0)
    table.agent_left("agent-1", 1.0)
    [(agent, energy)] = table.standing_energy()
    assert (agent.agent_id, energy.idle_j) == ("agent-1", 2.0)
