"""The life of one request."""

from __future__ import annotations

import pytest

from moe2.common.error_codes import ErrorCode
from moe2.common.errors import REQUEST_FAULTS, JobErrorCode
from moe2.common.link.messages import JobStarted, Submit, TokenPiece
from moe2.common.link.prompts import ChatMessage, ChatPrompt, TextPrompt, Tool
from moe2.coordinator.choosing.result import NoExpert
from moe2.coordinator.ledger.entry import AttemptState
from moe2.coordinator.serving import effects, events
from moe2.coordinator.serving.effects import Cancelled, Completed, Deliver, Failed, ReleaseExpert, Retire, SubmitJob
from moe2.coordinator.serving.life import MAX_ATTEMPTS
from moe2.coordinator.serving.progress import WIND_DOWN_S
from tests.coordinator.experts import expert, text_request
from tests.coordinator.lives import EXPERTS, USAGE, LifeBench, outcomes, retires, stopped, submitted


@pytest.fixture
def life() -> LifeBench:
    return LifeBench().admitted()


# --- An undisturbed request -------------------------------------------------------------------------------------------


def test_a_request_is_submitted_with_all_its_parameters() -> None:
    """And with the time that is left of its own."""
    life = LifeBench()
    asked = life.life.request
    assert life.do(events.Admitted()) == [
        SubmitJob(
            EXPERTS[0],
            Submit(
                job_id="req-1.0",
                request_id="req-1",
                model="m",
                prompt=asked.prompt,
                sampling=asked.generation.sampling,
                max_tokens=20,
                stop=("END",),
                logprobs=2,
                deadline_s=59.5,
            ),
        )
    ]


def test_the_choice_is_asked_for_what_the_request_needs() -> None:
    """A chat needs a template, a text does not."""
    life = LifeBench().admitted()
    [asked] = life.chosen_for
    assert (asked.model, asked.demand, asked.excluded) == ("m", life.life.request.demand, frozenset())
    assert asked.needs_chat_template
    text = LifeBench(prompt=TextPrompt(text="Once"))
    assert text.life.request == text_request()
    text.admitted()
    assert not text.chosen_for[0].needs_chat_template


def test_tokens_are_delivered_and_the_end_concludes(life: LifeBench) -> None:
    """Then the expert has room again and everything is accounted."""
    assert life.do(events.AttemptStarted(JobStarted(job_id="req-1.0", prompt_tokens=7, queue_s=0.0))) == []
    life.now_s = 101.0
    assert life.tokens("a", "b") == [Deliver((TokenPiece("a"), TokenPiece("b")))]
    life.now_s = 102.0
    assert life.tokens("c") == [Deliver((TokenPiece("c"),))]
    assert life.done("length") == [
        ReleaseExpert("agent-1/m", "req-1.0"),
        effects.Conclude(Completed("length")),
        Retire(),
    ]
    [attempt] = life.life.attempts
    assert (attempt.state, attempt.usage) == (AttemptState.ANSWERED, USAGE)
    assert (life.life.first_token_s, life.life.concluded_s) == (101.0, 102.0)


def test_an_answer_without_tokens_is_an_answer(life: LifeBench) -> None:
    """A model may end at once."""
    assert outcomes(life.done()) == [Completed("stop")]
    assert life.life.first_token_s is None


def test_nobody_to_ask_is_a_failure_with_the_selections_reason() -> None:
    """Concluded and retired at once."""
    life = LifeBench(expert(context_tokens=0))
    effects = life.do(events.Admitted())
    assert outcomes(effects) == [Failed("exhausted", "Nobody is left.")]
    assert retires(effects)


# --- Failover ---------------------------------------------------------------------------------------------------------

PASSING = [code for code in JobErrorCode if code not in REQUEST_FAULTS and code is not JobErrorCode.DEADLINE_EXCEEDED]


@pytest.mark.parametrize("code", PASSING)
def test_before_the_first_token_another_expert_takes_over(life: LifeBench, code: JobErrorCode) -> None:
    """Whatever may not happen there again; the failed expert is released and not asked again."""
    effects = life.failed(code)
    assert effects[0] == ReleaseExpert("agent-1/m", "req-1.0")
    assert submitted(effects) == ["req-1.1"]
    assert outcomes(effects) == []
    assert life.chosen_for[-1].excluded == {"agent-1/m"}
    assert outcomes(life.done(attempt=1)) == [Completed("stop")]
    assert [attempt.state for attempt in life.life.attempts] == [AttemptState.FAILED, AttemptState.ANSWERED]


@pytest.mark.parametrize("code", [*PASSING, JobErrorCode.CONTEXT_EXCEEDED])
def test_after_the_first_token_the_client_is_told(life: LifeBench, code: JobErrorCode) -> None:
    """Half an answer of one model and half of another is none."""
    life.tokens("a")
    effects = life.failed(code)
    assert submitted(effects) == []
    assert outcomes(effects) == [Failed(code, "It died.")]
    assert retires(effects)


@pytest.mark.parametrize("code", [JobErrorCode.INVALID_REQUEST, JobErrorCode.DEADLINE_EXCEEDED])
def test_what_would_fail_everywhere_is_not_tried_again(life: LifeBench, code: JobErrorCode) -> None:
    """The request is at fault, or its time is up."""
    effects = life.failed(code)
    assert submitted(effects) == []
    assert outcomes(effects) == [Failed(code, "It died.")]


def test_a_prompt_too_long_is_only_tried_on_a_larger_context(life: LifeBench) -> None:
    """The second expert has one, the third has not."""
    assert submitted(life.failed(JobErrorCode.CONTEXT_EXCEEDED)) == ["req-1.1"]
    assert life.life.attempts[1].expert is EXPERTS[1]
    assert life.chosen_for[-1].least_context_tokens == 4096
    assert outcomes(life.failed(JobErrorCode.CONTEXT_EXCEEDED, attempt=1, message="8192 are too few.")) == [
        Failed(JobErrorCode.CONTEXT_EXCEEDED, "8192 are too few.")
    ]


def test_a_fault_of_the_request_stays_the_reason(life: LifeBench) -> None:
    """A crash afterwards does not turn a prompt that is too long into a server error."""
    life.failed(JobErrorCode.CONTEXT_EXCEEDED, message="Too long.")
    effects = life.failed(JobErrorCode.ENGINE_CRASHED, attempt=1)
    assert outcomes(effects) == [Failed(JobErrorCode.CONTEXT_EXCEEDED, "Too long.")]


def test_the_last_failure_is_the_reason_when_nobody_is_left(life: LifeBench) -> None:
    """What an expert said beats what the table says."""
    life.failed(message="first")
    life.failed(attempt=1, message="second")
    assert outcomes(life.failed(attempt=2, message="third")) == [Failed(JobErrorCode.ENGINE_CRASHED, "third")]


def test_attempts_are_bounded() -> None:
    """A request that kills experts does not go through the whole fleet."""
    life = LifeBench(*(expert(f"agent-{n}") for n in range(MAX_ATTEMPTS + 3))).admitted()
    for attempt in range(MAX_ATTEMPTS - 1):
        assert submitted(life.failed(attempt=attempt)) == [f"req-1.{attempt + 1}"]
    effects = life.failed(attempt=MAX_ATTEMPTS - 1)
    assert submitted(effects) == []
    assert outcomes(effects) == [Failed(JobErrorCode.ENGINE_CRASHED, "It died.")]


def test_a_refused_attempt_spent_nothing(life: LifeBench) -> None:
    """Its usage is none, and it says why it failed."""
    life.failed(JobErrorCode.QUEUE_FULL, usage=None, message="Full.")
    attempt = life.life.attempts[0]
    assert (attempt.usage, attempt.error) == (None, "Full.")


def test_words_of_an_attempt_that_was_given_up_are_ignored(life: LifeBench) -> None:
    """The client must not read two answers at once."""
    life.failed()
    assert life.tokens("late") == []
    assert life.done() == []
    assert life.failed() == []
    assert life.tokens("now", attempt=1) == [Deliver((TokenPiece("now"),))]


def test_words_of_unknown_attempts_are_ignored(life: LifeBench) -> None:
    """An agent's confusion is not ours."""
    assert life.tokens("x", attempt=9) == []
    assert life.done(attempt=9) == []
    assert life.failed(attempt=9) == []


# --- Lost agents ------------------------------------------------------------------------------------------------------


def test_a_lost_agent_is_a_failure_like_others(life: LifeBench) -> None:
    """Before the first token another expert takes over; nobody can say what was spent."""
    effects = life.lost()
    assert effects[0] == ReleaseExpert("agent-1/m", "req-1.0")
    assert submitted(effects) == ["req-1.1"]
    attempt = life.life.attempts[0]
    assert (attempt.state, attempt.usage, attempt.error) == (
        AttemptState.LOST,
        None,
        "The link to name of agent-1 broke.",
    )


def test_an_agent_lost_in_the_middle_of_an_answer_is_told(life: LifeBench) -> None:
    """With the agent's name."""
    life.tokens("a")
    effects = life.lost()
    assert outcomes(effects) == [Failed(JobErrorCode.AGENT_LOST, "The link to name of agent-1 broke.")]
    assert retires(effects)


def test_other_agents_may_be_lost(life: LifeBench) -> None:
    """Also the one whose attempt is over already."""
    assert life.lost("agent-2") == []
    life.failed()
    assert life.lost("agent-1") == []


# --- Giving up --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["submitted", "streaming"])
def test_a_client_that_leaves_stops_the_decoder(life: LifeBench, phase: str) -> None:
    """At once, and the request is retired when the agent has accounted what was spent."""
    if phase == "streaming":
        life.tokens("a")
    effects = life.gone()
    assert stopped(effects) == [("agent-1", "req-1.0")]
    assert outcomes(effects) == [Cancelled()]
    assert not retires(effects)
    assert life.tokens("b") == []
    assert life.done("cancelled") == [ReleaseExpert("agent-1/m", "req-1.0"), Retire()]
    attempt = life.life.attempts[0]
    assert (attempt.state, attempt.usage) == (AttemptState.CANCELLED, USAGE)


def test_a_client_that_leaves_between_attempts_stops_the_running_one(life: LifeBench) -> None:
    """Only that one."""
    life.failed()
    assert stopped(life.gone()) == [("agent-2", "req-1.1")]


def test_a_client_that_leaves_after_the_end_changes_nothing(life: LifeBench) -> None:
    """Every handler says so when it is done."""
    life.done()
    assert life.gone() == []


def test_a_deadline_stops_the_decoder_and_is_told(life: LifeBench) -> None:
    """With how long the client has waited."""
    effects = life.at_deadline()
    assert stopped(effects) == [("agent-1", "req-1.0")]
    assert outcomes(effects) == [Failed(JobErrorCode.DEADLINE_EXCEEDED, "The request's time was up after 60.0 s.")]
    assert not retires(effects)


def test_a_timer_that_fires_early_changes_nothing(life: LifeBench) -> None:
    """Clocks are not exact."""
    life.tokens("a")
    life.now_s = 159.999
    assert life.do(events.TimePassed()) == []


def test_a_stopping_service_ends_what_still_runs(life: LifeBench) -> None:
    """And tells the client to send it again."""
    effects = life.do(events.ServiceStopping())
    assert stopped(effects) == [("agent-1", "req-1.0")]
    assert outcomes(effects) == [Failed("stopping", "The coordinator is shutting down; send it again.")]


@pytest.mark.parametrize("end", ["done", "failed", "lost"])
def test_late_usage_is_accounted_and_changes_no_outcome(life: LifeBench, end: str) -> None:
    """Whatever a stopped attempt reports in the end, the client was told once."""
    life.gone()
    effects = life.done() if end == "done" else life.failed() if end == "failed" else life.lost()
    assert outcomes(effects) == []
    assert submitted(effects) == []
    assert retires(effects)
    assert life.life.outcome == Cancelled()
    assert life.life.attempts[0].usage == (None if end == "lost" else USAGE)


def test_an_agent_that_never_confirms_is_waited_for_within_a_bound(life: LifeBench) -> None:
    """Then its expert has room again, and nobody can say what it spent."""
    life.gone()
    assert life.life.next_deadline_s == life.now_s + WIND_DOWN_S
    effects = life.at_deadline()
    assert effects == [ReleaseExpert("agent-1/m", "req-1.0"), Retire()]
    attempt = life.life.attempts[0]
    assert (attempt.state, attempt.usage) == (AttemptState.LOST, None)


def test_an_agent_that_cancels_by_itself_is_an_error(life: LifeBench) -> None:
    """Nobody asked it to: another expert takes over, and once tokens are out the client is told."""
    assert submitted(life.done("cancelled")) == ["req-1.1"]
    assert life.life.attempts[0].state is AttemptState.FAILED
    life.tokens("Hi", attempt=1)
    told = [Failed(JobErrorCode.AGENT_BROKE_RULES, "The agent cancelled the job.")]
    assert outcomes(life.done("cancelled", attempt=1)) == told


def test_a_jobs_form_is_the_requests() -> None:
    """Schema, grammar and forced tools reach the agent, and the choice knows that tools are needed."""
    prompt = ChatPrompt(messages=(ChatMessage(role="user", content="?"),), tools=(Tool(name="f"),))
    life = LifeBench(prompt=prompt, forced_tools=("f",))
    (effect,) = life.admitted().effects
    assert isinstance(effect, SubmitJob)
    assert isinstance(effect.job, Submit)
    assert (effect.job.prompt, effect.job.forced_tools) == (prompt, ("f",))
    assert life.chosen_for[0].needs_tools


def test_an_answer_that_nobody_asked_for_changes_nothing() -> None:
    """A choice or a leave to hedge that comes without a question, or after the outcome, is ignored."""
    life = LifeBench()
    answers = (events.ExpertsChosen(NoExpert(ErrorCode.EXHAUSTED, "")), events.HedgeAnswered(is_allowed=True))
    for answer in answers:
        assert life.life.handle(answer, life.now_s) == []
    life.life.handle(events.Admitted(), life.now_s)
    life.gone()
    for answer in answers:
        assert life.life.handle(answer, life.now_s) == []
    assert life.life.attempts == []


def test_a_request_asks_for_a_choice_and_goes_on_with_the_answer() -> None:
    """The lifecycle itself chooses nothing: it says what it asks for, and acts once it is told."""
    life = LifeBench().life
    [question] = life.handle(events.Admitted(), 100.5)
    assert isinstance(question, effects.ChooseExperts)
    assert life.attempts == []
    refusal = NoExpert(ErrorCode.INFEASIBLE, "Nobody can.")
    assert outcomes(life.handle(events.ExpertsChosen(refusal), 100.5)) == [Failed("infeasible", "Nobody can.")]
