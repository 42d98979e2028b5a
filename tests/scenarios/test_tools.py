"""Tools and structured answers through the stock OpenAI client, over fake experts that say what they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.fakes.fleet import FAKE_EXPERT, fleet
from tests.scenarios.clients import client_of

TOOLS: Any = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
ECHOED = '<tool_call> {"name":"weather","arguments":{"city":"Bonn"}} </tool_call> END'


def asked(text: str = ECHOED, **fields: Any) -> dict[str, Any]:
    return {"model": "moe2", "messages": [{"role": "user", "content": text}], "tools": TOOLS, "stop": "END", **fields}


@pytest.mark.slow
async def test_a_call_is_answered_in_openais_shape(tmp_path: Path) -> None:
    """The finish reason, the function's name and arguments, and no text."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.chat.completions.create(**asked())
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Bonn"}')
        assert call.id


@pytest.mark.slow
async def test_a_streamed_call_adds_up_to_the_same(tmp_path: Path) -> None:
    """The SDK's own accumulator puts the deltas together."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        state = ChatCompletionStreamState()
        async for chunk in await client.chat.completions.create(**asked("Wait " + ECHOED, stream=True)):
            state.handle_chunk(chunk)
        (choice,) = state.get_final_completion().choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "Wait"
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Bonn"}')


async def test_an_answer_without_a_call_is_plain(tmp_path: Path) -> None:
    """Offered tools change nothing else."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.chat.completions.create(**asked("No need END"))
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.content == "No need "
        assert answer.choices[0].message.tool_calls is None


@pytest.mark.slow
async def test_a_model_without_tools_is_a_clear_400(tmp_path: Path) -> None:
    """Nothing is sent to an expert whose template would drop them."""
    async with fleet(tmp_path, engine_argv=(*FAKE_EXPERT, "--no-tools")) as running, client_of(running) as client:
        with pytest.raises(openai.BadRequestError, match="template has no tools") as raised:
            await client.chat.completions.create(**asked())
        assert raised.value.code == "no_tools"


TWICE = ECHOED.replace("END", '<tool_call>{"name":"weather","arguments":{}}</tool_call> END')


@pytest.mark.parametrize("text", [ECHOED, TWICE])
async def test_older_functions_are_answered_as_they_were(tmp_path: Path, text: str) -> None:
    """One `function_call`, whole and streamed alike, and its finish reason."""
    legacy = asked(text, functions=[TOOLS[0]["function"]])
    del legacy["tools"]
    async with fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.chat.completions.create(**legacy)
        (choice,) = answer.choices
        assert (choice.finish_reason, choice.message.tool_calls) == ("function_call", None)
        called = choice.message.function_call
        assert (called.name, called.arguments) == ("weather", '{"city":"Bonn"}')
        name, arguments, reason = "", "", None
        async for chunk in await client.chat.completions.create(**legacy, stream=True):
            for choice in chunk.choices:
                reason = choice.finish_reason or reason
                if (delta := choice.delta.function_call) is not None:
                    name, arguments = name + (delta.name or ""), arguments + (delta.arguments or "")
        assert (name, arguments, reason) == ("weather", '{"city":"Bonn"}', "function_call")


async def test_a_streamed_call_names_its_function_first(tmp_path: Path) -> None:
    """The name comes before the arguments, and nothing comes twice."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        parts: list[tuple[str | None, str]] = []
        async for chunk in await client.chat.completions.create(**asked(stream=True)):
            for choice in chunk.choices:
                calls = choice.delta.tool_calls or ()
                parts += [(call.function.name, call.function.arguments) for call in calls]
        assert parts[0] == ("weather", "")
        assert {name for name, _ in parts[1:]} == {None}
        assert "".join(arguments for _, arguments in parts) == '{"city":"Bonn"}'


async def test_a_custom_tool_is_called_with_a_text(tmp_path: Path) -> None:
    """Its input is the text within the arguments, whole and streamed alike."""
    text = '<tool_call> {"name":"spell","arguments":{"input":"a b"}} </tool_call> END'
    request = asked(text) | {"tools": [{"type": "custom", "custom": {"name": "spell"}}]}
    async with fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.chat.completions.create(**request)
        (call,) = answer.choices[0].message.tool_calls
        assert (call.type, call.custom.name, call.custom.input) == ("custom", "spell", "a b")
        said = ""
        async for chunk in await client.chat.completions.create(**request, stream=True):
            for choice in chunk.choices:
                for each in choice.delta.model_dump().get("tool_calls") or ():
                    said += (each.get("custom") or {}).get("input", "")
        assert said == "a b"
