"""Tests of budgets that only the present load breaks, and of waiting for less load."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.choosing.explain import offers_of, refusal_of
from moe2.coordinator.choosing.request import Budgets, Demand, Mode, SelectionRequest, Wish
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.fleet.table import Expert
from tests.coordinator.experts import cost, expert, selector, speed

ALL_MODES = frozenset(mode for mode in Mode if mode is not Mode.AUTO)
FAST, SLOW = speed(1000.0, 100.0, slots=1), speed(1000.0, 10.0, slots=1)


def one(n: int, latency: Any = FAST, **fields: Any) -> Expert:
    """One expert, on which 10 + 20 tokens take 0.2 s if FAST and 1.91 s if SLOW; a slot falls free every second."""
    own = {"slots": 1, "max_queue": 4, "latency": latency, "energy": cost(0.1), "vocabulary_sha256": "v", **fields}
    return expert(f"agent-{n}", **own)


def asked(wish: Wish, **fields: Any) -> SelectionRequest:
    demand = Demand(prompt_tokens=10, max_tokens=20)
    return SelectionRequest(**{"model": "moe2", "demand": demand, "wish": wish, "modes": ALL_MODES, **fields})


def decide(
    request: SelectionRequest, *experts: Expert, busy: tuple[int, ...] = (), **categories: Budgets
) -> Selection | NoExpert:
    there = {found.key: number for found, number in zip(experts, busy, strict=False)}
    return selector(**categories).select(request, experts, there, 0)


def refused(request: SelectionRequest, *experts: Expert, busy: tuple[int, ...] = ()) -> NoExpert:
    decided = decide(request, *experts, busy=busy)
    assert isinstance(decided, NoExpert)
    return decided


def test_a_queue_that_is_too_long_is_load() -> None:
    """A request of 2.2 s behind two others and 0.2 s alone can wait for 0.8 s, and a slot is free in 2 s."""
    found = refused(asked(Wish(latency_budget_s=1.0)), one(1), busy=(2,))
    assert found.code == ErrorCode.INFEASIBLE_NOW
    assert found.waits_s == pytest.approx(0.8, abs=1e-6)
    assert found.frees_in_s == pytest.approx(2.0)
    assert "load is the cause" in found.message
    assert isinstance(decide(asked(Wish(latency_budget_s=1.0)), one(1)), Selection)


def test_the_explanation_and_the_offers_stay() -> None:
    """A refusal because of load still shows the offers and what each would take under this load."""
    found = refused(asked(Wish(latency_budget_s=1.0)), one(1), busy=(2,))
    offers = offers_of(found)
    assert offers is not None
    assert offers["fastest"]["needs"]["delay_s"] == pytest.approx(2.2)
    assert "fastest offer is agent-1/m" in found.message
    assert refusal_of(found) is not None


def test_what_no_state_of_the_fleet_could_keep_is_the_requests_own() -> None:
    """Budgets that even an idle fleet would break are refused as the request's own, not as load."""
    for wish in (Wish(energy_budget_j=1.0, latency_budget_s=9.0), Wish(latency_budget_s=0.1)):
        for busy in (0, 2, 4):
            found = refused(asked(wish), one(1), busy=(busy,))
            assert (found.code, found.waits_s) == (ErrorCode.INFEASIBLE, None)


def test_a_full_expert_that_would_do_is_load() -> None:
    """A full expert that would keep the budgets makes load the cause, though a slower one has room."""
    found = refused(asked(Wish(latency_budget_s=1.0)), one(1), one(2, SLOW), busy=(5, 0))
    assert found.code == ErrorCode.INFEASIBLE_NOW
    assert "agent-1/m would keep them with less load" in found.message
    assert refused(asked(Wish(latency_budget_s=1.0)), one(1), busy=(5,)).code == ErrorCode.OVERLOADED


def test_an_expert_that_keeps_failing_may_come_back() -> None:
    """An expert behind a breaker may be waited for, one that failed this very request may not."""
    barred = {"agent-1/m": "it has kept failing"}
    found = refused(asked(Wish(latency_budget_s=1.0), barred=barred), one(1), one(2, SLOW))
    assert found.code == ErrorCode.INFEASIBLE_NOW
    assert "agent-1/m would keep them, but it has kept failing" in found.message
    excluded = frozenset({"agent-1/m"})
    assert (
        refused(asked(Wish(latency_budget_s=1.0), excluded=excluded), one(1), one(2, SLOW)).code == ErrorCode.INFEASIBLE
    )


def test_a_pace_that_company_spoils_can_be_waited_for_without_end() -> None:
    """A budget per token does not shrink meanwhile, so that the request can wait without end."""
    crowded = structs.replace(FAST, decode=(0.01, 0.01, 0.0), slots=2)
    found = refused(asked(Wish(tpot_budget_s=0.015)), one(1, crowded, slots=2), busy=(1,))
    assert (found.code, found.waits_s) == (ErrorCode.INFEASIBLE_NOW, math.inf)


def test_joules_that_only_company_makes_few_enough_are_load_too() -> None:
    """A request that costs 2 J alone and 1 J in a batch can wait for company that is not a queue."""
    shared = structs.replace(cost(0.0), coefficients=(0.0, 0.0, 0.1, 0.0))
    both = structs.replace(FAST, slots=2)
    request = asked(Wish(energy_budget_j=1.5, latency_budget_s=0.5))
    found = refused(request, one(1, both, energy=shared, slots=2), busy=(4,))
    assert found.code == ErrorCode.INFEASIBLE_NOW
    assert isinstance(decide(request, one(1, both, energy=shared, slots=2), busy=(1,)), Selection)
    alone = refused(asked(Wish(energy_budget_j=1.5)), one(1, both, energy=shared, slots=2))
    assert alone.code == ErrorCode.INFEASIBLE, "nobody waits for company"
    nothing = asked(Wish(energy_budget_j=0.5, latency_budget_s=0.5))
    assert refused(nothing, one(1, both, energy=shared, slots=2), busy=(4,)).code == ErrorCode.INFEASIBLE


def test_who_has_waited_in_vain_has_not_asked_for_too_much() -> None:
    """A request whose wait used up its budget is refused because of load, not because of its budget."""
    found = refused(asked(Wish(latency_budget_s=1.0), elapsed_s=0.85), one(1), busy=(2,))
    assert (found.code, found.waits_s) == (ErrorCode.INFEASIBLE_NOW, 0.0)
    assert "when the request came" in found.message
    assert refused(asked(Wish(latency_budget_s=0.1), elapsed_s=0.05), one(1), busy=(2,)).code == ErrorCode.INFEASIBLE


def test_a_category_s_budgets_shrink_like_the_requests_own() -> None:
    """Default budgets of a category, which the choice finds, shrink while the request waits."""
    tight = Budgets(ttft_budget_s=0.5)
    found = decide(asked(Wish()), one(1), busy=(2,), default=tight)
    assert isinstance(found, NoExpert)
    assert found.code == ErrorCode.INFEASIBLE_NOW
    assert found.waits_s == pytest.approx(0.49)


MODES = st.sampled_from([Mode.ROUTE, Mode.VOTE, Mode.RANK, Mode.MIX, Mode.AUTO])
SECONDS = st.floats(0.05, 8.0)
SPEEDS = st.tuples(st.floats(100.0, 2000.0), st.floats(5.0, 200.0), st.integers(0, 5))
"""Tokens per second of the prompt and the answer, and who is there already."""


@given(
    mode=MODES,
    speeds=st.lists(SPEEDS, min_size=1, max_size=4),
    latency_s=SECONDS,
    ttft_s=SECONDS | st.none(),
    energy_j=st.floats(0.5, 20.0) | st.none(),
    elapsed_s=st.just(0.0) | st.floats(0.0, 2.0),
    max_experts=st.integers(1, 3) | st.none(),
)
def test_load_is_the_cause_exactly_where_an_idle_fleet_would_do(
    mode: Mode,
    speeds: list[tuple[float, float, int]],
    latency_s: float,
    ttft_s: float | None,
    energy_j: float | None,
    elapsed_s: float,
    max_experts: int | None,
) -> None:
    """Load is named as the cause, in every mode, exactly while an idle fleet would keep the budgets that are left."""
    experts = [one(n, speed(prefill, decode, slots=1)) for n, (prefill, decode, _) in enumerate(speeds)]
    wish = Wish(
        mode=mode, latency_budget_s=latency_s, ttft_budget_s=ttft_s, energy_budget_j=energy_j, max_experts=max_experts
    )
    request = asked(wish, elapsed_s=elapsed_s, choice_tokens=2)
    found = decide(request, *experts, busy=tuple(busy for _, _, busy in speeds))
    if isinstance(found, Selection) or found.code == ErrorCode.OVERLOADED:
        return
    at_once = structs.replace(request, elapsed_s=0.0)
    assert (found.code == ErrorCode.INFEASIBLE_NOW) == isinstance(decide(at_once, *experts), Selection)
    if found.code == ErrorCode.INFEASIBLE_NOW:
        assert found.waits_s is not None
        late = structs.replace(request, elapsed_s=elapsed_s + found.waits_s * (1 + 1e-6) + 1e-6)
        assert not isinstance(decide(late, *experts), Selection)
        if found.waits_s > 0:
            in_time = structs.replace(request, elapsed_s=elapsed_s + found.waits_s * 0.999)
            assert isinstance(decide(in_time, *experts), Selection)
