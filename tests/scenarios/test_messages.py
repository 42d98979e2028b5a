"""The Messages API through the stock Anthropic client, over fake experts that say the prompt's words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic

from moe2.coordinator.keys.store import KeyFile
from tests.coordinator.keys.keys import add_key
from tests.fakes.fleet import Fleet, fleet

pytestmark = pytest.mark.slow

TOOL: Any = {"name": "weather", "input_schema": {"type": "object"}}
ECHOED = 'Wait <tool_call> {"name":"weather","arguments":{"city":"Bonn"}} </tool_call>'


def client_of(running: Fleet) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=running.coordinator.api_url, auth_token="unused", max_retries=0)


def said(content: Any) -> Any:
    return [{"role": "user", "content": content}]


async def test_a_message_is_answered_with_its_receipt(tmp_path: Path) -> None:
    """The SDK finds text, stop reason and usage; the ledger has the request like any other."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        answer = await client.messages.create(model="moe2", max_tokens=2, messages=said("one two three"))
        assert answer.content[0].type == "text"
        assert answer.content[0].text == "one two "
        assert (answer.stop_reason, answer.model, answer.usage.output_tokens) == ("max_tokens", "fake", 2)
        assert answer.moe2["experts"][0]["outcome"] == "answered"  # type: ignore[attr-defined]
        async with running.http.get("/v1/moe2/ledger?by=model") as ledger:
            assert (await ledger.json())["sums"][0]["n_requests"] == 1


async def test_a_streamed_call_is_put_together_by_the_sdk(tmp_path: Path) -> None:
    """The SDK's accumulator ends with the text and the call; the prompt's length is there from the beginning."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        async with client.messages.stream(model="moe2", max_tokens=4, messages=said(ECHOED), tools=[TOOL]) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_message()
        assert kinds[0] == "message_start"
        assert [block.type for block in final.content] == ["text", "tool_use"]
        use = final.content[1]
        assert use.type == "tool_use"
        assert (use.name, use.input) == ("weather", {"city": "Bonn"})
        assert (final.usage.input_tokens, final.usage.output_tokens) == (4, 4)


async def test_a_tools_result_goes_back(tmp_path: Path) -> None:
    """The blocks of an answer come back as they were, with the result that the client adds."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        first = await client.messages.create(model="moe2", max_tokens=4, messages=said(ECHOED), tools=[TOOL])
        use = first.content[1]
        assert use.type == "tool_use"
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
        turns: Any = [*said(ECHOED), {"role": "assistant", "content": first.content}, *said([result])]
        second = await client.messages.create(model="moe2", max_tokens=1, messages=turns, tools=[TOOL])
        assert second.content[0].type == "text"
        assert second.content[0].text == "sunny "


async def test_a_stop_sequence_is_named(tmp_path: Path) -> None:
    """Whole and streamed: which of the client's own has ended the answer."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        asked: Any = {
            "model": "moe2",
            "max_tokens": 9,
            "messages": said("one two three"),
            "stop_sequences": ["x", "two"],
        }
        answer = await client.messages.create(**asked)
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "two")
        async with client.messages.stream(**asked) as stream:
            final = await stream.get_final_message()
        assert (final.stop_reason, final.stop_sequence) == ("stop_sequence", "two")
        assert final.content[0].type == "text"


async def test_tokens_are_counted_and_nothing_is_written(tmp_path: Path) -> None:
    """By the expert that would answer; the ledger has the request, which took next to nothing."""
    async with fleet(tmp_path) as running, client_of(running) as client:
        counted = await client.messages.count_tokens(model="moe2", messages=said("one two three"), tools=[TOOL])
        assert counted.input_tokens == 3
        assert counted.moe2["tokens"]["decoded"] == 0  # type: ignore[attr-defined]
        async with running.http.get("/v1/moe2/ledger?by=model") as ledger:
            assert (await ledger.json())["sums"][0]["n_requests"] == 1


async def test_errors_are_those_of_the_sdk(tmp_path: Path) -> None:
    """Statuses and envelope are Anthropic's, before a handler runs as well as within it."""
    async with fleet(tmp_path, api={"max_body_bytes": 20_000}) as running, client_of(running) as client:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await client.messages.create(model="moe2", max_tokens=0, messages=said("hi"))
        assert caught.value.body["error"]["param"] == "max_tokens"  # type: ignore[index]
        with pytest.raises(anthropic.NotFoundError) as missing:
            await client.messages.create(model="claude", max_tokens=1, messages=said("hi"))
        assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index]
        with pytest.raises(anthropic.APIStatusError) as large:
            await client.messages.create(model="moe2", max_tokens=1, messages=said("x" * 30_000))
        assert large.value.body["error"]["type"] == "request_too_large"  # type: ignore[index]
        async with running.http.get("/v1/messages/nothing") as answer:
            assert (await answer.json())["type"] == "error"


async def test_anthropics_own_header_carries_a_key(tmp_path: Path) -> None:
    """`x-api-key`, as the SDK sends it."""
    _, key = add_key(KeyFile(tmp_path))
    async with fleet(tmp_path, api={"keys": "required"}) as running:
        async with AsyncAnthropic(base_url=running.coordinator.api_url, api_key=key, max_retries=0) as client:
            answer = await client.messages.create(model="moe2", max_tokens=1, messages=said("hi"))
        assert answer.stop_reason == "max_tokens"


async def test_without_a_key_the_route_is_closed(tmp_path: Path) -> None:
    """401 in Anthropic's envelope."""
    async with fleet(tmp_path, agents=(), api={"keys": "required"}) as running, client_of(running) as client:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await client.messages.create(model="moe2", max_tokens=1, messages=said("hi"))
        assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
