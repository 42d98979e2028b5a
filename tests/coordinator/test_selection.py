"""Which expert answers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.messages import Performance
from moe2.coordinator.predict import ASSUMED_ANSWER_TOKENS, Demand, Prediction, estimate_prompt_tokens, predict
from moe2.coordinator.selection import NoExpert, Selection, SelectionRequest, select
from moe2.coordinator.table import Expert
from tests.coordinator.experts import expert

FAST = Performance(prefill_tokens_per_s=1000.0, decode_tokens_per_s=100.0)
SLOW = Performance(prefill_tokens_per_s=1000.0, decode_tokens_per_s=10.0)
UNMEASURED = Performance()


def asked(model: str = "moe2", **fields: Any) -> SelectionRequest:
    return SelectionRequest(**{"model": model, "demand": Demand(prompt_tokens=10, max_tokens=20), **fields})


def chosen(request: SelectionRequest, *experts: Expert, **in_flight: int) -> str:
    """The key of the choice, or the code of the reason why there is none."""
    selection = select(request, experts, {key.replace("_", "-") + "/m": number for key, number in in_flight.items()})
    return selection.expert.key if isinstance(selection, Selection) else selection.code


# --- Prediction -------------------------------------------------------------------------------------------------------


def test_a_prediction_is_prefill_plus_decode() -> None:
    """From the expert's measured rates."""
    assert predict(expert(performance=FAST), Demand(500, 50), 0) == Prediction(ttft_s=0.5, total_s=1.0)


def test_a_request_without_a_slot_waits_for_those_before_it() -> None:
    """Each full round of slots takes as long as this request would."""
    slow = expert(performance=FAST, slots=2)
    assert [predict(slow, Demand(500, 50), n).total_s for n in range(5)] == [1.0, 1.0, 2.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "performance", [UNMEASURED, Performance(prefill_tokens_per_s=1.0), Performance(decode_tokens_per_s=1.0)]
)
def test_nothing_is_predicted_without_both_rates(performance: Performance) -> None:
    """Unknown is unknown."""
    assert predict(expert(performance=performance), Demand(1, 1), 0) == Prediction(None, None)


@pytest.mark.parametrize(
    ("max_tokens", "expected"), [(None, ASSUMED_ANSWER_TOKENS), (5, 5), (10**6, ASSUMED_ANSWER_TOKENS)]
)
def test_an_answer_is_expected_to_end_by_itself(max_tokens: int | None, expected: int) -> None:
    """A limit shortens it and does not lengthen it."""
    assert Demand(1, max_tokens).expected_answer_tokens == expected


def test_prompts_are_estimated_by_their_bytes() -> None:
    """Four bytes a token and a template's overhead for each message."""
    assert estimate_prompt_tokens(["x" * 40, "é" * 20]) == 20 + 16


# --- Choice -----------------------------------------------------------------------------------------------------------


def test_the_least_predicted_completion_wins() -> None:
    """And the selection says what it rests on."""
    slow, fast = expert("agent-1", performance=SLOW), expert("agent-2", performance=FAST)
    selection = select(asked(), (slow, fast), {})
    assert isinstance(selection, Selection)
    assert (selection.expert, selection.considered) == (fast, 2)
    assert selection.prediction == predict(fast, asked().demand, 0)


def test_a_busy_fast_expert_loses_to_an_idle_slow_one() -> None:
    """Waiting counts."""
    slow, fast = (
        expert("agent-1", performance=SLOW, slots=1),
        expert("agent-2", performance=FAST, slots=1, max_queue=99),
    )
    assert chosen(asked(), slow, fast, agent_2=1) == "agent-2/m"
    assert chosen(asked(), slow, fast, agent_2=30) == "agent-1/m"


def test_equals_share_the_load() -> None:
    """Fewer requests in flight, then the smaller key."""
    one, two = expert("agent-1"), expert("agent-2")
    assert chosen(asked(), two, one) == "agent-1/m"
    assert chosen(asked(), one, two, agent_1=1) == "agent-2/m"


def test_an_idle_unmeasured_expert_is_tried_first_and_a_busy_one_last() -> None:
    """So that it gets measured, but not flooded."""
    known, unknown = expert("agent-1", performance=FAST), expert("agent-2", performance=UNMEASURED)
    assert chosen(asked(), known, unknown) == "agent-2/m"
    assert chosen(asked(), known, unknown, agent_2=1) == "agent-1/m"


@pytest.mark.parametrize("name", ["moe2", "auto"])
def test_the_coordinator_chooses_among_all_models(name: str) -> None:
    """Two names leave it the choice."""
    assert chosen(asked(name), expert(model="a", performance=SLOW), expert(model="b", performance=FAST)) == "agent-1/b"


def test_a_named_model_is_that_model() -> None:
    """However fast another one may be."""
    assert chosen(asked("a"), expert(model="a", performance=SLOW), expert(model="b", performance=FAST)) == "agent-1/a"


def test_a_key_names_one_expert() -> None:
    """For those who want this host and no other."""
    assert chosen(asked("agent-2/m"), expert("agent-1"), expert("agent-2")) == "agent-2/m"


# --- What rules experts out -------------------------------------------------------------------------------------------


def test_experts_that_failed_this_request_are_not_asked_again() -> None:
    """Until nobody is left."""
    experts = expert("agent-1"), expert("agent-2")
    assert chosen(asked(excluded=frozenset({"agent-1/m"})), *experts) == "agent-2/m"
    assert chosen(asked(excluded=frozenset({"agent-1/m", "agent-2/m"})), *experts) == "exhausted"


def test_no_live_expert_is_told() -> None:
    """For a model that is known but nowhere ready, too."""
    assert chosen(asked()) == "no_live_expert"
    assert chosen(asked("other"), expert()) == "no_live_expert"


def test_a_chat_needs_a_template() -> None:
    """Unknown passes: only the expert knows."""
    without, unknown = expert("agent-1", has_chat_template=False), expert("agent-2", has_chat_template=None)
    assert chosen(asked("m", needs_chat_template=True), without) == "no_chat_template"
    assert chosen(asked("m", needs_chat_template=True), without, unknown) == "agent-2/m"
    assert chosen(asked("m"), without) == "agent-1/m"


def test_a_prompt_goes_where_it_fits() -> None:
    """By its estimated length."""
    small = expert("agent-1", performance=FAST, context_tokens=100)
    large = expert("agent-2", performance=SLOW, context_tokens=1000)
    assert chosen(asked(demand=Demand(99, 1)), small, large) == "agent-1/m"
    assert chosen(asked(demand=Demand(100, 1)), small, large) == "agent-2/m"


def test_an_estimate_alone_rules_nobody_out() -> None:
    """The largest context gets a try: its own tokenizer has the last word."""
    small, large = expert("agent-1", context_tokens=100), expert("agent-2", context_tokens=1000)
    assert chosen(asked(demand=Demand(5000, 1)), small, large) == "agent-2/m"


def test_a_context_found_too_small_is_not_tried_again() -> None:
    """Nor another of that size; and the answer names the largest there is."""
    small, large = expert("agent-1", context_tokens=100), expert("agent-2", context_tokens=1000)
    assert chosen(asked(least_context_tokens=100), small, large) == "agent-2/m"
    refused = select(asked(least_context_tokens=1000), (small, large), {})
    assert refused == NoExpert("context_exceeded", "The largest context among the experts is 1000 tokens.")


def test_a_full_expert_is_passed_over() -> None:
    """Slots plus queue is all that it takes."""
    one, two = expert("agent-1", performance=FAST, slots=2, max_queue=1), expert("agent-2", performance=SLOW)
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
        performance=st.sampled_from([FAST, SLOW, UNMEASURED]),
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
    """Whatever the fleet looks like."""
    selection = select(request, tuple(experts), in_flight)
    shuffled = experts[:]
    random.shuffle(shuffled)
    assert select(request, tuple(shuffled), in_flight) == selection
    if isinstance(selection, Selection):
        found = selection.expert
        assert found in experts
        assert found.key not in request.excluded
        assert request.model in ("moe2", found.model, found.key)
        assert in_flight.get(found.key, 0) < found.report.slots + found.report.max_queue
        assert not (request.needs_chat_template and found.report.has_chat_template is False)
    else:
        assert selection.message
