"""Guesses on a real model: two children, one that guesses and one that does not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from moe2.agent.engine.protocol import Finished, JobFailed, Loaded, ModelSpec
from moe2.common.generation import Sampling
from moe2.common.link.messages import CancelJob, Submit, TokenPiece, Tokens
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.child import EAGER, Child
from tests.models import smollm2_path

pytestmark = pytest.mark.slow

_LINES = [
    f"The {thing} costs {number * 7} coins.\n"
    for number, thing in enumerate(
        ("red lamp", "blue chair", "green table", "white clock", "black mirror", "brown shelf", "yellow carpet"), 1
    )
]
COPY = f"A list:\n{''.join(_LINES)}The same list again:\n{''.join(_LINES)}The same list again:\n{_LINES[0]}"
"""The model is sure of what follows: each token leads by 1.5 in its log-probability, more than a batch's size turns."""
_ROWS = [{"name": name, "price": price, "sold": price > 4} for name, price in (("tea", 3), ("rice", 5), ("salt", 2))]
JSON = f"As JSON: {json.dumps(_ROWS)}\nOnce more as JSON: "
SCHEMA = json.dumps(
    {
        "type": "array",
        "minItems": 3,
        "maxItems": 3,
        "items": {
            "type": "object",
            "properties": {
                "name": {"enum": ["tea", "rice", "salt"]},
                "price": {"type": "integer", "maximum": 9, "minimum": 0},
                "sold": {"type": "boolean"},
            },
            "required": ["name", "price", "sold"],
            "additionalProperties": False,
        },
    }
)
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def children() -> Iterator[tuple[Child, Child]]:
    """(one that does not guess, one that does)"""
    with Child() as plain, Child(EAGER) as guessing:
        for child, speculation in ((plain, False), (guessing, True)):
            spec = ModelSpec(path=str(smollm2_path()), context_tokens=4096, slots=4, threads=1, speculation=speculation)
            assert isinstance(child.load_spec(spec), Loaded)
        yield plain, guessing


def submit(job_id: str, **changes: object) -> Submit:
    fields: dict[str, object] = {"prompt": TextPrompt(text=COPY), "sampling": GREEDY, "max_tokens": 60} | changes
    return Submit(job_id=job_id, request_id="r", model="m", **fields)  # type: ignore[arg-type]


def run(child: Child, *jobs: Submit) -> list[tuple[list[TokenPiece], Finished]]:
    """(pieces, end) of each job, all of them run together."""
    pieces: dict[str, list[TokenPiece]] = {job.job_id: [] for job in jobs}
    ends: dict[str, Finished] = {}
    for job in jobs:
        child.send(job)
    while len(ends) < len(jobs):
        event = child.next()
        assert not isinstance(event, JobFailed), event
        if isinstance(event, Tokens):
            for each in event.jobs:
                pieces[each.job_id] += each.pieces
        elif isinstance(event, Finished):
            ends[event.job_id] = event
    return [(pieces[job.job_id], ends[job.job_id]) for job in jobs]


def text(pieces: list[TokenPiece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_tokens": 1},
        {"max_tokens": 17},
        {"stop": ("clock",)},
        {"stop": ("The white", "28 coins.\nThe")},
        {"sampling": Sampling(temperature=0, frequency_penalty=0.05, presence_penalty=0.05)},
        {"sampling": Sampling(temperature=0, logit_bias={198: 0.5})},
        {"sampling": Sampling(temperature=0.3, top_p=0.5, seed=7)},
        {"sampling": Sampling(temperature=0.3, top_k=5, seed=8)},
        {"json_schema": SCHEMA, "prompt": TextPrompt(text=JSON)},
        {
            "json_schema": SCHEMA,
            "prompt": TextPrompt(text=JSON),
            "sampling": Sampling(temperature=0.2, seed=9),
            "logprobs": 1,
        },
        {"grammar": 'root ::= "The quick brown fox " ("jumps" | "sleeps") " over the lazy dog and is gone."'},
    ],
    ids=str,
)
def test_an_answer_is_that_without_guesses(children: tuple[Child, Child], changes: dict[str, object]) -> None:
    """Token for token, with limits, stop strings, penalties, biases and seeds."""
    (plain, end), (guessed, guessed_end) = (run(child, submit("j", **changes))[0] for child in children)
    assert [piece.text for piece in guessed] == [piece.text for piece in plain]
    assert (guessed_end.reason, guessed_end.stop) == (end.reason, end.stop)
    assert guessed_end.decoded_tokens == end.decoded_tokens
    assert end.drafted_tokens is None
    assert bool(guessed_end.accepted_tokens) == (changes.get("max_tokens") != 1)


def test_log_probabilities_are_those_without_guesses(children: tuple[Child, Child]) -> None:
    """But for what the size of llama.cpp's batches changes: every piece has its own, and its alternatives."""
    (plain, _), (guessed, end) = (run(child, submit("j", logprobs=2))[0] for child in children)
    assert end.accepted_tokens
    for own, other in zip(guessed, plain, strict=True):
        assert own.logprob == pytest.approx(other.logprob, abs=0.2)
        assert len(own.alternatives) == 2
        assert own.alternatives[0].text == own.text


def test_sequences_that_guess_together_do_not_disturb_each_other(children: tuple[Child, Child]) -> None:
    """Four answers at once, of different lengths."""
    jobs = [submit(str(at), max_tokens=20 + 10 * at) for at in range(4)]
    plain, guessed = (run(child, *jobs) for child in children)
    assert [text(pieces) for pieces, _ in guessed] == [text(pieces) for pieces, _ in plain]
    assert [end.decoded_tokens for _, end in guessed] == [20, 30, 40, 50]


def test_an_open_answer_is_what_the_model_likes_most(children: tuple[Child, Child]) -> None:
    """A story's tokens are close to each other, and the size of a batch may turn them; none is chosen that is not as
    good as the best."""
    begun = "Once upon a time there was a fox. The fox"
    pieces, end = run(children[1], submit("j", prompt=TextPrompt(text=begun), max_tokens=120))[0]
    assert end.drafted_tokens
    whole = TextPrompt(text=begun + text(pieces))
    scored, _ = run(children[0], submit("told", prompt=whole, echo=True, logprobs=1, max_tokens=0))[0]
    behind = [piece.alternatives[0].logprob - (piece.logprob or 0.0) for piece in scored[-100:] if piece.alternatives]
    assert max(behind) < 0.3


def test_a_cancelled_answer_ends_and_what_it_began_with_is_reused(children: tuple[Child, Child]) -> None:
    """What was guessed and not written is not in the cache: the next answer, which starts from it, is right."""
    plain, guessing = children
    guessing.send(submit("gone", max_tokens=2000))
    guessing.until(Tokens)
    guessing.send(CancelJob(job_id="gone"))
    assert guessing.until(Finished, "gone").reason == "cancelled"
    (expected, _), (found, end) = run(plain, submit("next"))[0], run(guessing, submit("next"))[0]
    assert text(found) == text(expected)
    assert end.cached_tokens > 0
