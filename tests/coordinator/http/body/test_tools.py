"""The parameters `tools`, `tool_choice`, `response_format` and `grammar`, and the messages of tool calls."""

from __future__ import annotations

import json
from typing import Any

import pytest

from moe2.common.generation import ToolRules
from moe2.common.link.prompts import ChatMessage, ChatPrompt, Tool, ToolCall
from moe2.coordinator.choosing.request import Mode
from moe2.coordinator.http.body.parse import Call, parse_chat, parse_completion
from moe2.coordinator.http.body.prompt import call_id_for_templates
from moe2.coordinator.http.errors import ApiError
from moe2.coordinator.serving.request import uses_tools

USER = {"role": "user", "content": "Weather?"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": SCHEMA}}
TIME = {"type": "function", "function": {"name": "time"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
C1 = call_id_for_templates("c1")
NAMED = {"type": "function", "function": {"name": "time"}}


def chat(**fields: Any) -> Call:
    return parse_chat(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        chat(**fields)
    assert raised.value.status == 400
    return raised.value


def tools_of(call: Call) -> tuple[Tool, ...]:
    assert isinstance(call.prompt, ChatPrompt)
    return call.prompt.tools


def test_offered_tools_travel_with_the_prompt() -> None:
    """Offered tools reach the prompt as they are, and the answer stays free."""
    call = chat(tools=[WEATHER, TIME])
    weather, time = tools_of(call)
    assert (weather.name, weather.description, json.loads(weather.parameters)) == ("weather", "Now.", SCHEMA)
    assert time == Tool(name="time")
    assert call.generation.is_free
    assert call.tool_names == {"weather", "time"}


@pytest.mark.parametrize(
    ("choice", "forced"), [("auto", ()), (None, ()), ("required", ("weather", "time")), (NAMED, ("time",))]
)
def test_a_tool_choice_forces_the_tools_that_it_means(choice: Any, forced: tuple[str, ...]) -> None:
    """Each form of `tool_choice` forces the tools that it means, and the model sees all of them."""
    call = chat(tools=[WEATHER, TIME], tool_choice=choice)
    assert call.generation.forced_tools == forced
    assert len(tools_of(call)) == 2


def test_the_choice_none_hides_the_tools() -> None:
    """The choice "none" hides the tools from the model."""
    assert chat(tools=[WEATHER], tool_choice="none") == chat()


def test_no_tools_are_no_tools() -> None:
    """An empty list of tools changes nothing."""
    assert chat(tools=[]) == chat()


FORMATS: list[tuple[Any, str | None]] = [
    ({"type": "text"}, None),
    ({"type": "json_object"}, "{}"),
    ({"type": "json_object", "schema": {"type": "object"}}, '{"type":"object"}'),
    ({"type": "json_schema", "schema": {"type": "object"}}, '{"type":"object"}'),
    (
        {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True}},
        '{"type":"object"}',
    ),
]


@pytest.mark.parametrize(("form", "schema"), FORMATS)
def test_a_response_format_becomes_a_schema(form: Any, schema: str | None) -> None:
    """A response format becomes a schema, on both routes."""
    by = None if schema is None else "response_format"
    call = chat(response_format=form)
    assert (call.generation.json_schema, call.structured_by) == (schema, by)
    body = json.dumps({"model": "m", "prompt": "p", "response_format": form}).encode()
    text = parse_completion(body)
    assert (text.generation.json_schema, text.structured_by) == (schema, by)


def test_a_grammar_travels_as_it_stands() -> None:
    """A GBNF grammar is passed on as it stands."""
    call = chat(grammar='root ::= "a"')
    assert (call.generation.grammar, call.structured_by) == ('root ::= "a"', "grammar")


def test_a_grammar_names_its_syntax() -> None:
    """A Lark grammar is passed on as another form than GBNF."""
    generation = chat(grammar='start: "a"', grammar_syntax="lark").generation
    assert (generation.grammar, generation.grammar_syntax) == ('start: "a"', "lark")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": {}}, "tools"),
    ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "a", "x": 1}}]}, "tools[0].function.x"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"tools": [WEATHER, WEATHER]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TIME], "tool_choice": "maybe"}, "tool_choice"),
    ({"tools": [WEATHER], "tool_choice": NAMED}, "tool_choice"),
    ({"tools": [TIME], "tool_choice": "required", "grammar": 'root ::= "a"'}, "grammar"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_object", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": []}}}, "response_format.json_schema.schema"),
    (
        {"response_format": {"type": "json_schema", "schema": {}, "json_schema": {"schema": {"type": "object"}}}},
        "response_format.schema",
    ),
    ({"grammar": " "}, "grammar"),
    ({"grammar": 'root ::= "a\0"'}, "grammar"),
    ({"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}}, "grammar"),
    ({"grammar": 'start: "a"', "grammar_syntax": "ebnf"}, "grammar_syntax"),
    ({"grammar_syntax": "lark"}, "grammar_syntax"),
    ({"functions": [{"name": "f"}], "tools": []}, "functions"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """Malformed and contradictory forms, and promises that a free answer would not keep, are refused by name."""
    error = refused(**fields)
    assert error.param == param
    assert param in error.message


def test_promises_are_kept_where_a_call_is_forced() -> None:
    """A forced call may be `strict` and without parallel calls."""
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}  # type: ignore[dict-item]
    call = chat(tools=[strict], tool_choice="required", parallel_tool_calls=False)
    assert call.generation.forced_tools == ("weather",)


STRICT = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA, "strict": True}}


@pytest.mark.parametrize(
    ("fields", "rules"),
    [
        ({"tools": [STRICT, TIME]}, ToolRules(strict=("weather",))),
        ({"tools": [TIME], "parallel_tool_calls": False}, ToolRules(parallel=False)),
        ({"tools": [STRICT], "parallel_tool_calls": False}, ToolRules(strict=("weather",), parallel=False)),
        ({"tools": [TIME], "response_format": {"type": "json_object"}}, ToolRules()),
        ({"tools": [TIME], "grammar": 'root ::= "a"'}, ToolRules()),
        ({"tools": [TIME], "parallel_tool_calls": True}, None),
        ({"tools": [TIME], "response_format": {"type": "text"}}, None),
        ({"tools": [STRICT], "tool_choice": "none"}, None),
        ({"parallel_tool_calls": True}, None),
        ({"parallel_tool_calls": False, "tools": []}, None),
    ],
)
def test_an_answer_that_may_call_keeps_to_the_rules_asked_for(fields: dict[str, Any], rules: ToolRules | None) -> None:
    """`strict`, single calls and a form for the text are rules of the answer; without them there are none."""
    assert chat(**fields).generation.tool_rules == rules


def test_the_text_of_an_answer_that_may_call_has_its_form() -> None:
    """With tools a response format is the form of what is no call; it is no ballot, as nobody can vote on a call."""
    form = {"type": "json_schema", "json_schema": {"schema": {"enum": ["a", "b"]}}}
    call = chat(tools=[TIME], response_format=form)
    assert (call.generation.json_schema, call.structured_by) == ('{"enum":["a","b"]}', "response_format")
    assert call.ballot is None
    assert call.modes == {Mode.ROUTE}


def test_a_forced_call_leaves_a_response_format_nothing_to_say() -> None:
    """Where a call is forced there is no text: the format of text changes nothing."""
    call = chat(tools=[TIME], tool_choice="required", response_format={"type": "json_object"})
    assert call.generation == chat(tools=[TIME], tool_choice="required").generation


def test_a_call_and_its_answer_are_read() -> None:
    """An assistant's message with tool calls needs no content."""
    answer = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
    call = chat(messages=[USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, answer])
    assert isinstance(call.prompt, ChatPrompt)
    assert call.prompt.messages[1:] == (
        ChatMessage(
            role="assistant",
            content="",
            tool_calls=(ToolCall(id=C1, name="weather", arguments='{"city": "Bonn"}'),),
        ),
        ChatMessage(role="tool", content="rain", tool_call_id=C1),
    )
    assert uses_tools(call.prompt)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "rain"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": "x", "tool_calls": [CALL]}, "messages[0].tool_calls"),
        ({"role": "user", "content": "x", "tool_call_id": "c1"}, "messages[0].tool_call_id"),
        ({"role": "assistant", "tool_calls": [{**CALL, "id": 3}]}, "messages[0].tool_calls[0].id"),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "x"}]}, "messages[0].tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [{"id": "c1"}]}, "messages[0].tool_calls[0].function"),
    ],
)
def test_a_malformed_tool_message_is_refused_by_name(message: dict[str, Any], param: str) -> None:
    """A malformed tool message is refused with its place in the conversation."""
    assert refused(messages=[message]).param == param


# --- Forms that OpenAI had before, and those that it has since --------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "forced"),
    [({}, ()), ({"function_call": "auto"}, ()), ({"function_call": {"name": "weather"}}, ("weather",))],
)
def test_functions_are_tools(choice: dict[str, Any], forced: tuple[str, ...]) -> None:
    """`functions` and `function_call` mean what `tools` and `tool_choice` do."""
    call = chat(functions=[WEATHER["function"]], **choice)
    (tool,) = tools_of(call)
    assert (tool.name, tool.description) == ("weather", "Now.")
    assert call.generation.forced_tools == forced


def test_functions_beside_tools_are_refused() -> None:
    """Which of both holds nobody could say."""
    assert refused(functions=[WEATHER["function"]], tools=[TIME]).param == "functions"


def test_a_function_that_is_not_offered_is_refused() -> None:
    """The name that is called has to be one of those."""
    assert "time" in str(refused(functions=[WEATHER["function"]], function_call={"name": "time"}).message)


def test_allowed_tools_leave_the_others_out() -> None:
    """The model sees those that it may call, and has to call one where the mode says so."""
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
    call = chat(tools=[WEATHER, TIME], tool_choice=allowed)
    assert [tool.name for tool in tools_of(call)] == ["time"]
    assert call.generation.forced_tools == ("time",)


def test_an_allowed_tool_that_is_not_offered_is_refused() -> None:
    """The error names it."""
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}
    assert "time" in str(refused(tools=[WEATHER], tool_choice=allowed).message)


def test_a_custom_tool_is_a_function_of_one_text() -> None:
    """A regular expression becomes the text's pattern."""
    form = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[a-c]+"}}
    call = chat(tools=[{"type": "custom", "custom": {"name": "spell", "format": form}}])
    (tool,) = tools_of(call)
    assert json.loads(tool.parameters)["properties"] == {"input": {"type": "string", "pattern": "^(?:[a-c]+)$"}}


def test_a_custom_tool_that_is_forced_writes_its_grammar() -> None:
    """The whole answer is its input, so that a Lark grammar can hold."""
    form = {"type": "grammar", "grammar": {"syntax": "lark", "definition": 'start: "a"'}}
    tool = {"type": "custom", "custom": {"name": "spell", "format": form}}
    call = chat(tools=[tool], tool_choice={"type": "custom", "custom": {"name": "spell"}})
    assert (call.generation.grammar, call.generation.grammar_syntax) == ('start: "a"', "lark")
