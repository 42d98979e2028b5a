"""Decisions on fleets of hundreds: the same as by definition, whatever is remembered or left out on the way."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import msgspec
import numpy as np
import pytest

from moe2.coordinator.choosing.case import stated_problem
from moe2.coordinator.choosing.explain import Decision, decision_of, refusal_of
from moe2.coordinator.choosing.fine_level import best_members, net_value
from moe2.coordinator.choosing.request import Demand, Mode, SelectionRequest, Wish
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.choosing.selector import MAX_PLANNED
from moe2.coordinator.fleet.table import Expert
from tests.coordinator.experts import cost, expert, selector, speed

MODELS = ("a-1B", "b-3B", "c-7B", "d-13B")


def one(random: np.random.Generator, number: int) -> Expert:
    """An expert on a host of its own, with a pace and joules of its own."""
    pace, joules = random.uniform(20.0, 90.0), random.uniform(0.1, 3.0)
    return expert(
        f"agent-{number:04d}", MODELS[number % 4], latency=speed(900.0, float(pace)), energy=cost(float(joules))
    )


def fleet(random: np.random.Generator, count: int) -> list[Expert]:
    return [one(random, number) for number in range(count)]


def asked(**wish: Any) -> SelectionRequest:
    return SelectionRequest("moe2", Demand(50, 40), text="Why is the sky blue?", wish=Wish.model_validate(wish))


def voted(price_per_j: float = 0.0, **wish: Any) -> SelectionRequest:
    """A request with a choice, for a panel that votes."""
    return SelectionRequest(
        "moe2",
        Demand(50, 40),
        text="x",
        wish=Wish.model_validate({"mode": Mode.VOTE, **wish}),
        choice_tokens=8,
        modes=frozenset({Mode.ROUTE, Mode.VOTE}),
        price_per_j=price_per_j,
    )


def seen(decided: Selection | NoExpert) -> Decision:
    """A decision as shown, but for the time that it took."""
    shown = decision_of(decided) if isinstance(decided, Selection) else refusal_of(decided)
    assert shown is not None
    return msgspec.structs.replace(shown, proof=msgspec.structs.replace(shown.proof, elapsed_s=None))


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"energy_budget_j": 30.0, "latency_budget_s": 2.0},
        {"energy_budget_j": 60.0, "max_experts": 3},
        {"energy_budget_j": 0.001},
    ],
)
def test_a_fleet_that_changes_in_places_is_chosen_from_like_a_new_one(wish: dict[str, object]) -> None:
    """After each change of some reports the decision is that of a coordinator that has just started."""
    random = np.random.default_rng(3)
    experts, old = fleet(random, 60), selector()
    for epoch in range(6):
        for number in random.choice(60, epoch, replace=False).tolist():
            experts[number] = one(random, number)
        if epoch == 5:
            del experts[7]
        now, in_flight = tuple(experts), {experts[3].key: 2}
        new = selector().select(asked(**wish), now, in_flight, epoch)
        assert seen(old.select(asked(**wish), now, in_flight, epoch)) == seen(new)


def test_an_earlier_decision_keeps_what_it_has_seen() -> None:
    """What a decision rests on does not change when its experts report anew."""
    random = np.random.default_rng(4)
    chooser = selector()
    first = chooser.select(asked(), tuple(fleet(random, 40)), {}, 0)
    before = seen(first)
    chooser.select(asked(), tuple(fleet(random, 40)), {}, 1)
    assert seen(first) == before


@pytest.mark.parametrize("price_per_j", [0.0002, 0.001, 0.01])
def test_a_priced_panel_of_many_is_the_best_of_all_pairs(price_per_j: float) -> None:
    """Of 60 experts no pair that keeps the energy budget is worth more, less the price of its joules."""
    random = np.random.default_rng(5)
    decided = selector().select(voted(price_per_j, max_experts=2, energy_budget_j=4.0), tuple(fleet(random, 60)), {}, 0)
    assert isinstance(decided, Selection)
    outlook, problem = decided.outlook, stated_problem(decided.outlook)
    panels = [list(panel) for size in (1, 2) for panel in combinations(range(60), size)]
    feasible = [panel for panel in panels if problem.is_feasible(panel)]
    assert 0 < len(feasible) < len(panels)
    best = max(net_value(outlook, panel) for panel in feasible)
    assert net_value(outlook, list(decided.places)) == pytest.approx(best, abs=1e-9)


def test_members_of_a_large_panel_join_by_score_as_they_fit() -> None:
    """The prompt's own panel is the first by score, then each next one that keeps the limits beside those before."""
    random = np.random.default_rng(6)
    decided = selector().select(voted(max_experts=4, energy_budget_j=6.0), tuple(fleet(random, 50)), {}, 0)
    assert isinstance(decided, Selection)
    outlook, plan, problem = decided.outlook, decided.plan, stated_problem(decided.outlook)
    scores, joules, seconds = outlook.prompt_scores.scores, outlook.forecast.energy_j.p50, outlook.forecast.total_s.p50
    own: list[int] = []
    for place in sorted(range(50), key=lambda n: (-scores[n], joules[n], seconds[n], problem.names[n])):
        if problem.is_feasible([*own, place]):
            own.append(place)
    assert len(own) > 1
    assert best_members(problem, plan, outlook) in (own, list(plan.members))


def test_plans_of_a_large_fleet_are_remembered_within_bounds() -> None:
    """Plans hold what they were made from, so that of a fleet of hundreds only some are kept."""
    chooser = selector()
    experts = tuple(fleet(np.random.default_rng(7), 500))
    for tokens in range(1, 130):
        request = SelectionRequest("moe2", Demand(50, tokens), text="x", wish=Wish(energy_budget_j=100.0))
        chooser.select(request, experts, {}, 0)
    assert 1 < len(chooser._memo) <= MAX_PLANNED // 500 + 1
