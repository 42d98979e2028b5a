"""A real model whose slots share no KV cache (`kv_unified = false`): the same answers, within a slot's part of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from moe2.agent.engine.protocol import Finished, JobFailed, Loaded, LoadFailed, ModelSpec, Scored, Started
from moe2.common.errors import JobErrorCode
from moe2.common.generation import Sampling
from moe2.common.link.messages import ScoreJob
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.child import Child
from tests.agent.engine.slidingmodel import write_sliding_model
from tests.agent.engine.submissions import PROMPTS, chat_job, text_job
from tests.agent.engine.test_determinism import LONG, answered, submit
from tests.models import smollm2_path

pytestmark = pytest.mark.slow

SPEC = ModelSpec(path=str(smollm2_path()), slots=4, context_tokens=1500, kv_unified=False, threads=1)
SLOT_TOKENS = 512


@pytest.fixture(scope="module")
def divided() -> Iterator[tuple[Child, Loaded]]:
    """A child with four slots, each with 512 tokens as llama.cpp rounds up, and what it said once it was ready."""
    with Child() as child:
        loaded = child.load_spec(SPEC)
        assert isinstance(loaded, Loaded), loaded
        yield child, loaded


def test_greedy_texts_are_those_of_a_shared_cache(divided: tuple[Child, Loaded], child: Child) -> None:
    """Each alone there, and then all at once with two for each slot."""
    ours, _ = divided
    alone: dict[str, str] = {}
    for n, prompt in enumerate(PROMPTS):
        child.send(chat_job(f"{n}", prompt))
        alone |= child.collect(1)[0]
    for n, prompt in enumerate(PROMPTS):
        ours.send(chat_job(f"{n}", prompt))
    assert ours.collect(len(PROMPTS))[0] == alone


def test_a_request_has_a_slots_part_and_is_told_so(divided: tuple[Child, Loaded]) -> None:
    """What is longer is refused with the number, and an answer without a limit ends where the part does."""
    child, loaded = divided
    assert loaded.context_tokens == SLOT_TOKENS
    child.send(text_job("big", "word " * (SLOT_TOKENS + 1)))
    failed = child.until(JobFailed, "big")
    assert failed.code == JobErrorCode.CONTEXT_EXCEEDED
    assert str(SLOT_TOKENS) in failed.message
    endless = Sampling(temperature=0, logit_bias={0: -100, 2: -100, 4: -100})
    for n in range(5):
        child.send(text_job(f"{n}", f"{n} " + "One two three. " * 100, max_tokens=None, sampling=endless))
    for end in child.collect(5)[1].values():
        assert isinstance(end, Finished)
        assert end.reason == "length"
        assert SLOT_TOKENS - 1 <= (end.prompt_tokens or 0) + end.decoded_tokens <= SLOT_TOKENS + 1


def test_continuations_are_scored_as_in_a_shared_cache_also_where_all_slots_score(
    divided: tuple[Child, Loaded], child: Child
) -> None:
    """Their branches take turns in the one lane to spare."""
    ours, _ = divided
    continuations = (" Yes, it is.", " No, it is not.", " A banana is yellow.")
    jobs = [
        ScoreJob(
            request_id="r",
            model="m",
            job_id=f"score{n}",
            prompt=TextPrompt(text=f"Question {n}: Is the sky blue? Answer:"),
            continuations=continuations,
        )
        for n in range(SPEC.slots)
    ]
    for engine in (ours, child):
        for job in jobs:
            engine.send(job)
    found, expected = (
        {scored.job_id: scored.scores for scored in (engine.until(Scored) for _ in jobs)} for engine in (ours, child)
    )
    for job in jobs:
        for one, other in zip(found[job.job_id], expected[job.job_id], strict=True):
            assert one.logprob == pytest.approx(other.logprob, rel=0.01)


def test_a_conversation_whose_lane_was_taken_comes_back_from_the_shelf(divided: tuple[Child, Loaded]) -> None:
    """More conversations than lanes, each asked on: only what is new is read."""
    child, _ = divided
    prompts = [f"{n}: " + " ".join(f"{word} {n}" for word in ("alpha", "beta", "gamma") * 12) for n in range(6)]
    answers, read_anew = [], []
    for turn in range(2):
        for n, prompt in enumerate(prompts):
            child.send(text_job(f"{turn} {n}", prompt, max_tokens=4))
            started = child.until(Started, f"{turn} {n}")
            read_anew.append(started.prompt_tokens - started.cached_tokens)
            answers.append(child.collect(1)[0][f"{turn} {n}"])
    assert answers[:6] == answers[6:]
    assert min(read_anew[:6]) > 60
    assert max(read_anew[6:]) == 1


def test_an_answer_that_reads_its_prompt_anew_is_always_the_same() -> None:
    """Whatever the cache holds, and whoever else is answered meanwhile; two threads could add up in two ways."""
    with Child() as child:
        assert isinstance(child.load_spec(replace(SPEC, threads=2)), Loaded)
        child.send(submit("alone", LONG, cache_prompt=False))
        alone, _ = answered(child, "alone")
        child.send(submit("other", "One, two, three, four,", max_tokens=40))
        child.until(Started, "other")
        child.send(submit("beside", LONG, cache_prompt=False))
        assert answered(child, "beside")[0] == alone


def test_sliding_layers_answer_as_in_a_shared_cache(tmp_path: Path) -> None:
    """With windows that hold no more than they look at."""
    path = write_sliding_model(smollm2_path(), tmp_path / "sliding.gguf", window=64, context_tokens=32_768)
    spec = ModelSpec(path=str(path), context_tokens=32_768, slots=2, threads=1, kv_unified=False)
    texts = []
    for each in (spec, replace(spec, kv_unified=True)):
        with Child() as engine:
            assert isinstance(engine.load_spec(each), Loaded)
            for n in range(3):
                engine.send(text_job(f"{n}", f"{n} " + "One two three four five six seven. " * 20))
            texts.append(engine.collect(3)[0])
    assert texts[0] == texts[1]


def test_as_many_slots_as_llama_cpp_has_sequences_are_refused() -> None:
    """One of them is the lane to spare."""
    with Child() as engine:
        failed = engine.load_spec(replace(SPEC, slots=256))
        assert isinstance(failed, LoadFailed)
        assert "between 1 and 255" in failed.message
