"""Tools and structured answers on the real model, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe2.agent.daemon import ENGINE_ARGV
from moe2.agent.engine.calls.forms import BY_NAME
from tests.fakes.fleet import Fleet, fleet
from tests.models import served, smollm2_path, template_with_signs, with_template, with_tools

pytestmark = pytest.mark.slow

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}


def models(path: Path, **fields: Any) -> list[dict[str, Any]]:
    return [served(path, **fields)]


async def choice_of(running: Fleet, **fields: Any) -> dict[str, Any]:
    async with await running.chat("What is the weather in Paris?", temperature=0, **fields) as answer:
        body = await answer.json()
    assert answer.status == 200, body
    choice: dict[str, Any] = body["choices"][0]
    return choice


async def error_of(running: Fleet, **fields: Any) -> dict[str, Any]:
    async with await running.chat("What is the weather in Paris?", **fields) as answer:
        assert answer.status == 400
        error: dict[str, Any] = (await answer.json())["error"]
    return error


async def test_a_forced_call_follows_the_functions_schema(tmp_path: Path) -> None:
    """Even a small model calls the named function, or one of those required, with arguments that fit."""
    path = with_tools(smollm2_path(), tmp_path / "tools.gguf")
    named = {"type": "function", "function": {"name": "weather"}}
    # As a host is by default, with guesses.
    async with fleet(tmp_path, engine_argv=ENGINE_ARGV, models=models(path, speculation=True)) as running:
        assert running.coordinator.status().agents[0].experts[0].supports_tools
        choice = await choice_of(running, tools=[TIME, WEATHER], tool_choice=named, max_tokens=100)
        assert choice["finish_reason"] == "tool_calls"
        (call,) = choice["message"]["tool_calls"]
        assert call["function"]["name"] == "weather"
        arguments = json.loads(call["function"]["arguments"])
        assert set(arguments) == {"city", "unit"}
        assert arguments["unit"] in ("C", "F")
        choice = await choice_of(running, tools=[TIME, WEATHER], tool_choice="required", max_tokens=100)
        assert choice["message"]["tool_calls"][0]["function"]["name"] in ("time", "weather")


async def test_a_free_call_of_a_strict_tool_follows_its_schema(tmp_path: Path) -> None:
    """`tool_choice` is auto: the model goes on as the conversation does, with a call, which keeps to the schema."""
    path = with_tools(smollm2_path(), tmp_path / "tools.gguf")
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    messages: list[dict[str, Any]] = []
    for number, city in enumerate(("Rome", "Oslo", "Bern", "Kyiv")):
        called = {"name": "weather", "arguments": json.dumps({"city": city})}
        messages += [
            {"role": "user", "content": f"Weather in {city}?"},
            {"role": "assistant", "tool_calls": [{"id": f"c{number}", "type": "function", "function": called}]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": "Sunny."},
        ]
    messages.append({"role": "user", "content": "Weather in Paris?"})
    body = {"model": "smollm2", "messages": messages, "tools": [strict], "parallel_tool_calls": False}
    async with fleet(tmp_path, engine_argv=ENGINE_ARGV, models=models(path)) as running:
        async with await running.http.post(
            "/v1/chat/completions", json={**body, "temperature": 0, "max_tokens": 80}
        ) as response:
            answer = await response.json()
        assert response.status == 200, answer
        [choice] = answer["choices"]
        assert choice["finish_reason"] == "tool_calls"
        [call] = choice["message"]["tool_calls"]
        # The earlier calls lack the unit that the schema requires.
        assert set(json.loads(call["function"]["arguments"])) == {"city", "unit"}


async def test_an_answer_follows_the_requested_schema(tmp_path: Path) -> None:
    """`response_format` reaches the sampler."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {**schema, "additionalProperties": False}}}
    async with fleet(tmp_path, engine_argv=ENGINE_ARGV, models=models(smollm2_path())) as running:
        choice = await choice_of(running, response_format=form, max_tokens=40)
        assert isinstance(json.loads(choice["message"]["content"])["ok"], bool)
        choice = await choice_of(running, grammar='start: "yes" | "no"', grammar_syntax="lark")
        assert choice["message"]["content"] in ("yes", "no")
        choice = await choice_of(running, grammar='root ::= "yes" | "no"')
        assert choice["message"]["content"] in ("yes", "no")


async def test_a_schema_or_grammar_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """400 with the parameter that it came from; the engine lives. The model's own template has no tools."""
    odd = {"type": "nonsense"}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": odd}}
    async with fleet(tmp_path, engine_argv=ENGINE_ARGV, models=models(smollm2_path())) as running:
        for fields, param in (({"response_format": form}, "response_format"), ({"grammar": "x ="}, "grammar")):
            error = await error_of(running, **fields)
            assert (error["param"], error["code"]) == (param, "invalid_grammar")
            assert param in error["message"]
        unique = {"properties": {"tags": {"type": "array", "uniqueItems": True}}}
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": unique}}
        assert "#/properties/tags/uniqueItems" in (await error_of(running, response_format=form))["message"]
        error = await error_of(running, tools=[WEATHER])
        assert error["code"] == "no_tools"
        assert (await choice_of(running, max_tokens=2))["message"]["content"]


async def test_an_odd_tool_is_named_and_calls_come_back(tmp_path: Path) -> None:
    """A schema that cannot be used blames `tools`; a call and its answer are read again."""
    path = with_tools(smollm2_path(), tmp_path / "tools.gguf")
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"type": "nonsense"}}}
    call = {"id": "c", "type": "function", "function": {"name": "time", "arguments": "{}"}}
    history = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "It is noon."},
    ]
    async with fleet(tmp_path, engine_argv=ENGINE_ARGV, models=models(path)) as running:
        error = await error_of(running, tools=[odd], tool_choice="required")
        assert (error["param"], error["code"]) == ("tools", "invalid_grammar")
        choice = await choice_of(running, messages=history, tools=[TIME], max_tokens=8)
        assert choice["finish_reason"] in ("stop", "length", "tool_calls")


@pytest.mark.parametrize("name", ["qwen-coder", "glm", "deepseek-v3", "mistral", "pythonic", "functionary-v3.2"])
async def test_calls_in_other_forms_reach_the_client_as_calls(tmp_path: Path, name: str) -> None:
    """The model is held to the form that its template tells of; whole and streamed, the client sees OpenAI's shape."""
    template = template_with_signs(*BY_NAME[name].signs)
    path = with_template(smollm2_path(), tmp_path / "form.gguf", template)
    asked: dict[str, Any] = {"tools": [TIME, WEATHER], "tool_choice": "required", "max_tokens": 120, "logprobs": True}
    async with fleet(tmp_path, engine_argv=ENGINE_ARGV, models=models(path)) as running:
        choice = await choice_of(running, **asked)
        assert choice["finish_reason"] == "tool_calls", choice
        [call] = choice["message"]["tool_calls"]
        assert choice["message"]["content"] is None
        arguments = json.loads(call["function"]["arguments"])
        if call["function"]["name"] == "weather":
            assert set(arguments) == {"city", "unit"}
            assert arguments["unit"] in ("C", "F")
        async with await running.chat("What is the weather in Paris?", temperature=0, stream=True, **asked) as stream:
            lines = (await stream.text()).splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
        parts = [part["function"] for delta in deltas for part in delta.get("tool_calls", ())]
        assert parts[0]["name"] == call["function"]["name"]
        assert "".join(part["arguments"] for part in parts) == call["function"]["arguments"]
        assert not "".join(delta.get("content") or "" for delta in deltas)
