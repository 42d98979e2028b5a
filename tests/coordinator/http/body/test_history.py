"""Conversations as clients send them back: what SDKs and frameworks make of earlier answers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe2.common.link.prompts import ChatMessage, ChatPrompt, ToolCall
from moe2.coordinator.choosing.request import Mode
from moe2.coordinator.http.body.parse import Call, Reading, parse_chat
from moe2.coordinator.http.body.prompt import call_id_for_templates
from moe2.coordinator.http.errors import ApiError

USER = {"role": "user", "content": "Hi"}


def chat(*messages: dict[str, Any], **fields: Any) -> Call:
    return parse_chat(msgspec.json.encode({"model": "m", "messages": messages, **fields}))


def history(*messages: dict[str, Any]) -> tuple[ChatMessage, ...]:
    """The messages before a last one of the user's, as the expert gets them."""
    prompt = chat(*messages, USER).prompt
    assert isinstance(prompt, ChatPrompt)
    return prompt.messages[:-1]


def calling(arguments: Any, call_id: str = "call_1") -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def test_reasoning_under_two_names_is_one_text() -> None:
    """Clients that send both send the same; of two texts neither is dropped in silence."""
    same = {"role": "assistant", "content": "4", "reasoning_content": "2+2", "reasoning": "2+2"}
    assert history(USER, same)[1].reasoning_content == "2+2"
    with pytest.raises(ApiError) as raised:
        history(USER, {**same, "reasoning": "3+1"})
    assert raised.value.param == "messages[1].reasoning"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_what_a_model_thought_comes_back_beside_its_answer(name: str) -> None:
    """Reasoning is sent back by one of two names; templates that show it get it."""
    assert history({"role": "assistant", "content": "4", name: "2+2"}) == (
        ChatMessage(role="assistant", content="4", reasoning_content="2+2"),
    )


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "assistant", "content": []},
        {"role": "tool", "content": None, "tool_call_id": "a"},
        {"role": "tool", "tool_call_id": "a"},
    ],
)
def test_a_message_without_content_is_an_empty_one(message: dict[str, Any]) -> None:
    """A tool may return nothing, and an answer that was cut off may have said nothing."""
    assert [(each.role, each.content) for each in history(message)] == [(message["role"], "")]


@pytest.mark.parametrize("arguments", ["", " ", "{}", {}])
def test_no_arguments_are_an_empty_object(arguments: Any) -> None:
    """Clients send "" or {} where a function takes nothing."""
    [message] = history(calling(arguments))
    assert message.tool_calls[0].arguments == "{}"


def test_arguments_may_be_an_object() -> None:
    """Some clients send back the arguments as they have parsed them."""
    [message] = history(calling({"city": "Köln"}))
    assert message.tool_calls[0].arguments == '{"city":"Köln"}'


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ],
)
def test_a_refusal_is_what_was_said(message: dict[str, Any]) -> None:
    """A conversation that was begun elsewhere may have refusals in it."""
    assert history(message) == (ChatMessage(role="assistant", content="No."),)


def test_a_refusal_beside_a_text_is_not_dropped() -> None:
    """Both were said."""
    [message] = history({"role": "assistant", "content": "Well.", "refusal": "No."})
    assert message.content == "Well.\nNo."


def test_ids_of_calls_are_as_strict_templates_want_them() -> None:
    """A call and its result keep one id, of nine letters or digits as Mistral's templates ask for; such a one stays."""
    call, result = history(
        calling("{}", "call_0123456789-abcdef"),
        {"role": "tool", "content": "!", "tool_call_id": "call_0123456789-abcdef"},
    )
    assert call.tool_calls == (ToolCall(id=result.tool_call_id or "", name="f", arguments="{}"),)
    assert call_id_for_templates("aB3456789") == "aB3456789"


@given(st.text(min_size=1), st.text(min_size=1))
def test_every_id_becomes_nine_letters_or_digits(one: str, other: str) -> None:
    """Equal ids stay equal, and different ones different."""
    found = call_id_for_templates(one)
    assert len(found) == 9
    assert found.isascii()
    assert found.isalnum()
    assert (found == call_id_for_templates(other)) == (one == other)


def test_an_answer_at_the_end_is_continued() -> None:
    """An assistant's message at the end is how the answer begins; only one expert alone can go on from it."""
    call = chat(USER, {"role": "assistant", "content": "Sure, "})
    assert (call.prompt, call.prefix) == (chat(USER).prompt, "Sure, ")
    assert call.modes == {Mode.ROUTE}


@pytest.mark.parametrize(
    "messages",
    [
        ({"role": "assistant", "content": "Hello"},),
        (USER, {"role": "assistant", "content": ""}),
        (USER, calling("{}")),
        ({"role": "assistant", "content": "Hello"}, USER),
    ],
)
def test_what_is_no_beginning_is_a_message(messages: tuple[dict[str, Any], ...]) -> None:
    """Nothing is continued where nothing was said, a call was made, or nobody had asked."""
    call = chat(*messages)
    assert isinstance(call.prompt, ChatPrompt)
    assert (len(call.prompt.messages), call.prefix) == (len(messages), "")


def test_a_beginning_with_reasoning_is_refused() -> None:
    """What came before the answer cannot be put before its beginning: it is refused, not dropped."""
    with pytest.raises(ApiError) as raised:
        chat(USER, {"role": "assistant", "content": "So", "reasoning_content": "Hm."})
    assert raised.value.param == "messages[1].reasoning_content"


UNKNOWN = {
    "model": "m",
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "a", "x": 1}], "id": "msg-1", "tool_call_id": "c"},
        {"role": "user", "content": "b", "id": "msg-2"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"x": 1}, "returns": "y"}, "kind": 1}],
    "temprature": 1,
    "stream_options": {"include_usage": True, "more": 1},
    "stream": True,
    "metadata": {"x": 1},
}


def test_unknown_parameters_can_be_left_out() -> None:
    """Where the settings say so, what nobody knows is left out at any depth and named; what is known stays."""
    call = parse_chat(msgspec.json.encode(UNKNOWN), reading=Reading(ignore_unknown=True))
    assert set(call.ignored) == {
        *("messages[].content[].x", "messages[].id", "messages[].tool_call_id"),
        *("tools[].function.returns", "tools[].kind", "temprature", "stream_options.more", "metadata"),
    }
    assert isinstance(call.prompt, ChatPrompt)
    assert call.prompt.tools[0].parameters == '{"x":1}'
    assert [message.content for message in call.prompt.messages] == ["a", "b"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"moe2": {"energy_budget": 1}}, "moe2.energy_budget"),
        ({"suffix": "x"}, "suffix"),
        ({"temperature": "hot"}, "temperature"),
    ],
)
def test_what_is_known_is_never_left_out(fields: dict[str, Any], param: str) -> None:
    """Wrong values, parts that nobody can read and moe2's own object are refused whatever the settings say."""
    with pytest.raises(ApiError) as raised:
        parse_chat(
            msgspec.json.encode({"model": "m", "messages": [USER], **fields}), reading=Reading(ignore_unknown=True)
        )
    assert raised.value.param == param


def test_an_alias_stands_for_its_model() -> None:
    """Clients with a model's name built in find the one that the settings say."""
    reading = Reading(aliases={"gpt-4o-mini": "moe2"})
    body = {"model": "gpt-4o-mini", "messages": [USER]}
    assert parse_chat(msgspec.json.encode(body), reading=reading).model == "moe2"
