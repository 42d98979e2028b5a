"""The decoding loop over a simulated model: isolation, cancellation, limits, scoring, failures."""

from __future__ import annotations

from math import exp
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.agent.engine.decoding.batch import DecodeOutcome
from moe2.agent.engine.decoding.distribution import Logits, logprob
from moe2.agent.engine.decoding.drawing import Draw
from moe2.agent.engine.prompt.request import RequestError
from moe2.agent.engine.protocol import Finished, JobFailed, Scored, Started
from moe2.common.errors import JobErrorCode
from moe2.common.generation import Sampling
from moe2.common.link.messages import FollowJob, NextTokens, ScoreJob, Submit, Tokens
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.simulation import END, Engine, Letters, SimulatedCache, greedy, letters, logits_after


def _generate(job_id: str, text: str, *, max_tokens: int | None = None, stop: tuple[str, ...] = ()) -> Submit:
    return Submit(
        request_id="r",
        model="m",
        job_id=job_id,
        prompt=TextPrompt(text=text),
        sampling=Sampling(temperature=0),
        max_tokens=max_tokens,
        stop=stop,
    )


def _tokens(text: str) -> list[int]:
    return Letters().tokenize(text, add_special=True, parse_special=True)


def _expected(text: str, most: int, stop: tuple[str, ...] = ()) -> str:
    answer = letters(greedy(_tokens(text), most))
    cuts = [at for each in stop if (at := answer.find(each)) >= 0]
    return answer[: min(cuts)] if cuts else answer


class _Bound:
    """A draw that waits for its test to say what may be drawn."""

    def __init__(self, cache: SimulatedCache) -> None:
        self._cache = cache
        self.is_ready = False
        self.answers: list[int | RequestError | None] = []
        self.closed = False

    def sample(self, place: int) -> int | None:
        return self.sample_kept(self._cache.logits(place))

    def sample_kept(self, logits: Logits) -> int | None:
        self.is_ready = False
        answer = self.answers.pop(0)
        if isinstance(answer, RequestError):
            raise answer
        return int(np.argmax(logits)) if answer == GREEDY else answer

    def close(self) -> None:
        self.closed = True

    def say(self, engine: Engine, answer: int | RequestError | None) -> None:
        """The draw is ready, and the decoder is told."""
        self.answers.append(answer)
        self.is_ready = True
        engine.decoder.resume("bound")


GREEDY = -1
_NO_TEXT = RequestError("No text can follow.", code=JobErrorCode.INVALID_GRAMMAR)


def _with_bound() -> tuple[Engine, _Bound]:
    """An engine of one slot to which the job "bound" has been sent."""
    draws: dict[str, _Bound] = {}

    def new_draw(request: Submit, cache: SimulatedCache) -> Draw:
        draw = draws[request.job_id] = _Bound(cache)
        if request.job_id != "bound":
            draw.is_ready = True
            draw.answers.append(None)
        return draw

    engine = Engine(slots=1, new_draw=new_draw)
    engine.decoder.submit(_generate("bound", "ab"))
    return engine, draws["bound"]


def test_the_end_is_an_alternative_with_a_name() -> None:
    """Else it could not be told from a token without text; it has no bytes."""
    engine = Engine(endless=True)
    engine.decoder.submit(msgspec.structs.replace(_generate("j", "ab"), logprobs=20, max_tokens=4))
    engine.run()
    pieces = [p for event in engine.events if isinstance(event, Tokens) for job in event.jobs for p in job.pieces]
    names = [[(other.text, other.hex) for other in piece.alternatives] for piece in pieces]
    assert len(names) == 4
    assert any(("<end>", None) in each for each in names)
    assert all(own == "" for each in names for text, own in each if text != "<end>")


def test_a_job_that_waits_for_its_grammar_takes_no_slot() -> None:
    """Another one that came later is answered meanwhile."""
    engine, draw = _with_bound()
    engine.decoder.submit(_generate("other", "ab"))
    engine.run()
    assert isinstance(engine.end("other"), Finished)
    draw.say(engine, None)
    engine.run()
    assert isinstance(engine.end("bound"), Finished)


def test_a_job_goes_on_from_what_the_model_said_when_its_mask_comes_late() -> None:
    """The logits are kept, although other batches follow; nothing is drawn twice."""
    engine, draw = _with_bound()
    draw.say(engine, GREEDY)
    engine.run()
    engine.cache.decode([])
    draw.say(engine, GREEDY)
    engine.run()
    draw.say(engine, None)
    engine.run()
    end = engine.end("bound")
    assert isinstance(end, Finished)
    assert (end.reason, end.decoded_tokens, engine.text("bound")) == ("stop", 2, _expected("ab", 2))


@pytest.mark.parametrize("drawn", [0, 1])
def test_a_grammar_that_cannot_be_followed_ends_its_job_alone(drawn: int) -> None:
    """Before the job starts to write, and in the middle of its answer."""
    engine, draw = _with_bound()
    answers: list[int | RequestError] = [*[GREEDY] * drawn, _NO_TEXT]
    for answer in answers:
        draw.say(engine, answer)
        engine.run()
    failed = engine.end("bound")
    assert isinstance(failed, JobFailed)
    assert (failed.code, failed.decoded_tokens, draw.closed) == (JobErrorCode.INVALID_GRAMMAR, drawn, True)
    engine.decoder.submit(_generate("after", "ab"))
    engine.run()
    assert isinstance(engine.end("after"), Finished)


def test_a_job_can_be_cancelled_while_it_waits_for_its_grammar() -> None:
    """Its draw is closed, and a late answer changes nothing."""
    engine, draw = _with_bound()
    engine.decoder.cancel("bound")
    draw.say(engine, None)
    end = engine.end("bound")
    assert isinstance(end, Finished)
    assert (end.reason, draw.closed) == ("cancelled", True)


_PROMPTS = st.text(alphabet="ab", min_size=1, max_size=20)
_ARRIVAL = st.tuples(
    st.just("arrive"),
    _PROMPTS,
    st.one_of(st.none(), st.integers(1, 12)),
    st.sampled_from([(), ("c",), ("de", "q")]),
)
_CANCELLATION = st.tuples(st.just("cancel"), st.integers(0, 20))
_STEPS = st.tuples(st.just("step"), st.integers(1, 4))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    script=st.lists(st.one_of(_ARRIVAL, _STEPS, _CANCELLATION), max_size=25),
    slots=st.integers(1, 4),
    cells=st.integers(24, 96),
    batch_tokens=st.integers(4, 16),
    idle_tokens=st.integers(0, 24),
    shelved_tokens=st.integers(0, 64),
)
def test_no_sequence_sees_anothers_tokens(
    script: list[tuple[Any, ...]], slots: int, cells: int, batch_tokens: int, idle_tokens: int, shelved_tokens: int
) -> None:
    """Whatever arrives, stops and is cancelled meanwhile, each job's text is what it would be alone."""
    engine = Engine(
        slots=slots, cells=cells, batch_tokens=batch_tokens, idle_tokens=idle_tokens, shelved_tokens=shelved_tokens
    )
    jobs: dict[str, tuple[str, int | None, tuple[str, ...]]] = {}
    cancelled: set[str] = set()
    for action, *details in script:
        if action == "arrive":
            job_id = f"job{len(jobs)}"
            jobs[job_id] = tuple(details)
            engine.decoder.submit(_generate(job_id, details[0], max_tokens=details[1], stop=details[2]))
        elif action == "cancel" and (job_id := f"job{details[0]}") in jobs:
            engine.decoder.cancel(job_id)
            cancelled.add(job_id)
        elif action == "step":
            for _ in range(details[0]):
                engine.decoder.step()
    engine.run()
    for job_id, (prompt, max_tokens, stop) in jobs.items():
        end = engine.end(job_id)
        alone = _expected(prompt, max_tokens or cells, stop)
        if isinstance(end, JobFailed):
            assert end.code == JobErrorCode.CONTEXT_EXCEEDED
        elif end.reason == "cancelled":
            assert job_id in cancelled
            assert _expected(prompt, end.decoded_tokens).startswith(engine.text(job_id))
        elif end.reason == "length":
            assert engine.text(job_id) == _expected(prompt, end.decoded_tokens)
        else:
            assert engine.text(job_id) == alone


def test_a_job_cancelled_while_queued_decodes_nothing() -> None:
    """Cancelling a queued job ends it without touching the model."""
    engine = Engine(slots=1)
    engine.decoder.submit(_generate("first", "aa", max_tokens=3))
    engine.decoder.submit(_generate("second", "bb", max_tokens=3))
    engine.decoder.cancel("second")
    end = engine.end("second")
    assert isinstance(end, Finished)
    assert (end.reason, end.decoded_tokens, end.prefill_s) == ("cancelled", 0, None)


def test_a_job_cancelled_between_prefill_chunks_decodes_no_more_of_its_prompt() -> None:
    """Cancelling during prefill stops after the chunk under way."""
    engine = Engine(slots=1, batch_tokens=4)
    engine.decoder.submit(_generate("long", "ab" * 10, max_tokens=3))
    engine.decoder.step()
    engine.decoder.cancel("long")
    engine.run()
    assert engine.cache.decoded_tokens == 4


def test_a_prompt_that_was_cut_off_leaves_no_more_in_the_cache_than_was_decoded() -> None:
    """The same prompt again begins with what is really there, and is answered as if it were alone."""
    engine = Engine(slots=1, batch_tokens=4)
    engine.decoder.submit(_generate("cut off", "ab" * 10))
    engine.decoder.step()
    engine.decoder.cancel("cut off")
    engine.decoder.submit(_generate("again", "ab" * 10, max_tokens=5))
    engine.run()
    assert [event.cached_tokens for event in engine.events if isinstance(event, Started)] == [0, 4]
    assert engine.text("again") == _expected("ab" * 10, 5)


def test_a_cancelled_job_frees_its_slot_at_once() -> None:
    """The next job starts when the one before it is cancelled."""
    engine = Engine(slots=1)
    engine.decoder.submit(_generate("first", "aa"))
    engine.decoder.submit(_generate("second", "bb"))
    engine.decoder.cancel("first")
    assert [event.job_id for event in engine.events if isinstance(event, Started)] == ["first", "second"]


def test_cancelling_an_unknown_job_is_no_error() -> None:
    """A cancellation that crosses the job's end on its way is ignored."""
    engine = Engine()
    engine.decoder.cancel("nobody")
    assert engine.events == []


def test_a_full_context_ends_a_job_with_length() -> None:
    """Without max_tokens, prompt and answer together fill the context and no more."""
    engine = Engine(slots=1, cells=24)
    prompt = next(text for text in ("a", "b", "c", "ab", "ba") if len(greedy(_tokens(text), 24)) == 24)
    engine.decoder.submit(_generate("job", prompt))
    engine.run()
    end = engine.end("job")
    assert isinstance(end, Finished)
    assert (end.reason, end.prompt_tokens + end.decoded_tokens) == ("length", 24)


def test_answers_without_a_limit_never_take_what_others_reserved() -> None:
    """Endless answers fill the cache between them and end with length; one with max_tokens gets all it asked for."""
    engine = Engine(slots=3, cells=256, endless=True)
    engine.decoder.submit(_generate("endless one", "abc"))
    engine.decoder.submit(_generate("endless two", "bca"))
    engine.decoder.submit(_generate("limited", "cab", max_tokens=60))
    engine.run()
    ends = {name: engine.end(name) for name in ("endless one", "endless two", "limited")}
    assert {getattr(end, "reason", end) for end in ends.values()} == {"length"}
    assert ends["limited"].decoded_tokens == 60
    assert ends["endless one"].decoded_tokens > 256 // 3


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    """The short prompt's first token comes before the long prompt's prefill is done."""
    engine = Engine(slots=2, cells=96, batch_tokens=8)
    engine.decoder.submit(_generate("long", "ab" * 30, max_tokens=1))
    engine.decoder.submit(_generate("short", "b", max_tokens=1))
    engine.run()
    ends = [event.job_id for event in engine.events if isinstance(event, Finished)]
    assert ends == ["short", "long"]


def test_a_prompt_is_read_anew_where_asked() -> None:
    """Cached tokens and shelved ones are left where they are."""
    engine = Engine(idle_tokens=0, shelved_tokens=64)
    for job_id, cache_prompt in (("a", True), ("b", False), ("c", True)):
        engine.decoder.submit(
            msgspec.structs.replace(_generate(job_id, "abcdefgh", max_tokens=2), cache_prompt=cache_prompt)
        )
        engine.run()
    assert [event.cached_tokens for event in engine.events if isinstance(event, Started)] == [0, 0, 7]
    assert engine.text("a") == engine.text("b") == engine.text("c")


def test_a_shared_prefix_is_decoded_once() -> None:
    """A second prompt with the same beginning takes it from the cache, also while the first still runs."""
    engine = Engine(slots=2, cells=96, batch_tokens=64)
    engine.decoder.submit(_generate("first", "abababab", max_tokens=20))
    engine.decoder.step()
    engine.decoder.submit(_generate("second", "ababababb", max_tokens=2))
    started = [event for event in engine.events if isinstance(event, Started)]
    assert started[1].cached_tokens == 8


def test_an_answered_conversation_leaves_the_cache_and_comes_back() -> None:
    """Where no job runs, idle tokens beyond the limit lie on the shelf; who goes on with them decodes only what is
    new."""
    engine = Engine(slots=2, cells=96, batch_tokens=64, idle_tokens=4, shelved_tokens=96)
    engine.decoder.submit(_generate("first", "abababab", max_tokens=1))
    engine.run()
    assert (engine.cache.used, engine.shelf.held_bytes) == (0, 8)
    engine.decoder.submit(_generate("second", "ababababb", max_tokens=3))
    engine.run()
    assert [event.cached_tokens for event in engine.events if isinstance(event, Started)] == [0, 8]
    assert engine.cache.decoded_tokens == 8 + 1 + 2
    assert engine.text("second") == _expected("ababababb", 3)


def test_nothing_leaves_the_cache_while_a_job_runs() -> None:
    """Its tokens would come to lie in the gaps."""
    engine = Engine(slots=2, cells=96, batch_tokens=64, idle_tokens=4, shelved_tokens=96, endless=True)
    engine.decoder.submit(_generate("long", "b", max_tokens=20))
    engine.decoder.submit(_generate("short", "abababab", max_tokens=1))
    engine.decoder.step()
    assert engine.end("short")
    assert engine.shelf.held_bytes == 0
    engine.run()
    assert (engine.cache.used, engine.shelf.held_bytes) == (0, 28)


def test_a_conversation_without_room_on_the_shelf_stays_in_the_cache() -> None:
    """Nothing is thrown away before its cells are needed."""
    engine = Engine(slots=2, cells=96, batch_tokens=64, idle_tokens=4, shelved_tokens=7)
    engine.decoder.submit(_generate("first", "abababab", max_tokens=1))
    engine.run()
    assert (engine.cache.used, engine.shelf.held_bytes) == (8, 0)


def test_a_shelved_conversation_that_no_longer_fits_is_decoded_anew() -> None:
    """Others hold the cells: the answer is the same."""
    alone = Engine(slots=1, cells=40, endless=True)
    alone.decoder.submit(_generate("again", "ab" * 4, max_tokens=8))
    alone.run()
    engine = Engine(slots=2, cells=40, batch_tokens=64, idle_tokens=0, shelved_tokens=96, endless=True)
    engine.decoder.submit(_generate("long", "ab" * 8, max_tokens=16))
    engine.run()
    engine.decoder.submit(_generate("other", "b", max_tokens=20))
    for _ in range(15):
        engine.decoder.step()
    engine.decoder.submit(_generate("again", "ab" * 4, max_tokens=8))
    assert [event.cached_tokens for event in engine.events if isinstance(event, Started)][-1] == 0
    engine.run()
    assert engine.text("again") == alone.text("again")


def test_a_limit_beyond_the_context_is_that_of_the_context() -> None:
    """A limit is a bound and no demand: the answer fills what the context leaves, and ends with length."""
    engine = Engine(slots=1, cells=24)
    prompt = next(text for text in ("a", "b", "c", "ab", "ba") if len(greedy(_tokens(text), 24)) == 24)
    engine.decoder.submit(_generate("job", prompt, max_tokens=100))
    engine.run()
    end = engine.end("job")
    assert isinstance(end, Finished)
    assert (end.reason, end.prompt_tokens + end.decoded_tokens) == ("length", 24)


def test_a_prompt_that_cannot_fit_is_refused_with_the_numbers() -> None:
    """A prompt that leaves no room for an answer: the message names its length and the context's."""
    engine = Engine(cells=24)
    engine.decoder.submit(_generate("job", "ab" * 12, max_tokens=1))
    end = engine.end("job")
    assert isinstance(end, JobFailed)
    assert end.code == JobErrorCode.CONTEXT_EXCEEDED
    assert end.message.count("24") == 2


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (DecodeOutcome.OUT_OF_MEMORY, JobErrorCode.OUT_OF_MEMORY),
        (DecodeOutcome.NO_CELLS, JobErrorCode.OUT_OF_MEMORY),
        (DecodeOutcome.FAILED, JobErrorCode.INTERNAL),
    ],
)
def test_a_failed_batch_fails_its_jobs_and_no_others(outcome: DecodeOutcome, code: JobErrorCode) -> None:
    """The jobs of the batch fail clearly; a job that comes after is served."""
    engine = Engine()
    engine.decoder.submit(_generate("unlucky", "ab", max_tokens=2))
    engine.cache.fails_with = outcome
    engine.decoder.step()
    engine.cache.fails_with = None
    engine.decoder.submit(_generate("lucky", "ab", max_tokens=2))
    engine.run()
    assert getattr(engine.end("unlucky"), "code", None) == code
    assert engine.text("lucky") == _expected("ab", 2)


def test_a_request_that_breaks_its_preparation_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unforeseen fault while a prompt is prepared is that job's error; the others go on."""
    engine = Engine()
    engine.decoder.submit(_generate("good", "ab", max_tokens=2))
    monkeypatch.setattr(Letters, "tokenize", lambda *_, **__: 1 / 0)
    engine.decoder.submit(_generate("odd", "ab", max_tokens=2))
    engine.run()
    assert getattr(engine.end("odd"), "code", None) == JobErrorCode.INTERNAL
    assert engine.text("good") == letters(greedy([1, 2], 2))


@settings(max_examples=100, deadline=None)
@given(
    prompt=_PROMPTS,
    continuations=st.lists(st.text(alphabet="abc", min_size=1, max_size=6), min_size=1, max_size=12),
    slots=st.integers(1, 3),
)
def test_scores_are_the_sums_of_the_tokens_log_probabilities(prompt: str, continuations: list[str], slots: int) -> None:
    """Each continuation's score is what a single sequence gives, also with more continuations than lanes."""
    engine = Engine(slots=slots, cells=128)
    engine.decoder.submit(_generate("neighbour", "abc", max_tokens=8))
    engine.decoder.submit(
        ScoreJob(
            request_id="r",
            model="m",
            job_id="score",
            prompt=TextPrompt(text=prompt),
            continuations=tuple(continuations),
        )
    )
    engine.run()
    (scored,) = [event for event in engine.events if isinstance(event, Scored)]
    for continuation, score in zip(continuations, scored.scores, strict=True):
        known, total = _tokens(prompt), 0.0
        for token in _tokens(continuation):
            total += logprob(logits_after(known), token)
            known.append(token)
        assert score.logprob == pytest.approx(total, abs=1e-4)
        assert (score.tokens, score.utf8_bytes) == (len(continuation), len(continuation))


def test_a_prompt_is_counted_without_the_model() -> None:
    """At once, also while all slots are taken; nothing is decoded."""
    engine = Engine(slots=1)
    for job_id, text, most in (("running", "ab", 4), ("count", "abcab", 0)):
        prompt = TextPrompt(text=text)
        engine.decoder.submit(Submit(request_id="r", model="m", job_id=job_id, prompt=prompt, max_tokens=most))
    finished = next(event for event in engine.events if isinstance(event, Finished))
    assert (finished.job_id, finished.reason) == ("count", "length")
    assert (finished.prompt_tokens, finished.decoded_tokens, finished.prefill_s) == (5, 0, None)
    assert engine.cache.decoded_tokens == 0


def test_scoring_frees_the_cells_of_its_branches() -> None:
    """After a score only the prompt stays cached."""
    engine = Engine(cells=64)
    engine.decoder.submit(
        ScoreJob(
            request_id="r",
            model="m",
            job_id="score",
            prompt=TextPrompt(text="abab"),
            continuations=("abc", "bca", "cab"),
        )
    )
    engine.run()
    assert engine.cache.used == 4


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
    assert taken == greedy(_tokens("abc"), 6)
    assert engine.cache.decoded_tokens - before == 5
    end = engine.end("job")
    assert isinstance(end, Finished)
    assert (end.reason, end.decoded_tokens) == ("length", 6)


def test_a_complete_answer_ends_its_follower() -> None:
    """No token, no further step: the job ends well and its slot is free."""
    engine = Engine(slots=1)
    engine.decoder.submit(FollowJob(request_id="r", model="m", job_id="job", prompt=TextPrompt(text="abc")))
    engine.decoder.submit(_generate("waiting", "abc", max_tokens=2))
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
    engine.decoder.submit(_generate("stream", "bca", max_tokens=8))
    engine.run()
    engine.decoder.cancel("follower")
    ends = [engine.end("stream"), engine.end("follower")]
    assert [end.reason for end in ends if isinstance(end, Finished)] == ["length", "cancelled"]


def test_an_end_token_counts_as_decoded_but_has_no_text() -> None:
    """decoded_tokens counts what was computed, the end token too."""
    engine = Engine(slots=1, cells=96)
    prompt = next(letters([n]) for n in range(1, 27) if len(greedy([n], 40)) < 40)
    engine.decoder.submit(_generate("job", prompt, max_tokens=60))
    engine.run()
    end = engine.end("job")
    assert isinstance(end, Finished)
    assert (end.reason, end.decoded_tokens) == ("stop", len(engine.text("job")) + 1)
    assert END not in greedy(_tokens(prompt), 40)
