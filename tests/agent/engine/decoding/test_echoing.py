"""Prompts that are repeated and scored, over a simulated model and a real one."""

from __future__ import annotations

from typing import Any

import pytest

from moe2.agent.engine.decoding.distribution import logprob
from moe2.agent.engine.protocol import Finished, JobFailed
from moe2.common.errors import JobErrorCode
from moe2.common.generation import Sampling
from moe2.common.link.messages import Submit, TokenPiece, Tokens
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.simulation import END, Engine, Letters, greedy, letters, logits_after

PROMPT = [1, 2, 3, 1, 2]


def echoing(prompt: TextPrompt, **fields: Any) -> Submit:
    asked = {"sampling": Sampling(temperature=0), "echo": True, **fields}
    return Submit(request_id="r", model="m", job_id="job", prompt=prompt, **asked)


def run(engine: Engine, job: Submit) -> tuple[list[TokenPiece], Finished]:
    """The pieces of a job that runs alone, and its end."""
    engine.decoder.submit(job)
    engine.run()
    end = engine.end(job.job_id)
    assert isinstance(end, Finished)
    words = [event for event in engine.events if isinstance(event, Tokens)]
    pieces = [piece for event in words for each in event.jobs if each.job_id == job.job_id for piece in each.pieces]
    return pieces, end


@pytest.mark.parametrize("batch_tokens", [2, 16])
@pytest.mark.parametrize("prompt", [TextPrompt(text=letters(PROMPT)), TextPrompt(text="", tokens=tuple(PROMPT))])
def test_every_token_of_a_prompt_is_scored_after_those_before_it(prompt: TextPrompt, batch_tokens: int) -> None:
    """Given as text or as ids, in however many batches it is read; nothing is written."""
    pieces, end = run(Engine(batch_tokens=batch_tokens), echoing(prompt, max_tokens=0, logprobs=1))
    assert [piece.text for piece in pieces] == list(letters(PROMPT))
    assert pieces[0].logprob is None
    for place, piece in enumerate(pieces[1:], start=1):
        logits = logits_after(PROMPT[:place])
        assert piece.logprob == pytest.approx(logprob(logits, PROMPT[place]), abs=1e-5)
        assert piece.alternatives[0].logprob == pytest.approx(logprob(logits, int(logits.argmax())), abs=1e-5)
    assert (end.reason, end.prompt_tokens, end.decoded_tokens) == ("length", 5, 0)


def test_a_control_token_of_a_prompt_is_named() -> None:
    """It has no text, and its name tells it from a token that is only part of a character; the first one, too."""
    ids = TextPrompt(text="", tokens=(END, 1, END, 2))
    pieces, _ = run(Engine(), echoing(ids, max_tokens=0, logprobs=1))
    assert [(piece.text, piece.name) for piece in pieces] == [("", "<end>"), ("a", ""), ("", "<end>"), ("b", "")]
    unscored, _ = run(Engine(), echoing(ids, max_tokens=0))
    assert not any(piece.name for piece in unscored)


def test_an_answer_follows_its_prompt() -> None:
    """What is drawn behind the prompt is what would be drawn without an echo."""
    pieces, end = run(Engine(), echoing(TextPrompt(text="abc"), max_tokens=2, logprobs=0))
    tokens = Letters().tokenize("abc", add_special=True, parse_special=True)
    assert "".join(piece.text for piece in pieces) == "abc" + letters(greedy(tokens, 2))
    assert end.decoded_tokens == 2


def test_a_prompt_from_the_cache_is_repeated_whole() -> None:
    """Without scores the cache is used, and with scores it is not, as it keeps none."""
    engine = Engine()
    prompt = TextPrompt(text="abcabc")
    first = run(engine, echoing(prompt, max_tokens=1))
    engine.events.clear()
    again = run(engine, echoing(prompt, max_tokens=1))
    assert [piece.text for piece in again[0]] == [piece.text for piece in first[0]]
    assert again[1].cached_tokens > 0
    engine.events.clear()
    scored = run(engine, echoing(prompt, max_tokens=0, logprobs=0))
    assert scored[1].cached_tokens == 0
    assert all(piece.logprob is not None for piece in scored[0][1:])


def test_a_stop_string_in_the_prompt_stops_nothing() -> None:
    """It is looked for in the answer alone."""
    pieces, _ = run(Engine(), echoing(TextPrompt(text="abc"), max_tokens=0, stop=("b",)))
    assert "".join(piece.text for piece in pieces) == "abc"


@pytest.mark.parametrize(
    ("job", "code"),
    [
        (echoing(TextPrompt(text="", tokens=(1, 27)), max_tokens=1), JobErrorCode.INVALID_REQUEST),
        (echoing(TextPrompt(text="", tokens=(1,) * 64), max_tokens=1), JobErrorCode.CONTEXT_EXCEEDED),
    ],
)
def test_what_cannot_be_read_is_refused(job: Submit, code: JobErrorCode) -> None:
    """Ids that the vocabulary does not have, and too many of them."""
    engine = Engine()
    engine.decoder.submit(job)
    end = engine.end("job")
    assert isinstance(end, JobFailed)
    assert end.code == code
