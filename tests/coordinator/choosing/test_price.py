"""What a joule costs decides, among the experts that keep the limits, who answers."""

from __future__ import annotations

from itertools import chain, combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.coordinator.choosing.explain import decision_of
from moe2.coordinator.choosing.fine_level import SAME_SCORE, enough_per_j, price_of_thrift
from moe2.coordinator.choosing.panel_cost import coverage
from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.request import Demand, Mode, SelectionRequest, Wish
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.gate.checkpoint import load_checkpoint
from moe2.coordinator.gate.feedback import Tally
from tests.coordinator.experts import cost, expert, speed
from tests.fakes.gates import write_gate

TOKENS = 100
SURE = 10**9
"""So many users' scores that their mean is the model's score."""


def priced(number: int, joules: float | None, *, tokens_per_s: float = 50.0, **fields: Any) -> Expert:
    """An expert of model `m-NUMBER` whose answer takes so many joules, however busy it is; None is unmeasured."""
    energy = None if joules is None else cost(joules / TOKENS)
    settled = {"latency": speed(1e9, tokens_per_s), "energy": energy, **fields}
    return expert(f"agent-{number}", f"m-{number}", **settled)


def choose(
    experts: list[tuple[float, Expert]],
    *,
    price_per_j: float,
    in_flight: dict[str, int] | None = None,
    mode: Mode = Mode.ROUTE,
    **wish: Any,
) -> Selection | NoExpert:
    """The choice among experts that answer well with the given probabilities."""
    tallies = {found.model: Tally(score * SURE, SURE) for score, found in experts}
    chooser = Selector(Scorer(None, (), tallies), {}, clock=lambda: 0.0)
    asked = SelectionRequest(
        model="moe2",
        demand=Demand(prompt_tokens=1, max_tokens=TOKENS),
        wish=Wish(mode=mode, **wish),
        modes=frozenset(Mode),
        choice_tokens=1 if mode in (Mode.VOTE, Mode.AUTO) else None,
        price_per_j=price_per_j,
    )
    return chooser.select(asked, [found for _, found in experts], in_flight or {}, 0)


def chosen(*experts: tuple[float, Expert], **about: Any) -> str:
    """The model that answers alone."""
    decided = choose(list(experts), **about)
    assert isinstance(decided, Selection), decided
    return decided.first.expert.model


def members(*experts: tuple[float, Expert], **about: Any) -> set[str]:
    """The models of the panel that answers."""
    decided = choose(list(experts), **about)
    assert isinstance(decided, Selection), decided
    return {member.expert.model for member in decided.members}


# --- One expert -------------------------------------------------------------------------------------------------------

GOOD_AND_DEAR, PLAIN_AND_CHEAP = (0.8, priced(1, 500.0)), (0.6, priced(2, 100.0))


@pytest.mark.parametrize(("price_per_j", "model"), [(0.0, "m-1"), (0.0004, "m-1"), (0.0006, "m-2"), (1e6, "m-2")])
def test_a_score_has_to_be_worth_its_joules(price_per_j: float, model: str) -> None:
    """0.2 of score for 400 joules is worth it below a price of 0.0005 a joule, and not above."""
    assert chosen(GOOD_AND_DEAR, PLAIN_AND_CHEAP, price_per_j=price_per_j) == model


@given(
    facts=st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(1.0, 1e4)), min_size=1, max_size=8),
    price_per_j=st.floats(0.0, 0.1),
)
@settings(max_examples=60, deadline=None)
def test_nobody_is_worth_more_than_the_chosen_one(facts: list[tuple[float, float]], price_per_j: float) -> None:
    """The largest score less price times joules wins, but for differences that count as none."""
    experts = [(score, priced(n, joules)) for n, (score, joules) in enumerate(facts)]
    decided = choose(experts, price_per_j=price_per_j)
    assert isinstance(decided, Selection)
    worth = {f"m-{n}": score - price_per_j * joules for n, (score, joules) in enumerate(facts)}
    assert worth[decided.first.expert.model] >= max(worth.values()) - SAME_SCORE - 1e-6


def test_the_limits_come_first() -> None:
    """No price lets an expert win that breaks a hard limit, and with the cheap one out the dear one answers."""
    slow_and_cheap = (0.6, priced(2, 100.0, tokens_per_s=1.0))
    assert chosen(GOOD_AND_DEAR, slow_and_cheap, price_per_j=1.0, latency_budget_s=10.0) == "m-1"


def test_unknown_joules_count_as_the_most_that_are_known() -> None:
    """An expert that nobody has measured gains nothing from a price."""
    unmeasured = (0.6, priced(3, None))
    assert chosen(GOOD_AND_DEAR, unmeasured, price_per_j=1.0) == "m-1"
    assert chosen(GOOD_AND_DEAR, PLAIN_AND_CHEAP, unmeasured, price_per_j=1.0) == "m-2"


def test_a_price_without_any_measured_joules_changes_nothing() -> None:
    """Where no joules are known the best score answers."""
    assert chosen((0.8, priced(1, None)), (0.6, priced(2, None)), price_per_j=1.0) == "m-1"


def test_few_candidates_are_those_that_are_worth_their_joules() -> None:
    """With `max_experts` the price decides who is a candidate, too: one candidate is the cheap one."""
    about = {"max_experts": 1, "energy_budget_j": 1000.0}
    assert chosen(GOOD_AND_DEAR, PLAIN_AND_CHEAP, price_per_j=0.0, **about) == "m-1"
    assert chosen(GOOD_AND_DEAR, PLAIN_AND_CHEAP, price_per_j=0.01, **about) == "m-2"
    assert chosen(GOOD_AND_DEAR, PLAIN_AND_CHEAP, price_per_j=1e6, **about) == "m-2"


def test_the_decision_says_why_the_better_one_was_not_chosen() -> None:
    """An expert with a better score that costs too much is told apart from one that scores lower."""
    decided = choose([GOOD_AND_DEAR, PLAIN_AND_CHEAP, (0.4, priced(3, 50.0))], price_per_j=0.001)
    assert isinstance(decided, Selection)
    assert [row.reason for row in decision_of(decided).experts] == [
        "it keeps the budgets, but its score is not worth its joules at their present price",
        None,
        "it keeps the budgets, but scores lower",
    ]


# --- Ties -------------------------------------------------------------------------------------------------------------


def test_equal_scores_go_to_fewer_joules() -> None:
    """Of equally good experts the thrifty one answers, though another one is sooner."""
    fast, thrifty = (0.6, priced(1, 300.0, tokens_per_s=100.0)), (0.6, priced(2, 200.0, tokens_per_s=20.0))
    decided = choose([fast, thrifty], price_per_j=0.0)
    assert isinstance(decided, Selection)
    assert decided.first.expert.model == "m-2"
    assert decision_of(decided).experts[0].reason == "it keeps the budgets, but takes more joules"


def test_joules_that_hardly_differ_leave_it_to_the_sooner_end() -> None:
    """A difference that no prediction can tell does not cost anybody time."""
    assert chosen((0.6, priced(1, 203.0, tokens_per_s=100.0)), (0.6, priced(2, 200.0)), price_per_j=0.0) == "m-1"


def test_thrift_makes_nobody_queue() -> None:
    """A thrifty expert with a queue is passed over where an equally good one is sooner, and not where it is later."""
    thrifty = (0.6, priced(1, 200.0, slots=1))
    other, slow = (0.6, priced(2, 300.0, slots=1)), (0.6, priced(2, 300.0, slots=1, tokens_per_s=1.0))
    assert chosen(thrifty, other, price_per_j=0.0) == "m-1"
    assert chosen(thrifty, other, price_per_j=0.0, in_flight={"agent-1/m-1": 1}) == "m-2"
    assert chosen(thrifty, slow, price_per_j=0.0, in_flight={"agent-1/m-1": 1}) == "m-1"


def test_an_unmeasured_equal_is_still_tried() -> None:
    """Thrift does not keep an idle expert that nobody has measured from being measured."""
    unmeasured = (0.6, priced(1, None, latency=None))
    assert chosen((0.6, priced(2, 100.0)), unmeasured, price_per_j=0.0) == "m-1"
    assert chosen((0.6, priced(2, 100.0)), unmeasured, price_per_j=0.0, in_flight={"agent-1/m-1": 1}) == "m-2"


# --- Panels -----------------------------------------------------------------------------------------------------------


def test_a_member_has_to_be_worth_its_joules() -> None:
    """A vote has the members whose gain exceeds the price of their joules: all, two, one."""
    # To score choices takes one token, so that it costs a hundredth of an answer.
    three = (0.8, priced(1, 50_000.0)), (0.7, priced(2, 10_000.0)), (0.6, priced(3, 40_000.0))
    assert members(*three, price_per_j=0.0, mode=Mode.VOTE) == {"m-1", "m-2", "m-3"}
    assert members(*three, price_per_j=0.0003, mode=Mode.VOTE) == {"m-1", "m-2"}
    assert members(*three, price_per_j=0.001, mode=Mode.VOTE) == {"m-2"}
    assert members(*three, price_per_j=1e6, mode=Mode.VOTE) == {"m-2"}


@given(
    facts=st.lists(st.tuples(st.floats(0.05, 0.95), st.floats(1.0, 1e3)), min_size=1, max_size=5),
    price_per_j=st.floats(1e-5, 0.01),
    budget_j=st.floats(1.0, 3e3),
    most=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_no_panel_is_worth_more(
    facts: list[tuple[float, float]], price_per_j: float, budget_j: float, most: int
) -> None:
    """The members are those of the best panel that keeps the limits: its coverage less the price of all its joules."""
    experts = [(score, priced(n, TOKENS * joules)) for n, (score, joules) in enumerate(facts)]
    decided = choose(experts, price_per_j=price_per_j, mode=Mode.VOTE, energy_budget_j=budget_j, max_experts=most)
    if isinstance(decided, NoExpert):
        assert min(joules for _, joules in facts) > budget_j * (1 - 1e-9)
        return
    scores, joules = np.array([score for score, _ in facts]), np.array([joules for _, joules in facts])

    def worth(panel: tuple[int, ...]) -> float:
        return coverage(scores[list(panel)]) - price_per_j * float(joules[list(panel)].sum())

    panels = chain.from_iterable(combinations(range(len(facts)), size) for size in range(1, most + 1))
    best = max(worth(panel) for panel in panels if joules[list(panel)].sum() <= budget_j * (1 + 1e-9))
    places = tuple(int(member.expert.model[2:]) for member in decided.members)
    # A member with hardly any weight is left out of the best panel afterwards.
    assert len(places) < most or worth(places) >= best - 1e-6
    assert worth(places) <= best + 1e-6


def test_a_large_fleet_has_a_panel_that_no_exchange_makes_better() -> None:
    """Beyond what can be listed, no member more, fewer or in place of another one is worth more."""
    random = np.random.default_rng(3)
    scores, joules = random.uniform(0.5, 0.7, 30), random.uniform(10.0, 500.0, 30)
    experts = [
        (float(score), priced(n, TOKENS * float(joule)))
        for n, (score, joule) in enumerate(zip(scores, joules, strict=True))
    ]
    price_per_j = 5e-4
    panel = {int(model[2:]) for model in members(*experts, price_per_j=price_per_j, mode=Mode.VOTE)}

    def worth(places: set[int]) -> float:
        return coverage(scores[list(places)]) - price_per_j * float(joules[list(places)].sum())

    others = set(range(30)) - panel
    near = [panel | {joins} for joins in others if len(panel) < 3]
    near += [panel - {leaves} for leaves in panel if len(panel) > 1]
    near += [panel - {leaves} | {joins} for leaves in panel for joins in others]
    assert max(map(worth, near)) <= worth(panel) + 1e-9


@pytest.mark.parametrize(("price_per_j", "number"), [(0.0, 2), (0.001, 1)])
def test_auto_lets_several_vote_only_where_that_is_worth_the_joules(
    price_per_j: float, number: int, gate: Scorer
) -> None:
    """A gain of 0.15 is worth another expert at no price, and not where its joules cost more."""
    two = [priced(1, 10_000.0), priced(2, 10_000.0)]
    chooser = Selector(gate, {}, clock=lambda: 0.0)
    asked = SelectionRequest(
        model="moe2",
        demand=Demand(prompt_tokens=1, max_tokens=TOKENS),
        modes=frozenset(Mode),
        choice_tokens=1,
        price_per_j=price_per_j,
    )
    decided = chooser.select(asked, two, {}, 0)
    assert isinstance(decided, Selection)
    assert len(decided.members) == number


@pytest.fixture
def gate(tmp_path: Any) -> Scorer:
    """A gate that knows two models, good at 0.5 and 0.7 of all prompts."""
    made, manifest = load_checkpoint(write_gate(tmp_path / "gate", ["m-1", "m-2"], ["all"], [[0.5, 0.7]]))
    return Scorer(made, manifest.kinds)


def test_the_price_that_is_enough_is_the_one_at_which_the_cheapest_answers() -> None:
    """Just above it the cheapest expert is chosen, well below it another one, and a panel has none."""
    experts = [(0.5, priced(1, 10.0)), (0.7, priced(2, 30.0)), (0.8, priced(3, 60.0))]
    found = choose(experts, price_per_j=0.0)
    assert isinstance(found, Selection)
    enough = enough_per_j(found)
    assert enough == pytest.approx(0.01, rel=0.05)
    assert enough is not None
    for factor, name in ((1.1, "m-1"), (0.8, "m-2")):
        again = choose(experts, price_per_j=factor * enough)
        assert isinstance(again, Selection)
        assert [member.expert.model for member in again.members] == [name]
    panel = choose(experts, price_per_j=0.0, mode=Mode.VOTE)
    assert isinstance(panel, Selection)
    assert enough_per_j(panel) is None


def test_no_price_is_known_to_be_enough_where_all_cost_alike() -> None:
    """Nor where the joules of nobody are known; where the cheapest is the best, no price is needed."""
    scores = np.array([0.2, 0.9])
    assert price_of_thrift(scores, np.array([100.0, 102.0])) is None
    assert price_of_thrift(scores, np.array([np.inf, np.nan])) is None
    assert price_of_thrift(scores[::-1], np.array([100.0, 200.0])) == 0.0
