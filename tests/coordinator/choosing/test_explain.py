"""Which experts a decision shows: of a small fleet all, of a large one those that matter."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.coordinator.choosing.explain import (
    MAX_WHOLE_FLEET,
    NEAREST_CANDIDATES,
    NEAREST_OTHERS,
    Counts,
    Decision,
    decision_of,
    offers_of,
    refusal_of,
)
from moe2.coordinator.choosing.request import Demand, Explain, SelectionRequest, Wish
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.fleet.table import Expert
from tests.coordinator.experts import cost, expert, selector

LARGE = 40
TEN_TOKENS = Demand(10, 10)


def fleet(n: int) -> tuple[Expert, ...]:
    """Experts of one model of which each takes a tenth of a joule a token more than the one before."""
    return tuple(expert(f"a{place:03d}", "m", energy=cost(0.1 * (place + 1))) for place in range(n))


def decided(n: int, **wish: object) -> Selection | NoExpert:
    request = SelectionRequest("moe2", TEN_TOKENS, text="x", wish=Wish.model_validate(wish))
    return selector().select(request, fleet(n), {}, 0)


def shown(n: int, explain: Explain = Explain.NEAREST, **wish: object) -> Decision:
    selection = decided(n, **wish)
    assert isinstance(selection, Selection)
    return decision_of(selection, explain)


def counted(decision: Decision) -> Counts:
    assert decision.counts is not None
    return decision.counts


def test_a_small_fleet_is_shown_whole() -> None:
    """Of as many experts as fit a table none is left out."""
    assert len(shown(MAX_WHOLE_FLEET).experts) == MAX_WHOLE_FLEET


def test_of_a_large_fleet_the_chosen_and_the_nearest_are_shown() -> None:
    """The chosen expert is there with the thriftiest other candidates and the thriftiest of those out of budget."""
    decision = shown(LARGE, energy_budget_j=10.5)
    assert [row.agent for row in decision.experts if row.chosen] == ["name of a000"]
    assert [row.expert for row in decision.experts if row.candidate][1:] == ["a001/m", "a002/m", "a003/m", "a004/m"]
    assert [row.expert for row in decision.experts if not row.candidate] == ["a010/m", "a011/m", "a012/m"]


def test_what_is_not_shown_is_counted() -> None:
    """The counts are of the whole fleet."""
    n_shown = 1 + NEAREST_CANDIDATES + NEAREST_OTHERS
    assert counted(shown(LARGE, energy_budget_j=10.5)) == Counts(
        experts=LARGE, candidates=10, ruled_out=0, shown=n_shown
    )


def test_whoever_is_shown_has_the_reason_that_the_whole_table_gives() -> None:
    """A row of the short table is the row of the whole one."""
    whole = {row.expert: row for row in shown(LARGE, Explain.ALL, energy_budget_j=10.5).experts}
    assert len(whole) == LARGE
    assert all(whole[row.expert] == row for row in shown(LARGE, energy_budget_j=10.5).experts)


def test_a_refusal_shows_the_nearest_and_counts_the_rest() -> None:
    """Where the budgets rule everybody out, three experts stand for the fleet."""
    refused = decided(LARGE, energy_budget_j=0.5)
    assert isinstance(refused, NoExpert)
    decision = refusal_of(refused, Explain.NEAREST)
    assert decision is not None
    assert [row.expert for row in decision.experts] == ["a000/m", "a001/m", "a002/m"]
    assert counted(decision) == Counts(experts=LARGE, candidates=0, ruled_out=0, shown=3)


def test_offers_tell_how_their_joules_were_measured() -> None:
    """The quality of an offer's joules is that of its own expert."""
    refused = decided(LARGE, energy_budget_j=0.5)
    assert isinstance(refused, NoExpert)
    offers = offers_of(refused)
    assert offers is not None
    assert (offers["cheapest"]["expert"], offers["cheapest"]["energy_quality"]) == ("a000/m", "measured_counter")


@pytest.mark.parametrize("n", [MAX_WHOLE_FLEET + 1, 1000])
def test_a_decision_does_not_grow_with_the_fleet(n: int) -> None:
    """The JSON of a decision among a thousand experts is as long as that of one among nine, but for its figures."""
    assert len(msgspec.json.encode(shown(n))) < 5000


@given(joules=st.lists(st.sampled_from([None, 0.1, 0.2, 5.0]), min_size=1, max_size=30), budget_j=st.floats(0.5, 100))
def test_the_chosen_are_always_shown(joules: list[float | None], budget_j: float) -> None:
    """Whatever ties and unknown joules there are, the chosen expert is shown once, and never more than there are."""
    experts = tuple(
        expert(f"a{place:02d}", "m", energy=None if one is None else cost(one)) for place, one in enumerate(joules)
    )
    request = SelectionRequest("moe2", TEN_TOKENS, text="x", wish=Wish(energy_budget_j=budget_j))
    selection = selector().select(request, experts, {}, 0)
    if isinstance(selection, NoExpert):
        return
    decision = decision_of(selection, Explain.NEAREST)
    keys = [row.expert for row in decision.experts]
    assert [row.expert for row in decision.experts if row.chosen] == [selection.first.expert.key]
    assert sorted(set(keys)) == keys
    assert len(keys) == counted(decision).shown <= len(experts)
