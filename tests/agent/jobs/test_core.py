"""The life of jobs on an agent: undisturbed ones, refusals, and what is reported of experts."""

from __future__ import annotations

import pytest

from moe2.agent.engine import protocol
from moe2.agent.jobs.effects import ReportChange, SendTokens
from moe2.agent.jobs.events import CancelRequested, DrainRequested, FileHashed, JobSubmitted, TokenTaken
from moe2.common.errors import JobErrorCode
from moe2.common.generation import Sampling
from moe2.common.link.messages import (
    Candidate,
    ContinuationScore,
    FollowJob,
    JobDone,
    JobPieces,
    JobScored,
    JobStarted,
    JobUsage,
    NextTokens,
    ScoreJob,
    Submit,
    TakeToken,
    TokenPiece,
    Tokens,
)
from moe2.common.link.prompts import TextPrompt
from moe2.common.link.reports import ExpertState
from tests.agent.jobs.corebench import (
    JOULES,
    LOADED,
    MAX_QUEUE,
    SLOTS,
    CoreBench,
    commands,
    decoded,
    finished,
    settling,
)


@pytest.fixture
def agent() -> CoreBench:
    return CoreBench()


# --- An undisturbed job -----------------------------------------------------------------------------------------------


def test_a_job_goes_to_a_free_slot_with_all_its_parameters(agent: CoreBench) -> None:
    """The engine is told everything that it needs to decode."""
    asked = Submit(
        job_id="j",
        request_id="r",
        model="m",
        prompt=TextPrompt(text="Once"),
        sampling=Sampling(seed=7),
        max_tokens=9,
        stop=("END",),
        logprobs=2,
    )
    assert commands(agent.do(JobSubmitted(asked))) == [
        Submit(
            request_id="r",
            model="m",
            job_id="j",
            prompt=TextPrompt(text="Once"),
            sampling=Sampling(seed=7),
            max_tokens=9,
            stop=("END",),
            logprobs=2,
        )
    ]


def test_a_job_reports_its_start_its_tokens_and_its_end(agent: CoreBench) -> None:
    """With what it consumed and how long each phase took."""
    agent.submit()
    agent.engine(protocol.Started(job_id="j", prompt_tokens=7))
    agent.engine(decoded("j", "a", "b"))
    agent.engine(finished("j"))
    agent.settle()
    assert agent.tokens == [JobPieces("j", (TokenPiece("a"), TokenPiece("b")))]
    assert agent.sent == [
        JobStarted(job_id="j", prompt_tokens=7, queue_s=0.0),
        JobDone(
            job_id="j",
            reason="stop",
            usage=JobUsage(
                prompt_tokens=7,
                cached_tokens=3,
                decoded_tokens=5,
                queue_s=0.5,
                prefill_s=0.25,
                decode_s=1.0,
                energy=JOULES,
            ),
        ),
    ]
    assert agent.core.is_idle


def test_the_end_waits_for_the_energy_account(agent: CoreBench) -> None:
    """No usage leaves without its joules."""
    agent.submit()
    assert settling(agent.engine(finished("j"))) == ["j"]
    assert agent.sent == []
    assert isinstance(agent.settle(), JobDone)


def test_the_slot_is_free_before_the_account_is_settled(agent: CoreBench) -> None:
    """The next job need not wait for a sensor."""
    for job_id in ("1", "2", "3"):
        agent.submit(job_id)
    assert [c.job_id for c in commands(agent.engine(finished("1"))) if isinstance(c, Submit)] == ["3"]


def test_an_account_settled_twice_ends_a_job_once(agent: CoreBench) -> None:
    """Exactly one ending."""
    agent.submit()
    agent.engine(finished("j"))
    assert agent.settle() is not None
    assert agent.settle() is None


def test_an_account_settled_too_early_ends_nothing(agent: CoreBench) -> None:
    """A job that no account is open for stays."""
    assert agent.settle("unknown") is None


def test_waiting_counts_as_queue_time(agent: CoreBench) -> None:
    """From receipt to the slot, and in the engine after it."""
    for job_id in ("1", "2", "3"):
        agent.submit(job_id)
    agent.now_s += 4.0
    agent.engine(finished("1"))
    agent.engine(protocol.Started(job_id="3", prompt_tokens=1))
    started = agent.sent[-1]
    assert isinstance(started, JobStarted)
    assert started.queue_s == 4.0
    agent.engine(finished("3"))
    done = agent.settle("3")
    assert isinstance(done, JobDone)
    assert done.usage.queue_s == 4.5


def test_tokens_of_one_step_stay_together(agent: CoreBench) -> None:
    """All jobs of a decoding step make one effect, so that they can share a frame."""
    agent.submit("1")
    agent.submit("2")
    step = Tokens(jobs=tuple(JobPieces(job_id=job_id, pieces=(TokenPiece("x"),)) for job_id in ("1", "2")))
    assert agent.engine(step) == [SendTokens((JobPieces("1", (TokenPiece("x"),)), JobPieces("2", (TokenPiece("x"),))))]


# --- Slots and queue --------------------------------------------------------------------------------------------------


def test_jobs_wait_in_order_for_a_slot(agent: CoreBench) -> None:
    """First come, first served."""
    started = [c for job_id in "1234" for c in commands(agent.submit(job_id))]
    started += commands(agent.engine(finished("2")))
    started += commands(agent.engine(finished("1")))
    assert [c.job_id for c in started if isinstance(c, Submit)] == ["1", "2", "3", "4"]


def test_a_full_queue_refuses(agent: CoreBench) -> None:
    """Bounded, and in words that say how many."""
    for job_id in "1234":
        agent.submit(job_id)
    refusal = agent.refusal("5")
    assert refusal.code == JobErrorCode.QUEUE_FULL
    assert refusal.message == "All 2 slots and 2 queue places are taken."
    assert refusal.usage is None


def test_models_do_not_share_slots() -> None:
    """One model's crowd does not keep another's waiting."""
    agent = CoreBench("m", "other")
    for job_id in "1234":
        agent.submit(job_id)
    assert commands(agent.submit("5", model="other"))


# --- Refusals ---------------------------------------------------------------------------------------------------------


def test_an_unknown_model_is_refused_with_those_that_there_are(agent: CoreBench) -> None:
    """The coordinator's table was out of date."""
    refusal = agent.refusal(model="other")
    assert refusal.code == JobErrorCode.UNKNOWN_EXPERT
    assert refusal.message == "This agent does not serve 'other'; it serves m."


def test_a_model_that_is_not_loaded_refuses() -> None:
    """It says in which state it is."""
    refusal = CoreBench(ready=False).refusal()
    assert (refusal.code, refusal.message) == (JobErrorCode.NOT_READY, "m is loading.")


def test_a_model_that_failed_refuses_with_its_reason(agent: CoreBench) -> None:
    """The reason travels to whoever asked."""
    agent.engine(protocol.LoadFailed(code="x", message="There is no file."))
    refusal = agent.refusal()
    assert (refusal.code, refusal.message) == (JobErrorCode.NOT_READY, "m is failed: There is no file.")


def test_a_draining_agent_refuses(agent: CoreBench) -> None:
    """New jobs go elsewhere."""
    agent.do(DrainRequested())
    assert agent.refusal().code == JobErrorCode.DRAINING


def test_a_job_id_in_use_is_refused(agent: CoreBench) -> None:
    """The running job is not disturbed."""
    agent.submit()
    assert agent.refusal(deadline_s=9.0).code == JobErrorCode.INVALID_REQUEST
    agent.engine(finished("j"))
    assert isinstance(agent.settle(), JobDone)


def test_a_job_submitted_twice_runs_once(agent: CoreBench) -> None:
    """The second copy says nothing: a refusal would be taken for the end of the first."""
    agent.submit()
    assert agent.submit() == []
    agent.engine(finished("j"))
    assert isinstance(agent.settle(), JobDone)


# --- Experts ----------------------------------------------------------------------------------------------------------


def test_a_loaded_expert_reports_what_its_file_says(agent: CoreBench) -> None:
    """Facts, context and the rates of the warm-up."""
    [report] = agent.core.expert_reports(0.0)
    assert report.state is ExpertState.READY
    assert (report.architecture, report.quantization, report.context_tokens) == ("llama", "Q4_1", 2048)
    assert report.performance.decode_tokens_per_s == 50.0
    assert report.performance.n_requests == 0


def test_loading_reports_its_progress() -> None:
    """What a person waits for."""
    agent = CoreBench(ready=False)
    agent.engine(protocol.Loading(progress=0.5))
    [report] = agent.core.expert_reports(0.0)
    assert (report.state, report.load_progress, report.architecture) == (ExpertState.LOADING, 0.5, None)


def test_the_report_counts_slots_and_queue(agent: CoreBench) -> None:
    """As they are now."""
    for job_id in "123":
        agent.submit(job_id)
    [report] = agent.core.expert_reports(0.0)
    assert (report.active, report.queued, report.slots, report.max_queue) == (2, 1, SLOTS, MAX_QUEUE)


def test_a_crash_is_reported_with_its_reason(agent: CoreBench) -> None:
    """Restarting, one more restart, and why."""
    agent.crash()
    [report] = agent.core.expert_reports(0.0)
    assert (report.state, report.restarts, report.last_error) == (ExpertState.RESTARTING, 1, "killed by SIGSEGV")
    assert (report.active, report.queued) == (0, 0)


def test_a_model_that_cannot_be_loaded_is_failed_not_restarting(agent: CoreBench) -> None:
    """Its own message stays the reason, whatever the exit looked like."""
    agent.engine(protocol.LoadFailed(code="x", message="There is no file."))
    agent.crash("There is no file.", permanent=True)
    [report] = agent.core.expert_reports(0.0)
    assert (report.state, report.last_error) == (ExpertState.FAILED, "There is no file.")


def test_the_reason_is_always_that_of_the_last_exit(agent: CoreBench) -> None:
    """A model that first was missing and then crashes is a crashing one."""
    agent.crash("There is no file.", permanent=True)
    agent.crash("killed by SIGKILL")
    [report] = agent.core.expert_reports(0.0)
    assert (report.state, report.last_error) == (ExpertState.RESTARTING, "killed by SIGKILL")


def test_a_restarted_expert_is_ready_without_an_old_error(agent: CoreBench) -> None:
    """What has been mended is no longer shown; that it happened is."""
    agent.crash()
    agent.engine(LOADED)
    [report] = agent.core.expert_reports(0.0)
    assert (report.state, report.last_error, report.restarts) == (ExpertState.READY, None, 1)
    assert commands(agent.submit())


def test_changes_that_choices_rest_on_are_reported(agent: CoreBench) -> None:
    """Each of these makes the last report untrue."""
    changes = [
        agent.submit(),
        agent.engine(finished("j")),
        agent.do(DrainRequested()),
        agent.crash(),
        agent.engine(LOADED),
        agent.engine(protocol.LoadFailed(code="x", message="No.")),
    ]
    assert all(ReportChange() in effects for effects in changes)


def test_jobs_are_counted_by_how_they_ended(agent: CoreBench) -> None:
    """One done, one failed."""
    agent.submit("1")
    agent.submit("2")
    agent.engine(finished("1"))
    agent.settle("1")
    agent.crash()
    agent.settle("2")
    assert (agent.core.jobs_finished, agent.core.jobs_failed) == (1, 1)


def test_a_score_is_asked_of_the_engine_and_sent_with_its_usage(agent: CoreBench) -> None:
    """The continuations' scores come back with what they cost."""
    order = ScoreJob(job_id="j", request_id="r", model="m", prompt=TextPrompt(text="Wet?"), continuations=("y", "n"))
    asked = ScoreJob(request_id="r", model="m", job_id="j", prompt=order.prompt, continuations=order.continuations)
    assert commands(agent.do(JobSubmitted(order))) == [asked]
    scores = (ContinuationScore(-1.0, 1, 1), ContinuationScore(-2.0, 1, 1))
    agent.engine(
        protocol.Scored(
            job_id="j",
            scores=scores,
            prompt_tokens=7,
            cached_tokens=3,
            decoded_tokens=2,
            wait_s=0.0,
            prefill_s=0.25,
            decode_s=0.5,
        )
    )
    scored = agent.settle()
    assert isinstance(scored, JobScored)
    assert scored.scores == scores
    assert (scored.usage.decoded_tokens, scored.usage.energy) == (2, JOULES)


def test_a_follower_passes_proposals_and_taken_tokens_on(agent: CoreBench) -> None:
    """What the engine proposes goes to the coordinator, what that draws goes to the engine."""
    order = FollowJob(job_id="j", request_id="r", model="m", prompt=TextPrompt(text="Once"), top_p=0.5, most=9)
    asked = FollowJob(request_id="r", model="m", job_id="j", prompt=order.prompt, top_p=0.5, most=9)
    assert commands(agent.do(JobSubmitted(order))) == [asked]
    candidates = (Candidate(4, -0.5, b"x", False),)
    agent.engine(NextTokens(job_id="j", step=0, candidates=candidates))
    assert agent.sent == [NextTokens(job_id="j", step=0, candidates=candidates)]
    taken = TokenTaken(TakeToken(job_id="j", step=0, token=4))
    assert commands(agent.do(taken)) == [TakeToken(job_id="j", step=0, token=4)]
    agent.engine(finished("j"))
    assert isinstance(agent.settle(), JobDone)


def test_a_cancelled_follower_says_no_more(agent: CoreBench) -> None:
    """Neither a proposal nor a token passes after the cancellation."""
    order = FollowJob(job_id="j", request_id="r", model="m", prompt=TextPrompt(text="Once"))
    agent.do(JobSubmitted(order))
    agent.do(CancelRequested("j"))
    agent.engine(NextTokens(job_id="j", step=0, candidates=()))
    assert agent.sent == []
    assert commands(agent.do(TokenTaken(TakeToken(job_id="j", step=0, token=4)))) == []


def test_jobs_are_counted_by_model_running_and_queued(agent: CoreBench) -> None:
    """A link asks for its own jobs; a model that nobody serves has none."""
    for number in range(SLOTS + 1):
        agent.submit(f"own-{number}")
    agent.submit("other")
    assert agent.core.n_jobs("m", lambda job_id: job_id.startswith("own")) == SLOTS + 1
    assert agent.core.n_jobs("m", lambda _: True) == SLOTS + 2
    assert agent.core.n_jobs("nobody", lambda _: True) == 0


def test_a_files_checksum_is_reported_of_its_own_model_only() -> None:
    """It is forgotten where the file has changed; one of a model that is not served changes nothing."""
    agent = CoreBench("m", "n")
    assert agent.do(FileHashed("m", "ab" * 32)) == [ReportChange()]
    agent.do(FileHashed("gone", "cd" * 32))
    assert [one.file_sha256 for one in agent.core.expert_reports(agent.now_s)] == ["ab" * 32, None]
    agent.do(FileHashed("m", None))
    assert [one.file_sha256 for one in agent.core.expert_reports(agent.now_s)] == [None, None]
