"""The bounds of what agents may say: the last figure that can be passes, the next one does not."""

from __future__ import annotations

import math
from typing import Any

import pytest
from msgspec.structs import replace

from moe2.common.energy import Quality
from moe2.common.errors import CommandErrorCode
from moe2.common.health import HealthWarning, Severity
from moe2.common.link.messages import (
    Candidate,
    CommandAnswer,
    CommandOutcome,
    ContinuationScore,
    FollowJob,
    FromAgent,
    Job,
    JobDone,
    JobFailed,
    JobPieces,
    JobScored,
    JobStarted,
    NextTokens,
    ScoreJob,
    TokenPiece,
    Tokens,
)
from moe2.common.link.reports import Performance, SensorReport
from moe2.common.link.supply import ModelFile, ModelStore
from moe2.coordinator.fleet.bounds import MAX_TOKENS
from moe2.coordinator.fleet.checks import (
    MAX_PIECE_BYTES,
    MAX_REMEMBERED_JOBS,
    AgentChecks,
    hello_fault,
)
from moe2.coordinator.fleet.report_checks import MAX_SLOTS, MAX_SPREAD, fault_in, sound_report
from tests.coordinator.experts import expert_report, hello, report, speed
from tests.coordinator.fleet.test_checks import FOLLOW, SCORE, USAGE, WRITE, checks, done

ONE_BYTE = ContinuationScore(0.0, 1, 1)


def follow(token: int = 1, piece: bytes = b"a", logprob: float = math.log(0.5), step: int = 0) -> NextTokens:
    return NextTokens(job_id="j", step=step, candidates=(Candidate(token, logprob, piece, False),))


def scored(**fields: int) -> JobScored:
    return JobScored(job_id="j", scores=(replace(ONE_BYTE, **fields), ONE_BYTE), usage=USAGE)


def energy(**fields: Any) -> JobDone:
    return done(energy=replace(USAGE.energy, **fields))


# --- Words about jobs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "word"),
    [
        (FOLLOW, follow(token=0)),
        (FOLLOW, follow(token=MAX_TOKENS - 1)),
        (FOLLOW, follow(piece=b"a" * MAX_PIECE_BYTES)),
        (FOLLOW, follow(logprob=1e-6)),
        (FOLLOW, follow(step=3)),
        (SCORE, scored(tokens=0)),
        (SCORE, scored(tokens=MAX_TOKENS)),
        (SCORE, scored(utf8_bytes=0)),
        (SCORE, scored(utf8_bytes=MAX_TOKENS)),
        (SCORE, JobDone(job_id="j", reason="cancelled", usage=USAGE)),
        (WRITE, energy(coverage=1.0 + 1e-9)),
    ],
)
def test_the_last_possible_figure_passes(job: Job, word: FromAgent) -> None:
    """A word on the bound is believed as it is."""
    assert checks(job).check(word).messages == (word,)


@pytest.mark.parametrize(
    ("job", "word", "fault"),
    [
        (FOLLOW, follow(token=MAX_TOKENS), "a token 1000000000 of 1 bytes"),
        (FOLLOW, follow(token=-1), "a token -1 of 1 bytes"),
        (FOLLOW, follow(piece=b"a" * (MAX_PIECE_BYTES + 1)), "a token 1 of 4097 bytes"),
        (FOLLOW, follow(step=4), "1 candidates at step 4"),
        (FOLLOW, NextTokens(job_id="j", step=0, candidates=()), "no candidate for the next token"),
        (FOLLOW, replace(follow(), candidates=follow().candidates * 2), "the same next token twice"),
        (WRITE, follow(), "next tokens of a job that was not to follow"),
        (SCORE, Tokens(jobs=(JobPieces("j", (TokenPiece("a"),)),)), "tokens of a job that was not to write"),
        (SCORE, done("stop"), "no scores where it was asked for them"),
        (SCORE, scored(tokens=MAX_TOKENS + 1), "a score over 1000000001 tokens, 1 bytes"),
        (SCORE, scored(utf8_bytes=-1), "a score over 1 tokens, -1 bytes"),
        (WRITE, done("x" * 100), f"an unknown reason for a job's end, '{'x' * 64}'"),
    ],
)
def test_the_next_figure_fails_the_job_with_its_reason(job: Job, word: FromAgent, fault: str) -> None:
    """The agent is told and suspended, and its job ends with the tokens that are known and joules that are not."""
    checked = checks(job).check(word)
    [failed] = checked.messages
    assert isinstance(failed, JobFailed)
    assert failed.usage is not None
    assert failed.usage.decoded_tokens == (1 if isinstance(word, Tokens) and not isinstance(job, ScoreJob) else 0)
    assert failed.usage.energy.reason == f"its agent broke a rule: {fault}"
    assert (checked.faults, checked.suspends, checked.stopped) == ((fault,), True, ("j",))


@pytest.mark.parametrize(
    ("word", "fault"),
    [
        (JobStarted(job_id="j", prompt_tokens=-1, queue_s=0.0), "prompt_tokens is -1"),
        (JobStarted(job_id="j", prompt_tokens=1, queue_s=-1.0), "queue_s is -1.0"),
    ],
)
def test_an_impossible_start_is_left_out(word: JobStarted, fault: str) -> None:
    """It says nothing that a job needs: the agent is told, and the job goes on."""
    checked = checks(WRITE).check(word)
    assert (checked.messages, checked.faults, checked.suspends) == ((), (fault,), True)


@pytest.mark.parametrize(
    ("usage", "fault"),
    [
        ({"prompt_tokens": 5000}, "prompt_tokens is 5000"),
        ({"cached_tokens": 8}, "cached_tokens is 8"),
        ({"decoded_tokens": 4}, "decoded_tokens is 4"),
        ({"reasoning_tokens": 4}, "reasoning_tokens is 4"),
        ({"drafted_tokens": -1}, "drafted_tokens is -1"),
        ({"drafted_tokens": 9, "accepted_tokens": 4}, "accepted_tokens is 4"),
        ({"accepted_tokens": 1}, "accepted_tokens is 1"),
        ({"drafted_tokens": 2, "model_drafted_tokens": 3}, "model_drafted_tokens is 3"),
        ({"drafted_tokens": 2, "model_drafted_tokens": 1, "model_accepted_tokens": 1}, "model_accepted_tokens is 1"),
        ({"reasoning_j": 2.1}, "reasoning_j is 2.1"),
        ({"energy": replace(USAGE.energy, marginal_joules=-math.inf)}, "marginal_joules is inf"),
        ({"energy": replace(USAGE.energy, n_samples=-1)}, "n_samples is -1"),
        ({"energy": replace(USAGE.energy, coverage=1.1)}, "coverage is 1.1"),
    ],
)
def test_an_impossible_figure_of_usage_is_named(usage: dict[str, Any], fault: str) -> None:
    """The end of the job counts, its figure does not, and the agent hears which one."""
    checked = checks(WRITE).check(done("stop", **usage))
    [kept] = checked.messages
    assert isinstance(kept, JobDone)
    assert kept.usage.energy.quality is (Quality.UNMEASURED if "energy" in usage else Quality.MEASURED_COUNTER)
    assert checked.faults == (fault,)


@pytest.mark.parametrize("joules", [math.inf, 0.0])
def test_reasoning_costs_no_more_than_its_answer(joules: float) -> None:
    """Where an answer's joules cannot be or are 0, none of them are known to be its reasoning's."""
    [kept] = checks(WRITE).check(done(reasoning_j=1.0, energy=replace(USAGE.energy, joules=joules))).messages
    assert isinstance(kept, JobDone)
    assert kept.usage.reasoning_j is None


def test_impossible_counts_of_a_job_that_nobody_knows_become_none_and_zero() -> None:
    """What was decoded for it is not known to this connection."""
    [kept] = checks().check(done(decoded_tokens=-1)).messages
    assert isinstance(kept, JobDone)
    assert (kept.usage.prompt_tokens, kept.usage.decoded_tokens) == (None, 0)


def test_pieces_add_up_over_frames() -> None:
    """Three tokens and an unfinished character were asked for; the fifth piece is one too many, and four are known."""
    door = checks(WRITE)
    word = Tokens(jobs=(JobPieces("j", (TokenPiece("a"), TokenPiece("b"))),))
    assert door.check(word).messages == (word,)
    assert door.check(word).messages == (word,)
    checked = door.check(Tokens(jobs=(JobPieces("j", (TokenPiece("a"),)),)))
    assert checked.faults == ("5 tokens where at most 3 were asked for",)


def test_too_many_unknown_jobs_in_a_frame_are_counted_in_the_fault() -> None:
    """The agent hears how many of its frame's jobs were never given to it."""
    frame = Tokens(jobs=tuple(JobPieces(f"x{n}", ()) for n in range(300)))
    assert checks().check(frame).faults == ("tokens of 300 jobs that it was never given",)


def test_an_unreadable_word_tells_the_agent_why() -> None:
    """The reason goes to the agent and into the failure of the job."""
    checked = checks(WRITE).unreadable("done", "j", "it is no map")
    assert (checked.faults, checked.suspends, checked.stopped) == (("it is no map",), True, ("j",))


def test_the_oldest_of_too_many_jobs_is_forgotten() -> None:
    """A connection remembers its last 16,384 jobs: all of them, and not one more."""
    door = AgentChecks()
    for number in range(MAX_REMEMBERED_JOBS + 1):
        door.sent(FollowJob(job_id=str(number), request_id="r", model="m", prompt=WRITE.prompt, most=2, max_tokens=3))
    bad = {number: JobDone(job_id=str(number), reason="?", usage=USAGE) for number in (0, 1, MAX_REMEMBERED_JOBS)}
    assert [len(door.check(word).messages) for word in bad.values()] == [0, 1, 1]


@pytest.mark.parametrize("code", [None, *CommandErrorCode])
def test_the_codes_of_commands_pass(code: CommandErrorCode | None) -> None:
    """No code is a success, and every known one is the agent's own."""
    answer = CommandAnswer(
        command_id="c", outcome=CommandOutcome.FAILED if code else CommandOutcome.DONE, code=code, message=None
    )
    assert checks().check(answer).messages == (answer,)


# --- Who it is --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "what"),
    [
        ("agent_name", "its name"),
        ("agent_version", "its version"),
        ("instance_id", "its instance id"),
        ("hostname", "its host's name"),
    ],
)
def test_a_bad_name_of_a_hello_is_called_what_it_is(field: str, what: str) -> None:
    """The agent's log says which of its names cannot be."""
    fault = hello_fault(replace(hello(), **{field: "a\nb"}))
    assert fault is not None
    assert fault.startswith(f"{what} ")


# --- Reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"slots": 1},
        {"slots": MAX_SLOTS},
        {"context_tokens": 1},
        {"context_tokens": MAX_TOKENS},
        {"parameters": 1},
        {"latency": speed(100.0, 10.0, slots=1)},
        {"latency": speed(100.0, 10.0, slots=MAX_SLOTS)},
    ],
)
def test_an_expert_on_the_bounds_is_possible(fields: dict[str, Any]) -> None:
    """One slot, one token of context and one parameter are odd, but can be."""
    assert fault_in(expert_report(**fields)) is None


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"slots": 0}, "0 slots, 4096 tokens of context"),
        ({"slots": MAX_SLOTS + 1}, "65537 slots, 4096 tokens of context"),
        ({"context_tokens": 0}, "2 slots, 0 tokens of context"),
        ({"context_tokens": MAX_TOKENS + 1}, "2 slots, 1000000001 tokens of context"),
        ({"parameters": 0}, "parameters is 0"),
        ({"latency": speed(100.0, 10.0, slots=0)}, "latency.slots is 0"),
        ({"latency": speed(100.0, 10.0, slots=MAX_SLOTS + 1)}, "latency.slots is 65537"),
    ],
)
def test_an_expert_beyond_the_bounds_is_not(fields: dict[str, Any], fault: str) -> None:
    """The fault names the figure."""
    assert fault_in(expert_report(**fields)) == fault


def test_a_spread_on_the_bound_is_possible() -> None:
    """Off by half a billion is a bad prediction, not a lie."""
    latency = speed(100.0, 10.0)
    assert fault_in(expert_report(latency=replace(latency, ttft=replace(latency.ttft, p95=MAX_SPREAD)))) is None


def test_an_unsound_report_keeps_the_rest_and_warns_in_plain_words() -> None:
    """Its own warnings stay; what cannot be is unknown and said, capital letter and remedy included."""
    own = HealthWarning(code="own_warning", severity=Severity.DEGRADED, message="Own.", remedy="None.")
    odd = HealthWarning(code="BAD CODE", severity=Severity.DEGRADED, message="Odd.", remedy="None.")
    sent = report(expert_report(), expert_report("b\n"), warnings=(own, odd))
    sent = replace(
        sent,
        host=replace(sent.host, cpu_count=-1, memory_bytes=5),
        sensors=(SensorReport(name="s", state="present", power_w=math.nan),),
    )
    told, faults = sound_report(sent)
    assert [expert.model for expert in told.experts] == ["m"]
    assert (told.host.cpu_count, told.host.memory_bytes) == (None, 5)
    assert told.sensors[0].power_w is None
    assert faults == (
        "what it reports of the model 'b\\n' cannot be: the name 'b\\n' is empty or has control characters. "
        "It gets no requests",
        "what it reports of the sensor 's' cannot be: power_w is nan. Its power counts as unknown",
        "what it reports of its warnings cannot be: a code is not 1 to 64 letters, digits or _. It is not shown",
        "what it reports of its host cannot be: cpu_count is -1. It is not shown",
    )
    assert told.warnings[0] == own
    assert [warning.message for warning in told.warnings[1:]] == [f"{fault[0].upper()}{fault[1:]}." for fault in faults]
    assert {warning.remedy for warning in told.warnings[1:]} == {
        "Restart the agent; if that does not help, remove its learned profiles and report the defect."
    }


@pytest.mark.parametrize(
    ("performance", "age_s", "shown", "shown_age_s"),
    [
        (math.nan, 5.0, None, 5.0),
        (7.0, math.inf, 7.0, None),
        (7.0, 5.0, 7.0, 5.0),
    ],
)
def test_figures_that_are_only_shown_become_unknown_one_by_one(
    performance: float, age_s: float, shown: float | None, shown_age_s: float | None
) -> None:
    """A figure that is no number is unknown; the expert and its other figures stay."""
    sent = expert_report(performance=Performance(decode_tokens_per_s=performance), measured_age_s=age_s)
    [kept] = sound_report(report(sent))[0].experts
    assert (kept.performance.decode_tokens_per_s, kept.measured_age_s) == (shown, shown_age_s)


@pytest.mark.parametrize("name", ["added_unix_s", "last_used_unix_s"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_a_file_at_a_time_that_cannot_be_is_not_shown(name: str, bad: float) -> None:
    """The host's other files and figures stay."""
    good = ModelFile(name="good.gguf", size_bytes=1, sha256="ab", origin="hf:a/b/c.gguf", added_unix_s=1.0)
    odd = replace(replace(good, name="odd.gguf"), **{name: bad})
    told, faults = sound_report(replace(report(), models=ModelStore(free_bytes=7, files=(odd, good))))
    assert told.models == ModelStore(free_bytes=7, files=(good,))
    assert faults == (f"what it reports of the file 'odd.gguf' cannot be: {name} is {bad}. It is not shown",)
