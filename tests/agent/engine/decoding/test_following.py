"""Jobs that follow others: proposals, and tokens that are taken."""

from __future__ import annotations

from math import exp

import pytest

from moe2.agent.engine.decoding.distribution import logprob
from moe2.agent.engine.protocol import Finished, JobFailed
from moe2.common.link.messages import FollowJob, NextTokens
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.decoding.letterjobs import letter_job, tokens_of
from tests.agent.engine.simulation import Engine, greedy, logits_after


def _proposed(engine: Engine, job_id: str) -> list[NextTokens]:
    return [event for event in engine.events if isinstance(event, NextTokens) and event.job_id == job_id]


def test_a_proposal_is_the_models_distribution() -> None:
    """The most likely tokens come first, with the model's own log-probabilities."""
    engine = Engine()
    engine.decoder.submit(FollowJob(request_id="r", model="m", job_id="next", prompt=TextPrompt(text="ab"), most=5))
    engine.run()
    (proposed,) = _proposed(engine, "next")
    logits = logits_after([1, 2])
    assert [candidate.token for candidate in proposed.candidates] == list((-logits).argsort()[:5])
    assert proposed.candidates[0].logprob == pytest.approx(logprob(logits, int(logits.argmax())))


def test_a_proposal_holds_no_more_than_the_mass_asked_for() -> None:
    """The candidates reach top_p, and would not without the last of them."""
    engine = Engine()
    engine.decoder.submit(FollowJob(request_id="r", model="m", job_id="next", prompt=TextPrompt(text="ab"), top_p=0.6))
    engine.run()
    (proposed,) = _proposed(engine, "next")
    masses = [exp(candidate.logprob) for candidate in proposed.candidates]
    assert sum(masses) >= 0.6 > sum(masses[:-1])


def test_a_follower_that_takes_its_own_best_writes_the_greedy_answer() -> None:
    """Step by step, at one decoded token each, and idle in between."""
    engine = Engine()
    engine.decoder.submit(
        FollowJob(request_id="r", model="m", job_id="job", prompt=TextPrompt(text="abc"), max_tokens=6)
    )
    engine.run()
    before, taken = engine.cache.decoded_tokens, list[int]()
    while not engine.decoder.has_work and len(taken) < 6:
        step, best = _proposed(engine, "job")[-1].step, _proposed(engine, "job")[-1].candidates[0].token
        assert step == len(taken)
        taken.append(best)
        engine.decoder.take("job", step, best)
        engine.run()
    assert taken == greedy(tokens_of("abc"), 6)
    assert engine.cache.decoded_tokens - before == 5
    end = engine.end("job")
    assert isinstance(end, Finished)
    assert (end.reason, end.decoded_tokens) == ("length", 6)


def test_a_complete_answer_ends_its_follower() -> None:
    """No token, no further step: the job ends well and its slot is free."""
    engine = Engine(slots=1)
    engine.decoder.submit(FollowJob(request_id="r", model="m", job_id="job", prompt=TextPrompt(text="abc")))
    engine.decoder.submit(letter_job("waiting", "abc", max_tokens=2))
    engine.run()
    engine.decoder.take("job", 0, None)
    engine.run()
    ends = [engine.end("job"), engine.end("waiting")]
    assert [end.reason for end in ends if isinstance(end, Finished)] == ["stop", "length"]


def test_a_late_or_early_word_to_a_follower_is_passed_over() -> None:
    """Only the step that is waited for moves it."""
    engine = Engine()
    engine.decoder.submit(FollowJob(request_id="r", model="m", job_id="job", prompt=TextPrompt(text="abc")))
    engine.run()
    engine.decoder.take("job", 1, 3)
    engine.decoder.take("nobody", 0, 3)
    engine.run()
    assert [proposed.step for proposed in _proposed(engine, "job")] == [0]


def test_a_token_outside_the_vocabulary_ends_its_follower() -> None:
    """It never reaches llama.cpp; the job fails and says why."""
    engine = Engine()
    engine.decoder.submit(FollowJob(request_id="r", model="m", job_id="job", prompt=TextPrompt(text="abc")))
    engine.run()
    engine.decoder.take("job", 0, -1)
    end = engine.end("job")
    assert isinstance(end, JobFailed)
    assert end.code == "invalid_request"


def test_a_follower_does_not_hold_up_the_others() -> None:
    """While it waits for a token, streams go on, and it can be cancelled."""
    engine = Engine()
    engine.decoder.submit(
        FollowJob(request_id="r", model="m", job_id="follower", prompt=TextPrompt(text="abc"), max_tokens=8)
    )
    engine.decoder.submit(letter_job("stream", "bca", max_tokens=8))
    engine.run()
    engine.decoder.cancel("follower")
    ends = [engine.end("stream"), engine.end("follower")]
    assert [end.reason for end in ends if isinstance(end, Finished)] == ["length", "cancelled"]
