"""Tests of who is asked for a final answer: order, size, budgets and price, and when `auto` takes a consensus."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.coordinator.choosing.consensus import SAME_VALUE, best_plan
from moe2.coordinator.choosing.quality import Scorer
from moe2.coordinator.choosing.request import Demand, Mode, SelectionRequest, Wish
from moe2.coordinator.choosing.result import NoExpert, Selection
from moe2.coordinator.choosing.selector import Selector
from moe2.coordinator.fleet.table import Expert
from moe2.coordinator.gate.checkpoint import load_checkpoint, save_checkpoint
from moe2.coordinator.gate.votes import VoteRecord, VoteReplay
from moe2.coordinator.training.votes import fitted_weights
from tests.coordinator.experts import cost, expert
from tests.fakes.gates import write_gate

SMALL = (0.62, 0.6, 0.58)
TOKENS = 100


def served(model: str, j_per_token: float, agent: str | None = None) -> Expert:
    """An expert with known joules."""
    return expert(agent or f"agent-{model}", model, energy=cost(j_per_token))


FLEET = (served("one", 3.0), served("two", 1.0), served("three", 2.0))


def gated(tmp_path: Path, *scores: float, rows: int = 600, tokens: tuple[float, ...] | None = None) -> Selector:
    """A gate that knows models one, two, … and the votes of their independent answers. tokens: lengths of these."""
    random = np.random.default_rng(5)
    wrong = random.integers(1, len(scores) + 1, (rows, len(scores)))
    codes = np.where(random.random((rows, len(scores))) < np.array(scores), 0, wrong).astype(np.int16)
    return recorded(tmp_path, codes, scores, tokens)


def recorded(
    tmp_path: Path,
    codes: npt.NDArray[np.int16],
    scores: tuple[float, ...] | None = None,
    tokens: tuple[float, ...] | None = None,
) -> Selector:
    """A gate that knows models one, two, … by what they answered. scores: of each; None for those of the answers."""
    rows, count = codes.shape
    names = ["one", "two", "three", "large"][:count]
    scores = tuple((codes == 0).mean(axis=0).tolist()) if scores is None else scores
    log_odds = np.tile(np.log(np.array(scores) / (1 - np.array(scores))), (rows, 1))
    base, slope, other = fitted_weights(codes, log_odds)
    path = write_gate(tmp_path / "gate.safetensors", names, ["all"], [list(scores)])
    gate, manifest = load_checkpoint(path)
    votes = VoteRecord(base=base, slope=slope, other=other, codes=codes, kinds=np.zeros(rows, dtype=np.int16))
    lengths = None if tokens is None else np.array([tokens])
    save_checkpoint(path, gate.parameters, manifest, votes, answer_tokens=lengths)
    gate, manifest = load_checkpoint(path)
    return Selector(Scorer(gate, manifest.kinds), {}, clock=lambda: 0.0)


def choose(
    chooser: Selector, *experts: Expert, price_per_j: float = 0.0, final: bool = True, **wish: Any
) -> Selection | NoExpert:
    """The choice for a question."""
    asked = SelectionRequest(
        model="moe2",
        demand=Demand(prompt_tokens=1, max_tokens=TOKENS),
        wish=Wish(**{"mode": Mode.CONSENSUS, **wish}),
        modes=frozenset({Mode.ROUTE, Mode.RANK, Mode.CONSENSUS}),
        price_per_j=price_per_j,
        asks_final_answer=lambda: final,
    )
    return chooser.select(asked, experts, {}, 0)


def models(decided: Selection | NoExpert) -> list[str]:
    """The models of the members, in the order in which they are asked."""
    assert isinstance(decided, Selection), decided
    return [member.expert.model for member in decided.members]


def test_the_cheapest_useful_member_is_asked_first(tmp_path: Path) -> None:
    """Votes of about equal weight come in the order of their joules."""
    decided = choose(gated(tmp_path, *SMALL), *FLEET)
    assert models(decided) == ["two", "three", "one"]
    assert isinstance(decided, Selection)
    assert decided.vote is not None
    assert decided.vote.value > max(SMALL) + 0.05
    assert decided.vote.asked[0] == pytest.approx(1.0)
    assert 100 * (1.0 + 2.0) < decided.vote.expected_j < 100 * (1.0 + 2.0 + 3.0)
    assert decided.predicted.energy_j is not None
    assert decided.predicted.energy_j.p95 == pytest.approx(600.0)
    assert decided.plan.proof.method == "listed"


def test_each_model_votes_once_by_its_cheapest_host(tmp_path: Path) -> None:
    """A second host with the same model would say the same."""
    twin = served("two", 0.5, "agent-twin")
    decided = choose(gated(tmp_path, *SMALL), *FLEET, twin)
    assert isinstance(decided, Selection)
    assert decided.first.expert.key == "agent-twin/two"
    assert len(decided.members) == 3


def test_all_members_together_keep_the_budget(tmp_path: Path) -> None:
    """Even if all of them have to be asked; where one alone is too much, nobody is."""
    chooser = gated(tmp_path, *SMALL)
    for budget_j, count in ((601.0, 3), (599.0, 2), (101.0, 1)):
        assert len(models(choose(chooser, *FLEET, energy_budget_j=budget_j))) == count
    assert isinstance(choose(chooser, *FLEET, energy_budget_j=99.0), NoExpert)
    assert len(models(choose(chooser, *FLEET, max_experts=1))) == 1


def test_dear_joules_end_the_asking_sooner(tmp_path: Path) -> None:
    """The higher the price, the fewer joules are to be expected, and in the end one member is left."""
    chooser = gated(tmp_path, *SMALL)
    expected_j = []
    for price_per_j in (0.0, 2e-4, 1e-3, 1e-2):
        decided = choose(chooser, *FLEET, price_per_j=price_per_j)
        assert isinstance(decided, Selection)
        assert decided.vote is not None
        expected_j.append(decided.vote.expected_j)
    assert expected_j == sorted(expected_j, reverse=True)
    assert models(decided) == ["two"]


def test_a_vote_of_one_says_why(tmp_path: Path) -> None:
    """Where a client asks for a vote, one member suffices because others add nothing, are too dear, or do not fit."""

    def note(chooser: Selector, *experts: Expert, **wish: Any) -> str | None:
        decided = choose(chooser, *experts, **wish)
        assert isinstance(decided, Selection)
        assert decided.vote is not None
        return decided.vote.note

    chooser = gated(tmp_path, *SMALL)
    assert note(chooser, *FLEET) is None
    assert "not worth the price" in (note(chooser, *FLEET, price_per_j=1e-2) or "")
    assert "limits" in (note(chooser, *FLEET, max_experts=1) or "")
    assert "limits" in (note(chooser, FLEET[0]) or "")
    assert note(chooser, *FLEET, mode=Mode.AUTO) is None
    assert "weigh anything" in (note(gated(tmp_path, 0.6, 0.05, 0.05), *FLEET) or "")
    best = note(gated(tmp_path, 0.9, 0.3, 0.3), *FLEET) or ""
    assert "By 600 recorded prompts" in best
    assert "price" not in best
    assert "assumed" in (note(Selector(Scorer(None), {}, clock=lambda: 0.0), served("x", 1.0), served("y", 2.0)) or "")


def test_the_clients_confidence_stands(tmp_path: Path) -> None:
    """It is the probability at which nobody else is asked."""
    decided = choose(gated(tmp_path, *SMALL), *FLEET, confidence=0.8)
    assert isinstance(decided, Selection)
    assert decided.vote is not None
    assert decided.vote.wanted == 0.8


def test_auto_takes_a_consensus_where_votes_have_paid(tmp_path: Path) -> None:
    """By value less price times joules, and only where the question has a final answer."""
    chooser = gated(tmp_path, *SMALL)

    def mode(**about: Any) -> Mode:
        decided = choose(chooser, *FLEET, mode=Mode.AUTO, **about)
        assert isinstance(decided, Selection)
        return decided.mode

    assert mode() is Mode.CONSENSUS
    assert mode(final=False) is Mode.ROUTE
    assert mode(price_per_j=1e-2) is Mode.ROUTE


def test_auto_sees_that_asking_a_large_model_once_is_better(tmp_path: Path) -> None:
    """Its votes would add nothing to what it knows alone."""
    chooser = gated(tmp_path, *SMALL, 0.97)
    decided = choose(chooser, *FLEET, served("large", 8.0), mode=Mode.AUTO)
    assert isinstance(decided, Selection)
    assert (decided.mode, models(decided)) == (Mode.ROUTE, ["large"])


def test_auto_does_not_trust_votes_that_nobody_has_recorded(tmp_path: Path) -> None:
    """With 50 recorded prompts a consensus is taken only where it is asked for."""
    chooser = gated(tmp_path, *SMALL, rows=50)
    decided = choose(chooser, *FLEET, mode=Mode.AUTO)
    assert isinstance(decided, Selection)
    assert decided.mode is Mode.ROUTE
    assert isinstance(choose(chooser, *FLEET), Selection)


@pytest.mark.slow
def test_auto_wants_a_lead_beyond_its_error(tmp_path: Path) -> None:
    """A vote that is said to gain less than its error is not taken by itself; a client that asks for it gets it."""
    # Where the two others agree against the first one, they are right 50 times and it is right 46 times.
    codes = [[0, 0, 0]] * 500 + [[1, 0, 0]] * 50 + [[0, 1, 1]] * 46 + [[0, 1, 0], [0, 0, 1]] * 40 + [[1, 2, 3]] * 300

    def decided(mode: Mode, times: int) -> Selection:
        chooser = recorded(tmp_path, np.tile(np.array(codes, dtype=np.int16), (times, 1)))
        found = choose(chooser, *FLEET, mode=mode)
        assert isinstance(found, Selection)
        return found

    assert decided(Mode.AUTO, 1).mode is Mode.ROUTE
    asked_for = decided(Mode.CONSENSUS, 1)
    assert len(asked_for.members) == 3
    assert asked_for.vote is not None
    # The same lead, recorded a hundred times as often, is one.
    assert decided(Mode.AUTO, 100).mode is Mode.CONSENSUS


@given(
    values=st.lists(st.floats(0.3, 0.7), min_size=7, max_size=7),
    doubts=st.lists(st.floats(0.0, 0.2), min_size=7, max_size=7),
    price_per_j=st.sampled_from([0.0, 1e-3]),
)
def test_the_best_vote_leads_by_its_doubt_or_one_is_asked(
    values: list[float], doubts: list[float], price_per_j: float
) -> None:
    """Of what may be taken, the best vote stands for all votes; without doubts any lead will do."""
    plans = VoteReplay(VoteRecord.empty(3), np.full((1, 3), 0.5)).plans((0, 1, 2), 3)
    usable = np.isinf(plans.wanted)
    places, size = np.flatnonzero(usable), (plans.members >= 0).sum(axis=1)
    assert len(places) == 7
    value, doubt, joules = np.zeros((1, len(usable))), np.zeros((1, len(usable))), 10.0 * size[None]
    value[0, places], doubt[0, places] = values, doubts
    net = (value - price_per_j * joules)[0]
    alone = max(net[n] for n in places if size[n] == 1)
    vote = max((n for n in places if size[n] > 1), key=lambda n: float(net[n]))
    chosen = int(best_plan(plans, value, joules, price_per_j, usable, doubt)[0])
    if net[vote] - alone < doubt[0, vote]:
        assert size[chosen] == 1
        assert net[chosen] >= alone - SAME_VALUE
    else:
        assert chosen == int(best_plan(plans, value, joules, price_per_j, usable)[0])


def test_many_models_leave_a_few_voters(tmp_path: Path) -> None:
    """Of twenty models without a gate eight at most are looked at, and the rest is told why it is out."""
    fleet = [served(f"m{n}-{n + 1}b", 1.0 + n) for n in range(20)]
    chooser = Selector(Scorer(None), {}, clock=lambda: 0.0)
    decided = choose(chooser, *fleet, max_experts=5)
    assert isinstance(decided, Selection)
    assert 1 <= len(decided.members) <= 5
    reasons = decided.outlook.ruled_out.values()
    assert sum("votes of other models" in reason for reason in reasons) == 12
    assert chooser.frontier(decided) is not None


@given(budget_j=st.floats(50, 800), price_per_j=st.floats(0, 1e-2), most=st.integers(1, 6), joules=st.floats(0.1, 10))
@settings(max_examples=40, deadline=None)
def test_no_choice_breaks_a_limit(budget_j: float, price_per_j: float, most: int, joules: float) -> None:
    """Whatever the price, members keep the budget together, and there are no more of them than allowed."""
    chooser = Selector(Scorer(None), {}, clock=lambda: 0.0)
    fleet = (served("a-1b", joules), served("b-3b", 1.0), served("c-7b", 2.0), served("d-9b", 4.0))
    decided = choose(chooser, *fleet, price_per_j=price_per_j, energy_budget_j=budget_j, max_experts=most)
    if isinstance(decided, NoExpert):
        assert budget_j < TOKENS * min(joules, 1.0) * (1 + 1e-9)
        return
    spent = [member.prediction.energy_j.p95 for member in decided.members if member.prediction.energy_j]
    assert sum(spent) <= budget_j * (1 + 1e-9)
    assert len(spent) == len(decided.members) <= most


def on_priors(*named: str, **wish: Any) -> list[str]:
    """The models that are asked on a fleet of which only the models' names are known."""
    chooser = Selector(Scorer(None), {}, clock=lambda: 0.0)
    return models(choose(chooser, *(served(name, 1.0 + n) for n, name in enumerate(named)), **wish))


def test_several_are_asked_on_priors_where_the_client_names_the_mode() -> None:
    """A vote that a client asks for has three members of about one size, of which a second one is always asked."""
    for named in (("q-0.5b", "g-270m", "s-135m"), ("a-7b", "b-8b", "c-4b"), ("x", "y", "z")):
        assert len(on_priors(*named)) == 3
        assert len(on_priors(*named, confidence=0.9)) == 3
    assert len(on_priors("a", "b", "c", "d", "e", max_experts=5)) > 3


def test_a_large_model_is_not_outvoted_by_small_ones_on_priors() -> None:
    """Sizes that far apart do say who knows better."""
    assert on_priors("large-70b", "small-3b", "tiny-1b") == ["large-70b"]


def test_budgets_and_counts_stand_above_the_wish_for_a_vote() -> None:
    """Where two members at most are allowed, one is asked: the second could decide nothing."""
    for limits in ({"max_experts": 2}, {"max_experts": 1}, {"energy_budget_j": 350.0}):
        assert len(on_priors("x", "y", "z", **limits)) == 1
    assert len(on_priors("x", "y", "z", energy_budget_j=601.0)) == 3
    assert len(on_priors("x", "y")) == 1


def test_joules_to_expect_follow_from_the_usual_lengths(tmp_path: Path) -> None:
    """A model of dear tokens that says little is asked first; limits hold for the longest answers that are planned."""
    chooser = gated(tmp_path, *SMALL, tokens=(5.0, 90.0, 90.0))
    decided = choose(chooser, *FLEET)
    assert models(decided) == ["one", "two", "three"]
    assert isinstance(decided, Selection)
    assert decided.vote is not None
    assert 5 * 3.0 + 90 * 1.0 < decided.vote.expected_j < 5 * 3.0 + 90 * 1.0 + 90 * 2.0
    assert decided.predicted.energy_j is not None
    assert decided.predicted.energy_j.p50 == pytest.approx(decided.vote.expected_j)
    assert decided.predicted.energy_j.p95 == pytest.approx(600.0)
    assert len(models(choose(chooser, *FLEET, energy_budget_j=599.0))) == 2


def test_a_price_is_paid_for_the_usual_length(tmp_path: Path) -> None:
    """Of two experts that are about as good the one whose usual answer takes fewer joules answers alone."""

    def alone(*tokens: float, **about: Any) -> list[str]:
        chooser = gated(tmp_path, 0.62, 0.6, tokens=tokens)
        return models(choose(chooser, *FLEET[:2], mode=Mode.ROUTE, price_per_j=1e-3, **about))

    assert alone(90.0, 90.0) == ["two"]
    assert alone(5.0, 90.0) == ["one"]
    # Neither is expected to write more than the client allows.
    assert alone(1e6, 1e6) == alone(100.0, 100.0) == ["two"]
    assert alone(float("nan"), 90.0) == ["two"]
