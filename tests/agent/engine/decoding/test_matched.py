"""Strict tools of a model whose calls have a channel of their own, as gpt-oss's have."""

from __future__ import annotations

import json

import pytest

from moe2.agent.engine.calls.forms import HARMONY as FORM
from moe2.agent.engine.calls.forms import Caller
from moe2.agent.engine.prompt.thinking import HARMONY
from moe2.common.generation import ToolRules
from moe2.common.link.messages import Submit
from moe2.common.link.prompts import ChatMessage, ChatPrompt, Tool
from tests.agent.engine import wishes

GPT_OSS = wishes.Alphabet(
    ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|constrain|>", "<|call|>", "<|return|>"),
    ends=("<|call|>", "<|return|>"),
)
CALLER = Caller(FORM, {mark: GPT_OSS.places[mark] for mark in FORM.controls})
TOOLS = tuple(
    Tool(name=name, parameters=json.dumps({"type": "object", "properties": {key: {"type": kind}}, "required": [key]}))
    for name, key, kind in (("rain", "day", "integer"), ("time.now", "zone", "string"), ("free", "x", "integer"))
)
HEADER = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>"
THOUGHT = "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"


def written(text: str, **form: str) -> tuple[str, list[int]]:
    """What a model writes that wants to write a text, and the tokens that it was refused."""
    prompt = ChatPrompt(messages=(ChatMessage(role="user", content="?"),), tools=TOOLS)
    rules = ToolRules(strict=("rain", "time.now"))
    request = Submit(job_id="j", request_id="r", model="m", prompt=prompt, tool_rules=rules, **form)  # type: ignore[arg-type]
    found = wishes.written(GPT_OSS, request, text, caller=CALLER, marks=HARMONY)
    return found.answer, found.refused


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize("thought", ["", THOUGHT])
@pytest.mark.parametrize(("name", "arguments"), [("rain", '{"day": 1}'), ("time.now", '{"zone": "UTC"}')])
def test_a_strict_call_that_follows_its_schema_is_written_as_the_model_wants(
    name: str, arguments: str, thought: str
) -> None:
    """Nothing stands in its way, with reasoning before it and without; the call ends the answer."""
    said, refused = written(thought + HEADER.format(name) + arguments + "<|call|>")
    assert said == call(name, arguments)
    assert refused == []


def test_a_strict_call_cannot_leave_its_schema() -> None:
    """Where the model wants a text for a number, it has to write a number."""
    said, refused = written(THOUGHT + HEADER.format("rain") + '{"day": "x"}<|call|>')
    assert json.loads(said.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))["name"] == "rain"
    assert isinstance(json.loads(said[11:-13])["arguments"]["day"], int)
    assert refused[0] == ord('"')


def test_a_call_of_a_tool_that_is_not_strict_is_free() -> None:
    """As is one of a tool that nobody has offered: what reads the answer judges it."""
    for name in ("free", "nobody"):
        said, refused = written(HEADER.format(name) + '{"x": "y"}<|call|>')
        assert said == call(name, '{"x": "y"}')
        assert refused == []


def test_an_answer_beside_strict_tools_is_free_and_cannot_select_a_tool() -> None:
    """What is no call is text; the tokens that stand for a tool are none that the model may write there."""
    final = "<|channel|>final<|message|>"
    assert written(THOUGHT + final + 'It "rains".<|return|>') == ('It "rains".', [])
    said, refused = written(final + "<|channel|>a<|return|>")
    assert refused[0] == GPT_OSS.places["<|channel|>"]
    assert "<|" not in said


def test_an_answer_with_a_form_beside_strict_tools_keeps_to_it() -> None:
    """`response_format` holds in the answer, and a tool's schema in a call."""
    form = {"json_schema": '{"type": "integer"}'}
    assert written("<|channel|>final<|message|>17<|return|>", **form) == ("17", [])
    assert written("<|channel|>final<|message|>x17<|return|>", **form)[1][0] == ord("x")
    assert written(HEADER.format("rain") + '{"day": 2}<|call|>', **form) == (call("rain", '{"day": 2}'), [])
