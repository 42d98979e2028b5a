"""Grammars and schemas in a real child on the real model: followed, refused, compiled without holding up others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moe2.agent.engine.protocol import (
    Finished,
    JobFailed,
    Scored,
    Started,
)
from moe2.common.errors import JobErrorCode
from moe2.common.generation import Sampling
from moe2.common.link.messages import (
    CancelJob,
    ScoreJob,
    Tokens,
)
from moe2.common.link.prompts import TextPrompt
from tests.agent.engine.child import Child
from tests.agent.engine.submissions import chat_job, text_job

pytestmark = pytest.mark.slow


_PERSON = '{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}, '
_PERSON += '"required": ["name", "age"]}'


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(temperature=1.5, seed=3, frequency_penalty=0.5)]
)
def test_an_answer_follows_its_json_schema(child: Child, sampling: Sampling) -> None:
    """Greedy or drawn, the text is JSON with the fields that the schema asks for."""
    child.send(chat_job("person", "Describe a person.", max_tokens=200, sampling=sampling, json_schema=_PERSON))
    texts, ends = child.collect(1)
    end = ends["person"]
    assert isinstance(end, Finished)
    # An answer cut off by its length is no JSON yet.
    if end.reason == "stop":
        assert set(json.loads(texts["person"])) >= {"name", "age"}
    else:
        assert texts["person"].lstrip().startswith("{")


def test_an_answer_follows_its_grammar(child: Child) -> None:
    """Only what the grammar allows is drawn, and its end ends the answer."""
    child.send(chat_job("choice", "Is the sky blue?", grammar='root ::= "maybe" | "perhaps"'))
    texts, _ = child.collect(1)
    assert texts["choice"] in ("maybe", "perhaps")


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": "root := nonsense"},
        {"grammar": 'other ::= "a"'},
        {"grammar": 'root ::= root "a"'},
        {"grammar": ""},
        {"grammar": "root ::= " + "(" * 1000 + '"a"' + ")" * 1000},
        {"grammar": 'root ::= "a"{1000000}'},
        {"grammar": 'root ::= "a\0"'},
        {"json_schema": "no json"},
        {"json_schema": "[1]"},
        {"json_schema": '{"type": "nonsense"}'},
        {"json_schema": '{"$ref": "https://example.com/schema.json"}'},
        {"json_schema": '{"type": "array", "uniqueItems": true}'},
        {"json_schema": '{"type": "string", "pattern": "(' + "ab" * 30_000 + '){1000}"}'},
        {"json_schema": '{"a":' * 500 + "1" + "}" * 500},
    ],
)
def test_an_unusable_grammar_or_schema_is_refused_as_such(child: Child, fields: dict[str, Any]) -> None:
    """With a reason, and the child goes on."""
    child.send(chat_job("unusable", "x", **fields))
    failed = child.until(JobFailed, "unusable")
    child.send(chat_job("after", "x", max_tokens=1))
    child.collect(1)
    assert failed.code == JobErrorCode.INVALID_GRAMMAR


def test_a_text_in_json_has_no_raw_line_ends(child: Child) -> None:
    """What the model would write as several lines is escaped, and the answer is JSON."""
    schema = json.dumps(
        {
            "type": "object",
            "properties": {"poem": {"type": "string", "maxLength": 80}},
            "required": ["poem"],
            "additionalProperties": False,
        }
    )
    child.send(chat_job("poem", "Write a poem of four lines.", max_tokens=200, json_schema=schema))
    texts, ends = child.collect(1)
    end = ends["poem"]
    assert isinstance(end, Finished)
    assert end.reason == "stop"
    assert isinstance(json.loads(texts["poem"])["poem"], str)


def test_an_answer_follows_a_lark_grammar(child: Child) -> None:
    """And ends where the grammar does, after exactly what it allows."""
    child.send(
        chat_job("lark", "Count.", grammar='start: "one, " /tw{1,2}o/ "!"{3}', grammar_syntax="lark", max_tokens=40)
    )
    texts, ends = child.collect(1)
    end = ends["lark"]
    assert isinstance(end, Finished)
    assert end.reason == "stop"
    assert texts["lark"] in ("one, two!!!", "one, twwo!!!")


def test_log_probabilities_are_the_models_own_under_a_grammar(child: Child) -> None:
    """What the grammar rules out stays in the distribution that is reported."""
    prompt = "The capital of France is"
    grammar = 'root ::= " London"'
    child.send(text_job("held", prompt, max_tokens=1, logprobs=3, grammar=grammar))
    (piece,) = child.until(Tokens).jobs[0].pieces
    child.until(Finished, "held")
    child.send(
        ScoreJob(request_id="r", model="m", job_id="score", prompt=TextPrompt(text=prompt), continuations=(piece.text,))
    )
    (score,) = child.until(Scored, "score").scores
    assert piece.logprob == pytest.approx(score.logprob, abs=1e-2)
    assert " London" not in [alternative.text for alternative in piece.alternatives[:1]]


_SLOW = 'root ::= ("' + "ab" * 50 + '"){1000}'
"""A grammar that takes a while to compile, within the bounds."""


def test_others_are_answered_while_a_grammar_is_compiled(child: Child) -> None:
    """A job that came after it starts first."""
    child.send(chat_job("slow", "x", grammar=_SLOW, max_tokens=1))
    child.send(chat_job("quick", "x", max_tokens=1))
    assert child.until(Started).job_id == "quick"
    child.until(Finished, "slow")


def test_a_job_is_cancelled_while_its_grammar_is_compiled(child: Child) -> None:
    """At once, and the child goes on."""
    child.send(chat_job("slow", "x", grammar=_SLOW))
    child.send(CancelJob(job_id="slow"))
    assert child.until(Finished, "slow").reason == "cancelled"
    child.send(chat_job("after", "x", grammar='root ::= "yes"'))
    assert child.collect(1)[0]["after"] == "yes"


def test_an_answer_has_one_form(child: Child) -> None:
    """A grammar and a schema contradict each other."""
    child.send(chat_job("both", "x", grammar='root ::= "a"', json_schema="{}"))
    assert child.until(JobFailed, "both").code == JobErrorCode.INVALID_REQUEST
