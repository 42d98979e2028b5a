"""Tests of the selector: which expert answers a request."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.cost import Spread
from moe2.common.error_codes import ErrorCode
from moe2.common.link.reports import ExpertState
from moe2.coordinator.choosing.candidates import problem_of
from moe2.coordinator.choosing.explain import decision_of, offers_of
from moe2.coordinator.choosing.forecast import WorkLeft
from moe2.coordinator.choosing.request import Budgets, Demand, SelectionRequest, Wish
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.planning import search
from moe2.coordinator.planning.problem import Quantile
from tests.coordinator.experts import cost, expert, predict, selector, speed

FAST = speed(1000.0, 100.0)
SLOW = speed(1000.0, 10.0)


def asked(model: str = "moe2", **fields: Any) -> SelectionRequest:
    return SelectionRequest(**{"model": model, "demand": Demand(prompt_tokens=10, max_tokens=20), **fields})


def chosen(request: SelectionRequest, *experts: Expert, **in_flight: int) -> str:
    """The key of the chosen expert, or the code of the refusal."""
    keyed = {key.replace("_", "-") + "/m": number for key, number in in_flight.items()}
    selection = selector().select(request, experts, keyed, 0)
    return selection.first.expert.key if isinstance(selection, Selection) else selection.code


# --- Choice -----------------------------------------------------------------------------------------------------------


def test_the_least_predicted_completion_wins() -> None:
    """The expert that is predicted to finish first is chosen, and the selection shows the prediction."""
    slow, fast = expert("agent-1", latency=SLOW), expert("agent-2", latency=FAST)
    selection = selector().select(asked(), (slow, fast), {}, 0)
    assert isinstance(selection, Selection)
    assert (selection.first.expert, len(selection.considered)) == (fast, 2)
    assert selection.first.prediction == predict(fast, asked().demand, 0)


def test_a_busy_fast_expert_loses_to_an_idle_slow_one() -> None:
    """An idle slow expert wins over a fast one whose queue takes longer."""
    slow, fast = (
        expert("agent-1", latency=SLOW, slots=1),
        expert("agent-2", latency=FAST, slots=1, max_queue=99),
    )
    assert chosen(asked(), slow, fast, agent_2=1) == "agent-2/m"
    assert chosen(asked(), slow, fast, agent_2=30) == "agent-1/m"


def test_equals_share_the_load() -> None:
    """Between equal experts fewer requests in progress decide, then the smaller key."""
    one, two = expert("agent-1"), expert("agent-2")
    assert chosen(asked(), two, one) == "agent-1/m"
    assert chosen(asked(), one, two, agent_1=1) == "agent-2/m"


def test_an_idle_unmeasured_expert_is_tried_first_and_a_busy_one_last() -> None:
    """An unmeasured expert gets a request while idle, so that it is measured, but no more."""
    known, unknown = expert("agent-1", latency=FAST), expert("agent-2", latency=None)
    assert chosen(asked(), known, unknown) == "agent-2/m"
    assert chosen(asked(), known, unknown, agent_2=1) == "agent-1/m"


@pytest.mark.parametrize("name", ["moe2", "auto"])
def test_the_coordinator_chooses_among_all_models(name: str) -> None:
    """The model names "moe2" and "auto" leave the choice to the coordinator."""
    assert chosen(asked(name), expert(model="a", latency=SLOW), expert(model="b", latency=FAST)) == "agent-1/b"


def test_a_named_model_is_that_model() -> None:
    """A named model answers, however fast another one may be."""
    assert chosen(asked("a"), expert(model="a", latency=SLOW), expert(model="b", latency=FAST)) == "agent-1/a"


def test_a_key_names_one_expert() -> None:
    """An expert's key as the model chooses this expert and no other."""
    assert chosen(asked("agent-2/m"), expert("agent-1"), expert("agent-2")) == "agent-2/m"


# --- What rules experts out -------------------------------------------------------------------------------------------


def test_experts_that_failed_this_request_are_not_asked_again() -> None:
    """Experts that failed a request are left out of its next attempts, until none is left."""
    experts = expert("agent-1"), expert("agent-2")
    assert chosen(asked(excluded=frozenset({"agent-1/m"})), *experts) == "agent-2/m"
    assert chosen(asked(excluded=frozenset({"agent-1/m", "agent-2/m"})), *experts) == "exhausted"


def test_no_live_expert_is_told() -> None:
    """A request is refused where no expert is ready, or none of the model that it names."""
    assert chosen(asked()) == "no_live_expert"
    assert chosen(asked("other"), expert()) == "no_live_expert"


def test_a_chat_needs_a_template() -> None:
    """A chat goes only to models with a chat template, or with an unknown one."""
    without, unknown = expert("agent-1", has_chat_template=False), expert("agent-2", has_chat_template=None)
    assert chosen(asked("m", needs_chat_template=True), without) == "no_chat_template"
    assert chosen(asked("m", needs_chat_template=True), without, unknown) == "agent-2/m"
    assert chosen(asked("m"), without) == "agent-1/m"


def test_a_prompt_goes_where_it_fits() -> None:
    """A prompt goes to an expert whose context is large enough for its estimated length."""
    small = expert("agent-1", latency=FAST, context_tokens=100)
    large = expert("agent-2", latency=SLOW, context_tokens=1000)
    assert chosen(asked(demand=Demand(99, 1)), small, large) == "agent-1/m"
    assert chosen(asked(demand=Demand(100, 1)), small, large) == "agent-2/m"


def test_an_estimate_alone_rules_nobody_out() -> None:
    """A prompt estimated as too long for all still goes to the largest context."""
    small, large = expert("agent-1", context_tokens=100), expert("agent-2", context_tokens=1000)
    assert chosen(asked(demand=Demand(5000, 1)), small, large) == "agent-2/m"


def test_a_context_found_too_small_is_not_tried_again() -> None:
    """Contexts up to a size that was too small are left out, and the refusal names the largest."""
    small, large = expert("agent-1", context_tokens=100), expert("agent-2", context_tokens=1000)
    assert chosen(asked(least_context_tokens=100), small, large) == "agent-2/m"
    refused = selector().select(asked(least_context_tokens=1000), (small, large), {}, 0)
    assert refused == NoExpert(ErrorCode.CONTEXT_EXCEEDED, "The largest context among the experts is 1000 tokens.")


def test_a_full_expert_is_passed_over() -> None:
    """An expert whose slots and queue places are taken gets no further request."""
    one, two = expert("agent-1", latency=FAST, slots=2, max_queue=1), expert("agent-2", latency=SLOW)
    assert chosen(asked(), one, two, agent_1=2) == "agent-1/m"
    assert chosen(asked(), one, two, agent_1=3) == "agent-2/m"
    assert chosen(asked(), one, agent_1=3) == "overloaded"


EXPERTS = st.lists(
    st.builds(
        expert,
        agent_id=st.sampled_from("abcd"),
        model=st.sampled_from("mn"),
        context_tokens=st.sampled_from([64, 4096]),
        slots=st.integers(1, 2),
        max_queue=st.integers(0, 2),
        latency=st.sampled_from([FAST, SLOW, None]),
        has_chat_template=st.sampled_from([True, False, None]),
    ),
    unique_by=lambda found: found.key,
    max_size=5,
)
REQUESTS = st.builds(
    asked,
    model=st.sampled_from(["moe2", "m", "n", "a/m", "x"]),
    demand=st.builds(Demand, st.integers(0, 5000), st.none() | st.integers(1, 100)),
    excluded=st.frozensets(st.sampled_from(["a/m", "b/n"])),
    needs_chat_template=st.booleans(),
)


@given(REQUESTS, EXPERTS, st.dictionaries(st.sampled_from(["a/m", "b/m", "c/n"]), st.integers(1, 5)), st.randoms())
def test_a_choice_keeps_every_rule_and_does_not_depend_on_order(
    request: SelectionRequest, experts: list[Expert], in_flight: dict[str, int], random: Any
) -> None:
    """In any fleet the choice keeps all rules, whatever the order of the experts."""
    selection = selector().select(request, tuple(experts), in_flight, 0)
    shuffled = experts[:]
    random.shuffle(shuffled)
    again = selector().select(request, tuple(shuffled), in_flight, 0)
    assert type(again) is type(selection)
    if isinstance(selection, NoExpert) and isinstance(again, NoExpert):
        assert again.code == selection.code
    if isinstance(selection, Selection) and isinstance(again, Selection):
        assert again.first.expert == selection.first.expert
    if isinstance(selection, Selection):
        found = selection.first.expert
        assert found in experts
        assert found.key not in request.excluded
        assert request.model in ("moe2", found.model, found.key)
        assert in_flight.get(found.key, 0) < found.report.slots + found.report.max_queue
        assert not (request.needs_chat_template and found.report.has_chat_template is False)
    else:
        assert selection.message


# --- Budgets ----------------------------------------------------------------------------------------------------------

SMALL = expert("agent-1", "smollm-135m", latency=FAST, energy=cost(0.1))
LARGE = expert("agent-2", "smollm-1700m", latency=SLOW, energy=cost(1.0))
FLEET = (SMALL, LARGE)


def picked(wish: Wish, *experts: Expert, **categories: Budgets) -> str:
    decided = selector(**categories).select(asked(wish=wish), experts or FLEET, {}, 0)
    return decided.first.expert.model if isinstance(decided, Selection) else decided.code


def test_without_budgets_the_best_score_answers() -> None:
    """Without budgets a model with ten times the parameters answers by its prior, however slow."""
    assert picked(Wish()) == "smollm-1700m"


@pytest.mark.parametrize(
    ("wish", "model"),
    [
        (Wish(energy_budget_j=20.0), "smollm-1700m"),
        (Wish(energy_budget_j=19.9), "smollm-135m"),
        (Wish(energy_budget_j=1.9), "infeasible"),
        (Wish(latency_budget_s=1.0), "smollm-135m"),
        (Wish(tpot_budget_s=0.05), "smollm-135m"),
        (Wish(ttft_budget_s=0.001), "infeasible"),
        (Wish(energy_budget_j=0.0), "infeasible"),
    ],
)
def test_budgets_bound_the_one_that_answers(wish: Wish, model: str) -> None:
    """Budgets in joules and seconds exclude the large slow expert and allow the small one."""
    assert picked(wish) == model


def test_p50_and_p95_bind_differently() -> None:
    """A limit holds for the quantile that the request names, or for p95 where it names none."""
    spread = Spread(p50=0.0, p95=1.0)
    shaky = expert(latency=speed(1000.0, 100.0, spread=spread))
    assert picked(Wish(latency_budget_s=0.3, quantile=Quantile.P50), shaky) == "m"
    assert picked(Wish(latency_budget_s=0.3), shaky) == "infeasible"


def test_the_category_sets_what_the_request_does_not() -> None:
    """The request's budget counts first, then its category's, then the default category's."""
    categories = {"default": Budgets(energy_budget_j=2.0), "careful": Budgets(latency_budget_s=0.001)}
    assert picked(Wish(), **categories) == "smollm-135m"
    assert picked(Wish(energy_budget_j=100.0), **categories) == "smollm-1700m"
    assert picked(Wish(category="careful"), **categories) == "infeasible"


def test_an_unmeasured_cost_is_no_promise() -> None:
    """An expert without measured energy is ruled out only where energy is limited."""
    unknown = expert("agent-3", "smollm-9b", latency=FAST)
    assert picked(Wish(), *FLEET, unknown) == "smollm-9b"
    assert picked(Wish(energy_budget_j=100.0), *FLEET, unknown) == "smollm-1700m"
    assert picked(Wish(energy_budget_j=100.0), unknown) == "infeasible"


def test_a_refusal_names_the_cheapest_and_the_fastest_offer() -> None:
    """A refusal names the nearest offers and the budgets that these would need."""
    refused = selector().select(asked(wish=Wish(energy_budget_j=1.0, latency_budget_s=0.1)), FLEET, {}, 0)
    assert isinstance(refused, NoExpert)
    offers = offers_of(refused)
    assert offers is not None
    assert offers["cheapest"]["expert"] == "agent-1/smollm-135m"
    assert offers["cheapest"]["needs"]["energy_j"] == pytest.approx(2.0)
    assert offers["fastest"]["needs"]["delay_s"] == pytest.approx(0.2)
    assert "cheapest offer is agent-1/smollm-135m" in refused.message


def test_candidates_need_not_fit_together_where_one_runs() -> None:
    """Both keep the budget alone, so the fine level may choose either, though not both could run."""
    decided = selector().select(asked(wish=Wish(energy_budget_j=20.5)), FLEET, {}, 0)
    assert isinstance(decided, Selection)
    assert decided.candidates == {expert.key for expert in FLEET}


def test_a_limited_candidate_set_keeps_the_energy_budget_together() -> None:
    """With `max_experts` trying all candidates one after the other stays within the budget."""
    twins = (SMALL, expert("agent-3", "smollm-150m", latency=FAST, energy=cost(0.1)), LARGE)
    decided = selector().select(asked(wish=Wish(energy_budget_j=20.5, max_experts=2)), twins, {}, 0)
    assert isinstance(decided, Selection)
    spent_j = [other.prediction.energy_j for other in decided.considered if other.expert.key in decided.candidates]
    assert sum(joules.p95 for joules in spent_j if joules) <= 20.5


def test_former_attempts_use_up_the_budgets() -> None:
    """A second attempt has the budgets that the first one has left over."""
    wish = Wish(energy_budget_j=25.0)
    fresh = selector().select(asked(wish=wish), FLEET, {}, 0)
    again = selector().select(asked(wish=wish, spent_j=10.0), FLEET, {}, 0)
    assert isinstance(fresh, Selection)
    assert isinstance(again, Selection)
    assert (fresh.first.expert.model, again.first.expert.model) == ("smollm-1700m", "smollm-135m")


def test_every_expert_outside_has_a_reason() -> None:
    """Every expert that was not chosen has a reason in the decision, and the chosen one has none."""
    decided = selector().select(asked(wish=Wish(energy_budget_j=2.5)), FLEET, {}, 0)
    assert isinstance(decided, Selection)
    rows = {row.model: row for row in decision_of(decided).experts}
    assert rows["smollm-135m"].chosen
    assert rows["smollm-135m"].reason is None
    assert "energy of 20 J exceeds 2.5 J" in (rows["smollm-1700m"].reason or "")


def test_equal_inputs_are_planned_once() -> None:
    """The memo's answer is the plan itself; another epoch plans afresh."""
    one = selector()
    plans = [one.select(asked(), FLEET, {}, epoch) for epoch in (1, 1, 2)]
    first, second, third = (decided.plan for decided in plans)
    assert first is second
    assert third is not first


def test_the_plan_without_max_experts_is_the_solvers_optimum() -> None:
    """Where nothing couples the candidates, taking all that fit is worth exactly what the search finds."""
    decided = selector().select(asked(wish=Wish(energy_budget_j=2.5)), FLEET, {}, 0)
    assert isinstance(decided, Selection)
    outlook = decided.outlook
    problem = problem_of(outlook.forecast, outlook.worth, outlook.budgets, outlook.ruled_out)
    assert decided.plan.proof.value == pytest.approx(search.plan(problem).proof.value)
    assert decided.plan.proof.status == "optimal"


def test_a_request_for_one_model_does_not_disturb_the_gate() -> None:
    """The gate stays fitted to the whole fleet: what it says of a set of experts is remembered."""
    one = selector()
    first = one.select(asked(), FLEET, {}, 0)
    one.select(asked("smollm-135m"), FLEET, {}, 0)
    again = one.select(asked(), FLEET, {}, 0)
    assert isinstance(first, Selection)
    assert isinstance(again, Selection)
    assert again.plan is first.plan


def test_the_frontier_never_falls() -> None:
    """More joules never buy a lower value."""
    one = selector()
    decided = one.select(asked(), FLEET, {}, 0)
    values = [point.plan.proof.value for point in one.frontier(decided)]
    known = [value for value in values if value is not None]
    assert values[0] is None
    assert known == sorted(known)


# --- Tools ------------------------------------------------------------------------------------------------------------


def test_a_request_with_tools_goes_where_the_template_has_them() -> None:
    """Models without tools are ruled out for a request with tools; those that have not said yet are not."""
    without, silent = expert("agent-1", latency=FAST, supports_tools=False), expert("agent-2", latency=SLOW)
    assert chosen(asked(needs_tools=True), without, silent) == "agent-2/m"
    assert chosen(asked(), without, silent) == "agent-1/m"


def test_a_text_with_a_gap_goes_where_the_vocabulary_has_marks_for_one() -> None:
    """Models without them, and agents that do not say, are ruled out; a model that was never loaded is not."""
    plain, silent = expert("agent-1", supports_infill=False), expert("agent-2", architecture="llama")
    filling = expert("agent-3", latency=SLOW, supports_infill=True)
    assert chosen(asked(needs_infill=True), plain, silent, filling) == "agent-3/m"
    assert chosen(asked(model="m", needs_infill=True), plain, silent) == "no_infill"
    assert chosen(asked(needs_infill=True), plain, expert("agent-2")) == "agent-2/m"


def test_a_model_without_tools_is_named_as_such() -> None:
    """Where no model has tools the refusal says so, because trying again is of no use."""
    assert chosen(asked(model="m", needs_tools=True), expert("agent-1", supports_tools=False)) == "no_tools"


# --- Cold experts -----------------------------------------------------------------------------------------------------


def test_a_cold_expert_is_not_woken_just_to_be_measured() -> None:
    """A cold unmeasured expert answers only where no ready one is as good."""
    cold = expert("agent-1", latency=None, state=ExpertState.COLD, on_demand=True)
    assert chosen(asked(), cold, expert("agent-2", latency=SLOW)) == "agent-2/m"
    assert chosen(asked(), cold) == "agent-1/m"


def test_loading_counts_as_time() -> None:
    """A slow expert in memory is sooner than a fast one that has to be loaded for a minute."""
    cold = expert("agent-1", latency=FAST, state=ExpertState.COLD, on_demand=True, load_s=60.0)
    assert chosen(asked(), cold, expert("agent-2", latency=SLOW)) == "agent-2/m"


LAW = msgspec.structs.replace(speed(1000.0, 100.0, slots=4), newcomer_s=0.0)


def with_left(ask: SelectionRequest, left: dict[str, WorkLeft], *experts: Expert) -> Selection | NoExpert:
    """The choice where each of these experts has one request, which has so much left."""
    in_flight = {each.key: 1 for each in experts}
    return selector().select(ask, experts, in_flight, 0, work_left=lambda key, busy: left.get(key))


def test_among_equals_the_one_with_the_least_left_to_read_answers() -> None:
    """Both are as busy; beside a prompt of 2,000 tokens a first token would come later, as the prediction then says."""
    two = [expert(agent, latency=LAW, slots=4) for agent in ("a", "b")]
    decided = with_left(asked(), {"a/m": WorkLeft(2000.0, 50.0), "b/m": WorkLeft(0.0, 50.0)}, *two)
    assert isinstance(decided, Selection)
    assert decided.first.expert.key == "b/m"
    unasked = with_left(asked(), {}, *two)
    assert isinstance(unasked, Selection)
    assert unasked.first.expert.key == "a/m"
    only = with_left(asked(), {"a/m": WorkLeft(2000.0, 50.0)}, two[0])
    assert isinstance(only, Selection)
    assert only.predicted.ttft_s is not None
    assert unasked.predicted.ttft_s is not None
    assert only.predicted.ttft_s.p50 == pytest.approx(2 * unasked.predicted.ttft_s.p50)


def test_limits_are_kept_beside_what_is_at_work() -> None:
    """The better one would be late behind a long prompt, so that the next one answers; alone it is a refusal."""
    tight = asked(wish=Wish(ttft_budget_s=0.15), demand=Demand(100, 20))
    quick, other = (expert(agent, latency=LAW, slots=4) for agent in ("a", "b"))
    left = {"a/m": WorkLeft(2000.0, 50.0), "b/m": WorkLeft(0.0, 50.0)}
    decided = with_left(tight, left, quick, other)
    assert isinstance(decided, Selection)
    assert decided.first.expert.key == "b/m"
    shown = {row.expert: row for row in decision_of(decided).experts}
    assert not shown["a/m"].candidate
    assert shown["a/m"].reason == "beside what is at work there it would be late"
    refused = with_left(tight, left, quick)
    assert isinstance(refused, NoExpert)
    assert refused.code == ErrorCode.INFEASIBLE_NOW


def test_an_agent_of_an_earlier_release_is_predicted_as_before() -> None:
    """Its law was learned without others' prompts: they are not added to it."""
    before = expert("a", latency=msgspec.structs.replace(LAW, newcomer_s=None), slots=4)
    decided = with_left(asked(), {"a/m": WorkLeft(2000.0, 50.0)}, before)
    assert isinstance(decided, Selection)
    assert decided.predicted.shape.unread_tokens is None


def told_by(left: dict[str, WorkLeft], *experts: Expert, **fields: Any) -> tuple[Selection | NoExpert, list[str]]:
    """The choice where each expert has one request, and who was asked what that has left."""
    told: list[str] = []

    def work_left(key: str, busy: int) -> WorkLeft | None:
        told.append(key)
        return left[key]

    tight = asked(wish=Wish(ttft_budget_s=0.15), demand=Demand(100, 20), **fields)
    return selector().select(tight, experts, dict.fromkeys(left, 1), 0, work_left=work_left), told


def test_the_next_ones_are_asked_where_the_first_would_be_late() -> None:
    """Behind eight that would be late further ones are asked, and not all of a large fleet."""
    many = [expert(f"agent-{n:03d}", latency=LAW, slots=4) for n in range(200)]
    left = {each.key: WorkLeft(2000.0 if n < 40 else 0.0, 50.0) for n, each in enumerate(many)}
    decided, told = told_by(left, *many)
    assert isinstance(decided, Selection)
    assert decided.first.expert.key == "agent-040/m"
    assert decided.late_places.tolist() == list(range(40))
    assert decided.candidate_places.tolist() == list(range(40, 200))
    assert len(told) < 80


def test_a_better_one_that_would_be_late_leaves_the_next_best() -> None:
    """Where all of the best model would be late, the next best model's experts answer."""
    best, other = ([expert(f"{size}-{n}", f"m-{size}b", latency=LAW, slots=4) for n in range(9)] for size in (7, 1))
    left = {each.key: WorkLeft(2000.0 if each in best else 0.0, 50.0) for each in (*best, *other)}
    decided, _ = told_by(left, *best, *other)
    assert isinstance(decided, Selection)
    assert decided.first.expert.key == "1-0/m-1b"


def test_who_would_be_late_at_best_is_not_asked() -> None:
    """Slow experts that keep the limit in no case are not asked what they have left, where all others would be late."""
    slow = msgspec.structs.replace(speed(500.0, 100.0, slots=4), newcomer_s=0.0)
    quick = [expert(f"quick-{n}", latency=LAW, slots=4) for n in range(3)]
    many = [*quick, *(expert(f"slow-{n}", latency=slow, slots=4) for n in range(50))]
    decided, told = told_by({each.key: WorkLeft(2000.0, 50.0) for each in many}, *many)
    assert isinstance(decided, NoExpert)
    assert decided.code == ErrorCode.INFEASIBLE_NOW
    assert set(told) == {each.key for each in quick}
