"""The checks of what agents say: impossible figures, words and counts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from moe2.common.energy import Energy, Quality
from moe2.common.link.messages import (
    Candidate,
    CommandAnswer,
    ContinuationScore,
    EmbedJob,
    FollowJob,
    FromAgent,
    Job,
    JobDone,
    JobFailed,
    JobPieces,
    JobScored,
    JobStarted,
    JobUsage,
    NextTokens,
    Report,
    ScoreJob,
    Submit,
    TokenAlternative,
    TokenPiece,
    Tokens,
    Vectors,
)
from moe2.common.link.prompts import TextPrompt
from moe2.coordinator.fleet.bounds import MAX_TEXT_CHARACTERS
from moe2.coordinator.fleet.checks import MAX_UNKNOWN_JOBS, AgentChecks, hello_fault
from tests.coordinator.experts import expert_report, hello, report
from tests.scenarios.fuzz.messages import any_message

PROMPT = TextPrompt(text="hi")
ECHO = Submit(job_id="j", request_id="r", model="m", prompt=PROMPT, max_tokens=0, echo=True)
WRITE = Submit(job_id="j", request_id="r", model="m", prompt=PROMPT, max_tokens=3)
EMBED = EmbedJob(job_id="j", request_id="r", model="m", texts=(TextPrompt(text="a"), TextPrompt(text="b")))
SCORE = ScoreJob(job_id="j", request_id="r", model="m", prompt=PROMPT, continuations=("a", "bc"))
FOLLOW = FollowJob(job_id="j", request_id="r", model="m", prompt=PROMPT, most=2, max_tokens=3)
USAGE = JobUsage(
    prompt_tokens=7,
    cached_tokens=2,
    decoded_tokens=3,
    queue_s=0.0,
    prefill_s=0.1,
    decode_s=0.2,
    energy=Energy(joules=2.0, marginal_joules=-0.1, quality=Quality.MEASURED_COUNTER, coverage=1.0),
)
A, B = Candidate(1, math.log(0.7), b"a", False), Candidate(2, math.log(0.3), b"b", False)
HALF = b"\0\0\0\x3f" * 4
SCORES = (ContinuationScore(-1.0, 1, 1), ContinuationScore(-2.5, 2, 2))


def checks(*jobs: Job) -> AgentChecks:
    """Returns the checks of an agent that reported `m` with 4096 tokens of context and was given these jobs."""
    made = AgentChecks()
    made.check(report(expert_report()))
    for job in jobs:
        made.sent(job)
    return made


def tokens(*pieces: TokenPiece, job_id: str = "j") -> Tokens:
    return Tokens(jobs=(JobPieces(job_id, pieces),))


def vectors(*found: bytes) -> Vectors:
    return Vectors(job_id="j", vectors=found)


def done(reason: str = "stop", /, **usage: Any) -> JobDone:
    return JobDone(job_id="j", reason=reason, usage=replace(USAGE, **usage))


# --- Words about jobs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (WRITE, [JobStarted(job_id="j", prompt_tokens=7, queue_s=0.0), tokens(TokenPiece("a", -0.5)), done()]),
        (WRITE, [tokens(*[TokenPiece("a", -1.0, (TokenAlternative("b", -2.0),))] * 4), done("length")]),
        (WRITE, [done("cancelled", prompt_tokens=None, cached_tokens=0, decoded_tokens=0, energy=Energy(reason="r"))]),
        (ECHO, [tokens(*[TokenPiece("a")] * 7), done("length", decoded_tokens=0)]),
        (WRITE, [JobFailed(job_id="j", code="queue_full", message="No.")]),
        (WRITE, [JobFailed(job_id="j", code="context_exceeded", message="No.", usage=JobUsage(prompt_tokens=9999))]),
        (SCORE, [JobScored(job_id="j", scores=SCORES, usage=USAGE)]),
        (FOLLOW, [NextTokens(job_id="j", step=0, candidates=(A, B)), done(decoded_tokens=1)]),
        (EMBED, [vectors(HALF), vectors(HALF), done(decoded_tokens=0)]),
        (EMBED, [vectors(HALF), done("cancelled", decoded_tokens=0)]),
        (replace(WRITE, stop=("END",)), [replace(done(), stop="END")]),
    ],
)
def test_sound_words_pass_as_they_are(job: Job, words: list[FromAgent]) -> None:
    """What a sound agent says of a job reaches the service untouched, and nobody is suspended."""
    door = checks(job)
    for word in words:
        checked = door.check(word)
        assert checked.messages == (word,)
        assert (checked.faults, checked.suspends, checked.stopped) == ((), False, ())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0, 1e300])
@pytest.mark.parametrize("name", ["joules", "idle_w", "max_gap_s", "coverage"])
def test_joules_that_cannot_be_become_unknown(name: str, bad: float) -> None:
    """One bad figure of energy makes the job's energy unmeasured, with the reason; the answer still counts."""
    checked = checks(WRITE).check(done(energy=replace(USAGE.energy, **{name: bad})))
    [kept] = checked.messages
    assert isinstance(kept, JobDone)
    assert (kept.usage.energy.joules, kept.usage.energy.quality) == (None, Quality.UNMEASURED)
    assert f"{name} is {bad}" in (kept.usage.energy.reason or "")
    assert (kept.reason, kept.usage.decoded_tokens) == ("stop", 3)
    assert checked.suspends


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5, 1e13])
@pytest.mark.parametrize("name", ["queue_s", "prefill_s", "decode_s"])
def test_seconds_that_cannot_be_become_unknown(name: str, bad: float) -> None:
    """The duration of a phase becomes unknown if it is impossible."""
    checked = checks(WRITE).check(done(**{name: bad}))
    [kept] = checked.messages
    assert isinstance(kept, JobDone)
    assert kept.usage == replace(USAGE, **{name: None})
    assert checked.faults == (f"{name} is {bad}",)


@pytest.mark.parametrize(
    "counts",
    [
        {"decoded_tokens": 4},
        {"decoded_tokens": -1},
        {"prompt_tokens": 4097},
        {"prompt_tokens": -7},
        {"cached_tokens": 8},
        {"cached_tokens": -1},
        {"reasoning_tokens": -1},
        {"reasoning_tokens": 10**6},
    ],
)
def test_token_counts_outside_the_jobs_limits_are_replaced_by_what_was_seen(counts: dict[str, int]) -> None:
    """Of counts beyond `max_tokens`, the context or the prompt only the tokens that came are believed."""
    door = checks(WRITE)
    door.check(tokens(TokenPiece("a"), TokenPiece("b")))
    checked = door.check(done(**counts))
    [kept] = checked.messages
    assert isinstance(kept, JobDone)
    usage = kept.usage
    assert (usage.prompt_tokens, usage.cached_tokens, usage.decoded_tokens) == (None, 0, 2)
    assert usage.energy == USAGE.energy
    assert checked.suspends


@pytest.mark.parametrize(
    ("job", "word", "fault"),
    [
        (WRITE, done("because"), "unknown reason for a job's end, 'because'"),
        (WRITE, tokens(TokenPiece("a", math.nan)), "a log-probability of nan"),
        (WRITE, tokens(TokenPiece("a", 0.5)), "a log-probability of 0.5"),
        (WRITE, tokens(TokenPiece("a", -1.0, (TokenAlternative("b", -math.inf),))), "a log-probability of -inf"),
        (WRITE, tokens(TokenPiece("", -1.0, hex="e")), "no hexadecimal number"),
        (WRITE, tokens(TokenPiece("a", -1.0, (TokenAlternative("b", -1.0, "zz"),))), "no hexadecimal number"),
        (WRITE, tokens(*[TokenPiece("a")] * 5), "5 tokens where at most 3"),
        (SCORE, tokens(TokenPiece("a")), "not to write"),
        (SCORE, done(), "no scores"),
        (SCORE, JobScored(job_id="j", scores=SCORES[:1], usage=USAGE), "1 scores where 2"),
        (EMBED, vectors(HALF, HALF, HALF), "3 vectors where 2"),
        (EMBED, done(decoded_tokens=0), "0 vectors where 2"),
        (EMBED, vectors(b"\0\0\xc0\x7f"), "not finite"),
        (EMBED, vectors(b"abc"), "of [3] bytes"),
        (EMBED, vectors(b""), "of [0] bytes"),
        (EMBED, vectors(), "of [] bytes"),
        (EMBED, vectors(bytes(262_148)), "of [262148] bytes"),
        (WRITE, vectors(HALF), "not to embed"),
        (WRITE, JobScored(job_id="j", scores=SCORES, usage=USAGE), "2 scores where 0"),
        (SCORE, JobScored(job_id="j", scores=(ContinuationScore(math.nan, 1, 1),) * 2, usage=USAGE), "of nan"),
        (SCORE, JobScored(job_id="j", scores=(ContinuationScore(-1.0, -1, 1),) * 2, usage=USAGE), "-1 tokens"),
        (FOLLOW, NextTokens(job_id="j", step=0, candidates=()), "no candidate"),
        (FOLLOW, NextTokens(job_id="j", step=0, candidates=(A, A)), "twice"),
        (FOLLOW, NextTokens(job_id="j", step=0, candidates=(replace(A, logprob=-0.1), B)), "above 1"),
        (FOLLOW, NextTokens(job_id="j", step=0, candidates=(replace(A, logprob=math.nan),)), "of nan"),
        (FOLLOW, NextTokens(job_id="j", step=0, candidates=(replace(A, token=-1),)), "token -1"),
        (FOLLOW, NextTokens(job_id="j", step=0, candidates=(replace(A, piece=b"x" * 5000),)), "5000 bytes"),
        (FOLLOW, NextTokens(job_id="j", step=-1, candidates=(A,)), "at step -1"),
        (FOLLOW, NextTokens(job_id="j", step=0, candidates=(A, B, Candidate(3, -9.0, b"", True))), "3 candidates at"),
        (WRITE, NextTokens(job_id="j", step=0, candidates=(A,)), "not to follow"),
    ],
)
def test_a_word_that_the_job_cannot_do_without_fails_it(job: Job, word: FromAgent, fault: str) -> None:
    """The job ends with the reason, so that the request goes elsewhere; its joules are unknown, and the agent stops."""
    checked = checks(job).check(word)
    [failed] = checked.messages
    assert isinstance(failed, JobFailed)
    assert (failed.job_id, failed.code) == ("j", "agent_broke_rules")
    assert fault in failed.message
    assert failed.usage is not None
    assert failed.usage.energy.joules is None
    assert checked.suspends
    assert checked.stopped == ("j",)


def test_one_bad_job_in_a_frame_costs_no_other_job_its_tokens() -> None:
    """Only the job with the bad figure fails; the frame's other tokens arrive."""
    other = replace(WRITE, job_id="other")
    good = JobPieces("other", (TokenPiece("b"),))
    frame = Tokens(jobs=(JobPieces("j", (TokenPiece("a", math.nan),)), good))
    kept, failed = checks(WRITE, other).check(frame).messages
    assert kept == Tokens(jobs=(good,))
    assert isinstance(failed, JobFailed)
    assert failed.job_id == "j"


def test_a_started_job_with_bad_figures_goes_on() -> None:
    """A "started" with bad figures is dropped and its job goes on, as nothing rests on it."""
    checked = checks(WRITE).check(JobStarted(job_id="j", prompt_tokens=7, queue_s=math.nan))
    assert (checked.messages, checked.suspends, checked.stopped) == ((), True, ())


def test_an_unknown_error_code_is_an_internal_one() -> None:
    """An unknown error code becomes an internal one, and a newer agent is not punished for it."""
    checked = checks(WRITE).check(JobFailed(job_id="j", code="gremlins", message="a\x1b[31mb\n" + "x" * 5000))
    [failed] = checked.messages
    assert isinstance(failed, JobFailed)
    assert failed.code == "internal"
    assert failed.message.startswith("a [31mb x")
    assert len(failed.message) == MAX_TEXT_CHARACTERS
    assert not checked.suspends


def test_words_about_unknown_jobs_are_checked_too() -> None:
    """Figures about a job of a former coordinator must be sound, although its limits are not known."""
    door = checks()
    frame = tokens(TokenPiece("a"), job_id="orphan")
    assert door.check(frame).messages == (frame,)
    checked = door.check(tokens(TokenPiece("a", math.nan), job_id="orphan"))
    assert (checked.messages, checked.suspends) == ((), True)


def test_a_frame_of_very_many_unknown_jobs_is_dropped() -> None:
    """A frame about very many unknown jobs is dropped, as each of them would need an answer."""
    jobs = tuple(JobPieces(f"x{n}", (TokenPiece("a"),)) for n in range(MAX_UNKNOWN_JOBS + 1))
    door = checks()
    assert door.check(Tokens(jobs=jobs[1:])).messages
    checked = door.check(Tokens(jobs=jobs))
    assert (checked.messages, checked.suspends) == ((), True)


def test_an_unreadable_word_fails_its_job() -> None:
    """A job's message that cannot be read fails the job, so that its request does not wait for ever."""
    other = replace(WRITE, job_id="other")
    checked = checks(WRITE, other).unreadable("job_done", "j", "Invalid enum value 'guessed'")
    assert [word.job_id for word in checked.messages if isinstance(word, JobFailed)] == ["j"]
    assert (checked.suspends, checked.stopped) == (True, ("j",))


def test_unreadable_tokens_fail_every_job_of_the_agent() -> None:
    """Tokens that cannot be read fail every job of the agent, as nobody knows whose they were."""
    checked = checks(WRITE, replace(WRITE, job_id="other")).unreadable("tokens", None, "Expected `str`")
    assert checked.stopped == ("j", "other")
    assert len(checked.messages) == 2


@pytest.mark.parametrize(("op", "job_id"), [("report", None), ("job_done", "unknown"), ("job_done", None)])
def test_an_unreadable_message_about_no_job_costs_none(op: str, job_id: str | None) -> None:
    """An unreadable message about no job suspends the agent and lets its jobs go on."""
    checked = checks(WRITE).unreadable(op, job_id, "no")
    assert (checked.messages, checked.stopped, checked.suspends) == ((), (), True)


def test_the_limits_of_a_job_are_those_of_the_latest_report() -> None:
    """Experts of former reports are forgotten, so that an agent that makes up names fills no memory."""
    door = checks()
    door.check(report(expert_report(context_tokens=5)))
    door.sent(WRITE)
    assert door.check(done(prompt_tokens=6)).suspends
    door.check(report(expert_report("other")))
    door.sent(WRITE)
    assert not door.check(done(prompt_tokens=6)).suspends


WORDS = (Report, JobStarted, Tokens, JobDone, JobFailed, JobScored, NextTokens, Vectors, CommandAnswer)
FROM_AGENT = st.one_of(*map(any_message, WORDS))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(FROM_AGENT)
def test_what_passes_once_is_sound(message: Report | FromAgent | CommandAnswer) -> None:
    """Every message that passes the checks would pass them again unchanged."""
    for passed in AgentChecks().check(message).messages:
        again = AgentChecks().check(passed)
        assert (again.messages, again.faults) == ((passed,), ())
        assert all(map(math.isfinite, _floats(msgspec.to_builtins(passed))))


def _floats(value: Any) -> Iterator[float]:
    """Yields every float in a message."""
    if isinstance(value, float):
        yield value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for part in parts:
        yield from _floats(part)


# --- Who it is --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "is_sound"),
    [
        ({}, True),
        ({"agent_name": "Küche 2"}, True),
        ({"agent_name": "x" * 129}, False),
        ({"agent_name": "a\x1b[2J"}, False),
        ({"agent_name": ""}, False),
        ({"agent_id": "a/b"}, False),
        ({"agent_id": "x" * 65}, False),
        ({"agent_version": "1\n2"}, False),
        ({"instance_id": "a" * 32, "hostname": "jetson-1"}, True),
        ({"instance_id": "a" * 129}, False),
        ({"hostname": "a\x1b[2J"}, False),
    ],
)
def test_names_are_short_and_have_no_control_characters(fields: dict[str, str], is_sound: bool) -> None:
    """Ids, names and versions must be short and without control characters."""
    assert (hello_fault(replace(hello(), **fields)) is None) == is_sound


def test_the_texts_of_a_jobs_energy_can_be_shown() -> None:
    """Its reason is in the client's answer; it costs its agent nothing."""
    checked = checks(WRITE).check(done(energy=replace(USAGE.energy, reason="a\x1b" + "x" * 9000)))
    [told] = checked.messages
    assert isinstance(told, JobDone)
    assert told.usage.energy.reason == "a " + "x" * (MAX_TEXT_CHARACTERS - 2)
    assert (checked.faults, checked.suspends) == ((), False)


def test_a_stop_string_that_nobody_asked_for_is_none() -> None:
    """It would be told to the client as its own."""
    checked = checks(WRITE).check(replace(done(), stop="END"))
    assert checked.messages == (done(),)
