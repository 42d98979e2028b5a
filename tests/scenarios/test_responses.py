"""The Responses API through the stock OpenAI client, over fake experts that say the prompt's words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from moe2.coordinator.keys.store import KeyFile
from tests.coordinator.keys.keys import add_key
from tests.fakes.fleet import fleet
from tests.scenarios.clients import client_of

pytestmark = pytest.mark.slow

TOOL: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
ECHOED = 'Wait <tool_call> {"name":"weather","arguments":{"city":"Bonn"}} </tool_call>'


async def test_a_text_is_answered_with_its_receipt(tmp_path: Path) -> None:
    """The SDK finds text, usage, and moe2's receipt; the ledger has the request like any other."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.responses.create(model="moe2", input="one two", max_output_tokens=2)
        assert answer.output_text == "one two "
        assert (answer.status, answer.model) == ("incomplete", "fake")
        assert answer.usage is not None
        assert answer.usage.output_tokens == 2
        assert answer.moe2["experts"][0]["outcome"] == "answered"  # type: ignore[attr-defined]
        async with running.http.get("/v1/moe2/ledger?by=model") as ledger:
            assert (await ledger.json())["sums"][0]["n_requests"] == 1


async def test_a_streamed_call_is_put_together_by_the_sdk(tmp_path: Path) -> None:
    """The SDK's accumulator ends with the text and the call."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        # The expert says the prompt again and again, and is stopped by its default of 16 tokens.
        async with client.responses.stream(model="moe2", input=ECHOED, tools=[TOOL]) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert "response.function_call_arguments.done" in kinds
        assert [item.type for item in final.output[:2]] == ["message", "function_call"]
        answer = await client.responses.create(model="moe2", input=ECHOED, tools=[TOOL])
        assert answer.output[0].type == "message"
        call = answer.output[1]
        assert call.type == "function_call"
        assert (call.name, call.arguments) == ("weather", '{"city":"Bonn"}')


async def test_the_conversation_goes_on_from_what_is_kept(tmp_path: Path) -> None:
    """`previous_response_id` brings the earlier turns; a response can be read again, and forgotten."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        first = await client.responses.create(model="moe2", input="one two three", max_output_tokens=3)
        second = await client.responses.create(
            model="moe2", input="four", previous_response_id=first.id, max_output_tokens=1
        )
        assert second.output_text == "four "
        assert (await client.responses.retrieve(first.id)).output_text == first.output_text
        items = await client.responses.input_items.list(second.id)
        assert [item.type for item in items.data] == ["message"]
        await client.responses.delete(first.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="moe2", input="five", previous_response_id=second.id)
        assert caught.value.code == "previous_response_not_found"
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(first.id)


async def test_what_is_not_to_be_stored_is_not(tmp_path: Path) -> None:
    """With `store: false` nothing is kept."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.responses.create(model="moe2", input="hi", store=False)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(answer.id)


async def test_another_key_does_not_find_a_response(tmp_path: Path) -> None:
    """Responses belong to the key that made them; without a key the route is closed."""
    _, one = add_key(KeyFile(tmp_path), 1)
    _, other = add_key(KeyFile(tmp_path), 2)
    async with fleet(tmp_path, api={"keys": "required"}) as running:
        async with client_of(running, one) as mine, client_of(running, other) as theirs, client_of(running) as nobody:
            answer = await mine.responses.create(model="moe2", input="hi")
            with pytest.raises(openai.NotFoundError):
                await theirs.responses.retrieve(answer.id)
            with pytest.raises(openai.BadRequestError):
                await theirs.responses.create(model="moe2", input="hi", previous_response_id=answer.id)
            with pytest.raises(openai.AuthenticationError):
                await nobody.responses.create(model="moe2", input="hi")


async def test_errors_name_the_parameter_as_this_route_calls_it(tmp_path: Path) -> None:
    """What the chat's checks refuse is blamed on `input`, `text.format` and the like."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="moe2", input="word " * 9000)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="moe2", input="hi", tool_choice="required", tools=[TOOL, TOOL])
        assert caught.value.param == "tools"
        with pytest.raises(openai.NotFoundError) as missing:
            await client.responses.create(model="gpt", input="hi")
        assert missing.value.code == "model_not_found"


CODEX: dict[str, Any] = {
    "model": "moe2",
    "stream": True,
    "store": False,
    "include": ["reasoning.encrypted_content"],
    "reasoning": {"summary": "auto"},
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "prompt_cache_key": "k",
    "client_metadata": {"x-codex-turn-metadata": "{}"},
    "tools": [
        {"type": "function", "name": "exec_command", "strict": False, "parameters": {"type": "object"}},
        {
            "type": "namespace",
            "name": "multi_agent_v1",
            "description": "Sub-agents.",
            "tools": [{"type": "function", "name": "close_agent", "strict": False, "parameters": {"type": "object"}}],
        },
        {"type": "web_search", "external_web_access": True},
    ],
}
"""What Codex CLI 0.171.0 sends with its default settings, shortened."""


async def test_what_codex_sends_by_default_is_answered(tmp_path: Path) -> None:
    """Functions of a group are offered one by one, and called with its name; a search of the web is left out."""
    call = '<tool_call>{"name": "close_agent", "arguments": {"target": "a"}}</tool_call>'
    message = {"type": "message", "id": "m", "role": "user", "content": [{"type": "input_text", "text": call}]}
    async with fleet(tmp_path) as running:
        async with running.http.post("/v1/responses", json={**CODEX, "input": [message]}) as answer:
            assert answer.status == 200
            ignored = answer.headers["x-moe2-ignored"]
            events = [json.loads(line[6:]) for line in (await answer.text()).splitlines() if line.startswith("data: ")]
        assert {"client_metadata", "tools[web_search]"} <= set(ignored.split(", "))
        item = next(item for item in events[-1]["response"]["output"] if item["type"] == "function_call")
        assert (item["name"], item["namespace"]) == ("close_agent", "multi_agent_v1")
        output = {"type": "function_call_output", "call_id": item["call_id"], "output": "closed"}
        async with running.http.post("/v1/responses", json={**CODEX, "input": [message, item, output]}) as answer:
            assert answer.status == 200
            assert "closed" in await answer.text()


@pytest.mark.parametrize(
    "tools", [[{"type": "namespace"}], [{"type": "namespace", "tools": [1]}], [{"type": "mcp"}], [1]]
)
async def test_tools_that_nobody_here_runs_are_named(tmp_path: Path, tools: list[Any]) -> None:
    """Each is a 400 about `tools`, whatever it holds."""
    async with fleet(tmp_path) as running:
        async with running.http.post("/v1/responses", json={"model": "moe2", "input": "a", "tools": tools}) as answer:
            assert answer.status == 400
            assert (await answer.json())["error"]["param"].startswith("tools[0]")
