"""Tests of panels whose members all work: who is in them, and what they cost together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.common.cost import EnergyProfile, LatencyProfile, Quantiles
from moe2.coordinator.choosing.explain import decision_of
from moe2.coordinator.choosing.panel_cost import DEFAULT_PANEL
from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.request import Budgets, Demand, Mode, SelectionRequest, Wish
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.gate.checkpoint import load_checkpoint
from moe2.coordinator.planning.problem import Quantile
from tests.coordinator.experts import EXACT, expert, selector, speed
from tests.coordinator.panels import ALL_MODES
from tests.fakes.gates import write_gate


def joules(per_prompt_token: float, per_decoded_token: float, *, idle_w: float | None = None) -> EnergyProfile:
    base: dict[str, Any] = {"spread": EXACT, "quality": "measured_counter", "idle_w": idle_w}
    return EnergyProfile(coefficients=(per_prompt_token, per_decoded_token, 0.0, 0.0), **base)


def member(n: int, model: str = "smollm-135m", *, rtt_s: float = 0.0, protocol: int = 2, **fields: Any) -> Expert:
    settled = {"latency": speed(1000.0, 100.0), "energy": joules(0.01, 0.1), "vocabulary_sha256": "v", **fields}
    made = expert(f"agent-{n}", model, **settled)
    return Expert(
        key=made.key,
        agent_id=made.agent_id,
        agent_name=made.agent_name,
        model=model,
        report=made.report,
        rtt_s=rtt_s,
        protocol=protocol,
    )


def decide(*experts: Expert, choice_tokens: int | None = 10, modes: Any = ALL_MODES, **wish: Any) -> Any:
    """The choice for a request of 100 prompt tokens and 20 answer tokens."""
    asked = SelectionRequest(
        model="moe2",
        demand=Demand(prompt_tokens=100, max_tokens=20),
        wish=Wish(**wish),
        modes=modes,
        choice_tokens=choice_tokens,
    )
    return selector().select(asked, experts, {}, 0)


def panel(*experts: Expert, **fields: Any) -> Selection:
    decided = decide(*experts, **fields)
    assert isinstance(decided, Selection), decided
    return decided


def both(figure: float) -> Any:
    """A prediction whose p50 and p95 are the same."""
    return Quantiles(pytest.approx(figure), pytest.approx(figure))  # type: ignore[arg-type]


def agents(decided: Selection) -> set[str]:
    return {found.expert.agent_id for found in decided.members}


# --- Who is in --------------------------------------------------------------------------------------------------------


def test_a_panel_is_the_usual_size_or_what_is_asked_for() -> None:
    """Of five equal experts the default number or `max_experts` of them make the panel."""
    five = [member(n) for n in range(5)]
    assert len(panel(*five, mode=Mode.VOTE).members) == DEFAULT_PANEL
    assert len(panel(*five, mode=Mode.VOTE, max_experts=5).members) == 5
    assert len(panel(*five, mode=Mode.RANK, max_experts=1).members) == 1


def test_weights_are_the_gates_softmax() -> None:
    """Equal experts weigh the same, a better one weighs more, and all weights sum to 1."""
    equal = panel(member(1), member(2), mode=Mode.VOTE)
    assert [found.weight for found in equal.members] == pytest.approx([0.5, 0.5])
    unequal = panel(member(1), member(2, "smollm-200m"), mode=Mode.VOTE)
    assert unequal.first.expert.agent_id == "agent-2"
    assert unequal.first.weight > 0.5
    assert sum(found.weight for found in unequal.members) == pytest.approx(1.0)


def test_a_member_of_no_weight_is_left_out() -> None:
    """A member beside a model a hundred times its size is left out, because it would decide nothing."""
    assert agents(panel(member(1, "m-100m"), member(2, "m-70b"), mode=Mode.VOTE)) == {"agent-2"}


def test_an_agent_of_the_first_protocol_cannot_be_in() -> None:
    """An agent of the first protocol cannot score texts, so its experts are in no panel."""
    assert agents(panel(member(1, protocol=1), member(2), mode=Mode.VOTE)) == {"agent-2"}
    refused = decide(member(1, protocol=1), mode=Mode.RANK)
    assert (refused.code, "protocol 1" in refused.message) == ("mode_unavailable", True)


def test_only_one_vocabulary_can_be_mixed() -> None:
    """Members of a mix share a vocabulary; without two such experts the mode is unavailable."""
    pair = panel(
        member(1), member(2), member(3, vocabulary_sha256="w"), member(4, vocabulary_sha256=None), mode=Mode.MIX
    )
    assert agents(pair) == {"agent-1", "agent-2"}
    refused = decide(member(1), member(2, vocabulary_sha256="w"), mode=Mode.MIX)
    assert (refused.code, "share a vocabulary" in refused.message) == ("mode_unavailable", True)
    assert len(panel(member(1), member(2, vocabulary_sha256="w"), mode=Mode.MIX, max_experts=1).members) == 1
    assert len(panel(member(1), mode=Mode.MIX).members) == 1


# --- What it costs ----------------------------------------------------------------------------------------------------


def test_a_vote_costs_its_prefill_on_every_member() -> None:
    """A vote costs each of two members (100 + 10) tokens at 0.01 J and one at 0.1 J, and takes 0.11 s."""
    decided = panel(member(1), member(2), mode=Mode.VOTE)
    assert decided.predicted.energy_j == both(2.4)
    assert decided.predicted.total_s == both(0.11)
    assert decided.plan.energy_j == pytest.approx(2.4)


def test_ranking_costs_every_answer_and_every_judgement() -> None:
    """A ranking costs each of two members its own answer and the reading of both answers."""
    decided = panel(member(1), member(2), mode=Mode.RANK)
    assert decided.predicted.energy_j == both(9.0)
    assert decided.predicted.total_s == both(0.43)
    assert decided.predicted.ttft_s == decided.predicted.total_s


def test_ranking_waits_for_the_slowest_writer_and_then_the_slowest_judge() -> None:
    """A slow writer (0.1 + 1.9 s) and a slow judge (0.56 s) both delay a ranking."""
    writer, judge = (
        member(1, latency=speed(1000.0, 10.0)),
        member(2, latency=speed(250.0, 100.0)),
    )
    decided = panel(writer, judge, mode=Mode.RANK)
    assert decided.predicted.total_s is not None
    assert decided.predicted.total_s.p95 >= 2.0 + 0.56


def test_mixing_goes_at_the_pace_of_the_slowest_plus_the_round_trip() -> None:
    """A mix takes a round trip per token, and its fast member draws idle power while it waits."""
    slow = member(1, latency=speed(1000.0, 10.0), rtt_s=0.05)
    fast = member(2, energy=joules(0.01, 0.1, idle_w=2.0))
    decided = panel(slow, fast, mode=Mode.MIX)
    assert decided.predicted.total_s is not None
    assert decided.predicted.energy_j is not None
    assert decided.predicted.per_token_s == both(0.15)
    alone_s = 0.15 + 19 * 0.15
    assert alone_s <= decided.predicted.total_s.p95 <= alone_s + 0.05 + 1e-9
    assert decided.predicted.energy_j.p95 == pytest.approx(2 * 3.0 + 2.0 * 19 * 0.14)


# --- Budgets ----------------------------------------------------------------------------------------------------------


def test_joules_are_bounded_together() -> None:
    """A budget for two members at 1.2 J each makes a panel of two."""
    three = [member(n) for n in range(3)]
    for budget_j, members in ((3.6, 3), (3.5, 2), (2.3, 1)):
        assert len(panel(*three, mode=Mode.VOTE, energy_budget_j=budget_j).members) == members
    refused = decide(*three, mode=Mode.VOTE, energy_budget_j=1.1)
    assert isinstance(refused, NoExpert)
    assert refused.code == "infeasible"


def test_a_ranking_that_cannot_be_paid_for_is_one_answer() -> None:
    """A budget for one ranking member makes a panel of one, which writes for 3 J and judges nothing."""
    two = member(1), member(2)
    assert len(panel(*two, mode=Mode.RANK, energy_budget_j=9.0).members) == 2
    assert len(panel(*two, mode=Mode.RANK, energy_budget_j=8.9).members) == 1
    assert decide(*two, mode=Mode.RANK, energy_budget_j=2.9).code == "infeasible"


def test_a_slow_member_is_out_where_time_is_short() -> None:
    """A slow member is left out under a latency budget, because a panel's delay is its longest."""
    slow = member(1, latency=speed(100.0, 10.0))
    assert agents(panel(slow, member(2), mode=Mode.VOTE, latency_budget_s=0.5)) == {"agent-2"}


def test_what_comes_at_once_keeps_no_pace() -> None:
    """A budget per token limits a mix, and not a vote, whose answer comes at once."""
    wish: dict[str, Any] = {"tpot_budget_s": 0.001}
    assert panel(member(1), mode=Mode.VOTE, **wish)
    assert decide(member(1), mode=Mode.MIX, **wish).code == "infeasible"


COSTS = st.tuples(st.floats(0.001, 0.1), st.floats(0.01, 1.0), st.floats(50, 2000), st.floats(5, 200))


@given(
    st.lists(COSTS, min_size=1, max_size=5),
    st.sampled_from([Mode.VOTE, Mode.RANK, Mode.MIX]),
    st.floats(0.1, 60),
    st.floats(0.05, 10),
    st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_a_panel_keeps_every_budget(
    costs: list[tuple[float, ...]], mode: Mode, energy_j: float, delay_s: float, most: int
) -> None:
    """In any fleet a panel's joint prediction is within the budgets, or the request is refused."""
    fleet = [
        member(n, latency=LatencyProfile(**_speed(reads, writes)), energy=joules(prompt, token))
        for n, (prompt, token, reads, writes) in enumerate(costs)
    ]
    budgets: dict[str, Any] = {"energy_budget_j": energy_j, "latency_budget_s": delay_s, "max_experts": most}
    decided = decide(*fleet, mode=mode, quantile=Quantile.P95, **budgets)
    if isinstance(decided, NoExpert):
        assert decided.code == "infeasible"
        return
    together = decided.predicted
    assert together.energy_j.p95 <= energy_j * (1 + 1e-9)
    assert len(decided.members) <= most
    longest_s = max(found.prediction.total_s.p95 for found in decided.members)
    assert longest_s <= delay_s * (1 + 1e-9)


def _speed(reads: float, writes: float) -> dict[str, Any]:
    profile = speed(reads, writes)
    return {name: getattr(profile, name) for name in profile.__struct_fields__}


def test_equal_inputs_are_planned_once() -> None:
    """Equal panel requests are planned once; another mode or size is planned anew."""
    chooser, fleet = selector(), (member(1), member(2), member(3))

    def plan(mode: Mode, most: int, epoch: int = 0) -> Any:
        wish = Wish(mode=mode, max_experts=most)
        asked = SelectionRequest(model="moe2", demand=Demand(100, 20), wish=wish, modes=ALL_MODES, choice_tokens=10)
        decided = chooser.select(asked, fleet, {}, epoch)
        assert isinstance(decided, Selection)
        return decided.plan

    first = plan(Mode.VOTE, 2)
    assert plan(Mode.VOTE, 2) is first
    others = [plan(Mode.VOTE, 3), plan(Mode.MIX, 2), plan(Mode.VOTE, 2, epoch=1)]
    assert all(other is not first for other in others)


# --- Which mode -------------------------------------------------------------------------------------------------------


def test_without_a_word_of_a_mode_one_expert_answers() -> None:
    """A request without a mode is answered by one expert, however many there are."""
    assert panel(member(1), member(2), choice_tokens=None).mode is Mode.ROUTE


def gated(tmp_path: Path) -> Selector:
    """A gate that knows three models, good at 0.3, 0.5 and 0.7 of all prompts."""
    gate, manifest = load_checkpoint(write_gate(tmp_path / "gate.safetensors", ["one", "two", "three"], ["all"]))
    return Selector(Scorer(gate, manifest.kinds), {}, clock=lambda: 0.0)


def test_auto_has_choices_scored() -> None:
    """Mode `auto`, the default with choices, lets one expert score them, which is cheaper than writing."""
    two = member(1), member(2)
    for wish in ({"mode": Mode.AUTO}, {}):
        decided = panel(*two, **wish)
        assert (decided.mode, len(decided.members)) == (Mode.VOTE, 1)
    assert panel(*two, mode=Mode.AUTO, choice_tokens=None, modes=ALL_MODES - {Mode.VOTE}).mode is Mode.ROUTE
    assert panel(*two, mode=Mode.ROUTE).mode is Mode.ROUTE


def test_auto_routes_where_nobody_can_score() -> None:
    """Where every agent is too old to score choices, one expert writes one of them."""
    assert panel(member(1, protocol=1), mode=Mode.AUTO).mode is Mode.ROUTE


def test_auto_lets_several_vote_where_the_gate_says_so(tmp_path: Path) -> None:
    """Experts of 0.5 and 0.7 cover 0.85, so that both vote, unless the budget is for one."""
    two = member(1, "two"), member(2, "three")
    chooser = gated(tmp_path)
    for energy_j, members in ((None, 2), (1.3, 1)):
        wish = Wish(mode=Mode.AUTO, energy_budget_j=energy_j)
        asked = SelectionRequest(
            model="moe2", demand=Demand(100, 20), wish=wish, modes=ALL_MODES, choice_tokens=10, text="x"
        )
        decided = chooser.select(asked, two, {}, 0)
        assert isinstance(decided, Selection)
        assert (decided.mode, len(decided.members)) == (Mode.VOTE, members)


def test_a_categorys_mode_applies_where_it_can() -> None:
    """A category's mode applies to requests that it suits; others are routed to one expert."""
    chooser = selector(default=Budgets(mode=Mode.RANK))
    for modes, expected in ((ALL_MODES, Mode.RANK), (frozenset({Mode.ROUTE}), Mode.ROUTE)):
        asked = SelectionRequest(model="moe2", demand=Demand(10, 10), modes=modes)
        decided = chooser.select(asked, (member(1), member(2)), {}, 0)
        assert isinstance(decided, Selection)
        assert decided.mode is expected


def test_the_decision_shows_the_panel() -> None:
    """The decision shows each member's weight, and what all members take together."""
    decision = decision_of(panel(member(1), member(2), member(3, protocol=1), mode=Mode.VOTE))
    assert decision.mode == "vote"
    assert {row.agent: row.weight for row in decision.experts} == {
        "name of agent-1": pytest.approx(0.5),
        "name of agent-2": pytest.approx(0.5),
        "name of agent-3": None,
    }
    assert decision.predicted is not None
    assert decision.predicted.energy_j == both(2.4)
    assert decision.experts[2].reason == "its agent speaks protocol 1, and mode vote needs 2"
