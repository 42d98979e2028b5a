"""Consensus: members write answers in turn, and their final answers are voted on."""

from __future__ import annotations

from typing import Any

import pytest

from moe2.common.link.messages import Submit
from moe2.common.link.prompts import ChatMessage, ChatPrompt
from moe2.coordinator.answers.form import AnswerKind
from moe2.coordinator.choosing.request import Demand, Mode, Wish
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving.effects import Completed, Effect, Failed, Remark
from moe2.coordinator.serving.modes.consensus import ENDLESS
from moe2.coordinator.serving.receipt import receipt_of
from tests.coordinator.experts import cost, expert, speed
from tests.coordinator.lives import outcomes, retires, stopped, submitted
from tests.coordinator.panels import PanelBench, jobs

ASKED = ChatPrompt(messages=(ChatMessage(role="user", content="Which?\n(A) red\n(B) green\n(C) blue"),))
OPEN = ChatPrompt(messages=(ChatMessage(role="user", content="Write a poem."),))


def consensus(
    *weights: float, prompt: ChatPrompt = ASKED, wish: dict[str, Any] | None = None, **fields: Any
) -> PanelBench:
    """A request whose members have these weights, and are asked in this order."""
    own = Wish(mode=Mode.CONSENSUS, **(wish or {}))
    bench = PanelBench(Mode.CONSENSUS, weights=weights, **{"prompt": prompt, "wish": own, **fields})
    bench.admitted()
    return bench


def says(bench: PanelBench, attempt: int, text: str, reason: str = "stop") -> list[Effect]:
    """A member writes its whole text."""
    return [*bench.tokens(*text, attempt=attempt), *bench.done(reason, attempt=attempt)]


def test_members_are_asked_one_after_the_other() -> None:
    """The first one writes alone, and the client sees nothing of it yet."""
    bench = consensus(2.0, 1.5, 1.0)
    assert submitted(bench.effects) == ["req-1.0"]
    assert submitted(says(bench, 0, "I think it is (B).")) == ["req-1.1"]
    assert bench.text == ""


def test_nobody_else_is_asked_once_the_leader_cannot_lose() -> None:
    """2 + 1.5 for B against 1 that is left: the client gets the whole text of the heaviest that said so."""
    bench = consensus(2.0, 1.5, 1.0)
    says(bench, 0, "Grass. The answer is (B).")
    effects = says(bench, 1, "Green")
    assert submitted(effects) == []
    assert bench.text == "Grass. The answer is (B)."
    assert outcomes(effects) == [Completed("stop")]
    assert retires(effects)
    told = bench.together
    assert (told.settled, told.answer_kind, told.not_asked) == ("cannot_lose", "choice", ("agent-3/m-3",))
    assert [share.answer for share in told.members] == ["B", "B"]
    assert [share.joules for share in told.members] == [2.0, 2.0]
    assert [share.weight for share in told.members] == pytest.approx([2 / 3.5, 1.5 / 3.5])


def test_two_lighter_members_outvote_a_heavier_one() -> None:
    """1.5 + 1 against 2; what was said for nothing is accounted as outvoted."""
    bench = consensus(2.0, 1.5, 1.0)
    says(bench, 0, "(A)")
    says(bench, 1, "It must be C")
    says(bench, 2, "The answer is blue.")
    assert bench.text == "It must be C"
    assert [line.outcome for line in receipt_of(bench.life).experts] == ["outvoted", "answered", "answered"]
    assert bench.life.leading is bench.life.attempts[1]


def test_the_wanted_probability_ends_the_asking() -> None:
    """With weight 2 and 1 for something else: e^2 / (e^2 + e^1) = 0.73."""
    bench = PanelBench(
        Mode.CONSENSUS, weights=(2.0, 1.5, 1.0), prompt=ASKED, wish=Wish(mode=Mode.CONSENSUS, confidence=0.7)
    )
    bench.admitted()
    says(bench, 0, "(B)")
    assert bench.text == "(B)"
    assert bench.together.settled == "probable"
    assert bench.together.probability == pytest.approx(0.731, abs=1e-3)


def test_a_member_without_a_final_answer_does_not_vote() -> None:
    """It may have reasons, or several answers; the others decide."""
    bench = consensus(2.0, 1.5, 1.0)
    says(bench, 0, "It is (A) or (B).")
    says(bench, 1, "(C)")
    assert bench.text == "(C)"
    assert [share.answer for share in bench.together.members] == [None, "C"]


def test_a_text_that_was_cut_off_casts_no_vote_for_its_beginning() -> None:
    """A few words that `max_tokens` left of a longer text are no answer; the member that came to its end decides."""
    bench = consensus(2.0, 1.0, prompt=OPEN)
    says(bench, 0, "When a user asks you", reason="length")
    says(bench, 1, "Paris")
    assert bench.text == "Paris"
    assert [share.answer for share in bench.together.members] == [None, "paris"]


def test_members_that_answer_in_different_forms_agree() -> None:
    """A letter, a text and a sentence are one answer."""
    bench = consensus(1.0, 1.0, 1.0, 1.0)
    says(bench, 0, "b")
    effects = says(bench, 1, "Reasoning… **Answer:** green")
    assert outcomes(effects) == [Completed("stop")]


@pytest.mark.parametrize(
    ("wish", "texts", "kind", "winner"),
    [
        ({"answer": AnswerKind.NUMBER}, ("1,000 m", "1000", "12"), "number", "1000"),
        ({"answer": AnswerKind.TEXT}, ("Paris.", "paris", "Rome"), "text", "paris"),
        ({"answer": AnswerKind.JSON}, ('{"answer": "Yes"}', '{"answer":"yes"}', "{}"), "json", "yes"),
        ({}, ("forty-two", "42", "42.0"), "number", "42"),
        ({}, ("12", "Paris", "paris"), "text", "paris"),
    ],
)
def test_every_kind_of_answer_is_counted(wish: dict[str, Any], texts: tuple[str, ...], kind: str, winner: str) -> None:
    """The kind is named by the client, or recognised."""
    bench = consensus(1.0, 1.0, 1.0, prompt=OPEN, wish=wish)
    for attempt, text in enumerate(texts):
        if not bench.life.outcome:
            says(bench, attempt, text)
    assert [share.answer for share in bench.together.members].count(winner) == 2
    assert bench.together.answer_kind == kind


def test_a_schema_names_the_field_that_is_counted() -> None:
    """Reasons may differ, the field counts."""
    schema = '{"type":"object","properties":{"why":{"type":"string"},"mood":{"enum":["good","bad"]}}}'
    bench = consensus(1.0, 1.0, prompt=OPEN, json_schema=schema)
    says(bench, 0, '{"why": "sun", "mood": "good"}')
    says(bench, 1, '{"why": "no rain", "mood": "good"}')
    assert [share.answer for share in bench.together.members] == ["good", "good"]


def test_a_waiting_client_is_told_how_far_the_vote_is() -> None:
    """The answers themselves are not told."""
    bench = consensus(1.0, 1.0, 1.0)
    [remark] = [effect for effect in says(bench, 0, "(A)") if isinstance(effect, Remark)]
    assert remark.text == "1 of at most 3 members have answered"


# --- Time and joules --------------------------------------------------------------------------------------------------


def test_all_are_asked_at_once_where_time_is_short() -> None:
    """Three times 0.41 s do not fit into a second; what is still written when the vote is settled is stopped."""
    bench = consensus(2.0, 1.5, 1.0, wish={"latency_budget_s": 1.0})
    assert submitted(bench.effects) == ["req-1.0", "req-1.1", "req-1.2"]
    says(bench, 0, "(B)")
    effects = says(bench, 1, "(B)")
    assert stopped(effects) == [("agent-3", "req-1.2")]
    assert outcomes(effects) == [Completed("stop")]
    effects = bench.done("cancelled", attempt=2)
    assert retires(effects)
    assert receipt_of(bench.life).energy.joules == 6.0


def test_the_rest_is_asked_at_once_when_time_gets_short() -> None:
    """The first one took longer than planned."""
    bench = consensus(2.0, 1.5, 1.0, wish={"latency_budget_s": 2.0})
    assert submitted(bench.effects) == ["req-1.0"]
    bench.now_s += 1.5
    assert submitted(says(bench, 0, "(B)")) == ["req-1.1", "req-1.2"]


def test_a_member_that_writes_for_ever_is_bounded_by_its_share_of_the_joules() -> None:
    """A budget of three times what all are predicted to take lets each write three times as much."""
    metered = [expert(f"agent-{n}", f"m-{n}", latency=speed(1000, 50), energy=cost(float(n))) for n in (1, 2)]
    bench = PanelBench(
        Mode.CONSENSUS,
        *metered,
        weights=(1.0, 1.0),
        prompt=ASKED,
        max_tokens=None,
        demand=Demand(prompt_tokens=10, max_tokens=None),
        wish=Wish(mode=Mode.CONSENSUS, energy_budget_j=3 * 3 * 256.0),
    )
    bench.admitted()
    [job] = jobs(bench.effects)
    assert isinstance(job, Submit)
    assert job.max_tokens == 3 * 256


def test_without_a_budget_an_endless_member_is_bounded_too() -> None:
    """By a few times the planned answer, unless the client bounds it."""
    endless = consensus(1.0, 1.0, max_tokens=None, demand=Demand(prompt_tokens=10, max_tokens=None))
    assert [job.max_tokens for job in jobs(endless.effects) if isinstance(job, Submit)] == [ENDLESS * 256]
    bounded = consensus(1.0, 1.0)
    assert [job.max_tokens for job in jobs(bounded.effects) if isinstance(job, Submit)] == [20]


def test_a_late_member_has_the_next_one_asked_beside_it() -> None:
    """And may still vote; once others have answered it is dropped."""
    bench = consensus(2.0, 1.5, 1.0)
    assert submitted(bench.at_next()) == ["req-1.1"]
    says(bench, 1, "(B)")
    assert bench.text == ""
    effects = bench.at_next()
    assert stopped(effects) == [("agent-1", "req-1.0")]
    assert bench.life.outcome is None or bench.text == "(B)"


# --- Failures ---------------------------------------------------------------------------------------------------------


def test_a_member_that_fails_is_left_out() -> None:
    """The next one is asked in its place, and the receipt names it."""
    bench = consensus(2.0, 1.5, 1.0)
    bench.tokens("(", attempt=0)
    assert submitted(bench.failed(attempt=0)) == ["req-1.1"]
    says(bench, 1, "(B)")
    assert bench.text == "(B)"
    assert [dropped.expert for dropped in bench.together.dropped] == ["agent-1/m-1"]


def test_others_are_chosen_when_all_members_have_failed() -> None:
    """The client has seen nothing yet."""
    bench = consensus(2.0)
    effects = bench.lost("agent-1")
    assert submitted(effects) == ["req-1.1"]
    assert bench.life.attempts[1].expert.agent_id == "agent-2"


def test_the_last_failure_is_told_where_nobody_is_left() -> None:
    """A request that no expert can serve fails as in the other modes."""
    bench = consensus(2.0, 1.5)
    bench.failed("invalid_request", attempt=0)
    assert [type(found) for found in outcomes(bench.failed("invalid_request", attempt=1))] == [Failed]


def test_a_client_that_leaves_stops_all_members() -> None:
    """Their joules are still accounted."""
    bench = consensus(2.0, 1.5, wish={"latency_budget_s": 0.6})
    assert len(stopped(bench.gone())) == 2


# --- No final answer --------------------------------------------------------------------------------------------------


def test_without_final_answers_the_best_members_text_is_the_answer() -> None:
    """All members wrote prose: nobody else is asked, and a note says so."""
    bench = consensus(2.0, 1.5, prompt=OPEN)
    bench.experts = bench.experts[:2]
    says(bench, 0, "Roses are red.\nViolets are blue.\nSugar is sweet.")
    effects = says(bench, 1, "A poem.\nAnother line.\nA third one.")
    assert outcomes(effects) == [Completed("stop")]
    assert bench.text.startswith("Roses")
    assert bench.together.note is not None
    assert bench.together.probability is None


def test_a_better_expert_answers_alone_where_members_have_no_final_answer() -> None:
    """As in mode `route`: its stream passes through, with a note in the receipt."""
    bench = consensus(2.0, prompt=OPEN)
    bench.experts = [*bench.experts[:1], expert("agent-9", "large-70b", parameters=70_000_000_000)]
    assert submitted(says(bench, 0, "Roses are red.\nViolets are blue.\nSugar.")) == ["req-1.1"]
    bench.tokens("A ", "poem", attempt=1)
    assert bench.text == "A poem"
    assert outcomes(bench.done(attempt=1)) == [Completed("stop")]
    receipt = receipt_of(bench.life)
    assert receipt.mode == "route"
    assert receipt.collaboration is not None
    assert receipt.collaboration.note is not None
    assert [line.outcome for line in receipt.experts] == ["outvoted", "answered"]


def test_a_written_text_is_better_than_a_fallback_that_fails() -> None:
    """The expert that should answer alone dies: the client gets what a member wrote."""
    bench = consensus(2.0, prompt=OPEN)
    bench.experts = [*bench.experts[:1], expert("agent-9", "large-70b", parameters=70_000_000_000)]
    says(bench, 0, "Roses are red.\nViolets are blue.\nSugar.")
    assert outcomes(bench.failed(attempt=1)) == [Completed("stop")]
    assert bench.text.startswith("Roses")
    assert bench.life.attempts[0].state is AttemptState.ANSWERED


def test_prose_is_not_asked_of_everybody() -> None:
    """After two members without a final answer, a question of no known form is taken to have none."""
    bench = consensus(2.0, 1.5, 1.0, prompt=OPEN)
    says(bench, 0, "Line one.\nLine two.\nLine three.")
    effects = says(bench, 1, "Line four.\nLine five.\nLine six.")
    assert bench.life.outcome is not None or submitted(effects)
    assert len(bench.life.attempts) < 4


def test_empty_answers_are_no_answers() -> None:
    """All silent: the request completes with an empty text."""
    bench = consensus(2.0, 1.5)
    bench.experts = bench.experts[:2]
    says(bench, 0, "")
    assert outcomes(says(bench, 1, "")) == [Completed("stop")]
