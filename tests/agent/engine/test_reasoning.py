"""Reasoning with a real model whose template opens it in the prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from moe2.agent.engine.protocol import Finished, Loaded, Scored
from moe2.common.generation import Sampling
from moe2.common.link.messages import ScoreJob, Submit, Tokens
from moe2.common.link.prompts import ChatMessage, ChatPrompt
from tests.agent.engine.child import Child
from tests.models import THINKING_TEMPLATE, smollm2_path, with_template

pytestmark = pytest.mark.slow

QUESTION = (ChatMessage(role="user", content="What is two plus two?"),)
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """A child with the model loaded."""
    path = with_template(smollm2_path(), tmp_path_factory.mktemp("model") / "thinking.gguf", THINKING_TEMPLATE)
    with Child() as child:
        loaded = child.load(str(path))
        assert isinstance(loaded, Loaded)
        assert loaded.facts.supports_thinking
        yield child


def ask(child: Child, *, kwargs: str = "{}", **fields: object) -> tuple[str, str, Finished]:
    """(reasoning, answer, end) of the question, answered greedily."""
    prompt = ChatPrompt(messages=QUESTION, template_kwargs=kwargs)
    settings = {"sampling": Sampling(temperature=0), "max_tokens": 60, **fields}
    child.send(Submit(job_id="j", request_id="r", model="m", prompt=prompt, **settings))  # type: ignore[arg-type]
    thought, said = "", ""
    while True:
        event = child.next()
        if isinstance(event, Tokens):
            pieces = [piece for job in event.jobs for piece in job.pieces]
            thought += "".join(piece.text for piece in pieces if piece.is_reasoning)
            said += "".join(piece.text for piece in pieces if not piece.is_reasoning)
        elif isinstance(event, Finished):
            return thought, said, event


def test_reasoning_without_end_is_no_answer(child: Child) -> None:
    """A model that never closes it spends its tokens there."""
    thought, said, end = ask(child, max_tokens=12)
    assert (bool(thought), said, end.reason, end.reasoning_tokens) == (True, "", "length", 12)


def test_a_budget_ends_the_reasoning(child: Child) -> None:
    """The answer comes after so many tokens of it."""
    thought, said, end = ask(child, thinking_budget_tokens=8)
    assert end.reasoning_tokens == 8
    assert thought
    assert said
    assert "think>" not in thought + said


def test_thinking_is_switched_off_where_the_template_can(child: Child) -> None:
    """By the client's variable, or by a budget of nothing, to the same answer."""
    off = ask(child, kwargs='{"enable_thinking": false}', max_tokens=12)
    none = ask(child, thinking_budget_tokens=0, max_tokens=12)
    assert off[:2] == none[:2]
    assert (off[0], off[2].reasoning_tokens, none[2].reasoning_tokens) == ("", 0, 0)


def test_a_schema_begins_after_the_reasoning(child: Child) -> None:
    """The reasoning is free text, the answer JSON."""
    thought, said, end = ask(child, thinking_budget_tokens=8, json_schema=json.dumps(SCHEMA), max_tokens=100)
    assert end.reason == "stop"
    assert thought[:1] not in ("", "{")
    assert set(json.loads(said)) == {"answer"}


def test_a_stop_string_is_looked_for_in_the_answer_alone(child: Child) -> None:
    """The reasoning has the word, and goes on."""
    thought, _, _ = ask(child, thinking_budget_tokens=8)
    word = thought.split()[1]
    again, said, _ = ask(child, thinking_budget_tokens=8, stop=(word,))
    assert again == thought
    assert word not in said


def test_an_answer_that_is_begun_needs_no_reasoning(child: Child) -> None:
    """The client has its beginning, so that what was to be thought is over."""
    thought, said, _ = ask(child, prefix="The answer is", max_tokens=4)
    assert (thought, bool(said)) == ("", True)


def test_choices_are_scored_after_the_reasoning(child: Child) -> None:
    """With the prompt that an answer without reasoning has."""
    _, _, end = ask(child, thinking_budget_tokens=0, max_tokens=1)
    prompt = ChatPrompt(messages=QUESTION)
    child.send(ScoreJob(job_id="s", request_id="r", model="m", prompt=prompt, continuations=("4", "5")))
    assert child.until(Scored, "s").prompt_tokens == end.prompt_tokens
