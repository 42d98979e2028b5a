"""What an answer depends on: a real model's log-probabilities, compared to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moe2.agent.engine.protocol import Finished, Loaded, ModelSpec
from moe2.common.generation import Sampling
from moe2.common.link.messages import Submit, Tokens
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.child import Child
from tests.models import smollm2_path

pytestmark = pytest.mark.slow

LONG = "The fox saw the crow in the tree, with a piece of cheese in its beak. " * 16 + "Then"


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    """A child with two threads: with one, llama.cpp has no two ways to add up."""
    with Child() as child:
        spec = ModelSpec(path=str(smollm2_path()), context_tokens=2048, slots=4, threads=2)
        assert isinstance(child.load_spec(spec), Loaded)
        yield child


def submit(job_id: str, text: str, *, max_tokens: int = 8, cache_prompt: bool = True) -> Submit:
    return Submit(
        job_id=job_id,
        request_id="r",
        model="m",
        prompt=TextPrompt(text=text),
        sampling=Sampling(temperature=0),
        max_tokens=max_tokens,
        logprobs=0,
        cache_prompt=cache_prompt,
    )


def answered(child: Child, job_id: str) -> tuple[list[float | None], Finished]:
    """(log-probabilities of its tokens, end) of a job that was sent."""
    found: list[float | None] = []
    while True:
        event = child.next()
        if isinstance(event, Tokens):
            found += [piece.logprob for job in event.jobs if job.job_id == job_id for piece in job.pieces]
        elif isinstance(event, Finished) and event.job_id == job_id:
            return found, event


def test_an_answer_that_reads_its_prompt_anew_is_always_the_same(child: Child) -> None:
    """Whatever the cache holds, and whoever else is answered meanwhile."""
    child.send(submit("alone", LONG, cache_prompt=False))
    alone, end = answered(child, "alone")
    assert end.cached_tokens == 0
    child.send(submit("between", "Once upon a time", max_tokens=4))
    answered(child, "between")
    child.send(submit("again", LONG, cache_prompt=False))
    assert answered(child, "again")[0] == alone
    child.send(submit("other", "One, two, three, four,", max_tokens=40))
    child.until(Tokens)
    child.send(submit("beside", LONG, cache_prompt=False))
    assert answered(child, "beside")[0] == alone
