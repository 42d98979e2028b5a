"""The life of jobs on an agent: every phase times every disturbance."""

from __future__ import annotations

import pytest

from moe2.agent.engine import protocol
from moe2.agent.jobs.effects import Effect, KillEngine
from moe2.agent.jobs.events import CancelRequested, DrainRequested, LinkLost, TimePassed
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import CancelJob, JobDone, JobFailed, JobStarted, JobWord, Submit
from tests.agent.jobs.corebench import (
    JOULES,
    CoreBench,
    commands,
    decoded,
    finished,
    settling,
)


@pytest.fixture
def agent() -> CoreBench:
    return CoreBench()


# --- Every phase x every disturbance ----------------------------------------------------------------------------------

DISTURBANCES = ["cancel", "deadline", "link lost", "crash", "drain"]
PHASES = ["queued", "running", "decoding", "settling"]


def in_phase(phase: str) -> CoreBench:
    """An agent whose job "j" is in this phase; its deadline is in 60 s."""
    agent = CoreBench()
    if phase == "queued":
        agent.submit("1")
        agent.submit("2")
    agent.submit(deadline_s=60.0)
    if phase in ("decoding", "settling"):
        agent.engine(protocol.Started(job_id="j", prompt_tokens=7))
        agent.engine(decoded("j", "a", "b"))
    if phase == "settling":
        agent.engine(finished("j"))
    agent.sent.clear()
    return agent


def disturb(agent: CoreBench, disturbance: str) -> list[Effect]:
    match disturbance:
        case "cancel":
            return agent.do(CancelRequested("j"))
        case "deadline":
            agent.now_s += 60.0
            return agent.do(TimePassed())
        case "link lost":
            return agent.do(LinkLost())
        case "crash":
            return agent.crash()
        case _:
            return agent.do(DrainRequested())


def end(agent: CoreBench, phase: str, disturbance: str) -> JobWord | None:
    """Let the engine, if it still lives, and the account do their part; what "j" ends with."""
    if disturbance != "crash":
        reason = "cancelled" if disturbance in ("cancel", "deadline", "link lost") else "stop"
        if phase == "queued" and disturbance == "drain":
            agent.engine(finished("1"))
        agent.engine(finished("j", reason))
    return agent.settle()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_a_disturbed_job_has_the_ending_that_fits(phase: str, disturbance: str) -> None:
    """One ending or, where nobody can be told, none; and the job is gone."""
    agent = in_phase(phase)
    disturb(agent, disturbance)
    ending = end(agent, phase, disturbance)
    assert "j" not in agent.core.jobs
    match disturbance, phase:
        case "link lost", _:
            assert ending is None
        case (_, "settling") | ("drain", _):
            assert isinstance(ending, JobDone)
            assert ending.reason == "stop"
        case "cancel", _:
            assert isinstance(ending, JobDone)
            assert ending.reason == "cancelled"
        case "deadline", _:
            assert isinstance(ending, JobFailed)
            assert ending.code == JobErrorCode.DEADLINE_EXCEEDED
            assert ending.message == "The job's time was up after 60.0 s."
            assert ending.in_batch is None
        case _:
            assert isinstance(ending, JobFailed)
            assert ending.code == JobErrorCode.ENGINE_CRASHED
            assert ending.message == "The engine of m died: killed by SIGSEGV"
            assert ending.in_batch is (phase != "queued")
    if ending is not None:
        assert not isinstance(ending, JobStarted)
        assert ending.usage is not None
        assert ending.usage.energy == JOULES


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("disturbance", ["cancel", "deadline", "link lost"])
def test_the_decoder_is_stopped_where_it_runs_and_only_there(phase: str, disturbance: str) -> None:
    """One word to the engine for a job that holds a slot, none for others."""
    agent = in_phase(phase)
    stopped = [c.job_id for c in commands(disturb(agent, disturbance)) if isinstance(c, CancelJob)]
    assert stopped.count("j") == (1 if phase in ("running", "decoding") else 0)
    assert "j" not in [c.job_id for c in commands(disturb(agent, disturbance)) if isinstance(c, CancelJob)]


@pytest.mark.parametrize("disturbance", ["cancel", "deadline", "link lost", "crash"])
def test_a_queued_job_that_ends_spent_no_tokens(disturbance: str) -> None:
    """Its usage says how long it waited, and nothing that it did not do."""
    agent = in_phase("queued")
    disturb(agent, disturbance)
    ending = agent.core.jobs["j"].ending
    assert ending is not None
    assert ending.usage is not None
    assert (ending.usage.prompt_tokens, ending.usage.decoded_tokens) == (None, 0)
    assert (ending.usage.prefill_s, ending.usage.decode_s) == (None, None)


def test_a_crash_accounts_the_tokens_that_were_seen() -> None:
    """What was burnt before the crash was burnt."""
    agent = in_phase("decoding")
    agent.crash()
    failed = agent.settle()
    assert isinstance(failed, JobFailed)
    assert failed.usage is not None
    assert (failed.usage.prompt_tokens, failed.usage.decoded_tokens) == (7, 2)


def test_a_job_that_finished_before_the_cancellation_arrived_is_cancelled_in_name_only() -> None:
    """The engine's word on how it ended stands."""
    agent = in_phase("decoding")
    agent.do(CancelRequested("j"))
    agent.engine(finished("j", "stop"))
    done = agent.settle()
    assert isinstance(done, JobDone)
    assert done.reason == "stop"


def test_tokens_after_a_cancellation_are_counted_and_not_sent() -> None:
    """Nobody reads them, but they cost."""
    agent = in_phase("decoding")
    agent.do(CancelRequested("j"))
    agent.tokens.clear()
    assert agent.engine(decoded("j", "c", "d")) == []
    agent.crash()
    failed = agent.settle()
    assert isinstance(failed, JobFailed)
    assert failed.usage is not None
    assert failed.usage.decoded_tokens == 4


def test_cancelling_what_is_unknown_does_nothing(agent: CoreBench) -> None:
    """The job may have ended while the word was on its way."""
    assert agent.do(CancelRequested("gone")) == []


def test_a_drained_agent_still_serves_its_queue() -> None:
    """Accepted is accepted."""
    agent = in_phase("queued")
    agent.do(DrainRequested())
    assert [c.job_id for c in commands(agent.engine(finished("1"))) if isinstance(c, Submit)] == ["j"]


def test_a_deadline_spares_jobs_whose_time_is_not_up(agent: CoreBench) -> None:
    """Each job has its own."""
    agent.submit("short", deadline_s=1.0)
    agent.submit("long", deadline_s=5.0)
    agent.submit("endless")
    assert agent.core.next_deadline_s == 101.0
    agent.now_s = 101.0
    assert [c.job_id for c in commands(agent.do(TimePassed())) if isinstance(c, CancelJob)] == ["short"]
    assert agent.core.next_deadline_s == 105.0


def test_no_deadline_is_left_once_jobs_end(agent: CoreBench) -> None:
    """A timer for a job that is over would wake nobody."""
    agent.submit(deadline_s=1.0)
    agent.engine(finished("j"))
    assert agent.core.next_deadline_s is None


# --- Jobs that the engine fails ---------------------------------------------------------------------------------------


def test_an_engine_that_refuses_a_job_is_quoted(agent: CoreBench) -> None:
    """Its own tokenizer has the last word on what fits."""
    agent.submit()
    agent.engine(protocol.JobFailed(job_id="j", code="context_exceeded", message="Too long.", prompt_tokens=9000))
    failed = agent.settle()
    assert isinstance(failed, JobFailed)
    assert (failed.code, failed.message) == (JobErrorCode.CONTEXT_EXCEEDED, "Too long.")
    assert failed.usage is not None
    assert failed.usage.prompt_tokens == 9000


def test_an_engines_failure_keeps_what_was_known(agent: CoreBench) -> None:
    """An event that does not say how long the prompt was does not make it unknown."""
    agent.submit()
    agent.engine(protocol.Started(job_id="j", prompt_tokens=7))
    agent.engine(decoded("j", "a", "b"))
    agent.engine(protocol.JobFailed(job_id="j", code="out_of_memory", message="No memory."))
    failed = agent.settle()
    assert isinstance(failed, JobFailed)
    assert failed.usage is not None
    assert (failed.usage.prompt_tokens, failed.usage.decoded_tokens) == (7, 2)


def test_an_engines_unknown_failure_is_internal(agent: CoreBench) -> None:
    """A code that this daemon does not know must not stop it."""
    agent.submit()
    agent.engine(protocol.JobFailed(job_id="j", code="cosmic_ray", message="A bit flipped."))
    failed = agent.settle()
    assert isinstance(failed, JobFailed)
    assert failed.code == JobErrorCode.INTERNAL
    assert "A bit flipped." in failed.message


def test_a_failed_job_frees_its_slot(agent: CoreBench) -> None:
    """The next one in the queue runs."""
    for job_id in "123":
        agent.submit(job_id)
    effects = agent.engine(protocol.JobFailed(job_id="1", code="internal", message="No."))
    assert [c.job_id for c in commands(effects) if isinstance(c, Submit)] == ["3"]


@pytest.mark.parametrize(
    "event",
    [
        protocol.Started(job_id="ghost", prompt_tokens=1),
        decoded("ghost", "boo"),
        finished("ghost"),
        protocol.JobFailed(job_id="ghost", code="internal", message="Boo."),
    ],
)
def test_words_about_unknown_jobs_are_ignored(agent: CoreBench, event: protocol.Event) -> None:
    """A job that was given up may still be talked about."""
    assert agent.engine(event) == []


# --- An engine that does not stop -------------------------------------------------------------------------------------


def test_an_engine_that_does_not_stop_a_job_is_killed_once() -> None:
    """Its slots would be taken for good; its end then ends the job, with what it spent."""
    agent = CoreBench()
    agent.submit(deadline_s=5.0)
    agent.now_s += 5.0
    agent.do(TimePassed())
    stuck_at_s = agent.core.next_deadline_s
    assert stuck_at_s is not None
    agent.now_s = stuck_at_s
    [killed] = agent.do(TimePassed())
    assert isinstance(killed, KillEngine)
    assert (killed.model, killed.reason) == ("m", "stuck: it did not stop a job within 60 s")
    assert agent.core.next_deadline_s is None
    assert settling(agent.crash(killed.reason)) == ["j"]
    ended = agent.settle()
    assert isinstance(ended, JobFailed)
    assert ended.usage is not None
    assert ended.usage.energy == JOULES


def test_an_engine_that_stops_in_time_lives() -> None:
    """The confirmation takes the deadline away."""
    agent = CoreBench()
    agent.submit()
    agent.do(CancelRequested("j"))
    agent.engine(finished("j", "cancelled"))
    agent.now_s += 1000.0
    assert agent.do(TimePassed()) == []
    assert agent.core.next_deadline_s is None


def test_jobs_of_a_dead_engine_end_in_the_order_they_came() -> None:
    """Not in a set's order, which differs from run to run."""
    agent = CoreBench()
    for job_id in ("b", "c", "a"):
        agent.submit(job_id)
    assert settling(agent.crash()) == ["b", "c", "a"]


def test_what_a_request_found_at_work_and_who_came_later_is_told_apart() -> None:
    """Three seconds beside an elder for two of them and a newcomer for one, behind 40 unread tokens and a batch."""
    agent = CoreBench()
    agent.submit("elder")
    agent.now_s += 1.0
    agent.submit("j")
    agent.engine(protocol.Started(job_id="j", prompt_tokens=7, unread_tokens=40, batch_wait_s=0.25))
    agent.now_s += 2.0
    agent.engine(finished("elder"))
    agent.submit("newcomer")
    agent.now_s += 1.0
    timing = agent.core._desk.jobs["j"]
    agent.engine(finished("j", wait_s=0.3))
    assert timing.timing is not None
    assert (timing.timing.queue_s, timing.timing.wait_s) == pytest.approx((0.05, 0.25))
    shape, steps = timing.timing.shape, finished("j").decoded_tokens - 1
    assert shape.unread_tokens == 40
    assert shape.to_write_tokens == pytest.approx(2 / 3 * steps)
    assert timing.timing.mean_occupancy == pytest.approx(2.0)
    assert timing.timing.newcomers == pytest.approx(1 / 3)
