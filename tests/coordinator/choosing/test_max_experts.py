"""A limit on the number of candidates, where one expert answers: they are chosen for the prompt, not on average."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.error_codes import ErrorCode
from moe2.coordinator.choosing.explain import decision_of
from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.request import Demand, SelectionRequest, Wish
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.gate.checkpoint import load_checkpoint
from tests.coordinator.experts import cost, expert, speed
from tests.fakes.gates import write_gate

MODELS = ("poet", "clerk", "sage")
KINDS = ("poems", "sums")
PROFILE = ((0.5, 0.3, 0.8), (0.5, 0.9, 0.1))
"""The poet is never the best, the sage and the clerk each are on one kind."""
FAST, SLOW = speed(1000.0, 100.0), speed(1000.0, 10.0)


@pytest.fixture(scope="module")
def selector(tmp_path_factory: pytest.TempPathFactory) -> Selector:
    path = write_gate(tmp_path_factory.mktemp("gate") / "gate.safetensors", MODELS, KINDS, PROFILE)
    gate, manifest = load_checkpoint(Path(path))
    return Selector(Scorer(gate, manifest.kinds), {}, clock=lambda: 0.0)


def fleet(*joules_per_token: float) -> tuple[Expert, ...]:
    each = zip(MODELS, joules_per_token or (1.0, 1.0, 1.0), strict=True)
    return tuple(expert(f"agent-{model}", model, latency=FAST, energy=cost(joules)) for model, joules in each)


def asked(**wish: object) -> SelectionRequest:
    return SelectionRequest(model="moe2", demand=Demand(10, 10), text="x", wish=Wish.model_validate(wish))


def models(decided: Selection | NoExpert) -> tuple[str, list[str]]:
    """The model that answers, and those of all candidates."""
    assert isinstance(decided, Selection)
    return decided.first.expert.model, sorted(key.partition("/")[2] for key in decided.candidates)


def test_the_only_candidate_is_the_best_for_this_prompt(selector: Selector) -> None:
    """With `max_experts` 1 each kind of prompt gets the expert that is best at it."""
    assert models(selector.select(asked(category="poems", max_experts=1), fleet(), {}, 0)) == ("sage", ["sage"])
    assert models(selector.select(asked(category="sums", max_experts=1), fleet(), {}, 0)) == ("clerk", ["clerk"])


def test_the_next_candidate_is_the_next_best_for_this_prompt(selector: Selector) -> None:
    """The second candidate stands by for the first, so it is the second best for the prompt."""
    decided = selector.select(asked(category="sums", max_experts=2), fleet(), {}, 0)
    assert models(decided) == ("clerk", ["clerk", "poet"])


def test_an_expensive_best_expert_is_taken_and_the_others_left(selector: Selector) -> None:
    """Where the best expert uses up the energy budget, nobody stands by for it."""
    decided = selector.select(asked(category="sums", max_experts=2, energy_budget_j=10.5), fleet(1, 1, 1), {}, 0)
    assert models(decided) == ("clerk", ["clerk"])


def test_a_candidate_that_does_not_fit_beside_the_best_is_passed_over(selector: Selector) -> None:
    """The second best costs too much beside the best, the third does not."""
    decided = selector.select(asked(category="sums", max_experts=2, energy_budget_j=15.0), fleet(1.0, 1.0, 0.4), {}, 0)
    assert models(decided) == ("clerk", ["clerk", "sage"])


def test_who_is_left_out_is_told_why(selector: Selector) -> None:
    """Experts outside the limited set are outside for want of room, not because the planner ran out of time."""
    decided = selector.select(asked(category="sums", max_experts=1), fleet(), {}, 0)
    assert isinstance(decided, Selection)
    shown = decision_of(decided)
    reasons = {row.model: row.reason for row in shown.experts}
    assert "panel of 2 experts exceeds 1 experts" in (reasons["poet"] or "")
    assert (shown.proof.method, shown.proof.status, shown.proof.gap) == ("best_first", "optimal", 0.0)


def test_nobody_fits(selector: Selector) -> None:
    """A budget that no expert keeps is refused as without `max_experts`."""
    refused = selector.select(asked(max_experts=2, energy_budget_j=0.5), fleet(), {}, 0)
    assert isinstance(refused, NoExpert)
    assert refused.code is ErrorCode.INFEASIBLE


@given(
    joules=st.lists(st.floats(0.1, 5.0), min_size=3, max_size=3),
    budget_j=st.floats(0.5, 200.0),
    most=st.integers(1, 4),
    kind=st.sampled_from(KINDS),
)
def test_no_feasible_set_has_a_better_first_or_next_expert(
    selector: Selector, joules: list[float], budget_j: float, most: int, kind: str
) -> None:
    """The scores of the candidates, the best first, are the largest in dictionary order among all feasible sets."""
    wish = {"category": kind, "max_experts": most, "energy_budget_j": budget_j}
    decided = selector.select(asked(**wish), fleet(*joules), {}, 0)
    scores, spent = dict(zip(MODELS, PROFILE[KINDS.index(kind)], strict=True)), dict(zip(MODELS, joules, strict=True))
    sets = [
        sorted((scores[model] for model in chosen), reverse=True)
        for size in range(1, most + 1)
        for chosen in itertools.combinations(MODELS, size)
        if sum(10 * spent[model] for model in chosen) <= budget_j * (1 + 1e-9)
    ]
    if isinstance(decided, NoExpert):
        assert not sets
    else:
        _, chosen = models(decided)
        assert sorted((scores[model] for model in chosen), reverse=True) == max(sets)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12), st.integers(1, 4))
def test_a_limited_set_answers_as_an_unlimited_one(sizes: list[float], most: int) -> None:
    """Where budgets hold for each expert alone, `max_experts` changes who stands by, never who answers."""
    experts = tuple(
        expert(f"agent-{n}", f"m-{size * 70 + 0.1:.1f}b", latency=SLOW if n % 2 else FAST)
        for n, size in enumerate(sizes)
    )
    chooser = Selector(Scorer(None), {}, clock=lambda: 0.0)
    free, limited = (chooser.select(asked(max_experts=limit), experts, {}, 0) for limit in (None, most))
    assert models(free)[0] == models(limited)[0]
    assert len(models(limited)[1]) == min(most, len({one.key for one in experts}))


def test_a_thousand_experts_take_one_step_for_each_candidate() -> None:
    """A limited set out of 1,000 experts is found without a search, and proven the best."""
    random = np.random.default_rng(1)
    experts = tuple(
        expert(f"agent-{n}", f"m{n}-{random.uniform(1, 70):.2f}b", latency=FAST, energy=cost(random.uniform(0.1, 5)))
        for n in range(1000)
    )
    chooser = Selector(Scorer(None), {}, clock=lambda: 0.0)
    decided = chooser.select(asked(max_experts=4, energy_budget_j=60.0), experts, {}, 0)
    assert isinstance(decided, Selection)
    assert (decided.plan.proof.nodes, decided.plan.proof.status) == (len(decided.candidates), "optimal")
