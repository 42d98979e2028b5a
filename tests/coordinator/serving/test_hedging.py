"""The life of one request: a second expert beside a late one, and another one that goes on where one broke off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from moe2.common.energy import Energy, Quality
from moe2.common.link.messages import JobStarted, JobUsage, Submit, TokenPiece
from moe2.common.link.prompts import ChatMessage, ChatPrompt, Tool
from moe2.common.link.reports import ExpertState
from moe2.coordinator.choosing.request import Wish
from moe2.coordinator.choosing.result import Selection
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving import events
from moe2.coordinator.serving.attempt import MIN_LATE_S, Attempt
from moe2.coordinator.serving.effects import (
    Completed,
    Conclude,
    Deliver,
    Failed,
    ReleaseExpert,
    Retire,
    StopJob,
    SubmitJob,
    Suspect,
)
from moe2.coordinator.serving.receipt import receipt_of
from moe2.coordinator.serving.tallies import Totals
from tests.coordinator.experts import cost, expert, selector, speed
from tests.coordinator.lives import EXPERTS, USAGE, LifeBench, outcomes, retires, stopped, submitted

PLAIN: dict[str, Any] = {"logprobs": None}


def hedged(*experts: Any, **fields: Any) -> LifeBench:
    """Two experts at work: the first one was late."""
    life = LifeBench(*experts, hedges=1, **fields).admitted()
    life.at_next()
    assert submitted(life.effects) == ["req-1.0", "req-1.1"]
    return life


# --- While an expert is being loaded or woken -------------------------------------------------------------------------

COLD = expert("agent-1", state=ExpertState.COLD, on_demand=True, load_s=300.0)
READY = expert("agent-2")


def known_both(life: LifeBench) -> Attempt:
    """The attempt of a cold expert that was chosen while a ready one was there as well."""
    attempt = life.life.attempts[0]
    among_both = selector().select(msgspec.structs.replace(life.chosen_for[0], model="moe2"), [COLD, READY], {}, 0)
    assert isinstance(among_both, Selection)
    attempt.selection = msgspec.structs.replace(attempt.selection, outlook=among_both.outlook)
    life.experts.append(READY)
    return attempt


def test_who_joins_while_another_expert_is_woken_answers() -> None:
    """An agent that was away, too, for a moment, is not kept waiting by a host that takes minutes; no hedge is used."""
    life = LifeBench(COLD).admitted()
    assert life.at_next() == []
    life.experts.append(READY)
    assert submitted(life.at_next()) == ["req-1.1"]
    assert stopped(life.tokens("a", attempt=1)) == [("agent-1", "req-1.0")]
    assert outcomes(life.done(attempt=1)) == [Completed("stop")]


def test_who_was_there_when_another_expert_was_chosen_is_not_asked_beside_it() -> None:
    """An expert that has to be loaded is chosen because it is better: its loading is no reason to take another one."""
    life = LifeBench(COLD).admitted()
    known_both(life)
    assert life.at_next() == []
    assert READY.key in life.chosen_for[-1].excluded


def test_an_expert_that_comes_later_than_predicted_gets_help_as_any_late_one() -> None:
    """Past the p95 of its first token, its loading included, those that were there before may help, too."""
    life = LifeBench(expert("agent-1", state=ExpertState.COLD, on_demand=True, load_s=5.0), hedges=1).admitted()
    attempt = known_both(life)
    assert attempt.due_s is not None
    while life.life.next_deadline_s < attempt.due_s:
        assert life.at_next() == []
    assert submitted(life.at_next()) == ["req-1.1"]
    assert life.hedges == 0


def test_looks_for_who_joined_become_rare_and_end_when_the_expert_is_there() -> None:
    """Ten looks in the first minute, none after the first sign of life."""
    life = LifeBench(COLD).admitted()
    looks_s = []
    for _ in range(12):
        life.at_next()
        looks_s.append(life.now_s - 100.5)
    assert looks_s[0] < 1.0
    assert 10.0 < looks_s[-1] < 120.0
    life.do(events.AttemptStarted(JobStarted(job_id="req-1.0", prompt_tokens=10, queue_s=0.0)))
    assert life.life.next_deadline_s == life.life.request.deadline_s


# --- Hedging ----------------------------------------------------------------------------------------------------------


def test_a_late_expert_gets_help() -> None:
    """When it is past the p95 of its first token, from another expert; it goes on itself."""
    life = LifeBench(hedges=1).admitted()
    assert life.life.next_deadline_s == pytest.approx(100.51)
    effects = life.at_next()
    assert submitted(effects) == ["req-1.1"]
    assert stopped(effects) == []
    assert life.chosen_for[-1].excluded == {"agent-1/m"}


def test_the_first_token_wins_and_the_loser_is_stopped() -> None:
    """Whichever of them it is; only the late one is blamed, and what the loser says afterwards is not delivered."""
    for winner, loser in ((0, 1), (1, 0)):
        life = hedged()
        effects = life.tokens("a", attempt=winner)
        suspected = [Suspect] if winner else []
        assert [type(effect) for effect in effects] == [*suspected, StopJob, Deliver]
        assert stopped(effects) == [(f"agent-{loser + 1}", f"req-1.{loser}")]
        assert life.tokens("b", attempt=loser) == []
        assert outcomes(life.done(attempt=winner)) == [Completed("stop")]
        assert retires(life.done("cancelled", attempt=loser))
        assert life.life.attempts[loser].state is AttemptState.HEDGED
        assert life.life.leading is life.life.attempts[winner]


def test_the_losers_joules_are_accounted_as_hedged() -> None:
    """Also where it ended by itself before it heard that it had lost."""
    for reason in ("cancelled", "stop"):
        life = hedged()
        life.tokens("a", attempt=1)
        life.done(reason, attempt=0)
        life.done(attempt=1)
        receipt = receipt_of(life.life)
        assert [(line.outcome, line.energy.joules) for line in receipt.experts] == [
            ("hedged", 2.0),
            ("answered", 2.0),
        ]
        assert receipt.energy.joules == 4.0


def test_the_receipt_is_of_who_answered() -> None:
    """Tokens, phases and prediction, though another attempt came later."""
    life = hedged(expert("agent-1", latency=speed(100.0, 50.0)), expert("agent-2"))
    life.tokens("a", attempt=0)
    life.done("cancelled", attempt=1, usage=JobUsage(prompt_tokens=1))
    life.done(attempt=0)
    receipt = receipt_of(life.life)
    assert receipt.tokens.prompt == USAGE.prompt_tokens
    assert receipt.predicted is not None
    assert receipt.predicted.ttft_s is not None
    assert receipt.predicted.ttft_s.p50 == pytest.approx(0.1)
    assert receipt.decision is not None
    assert [row.expert for row in receipt.decision.experts if row.chosen] == ["agent-1/m"]


def test_an_empty_answer_wins_too() -> None:
    """A model may end at once; the other one is not needed any more."""
    life = hedged()
    effects = life.done(attempt=1)
    assert stopped(effects) == [("agent-1", "req-1.0")]
    assert outcomes(effects) == [Completed("stop")]


def test_a_failure_of_one_leaves_the_other() -> None:
    """No third one is started while one of two is still at it."""
    for failing, other in ((0, 1), (1, 0)):
        life = hedged()
        effects = life.failed(attempt=failing)
        assert effects == [ReleaseExpert(f"agent-{failing + 1}/m", f"req-1.{failing}")]
        assert outcomes(life.done(attempt=other)) == [Completed("stop")]


def test_a_lost_agent_gives_back_all_its_places_before_others_are_chosen() -> None:
    """The expert that answers and the one that was stopped share an agent: both places are free before the end."""
    life = hedged(expert("agent-1", "a"), expert("agent-1", "b"), **PLAIN, wish=Wish(resume=True))
    life.tokens("x", attempt=0)
    effects = life.lost()
    assert [type(effect) for effect in effects] == [ReleaseExpert, ReleaseExpert, Conclude, Retire]


def test_when_both_fail_failover_goes_on() -> None:
    """With who is left."""
    life = hedged()
    life.failed(attempt=0)
    assert submitted(life.failed(attempt=1)) == ["req-1.2"]


def test_a_wrong_request_stops_both() -> None:
    """The other one would say the same."""
    life = hedged()
    effects = life.failed("invalid_request", attempt=0)
    assert stopped(effects) == [("agent-2", "req-1.1")]
    assert outcomes(effects) == [Failed("invalid_request", "It died.")]


def test_after_the_last_attempt_nobody_is_looked_for() -> None:
    """And no timer is set for it."""
    life = LifeBench(*(expert(f"agent-{n}") for n in range(6)), hedges=1).admitted()
    for n in range(3):
        life.failed(attempt=n)
    life.now_s = 105.0
    assert life.do(events.TimePassed()) == []
    assert life.life.next_deadline_s == 100.5 + MIN_LATE_S


def test_there_is_one_hedge_at_most() -> None:
    """However late both are."""
    life = LifeBench(hedges=5).admitted()
    life.at_next()
    for _ in range(4):
        assert submitted(life.at_next()) == []


def test_no_hedge_without_leave() -> None:
    """The share of hedged requests is bounded for the whole fleet; who is refused asks again, ever more seldom."""
    life = LifeBench(hedges=0).admitted()
    asked = []
    while life.now_s < 100.5 + MIN_LATE_S:
        life.at_next()
        asked.append(life.life.next_deadline_s - 100.5)
    assert len(submitted(life.effects)) == 2
    assert asked[:4] == pytest.approx([0.03, 0.07, 0.15, 0.31])
    assert len(asked) < 20


def test_an_expert_that_hangs_is_not_replaced_by_a_queue() -> None:
    """Where all are that late, a second place in a queue for everybody would make all of them later."""
    life = LifeBench(expert("agent-1"), expert("agent-2", slots=0)).admitted()
    life.now_s = 100.5 + MIN_LATE_S
    assert [type(effect) for effect in life.do(events.TimePassed())] == [Suspect]


def test_an_expert_that_hangs_is_replaced_without_leave() -> None:
    """It is as good as failed; should it answer after all, before the other one, its answer is as good."""
    life = LifeBench(hedges=0).admitted()
    life.now_s = 100.5 + MIN_LATE_S
    effects = life.do(events.TimePassed())
    assert [type(effect) for effect in effects] == [Suspect, SubmitJob]
    assert stopped(life.tokens("a", attempt=0)) == [("agent-2", "req-1.1")]


@pytest.mark.parametrize(
    "second",
    [
        expert("agent-2", latency=None),
        expert("agent-2", latency=speed(100.0, 50.0)),
        expert("agent-2", slots=0),
    ],
    ids=["unmeasured", "slower", "with a queue"],
)
def test_no_hedge_that_cannot_be_faster(second: Any) -> None:
    """Its first token has to be due sooner than the late one's seems to be; and no leave is used up for it."""
    life = LifeBench(expert("agent-1"), second, hedges=1).admitted()
    assert submitted(life.at_next()) == []
    assert life.hedges == 1


def test_a_slower_expert_helps_where_that_is_still_sooner() -> None:
    """When the late one has already taken longer than the slower one is going to."""
    life = LifeBench(expert("agent-1"), expert("agent-2", latency=speed(100.0, 50.0)), hedges=1).admitted()
    life.at_next()
    assert life.life.next_deadline_s == pytest.approx(100.61)
    assert submitted(life.at_next()) == ["req-1.1"]


def test_no_hedge_over_the_energy_budget() -> None:
    """The late expert may still take what was predicted for it: together they must keep the budget."""
    experts = tuple(expert(f"agent-{n}", energy=cost(0.1)) for n in (1, 2))
    for budget_j, n_attempts in ((3.9, 1), (4.1, 2)):
        life = LifeBench(*experts, hedges=1, wish=Wish(energy_budget_j=budget_j)).admitted()
        life.at_next()
        assert len(life.life.attempts) == n_attempts


def test_no_hedge_over_the_latency_budget() -> None:
    """What is left of it has to do."""
    slow = expert("agent-1", latency=speed(5.0, 50.0))
    for budget_s, n_attempts in ((2.8, 1), (3.0, 2)):
        life = LifeBench(slow, expert("agent-2"), hedges=1, wish=Wish(latency_budget_s=budget_s)).admitted()
        life.at_next()
        assert len(life.life.attempts) == n_attempts


def test_only_a_hedge_uses_a_hedge_up() -> None:
    """A second expert's job is a hedge; one after a failure, or in the place of an expert that hangs, is none."""
    jobs = [effect for effect in hedged().effects if isinstance(effect, SubmitJob)]
    assert [job.is_hedge for job in jobs] == [False, True]
    hanging = LifeBench(hedges=0).admitted()
    hanging.now_s = 100.5 + MIN_LATE_S
    hanging.do(events.TimePassed())
    failing = LifeBench().admitted()
    failing.failed()
    for life in (hanging, failing):
        assert [job.is_hedge for job in life.effects if isinstance(job, SubmitJob)] == [False, False]


@pytest.mark.parametrize(("winner", "won", "lost"), [(0, 0, 1), (1, 1, 0), (None, 0, 1)])
def test_hedges_are_counted_by_who_answered(winner: int | None, won: int, lost: int) -> None:
    """One that nobody was answered by is lost, too."""
    life = hedged()
    if winner is not None:
        life.tokens("a", attempt=winner)
    totals = Totals()
    totals.retired(life.life, 1.0)
    assert (totals.hedges_won, totals.hedges_lost) == (won, lost)


def test_requests_whose_joules_are_unknown_are_counted() -> None:
    """Nought joules are known."""
    totals = Totals()
    for joules in (1.0, None, 0.0, None):
        totals.retired(LifeBench().life, joules)
    assert totals.unmeasured == 2


# --- Resuming ---------------------------------------------------------------------------------------------------------


def broken_off(**fields: Any) -> LifeBench:
    """An answer whose expert died after two tokens."""
    life = LifeBench(**{**PLAIN, "wish": Wish(resume=True), **fields}).admitted()
    life.tokens("Once ", "upon")
    return life


def test_another_expert_goes_on_from_the_text_so_far() -> None:
    """It is given the beginning, and the tokens that are left."""
    life = broken_off()
    [effect] = [effect for effect in life.failed() if isinstance(effect, SubmitJob)]
    assert effect.expert == EXPERTS[1]
    assert isinstance(effect.job, Submit)
    assert (effect.job.prefix, effect.job.max_tokens, effect.job.stop) == ("Once upon", 18, ("END",))
    asked = life.chosen_for[-1]
    assert (asked.demand.prompt_tokens, asked.demand.max_tokens) == (12, 18)
    life.tokens(" a time", attempt=1)
    assert outcomes(life.done(attempt=1)) == [Completed("stop")]
    delivered = [piece.text for effect in life.effects if isinstance(effect, Deliver) for piece in effect.pieces]
    assert "".join(delivered) == "Once upon a time"


def test_the_receipt_of_a_resumed_answer_names_both() -> None:
    """Its tokens are those of the whole answer."""
    life = broken_off()
    life.lost()
    life.tokens(" a time", attempt=1)
    life.done(attempt=1)
    receipt = receipt_of(life.life)
    assert [(line.expert, line.outcome) for line in receipt.experts] == [
        ("agent-1/m", "broken_off"),
        ("agent-2/m", "answered"),
    ]
    assert receipt.tokens.decoded == 3
    assert receipt.energy.joules is None, "what the lost one took nobody knows"


def test_the_prompts_tokens_of_a_resumed_answer_are_those_of_its_first_expert() -> None:
    """The others had a part of the answer in theirs."""
    life = broken_off()
    life.failed()
    life.tokens(" a time", attempt=1)
    life.done(attempt=1, usage=msgspec.structs.replace(USAGE, prompt_tokens=9, cached_tokens=0))
    tokens = receipt_of(life.life).tokens
    assert (tokens.prompt, tokens.cached, tokens.decoded) == (7, 3, 3)


def test_what_broke_off_is_no_waste_once_the_answer_is_whole() -> None:
    """However often it broke off; and all joules are on the receipt."""
    life = broken_off()
    life.failed()
    life.tokens(" a", attempt=1)
    life.failed(attempt=1)
    life.tokens(" time", attempt=2)
    life.done(attempt=2)
    receipt = receipt_of(life.life)
    assert [line.outcome for line in receipt.experts] == ["broken_off", "broken_off", "answered"]
    assert receipt.energy.joules == 3 * (USAGE.energy.joules or 0.0)


def test_what_broke_off_without_a_word_of_its_cost_is_unknown() -> None:
    """It has written, so it has cost something."""
    life = broken_off()
    life.failed(usage=None)
    life.tokens(" a time", attempt=1)
    life.done(attempt=1)
    assert receipt_of(life.life).experts[0].energy.joules is None


def test_what_broke_off_for_good_is_wasted() -> None:
    """Nobody could complete the answer; nor had who wrote nothing a part in it."""
    life = broken_off()
    life.failed()
    life.failed(attempt=1)
    life.failed(attempt=2)
    assert {attempt.state for attempt in life.life.attempts} == {AttemptState.FAILED}
    early = LifeBench(**PLAIN).admitted()
    early.failed()
    early.tokens("a", attempt=1)
    early.done(attempt=1)
    assert [attempt.state for attempt in early.life.attempts] == [AttemptState.FAILED, AttemptState.ANSWERED]


def test_a_second_break_is_resumed_too() -> None:
    """From all the text there is by then."""
    life = broken_off()
    life.failed()
    life.tokens(" a", attempt=1)
    [effect] = [effect for effect in life.failed(attempt=1) if isinstance(effect, SubmitJob)]
    assert isinstance(effect.job, Submit)
    assert (effect.job.prefix, effect.job.max_tokens) == ("Once upon a", 17)


def test_a_complete_answer_needs_nobody_to_go_on() -> None:
    """Only its end was lost."""
    life = broken_off(max_tokens=2)
    assert outcomes(life.failed()) == [Completed("length")]
    assert [attempt.state for attempt in life.life.attempts] == [AttemptState.BROKEN_OFF]


TOOL = Tool(name="look")


@pytest.mark.parametrize(
    "fields",
    [
        {"wish": Wish()},
        {"logprobs": 0},
        {"grammar": 'root ::= "a"'},
        {"prompt": ChatPrompt(messages=(ChatMessage(role="user", content="Hi"),), tools=(TOOL,))},
    ],
    ids=["not asked for", "logprobs", "grammar", "tools"],
)
def test_what_cannot_be_taken_up_in_the_middle_is_an_error(fields: dict[str, Any]) -> None:
    """And so is what nobody asked to be resumed."""
    life = broken_off(**fields)
    assert outcomes(life.failed()) == [Failed("engine_crashed", "It died.")]


def test_what_an_expert_thought_is_not_taken_up_by_another() -> None:
    """Another one could go on with the words of an answer alone."""
    life = broken_off()
    life.do(events.TokensArrived("req-1.0", (TokenPiece("Hm", is_reasoning=True),)))
    assert outcomes(life.failed()) == [Failed("engine_crashed", "It died.")]


def test_an_older_agent_is_passed_over() -> None:
    """It would begin the answer anew."""
    older = replace(expert("agent-2"), protocol=1)
    life = LifeBench(expert("agent-1"), older, expert("agent-3"), **PLAIN, wish=Wish(resume=True)).admitted()
    life.tokens("a")
    [effect] = [effect for effect in life.failed() if isinstance(effect, SubmitJob)]
    assert effect.expert.key == "agent-3/m"
    alone = LifeBench(expert("agent-1"), older, **PLAIN, wish=Wish(resume=True)).admitted()
    alone.tokens("a")
    assert outcomes(alone.failed()) == [Failed("engine_crashed", "It died.")]


def test_a_kept_first_token_budget_does_not_bind_who_goes_on() -> None:
    """The first token has come; the rest of the latency budget still holds."""
    life = broken_off(wish=Wish(resume=True, ttft_budget_s=1.0, latency_budget_s=30.0))
    life.now_s = 110.0
    assert submitted(life.failed()) == ["req-1.1"]
    late = broken_off(wish=Wish(resume=True, latency_budget_s=10.0))
    late.now_s = 109.9
    assert outcomes(late.failed()) == [Failed("engine_crashed", "It died.")]


def test_joules_of_both_count_against_the_budget() -> None:
    """The second one gets what the first one left."""
    spent = replace_energy(USAGE, 3.0)
    experts = tuple(expert(f"agent-{n}", energy=cost(0.1)) for n in (1, 2))
    for budget_j, n_attempts in ((4.5, 1), (5.0, 2)):
        wish = Wish(resume=True, energy_budget_j=budget_j)
        life = LifeBench(*experts, **PLAIN, wish=wish).admitted()
        life.tokens("a")
        life.failed(usage=spent)
        assert len(life.life.attempts) == n_attempts


def replace_energy(usage: JobUsage, joules: float) -> JobUsage:
    return JobUsage(
        prompt_tokens=usage.prompt_tokens,
        decoded_tokens=usage.decoded_tokens,
        energy=Energy(joules=joules, quality=Quality.MEASURED_COUNTER),
    )
