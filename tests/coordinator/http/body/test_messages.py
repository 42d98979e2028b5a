"""Bodies of Anthropic's Messages API as the chat completions that ask for the same."""

from __future__ import annotations

from typing import Any

import pytest

from moe2.coordinator.http.body.messages import MessagesRequest, chat_fields
from moe2.coordinator.http.body.parse import STRICT, read_chat, read_struct
from moe2.coordinator.http.errors import ApiError

HI: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
TOOL = {"name": "time", "description": "Tells the time.", "input_schema": {"type": "object"}}


def chat_of(**fields: Any) -> dict[str, Any]:
    body = {"model": "moe2", "max_tokens": 9, "messages": HI, **fields}
    request, _ = read_struct(body, MessagesRequest, STRICT)
    return chat_fields(request, body)


def test_a_plain_question_is_a_chat() -> None:
    """Model, messages, limit and sampling have the chat's names."""
    chat = chat_of(temperature=0.5, stop_sequences=["END"], stream=True)
    assert chat == {
        "model": "moe2",
        "messages": HI,
        "max_tokens": 9,
        "temperature": 0.5,
        "stop": ["END"],
        "stream": True,
    }


@pytest.mark.parametrize(
    ("system", "content"),
    [
        ("Be brief.", "Be brief."),
        (
            [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            [{"type": "text", "text": "Be brief."}],
        ),
    ],
)
def test_system_is_a_text_or_blocks(system: Any, content: Any) -> None:
    """The system's text comes first, in either form."""
    assert chat_of(system=system)["messages"] == [{"role": "system", "content": content}, *HI]


def test_calls_and_their_results_find_each_other() -> None:
    """`tool_use` is an assistant's call; a `tool_result` is a tool's message, before what the user adds."""
    use = {"type": "tool_use", "id": "t1", "name": "time", "input": {"zone": "UTC"}}
    turns = [
        *HI,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                {"type": "text", "text": "Wait."},
                use,
                {**use, "id": "t2"},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Go on."},
                {"type": "tool_result", "tool_use_id": "t1", "content": "noon"},
                {
                    "type": "tool_result",
                    "tool_use_id": "t2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "?"}],
                },
            ],
        },
    ]
    _, answer, first, second, last = chat_of(messages=turns)["messages"]
    assert answer["reasoning_content"] == "Hm."
    assert answer["content"] == [{"type": "text", "text": "Wait."}]
    assert [call["id"] for call in answer["tool_calls"]] == ["t1", "t2"]
    assert answer["tool_calls"][0]["function"] == {"name": "time", "arguments": '{"zone":"UTC"}'}
    assert first == {"role": "tool", "tool_call_id": "t1", "content": "noon"}
    assert second["content"] == [{"type": "text", "text": "Error:"}, {"type": "text", "text": "?"}]
    assert last == {"role": "user", "content": [{"type": "text", "text": "Go on."}]}


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "time"}, {"type": "function", "function": {"name": "time"}}),
        ({"type": "auto"}, None),
    ],
)
def test_tool_choices_have_the_chats_names(choice: dict[str, Any], chosen: Any) -> None:
    """Each of Anthropic's choices is one of OpenAI's."""
    chat = chat_of(tools=[TOOL], tool_choice=choice)
    assert chat.get("tool_choice") == chosen
    function = {"name": "time", "description": "Tells the time.", "parameters": {"type": "object"}}
    assert chat["tools"] == [{"type": "function", "function": function}]


def test_a_choice_without_tools_is_not_dropped() -> None:
    """What it forces cannot be called, which the chat completion says."""
    assert chat_of(tool_choice={"type": "any"})["tool_choice"] == "required"
    with pytest.raises(ApiError, match="'tool_choice' needs 'tools'"):
        read_chat(chat_of(tool_choice={"type": "any"}))


def test_one_call_at_a_time_can_be_asked_for() -> None:
    """`disable_parallel_tool_use` allows a single call."""
    assert (
        chat_of(tools=[TOOL], tool_choice={"type": "auto", "disable_parallel_tool_use": True})["parallel_tool_calls"]
        is False
    )


def test_thinking_is_bounded_or_off() -> None:
    """A budget bounds it; what the `moe2` object says counts more; `disabled` asks for none."""
    enabled = {"type": "enabled", "budget_tokens": 2048}
    assert chat_of(thinking=enabled)["moe2"] == {"thinking_budget_tokens": 2048}
    assert chat_of(thinking=enabled, moe2={"thinking_budget_tokens": 5})["moe2"] == {"thinking_budget_tokens": 5}
    assert chat_of(thinking={"type": "disabled"}, output_config={"effort": "high"})["reasoning_effort"] == "none"
    assert chat_of(output_config={"effort": "max"})["reasoning_effort"] == "xhigh"


def test_hints_for_caches_are_told() -> None:
    """`cache_control`, wherever it stands, is listed among what changes nothing."""
    mark = {"type": "ephemeral"}
    body = {
        "model": "moe2",
        "max_tokens": 9,
        "cache_control": mark,
        "tools": [{**TOOL, "cache_control": mark}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": mark}]}],
    }
    _, ignored = read_struct(body, MessagesRequest, STRICT)
    assert set(ignored) == {"cache_control", "tools[].cache_control", "messages[].content[].cache_control"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "messages[0].content[0].type"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0]"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"mcp_servers": []}, "mcp_servers"),
        ({"temperature": 3}, "temperature"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(fields: dict[str, Any], param: str) -> None:
    """A 400 names the parameter as this route calls it."""
    with pytest.raises(ApiError) as caught:
        chat_of(**fields)
    assert caught.value.status == 400
    assert (caught.value.param or "").startswith(param)
