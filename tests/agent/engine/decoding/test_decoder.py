"""The decoding loop over a simulated model: isolation, cancellation, limits, scoring, failures."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe2.agent.engine.decoding.batch import DecodeOutcome
from moe2.agent.engine.decoding.distribution import logprob
from moe2.agent.engine.protocol import Finished, JobFailed, Scored, Started
from moe2.common.errors import JobErrorCode
from moe2.common.link.messages import ScoreJob, Submit
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.decoding.letterjobs import expected_text, letter_job, tokens_of
from tests.agent.engine.simulation import END, Engine, Letters, greedy, letters, logits_after

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
    kv_unified=st.booleans(),
)
def test_no_sequence_sees_anothers_tokens(
    script: list[tuple[Any, ...]],
    slots: int,
    cells: int,
    batch_tokens: int,
    idle_tokens: int,
    shelved_tokens: int,
    kv_unified: bool,
) -> None:
    """Whatever arrives, stops and is cancelled meanwhile, each job's text is what it would be alone."""
    engine = Engine(
        slots=slots,
        cells=cells,
        batch_tokens=batch_tokens,
        idle_tokens=idle_tokens,
        shelved_tokens=shelved_tokens,
        kv_unified=kv_unified,
    )
    jobs: dict[str, tuple[str, int | None, tuple[str, ...]]] = {}
    cancelled: set[str] = set()
    for action, *details in script:
        if action == "arrive":
            job_id = f"job{len(jobs)}"
            jobs[job_id] = tuple(details)
            engine.decoder.submit(letter_job(job_id, details[0], max_tokens=details[1], stop=details[2]))
        elif action == "cancel" and (job_id := f"job{details[0]}") in jobs:
            engine.decoder.cancel(job_id)
            cancelled.add(job_id)
        elif action == "step":
            for _ in range(details[0]):
                engine.decoder.step()
    engine.run()
    for job_id, (prompt, max_tokens, stop) in jobs.items():
        end = engine.end(job_id)
        alone = expected_text(prompt, max_tokens or cells, stop)
        if isinstance(end, JobFailed):
            assert end.code == JobErrorCode.CONTEXT_EXCEEDED
        elif end.reason == "cancelled":
            assert job_id in cancelled
            assert expected_text(prompt, end.decoded_tokens).startswith(engine.text(job_id))
        elif end.reason == "length":
            assert engine.text(job_id) == expected_text(prompt, end.decoded_tokens)
        else:
            assert engine.text(job_id) == alone


def test_a_job_cancelled_while_queued_decodes_nothing() -> None:
    """Cancelling a queued job ends it without touching the model."""
    engine = Engine(slots=1)
    engine.decoder.submit(letter_job("first", "aa", max_tokens=3))
    engine.decoder.submit(letter_job("second", "bb", max_tokens=3))
    engine.decoder.cancel("second")
    end = engine.end("second")
    assert isinstance(end, Finished)
    assert (end.reason, end.decoded_tokens, end.prefill_s) == ("cancelled", 0, None)


def test_a_job_cancelled_between_prefill_chunks_decodes_no_more_of_its_prompt() -> None:
    """Cancelling during prefill stops after the chunk under way."""
    engine = Engine(slots=1, batch_tokens=4)
    engine.decoder.submit(letter_job("long", "ab" * 10, max_tokens=3))
    engine.decoder.step()
    engine.decoder.cancel("long")
    engine.run()
    assert engine.cache.decoded_tokens == 4


def test_a_prompt_that_was_cut_off_leaves_no_more_in_the_cache_than_was_decoded() -> None:
    """The same prompt again begins with what is really there, and is answered as if it were alone."""
    engine = Engine(slots=1, batch_tokens=4)
    engine.decoder.submit(letter_job("cut off", "ab" * 10))
    engine.decoder.step()
    engine.decoder.cancel("cut off")
    engine.decoder.submit(letter_job("again", "ab" * 10, max_tokens=5))
    engine.run()
    assert [event.cached_tokens for event in engine.events if isinstance(event, Started)] == [0, 4]
    assert engine.text("again") == expected_text("ab" * 10, 5)


def test_a_cancelled_job_frees_its_slot_at_once() -> None:
    """The next job starts when the one before it is cancelled."""
    engine = Engine(slots=1)
    engine.decoder.submit(letter_job("first", "aa"))
    engine.decoder.submit(letter_job("second", "bb"))
    engine.decoder.cancel("first")
    assert [event.job_id for event in engine.events if isinstance(event, Started)] == ["first", "second"]


def test_a_start_tells_what_is_unread_of_prompts_before_it() -> None:
    """The first finds nothing; the second what its first batch left of the first prompt; the third no written token."""
    engine = Engine(slots=3, batch_tokens=8)
    engine.decoder.submit(letter_job("long", "ab" * 10, max_tokens=12))
    engine.decoder.step()
    engine.decoder.submit(letter_job("behind", "cd", max_tokens=2))
    for _ in range(9):
        engine.decoder.step()
    engine.decoder.submit(letter_job("later", "ef", max_tokens=2))
    assert [event.unread_tokens for event in engine.events if isinstance(event, Started)] == [0, 12, 0]


def test_a_job_that_came_during_a_batch_waited_for_it() -> None:
    """Batches take a second: one that came 0.25 s into that of eight tokens counts six of them as unread, and 0.75 s
    as waited; one that finds the engine idle neither."""
    engine = Engine(slots=3, batch_tokens=8, seconds=lambda tokens: 1.0)
    engine.decoder.submit(letter_job("long", "ab" * 10, max_tokens=2), engine.now_s)
    engine.decoder.step()
    engine.decoder.submit(letter_job("behind", "cd", max_tokens=1), engine.now_s - 0.75)
    engine.run()
    engine.decoder.submit(letter_job("later", "ef", max_tokens=1), engine.now_s)
    started = [event for event in engine.events if isinstance(event, Started)]
    assert [event.unread_tokens for event in started] == [0, 6 + 12, 0]
    assert [event.batch_wait_s for event in started] == [0.0, 0.75, 0.0]
    end = engine.end("behind")
    assert isinstance(end, Finished)
    assert (end.wait_s, end.prefill_s) == (0.75, 1.0)


def test_cancelling_an_unknown_job_is_no_error() -> None:
    """A cancellation that crosses the job's end on its way is ignored."""
    engine = Engine()
    engine.decoder.cancel("nobody")
    assert engine.events == []


def test_a_full_context_ends_a_job_with_length() -> None:
    """Without max_tokens, prompt and answer together fill the context and no more."""
    engine = Engine(slots=1, cells=24)
    prompt = next(text for text in ("a", "b", "c", "ab", "ba") if len(greedy(tokens_of(text), 24)) == 24)
    engine.decoder.submit(letter_job("job", prompt))
    engine.run()
    end = engine.end("job")
    assert isinstance(end, Finished)
    assert (end.reason, end.prompt_tokens + end.decoded_tokens) == ("length", 24)


def test_answers_without_a_limit_never_take_what_others_reserved() -> None:
    """Endless answers fill the cache between them and end with length; one with max_tokens gets all it asked for."""
    engine = Engine(slots=3, cells=256, endless=True)
    engine.decoder.submit(letter_job("endless one", "abc"))
    engine.decoder.submit(letter_job("endless two", "bca"))
    engine.decoder.submit(letter_job("limited", "cab", max_tokens=60))
    engine.run()
    ends = {name: engine.end(name) for name in ("endless one", "endless two", "limited")}
    assert {getattr(end, "reason", end) for end in ends.values()} == {"length"}
    assert ends["limited"].decoded_tokens == 60
    assert ends["endless one"].decoded_tokens > 256 // 3


@pytest.mark.parametrize(
    ("rate", "letters_of_prompt", "batches"),
    [
        (100, 40, [40]),
        (100, 120, [64, 56]),
        (100, 247, [64, 64, 64, 55]),
        (800, 190, [190]),
        (800, 430, [192, 192, 46]),
        (9000, 700, [512, 188]),
    ],
)
def test_a_prompt_is_cut_into_whole_tiles(rate: int, letters_of_prompt: int, batches: list[int]) -> None:
    """A quarter of a second's tokens in whole tiles of 64, and one at least."""
    engine = Engine(slots=1, cells=2048, batch_tokens=512, seconds=lambda tokens: tokens / rate)
    engine.decoder.submit(letter_job("known", "b" * 300, max_tokens=1))
    engine.run()
    sizes: list[int] = []
    passes = engine.cache.on_decode

    def decoded(tokens: int) -> None:
        sizes.append(tokens)
        passes(tokens)

    engine.cache.on_decode = decoded
    engine.decoder.submit(letter_job("job", "a" * letters_of_prompt, max_tokens=1))
    engine.run()
    assert sizes == batches
    assert engine.text("job") == expected_text("a" * letters_of_prompt, 1)


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    """The short prompt's first token comes before the long prompt's prefill is done."""
    engine = Engine(slots=2, cells=96, batch_tokens=8)
    engine.decoder.submit(letter_job("long", "ab" * 30, max_tokens=1))
    engine.decoder.submit(letter_job("short", "b", max_tokens=1))
    engine.run()
    ends = [event.job_id for event in engine.events if isinstance(event, Finished)]
    assert ends == ["short", "long"]


def test_a_prompt_is_read_anew_where_asked() -> None:
    """Cached tokens and shelved ones are left where they are."""
    engine = Engine(idle_tokens=0, shelved_tokens=64)
    for job_id, cache_prompt in (("a", True), ("b", False), ("c", True)):
        engine.decoder.submit(
            msgspec.structs.replace(letter_job(job_id, "abcdefgh", max_tokens=2), cache_prompt=cache_prompt)
        )
        engine.run()
    assert [event.cached_tokens for event in engine.events if isinstance(event, Started)] == [0, 0, 7]
    assert engine.text("a") == engine.text("b") == engine.text("c")


def test_a_shared_prefix_is_decoded_once() -> None:
    """A second prompt with the same beginning takes it from the cache, also while the first still runs."""
    engine = Engine(slots=2, cells=96, batch_tokens=64)
    engine.decoder.submit(letter_job("first", "abababab", max_tokens=20))
    engine.decoder.step()
    engine.decoder.submit(letter_job("second", "ababababb", max_tokens=2))
    started = [event for event in engine.events if isinstance(event, Started)]
    assert started[1].cached_tokens == 8


def test_an_answered_conversation_leaves_the_cache_and_comes_back() -> None:
    """Where no job runs, idle tokens beyond the limit lie on the shelf; who goes on with them decodes only what is
    new."""
    engine = Engine(slots=2, cells=96, batch_tokens=64, idle_tokens=4, shelved_tokens=96)
    engine.decoder.submit(letter_job("first", "abababab", max_tokens=1))
    engine.run()
    assert (engine.cache.used, engine.shelf.held_bytes) == (0, 8)
    engine.decoder.submit(letter_job("second", "ababababb", max_tokens=3))
    engine.run()
    assert [event.cached_tokens for event in engine.events if isinstance(event, Started)] == [0, 8]
    assert engine.cache.decoded_tokens == 8 + 1 + 2
    assert engine.text("second") == expected_text("ababababb", 3)


def test_what_a_divided_caches_lane_held_goes_on_the_shelf_and_comes_back() -> None:
    """With as few lanes as slots and one more, a newcomer takes an answered conversation's lane, but not its tokens."""
    engine = Engine(slots=1, cells=64, shelved_tokens=64, endless=True, kv_unified=False)
    for job_id, prompt in (("first", "abc"), ("second", "bca"), ("third", "cab")):
        engine.decoder.submit(letter_job(job_id, prompt, max_tokens=4))
        engine.run()
    said = f"abc{engine.text('first')}"
    engine.decoder.submit(letter_job("again", f"{said}a", max_tokens=1))
    engine.run()
    (started,) = [event for event in engine.events if isinstance(event, Started) and event.job_id == "again"]
    assert started.cached_tokens == len(said) - 1


def test_a_beginning_that_another_lane_holds_is_copied_in_a_divided_cache() -> None:
    """Also from a job that still runs."""
    engine = Engine(slots=2, cells=64, kv_unified=False)
    engine.decoder.submit(letter_job("first", "abcabc", max_tokens=20))
    engine.decoder.step()
    assert not [event for event in engine.events if isinstance(event, Finished)]
    engine.decoder.submit(letter_job("second", "abcabd", max_tokens=20))
    engine.run()
    started = [event for event in engine.events if isinstance(event, Started)]
    assert [event.cached_tokens for event in started] == [0, 5]
    assert engine.text("second") == expected_text("abcabd", 20)


def test_nothing_leaves_the_cache_while_a_job_runs() -> None:
    """Its tokens would come to lie in the gaps."""
    engine = Engine(slots=2, cells=96, batch_tokens=64, idle_tokens=4, shelved_tokens=96, endless=True)
    engine.decoder.submit(letter_job("long", "b", max_tokens=20))
    engine.decoder.submit(letter_job("short", "abababab", max_tokens=1))
    engine.decoder.step()
    assert engine.end("short")
    assert engine.shelf.held_bytes == 0
    engine.run()
    assert (engine.cache.used, engine.shelf.held_bytes) == (0, 28)


def test_a_conversation_without_room_on_the_shelf_stays_in_the_cache() -> None:
    """Nothing is thrown away before its cells are needed."""
    engine = Engine(slots=2, cells=96, batch_tokens=64, idle_tokens=4, shelved_tokens=7)
    engine.decoder.submit(letter_job("first", "abababab", max_tokens=1))
    engine.run()
    assert (engine.cache.used, engine.shelf.held_bytes) == (8, 0)


def test_a_shelved_conversation_that_no_longer_fits_is_decoded_anew() -> None:
    """Others hold the cells: the answer is the same."""
    alone = Engine(slots=1, cells=40, endless=True)
    alone.decoder.submit(letter_job("again", "ab" * 4, max_tokens=8))
    alone.run()
    engine = Engine(slots=2, cells=40, batch_tokens=64, idle_tokens=0, shelved_tokens=96, endless=True)
    engine.decoder.submit(letter_job("long", "ab" * 8, max_tokens=16))
    engine.run()
    engine.decoder.submit(letter_job("other", "b", max_tokens=20))
    for _ in range(15):
        engine.decoder.step()
    engine.decoder.submit(letter_job("again", "ab" * 4, max_tokens=8))
    assert [event.cached_tokens for event in engine.events if isinstance(event, Started)][-1] == 0
    engine.run()
    assert engine.text("again") == alone.text("again")


def test_a_limit_beyond_the_context_is_that_of_the_context() -> None:
    """A limit is a bound and no demand: the answer fills what the context leaves, and ends with length."""
    engine = Engine(slots=1, cells=24)
    prompt = next(text for text in ("a", "b", "c", "ab", "ba") if len(greedy(tokens_of(text), 24)) == 24)
    engine.decoder.submit(letter_job("job", prompt, max_tokens=100))
    engine.run()
    end = engine.end("job")
    assert isinstance(end, Finished)
    assert (end.reason, end.prompt_tokens + end.decoded_tokens) == ("length", 24)


def test_a_prompt_that_cannot_fit_is_refused_with_the_numbers() -> None:
    """A prompt that leaves no room for an answer: the message names its length and the context's."""
    engine = Engine(cells=24)
    engine.decoder.submit(letter_job("job", "ab" * 12, max_tokens=1))
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
    engine.decoder.submit(letter_job("unlucky", "ab", max_tokens=2))
    engine.cache.fails_with = outcome
    engine.decoder.step()
    engine.cache.fails_with = None
    engine.decoder.submit(letter_job("lucky", "ab", max_tokens=2))
    engine.run()
    assert getattr(engine.end("unlucky"), "code", None) == code
    assert engine.text("lucky") == expected_text("ab", 2)


def test_a_request_that_breaks_its_preparation_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unforeseen fault while a prompt is prepared is that job's error; the others go on."""
    engine = Engine()
    engine.decoder.submit(letter_job("good", "ab", max_tokens=2))
    monkeypatch.setattr(Letters, "tokenize", lambda *_, **__: 1 / 0)
    engine.decoder.submit(letter_job("odd", "ab", max_tokens=2))
    engine.run()
    assert getattr(engine.end("odd"), "code", None) == JobErrorCode.INTERNAL
    assert engine.text("good") == letters(greedy([1, 2], 2))


@settings(max_examples=100, deadline=None)
@given(
    prompt=_PROMPTS,
    continuations=st.lists(st.text(alphabet="abc", min_size=1, max_size=6), min_size=1, max_size=12),
    slots=st.integers(1, 3),
    kv_unified=st.booleans(),
)
def test_scores_are_the_sums_of_the_tokens_log_probabilities(
    prompt: str, continuations: list[str], slots: int, kv_unified: bool
) -> None:
    """Each continuation's score is what a single sequence gives, also with more continuations than lanes."""
    engine = Engine(slots=slots, cells=128, kv_unified=kv_unified)
    engine.decoder.submit(letter_job("neighbour", "abc", max_tokens=8))
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
        known, total = tokens_of(prompt), 0.0
        for token in tokens_of(continuation):
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


def test_an_end_token_counts_as_decoded_but_has_no_text() -> None:
    """decoded_tokens counts what was computed, the end token too."""
    engine = Engine(slots=1, cells=96)
    prompt = next(letters([n]) for n in range(1, 27) if len(greedy([n], 40)) < 40)
    engine.decoder.submit(letter_job("job", prompt, max_tokens=60))
    engine.run()
    end = engine.end("job")
    assert isinstance(end, Finished)
    assert (end.reason, end.decoded_tokens) == ("stop", len(engine.text("job")) + 1)
    assert END not in greedy(tokens_of(prompt), 40)
