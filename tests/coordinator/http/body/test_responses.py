"""Bodies of the Responses API as the chat completions that ask for the same."""

from __future__ import annotations

from typing import Any

import pytest

from moe2.coordinator.http.body.parse import read_chat
from moe2.coordinator.http.body.responses import chat_fields, items_of, read_responses
from moe2.coordinator.http.errors import ApiError


def chat_of(**fields: Any) -> dict[str, Any]:
    body = {"model": "moe2", **fields}
    request, _ = read_responses(body)
    return chat_fields(request, body, items_of(request))


def messages_of(*items: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = chat_of(input=list(items), **fields)["messages"]
    return messages


def refusal_of(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        chat_of(**fields)
    return caught.value


def test_a_text_is_a_users_message() -> None:
    """`input` may be a text; `instructions` come before it."""
    assert chat_of(input="hi", instructions="Be brief.")["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]


def test_instructions_that_stand_together_are_one_message() -> None:
    """Templates take one system message, at the beginning; a later one stays where it is."""
    developer = {"role": "developer", "content": [{"type": "input_text", "text": "Use tools."}]}
    user = {"role": "user", "content": "hi"}
    assert messages_of(developer, user, developer, instructions="Be brief.") == [
        {"role": "system", "content": "Be brief.\n\nUse tools."},
        user,
        {"role": "system", "content": "Use tools."},
    ]


def test_what_one_answer_consisted_of_is_one_message() -> None:
    """Reasoning, text and calls of one answer are one assistant's message; outputs are tools' messages."""
    call = {"type": "function_call", "call_id": "c1", "name": "time", "arguments": "{}", "id": "fc_1"}
    messages = messages_of(
        {"role": "user", "content": "What time is it, and where?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Let me"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hm.", "annotations": []}],
        },
        call,
        {**call, "call_id": "c2"},
        {"type": "function_call_output", "call_id": "c1", "output": "noon"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "here"}]},
        {"role": "assistant", "content": "Noon, here."},
    )
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [made["id"] for made in messages[1]["tool_calls"]] == ["c1", "c2"]
    assert messages[1]["reasoning_content"] == "Let me"
    assert messages[1]["content"] == [{"type": "text", "text": "Hm."}]
    assert messages[3] == {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "here"}]}


def test_two_answers_in_a_row_stay_two() -> None:
    """Two assistant's messages are not joined."""
    answer = {"role": "assistant", "content": "a"}
    assert len(messages_of({"role": "user", "content": "hi"}, answer, answer)) == 3


def test_tools_and_formats_are_those_of_a_chat() -> None:
    """Tools, the choice among them and the text's format have a chat's shape."""
    schema = {"type": "object", "properties": {}}
    tool = {"type": "function", "name": "time", "parameters": schema, "strict": True}
    chat = chat_of(
        input="hi",
        tools=[tool],
        tool_choice={"type": "function", "name": "time"},
        text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}},
        max_output_tokens=5,
        temperature=0.5,
    )
    function = {"name": "time", "parameters": schema, "strict": True}
    assert chat["tools"] == [{"type": "function", "function": function}]
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "time"}}
    assert chat["response_format"]["json_schema"] == {"name": "n", "schema": schema, "strict": True}
    assert (chat["max_tokens"], chat["temperature"]) == (5, 0.5)


def test_allowed_tools_are_the_only_ones() -> None:
    """A model is shown the tools that it may call in this answer."""
    tools: list[Any] = [{"type": "function", "name": name, "parameters": {}} for name in ("a", "b")]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "b"}]}
    chat = chat_of(input="hi", tools=tools, tool_choice=choice)
    assert [tool["function"]["name"] for tool in chat["tools"]] == ["b"]
    assert chat["tool_choice"] == "required"
    choice["tools"] = [{"type": "function", "name": "c"}]
    assert refusal_of(input="hi", tools=tools, tool_choice=choice).param == "tool_choice"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
        ({"input": [{"role": "robot", "content": "hi"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0]"),
        ({"input": [{"type": "computer_call_output", "call_id": "c"}]}, "input[0]"),
        ({"input": "hi", "tools": [{"type": "file_search"}]}, "tools[0]"),
        ({"input": "hi", "background": True}, "background"),
        ({"input": "hi", "truncation": "oldest"}, "truncation"),
        ({"input": "hi", "conversation": "conv_1"}, "conversation"),
        ({"input": "hi", "max_output_tokens": -2}, "max_output_tokens"),
        ({"input": "hi", "text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"input": "hi", "metadata": {"a": 1}}, "metadata"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    """A 400 names the parameter as this route calls it."""
    error = refusal_of(**fields)
    assert error.status == 400
    assert (error.param or "").startswith(param)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "time"}])
@pytest.mark.parametrize("tools", [[], [{"type": "web_search"}]])
def test_a_choice_without_tools_that_can_be_called_is_refused(choice: Any, tools: list[Any]) -> None:
    """An answer without a call would break it, also where the only tool is one that is left out."""
    with pytest.raises(ApiError, match="tool_choice") as refusal:
        read_chat(chat_of(input="hi", tools=tools, tool_choice=choice))
    assert refusal.value.param == "tool_choice"


def test_what_changes_nothing_is_told() -> None:
    """Hints for caches and the like are accepted, and listed."""
    part = {"type": "input_text", "text": "hi", "prompt_cache_breakpoint": {"mode": "explicit"}}
    body: dict[str, Any] = {
        "model": "moe2",
        "input": [{"role": "user", "content": [part]}],
        "user": "me",
        "reasoning": {"summary": "auto", "effort": "low"},
        "store": False,
        "truncation": "auto",
        "include": ["message.output_text.logprobs", "reasoning.encrypted_content"],
    }
    body["text"] = {"format": {"type": "json_schema", "schema": {}, "description": "An answer."}}
    body["input"] += [
        {"type": "reasoning", "summary": [{"text": "So."}], "encrypted_content": "abc"},
        {
            "role": "assistant",
            "phase": "commentary",
            "content": [{"type": "output_text", "text": "", "annotations": [1]}],
        },
    ]
    _, ignored = read_responses(body)
    said = {"user", "reasoning.summary", "input[].content[].prompt_cache_breakpoint", "truncation", "include"}
    said |= {"text.format.description", "input[].summary", "input[].encrypted_content", "input[].phase"}
    said |= {"input[].content[].annotations"}
    assert set(ignored) == said
    assert read_chat(chat_of(input="hi", text=body["text"])).ignored == ()
    _, ignored = read_responses({"model": "moe2", "input": "hi", "include": ["message.output_text.logprobs"]})
    assert not ignored
